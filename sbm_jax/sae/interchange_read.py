"""Autoencoder checkpoints of SAELens, sparsify and this project (safetensors with a JSON configuration), read as `PortableSae`.

saev and overcomplete keep torch files; `interchange_torch` reads those. `read_sae` finds out which it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sbm_jax.errors import UserError
from sbm_jax.sae.interchange import Activation, PortableSae, single
from sbm_jax.sae.interchange_files import Tensors, read_json, read_tensors
from sbm_jax.sae.interchange_torch import SAEV_KEY, read_overcomplete, read_saev

SAELENS_WEIGHTS, SPARSIFY_WEIGHTS, PLAIN_WEIGHTS = "sae_weights.safetensors", "sae.safetensors", "weights.safetensors"
SAELENS_CONFIG = SPARSIFY_CONFIG = "cfg.json"
PLAIN_CONFIG = "sae.json"
SAELENS_SCALER = "activation_scaler.json"
PLAIN_FORMAT = "sbm-jax-sae"
FORMATS = ("saelens", "sparsify", "saev", "overcomplete", "plain")


def read_sae(path: Path, format: str | None = None, **facts: Any) -> PortableSae:
    """The autoencoder in a file or folder.

    Args:
        path: a folder with `cfg.json` (SAELens, sparsify) or `sae.json` (plain), or a torch or safetensors file (saev,
            overcomplete).
        format: one of FORMATS; None: told from the file names.
        facts: what the file does not say, for saev and overcomplete: `k`, `threshold`, `dictionary_norm`, `delta`
            (see `interchange_torch`).
    Raises UserError for a missing, damaged or unknown file, or one whose autoencoder has no such form.
    """
    if format not in (None, *FORMATS):
        raise UserError(f"format is {format!r}; expected one of {', '.join(FORMATS)}.")
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a folder or file of {', '.join(FORMATS)}.")
    found = format or detect(path)
    given = {name: value for name, value in facts.items() if value is not None}
    if found == "saev":
        return read_saev(path, **_known(path, found, given, {"k", "threshold"}))
    if found == "overcomplete":
        return read_overcomplete(path, **_known(path, found, given, {"k", "threshold", "dictionary_norm", "delta"}))
    _known(path, found, given, set())
    return {"saelens": read_saelens, "sparsify": read_sparsify, "plain": read_plain}[found](path)


def _known(path: Path, found: str, given: dict[str, Any], allowed: set[str]) -> dict[str, Any]:
    unknown = sorted(set(given) - allowed)
    if unknown:
        raise UserError(f"{path}: a {found} checkpoint says its own {', '.join(unknown)}; leave it out.")
    return given


def detect(path: Path) -> str:
    """Which of FORMATS a path is, by file names, and by the first byte for torch files (saev's start with JSON)."""
    if path.is_dir():
        for name, found in ((SAELENS_WEIGHTS, "saelens"), (SPARSIFY_WEIGHTS, "sparsify"), (PLAIN_WEIGHTS, "plain")):
            if (path / name).is_file():
                return found
        raise UserError(
            f"{path}: holds none of {SAELENS_WEIGHTS} (SAELens), {SPARSIFY_WEIGHTS} (sparsify), {PLAIN_WEIGHTS} (plain). "
            "Name the file itself if it is a saev or overcomplete checkpoint."
        )
    if path.suffix == ".safetensors":
        return "saev" if SAEV_KEY in read_tensors(path)[1] else "overcomplete"
    with path.open("rb") as file:
        return "saev" if file.read(1) == b"{" else "overcomplete"


def _integer(source: str, config: dict[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value != int(value):
        raise UserError(f"{source}: {name} is {value!r}, expected a whole number.")
    return int(value)


# SAELens -------------------------------------------------------------------------------------------------------------


def read_saelens(folder: Path) -> PortableSae:
    """`cfg.json` and `sae_weights.safetensors` of SAELens, as `SAE.load_from_disk` understands them (read in 6.54).

    Tensors W_enc [d, u], b_enc [u], W_dec [u, d], b_dec [d]; threshold or log_threshold [u] (jumprelu), topk_threshold
    [] (batchtopk kept as trained), b_gate, b_mag, r_mag [u] (gated), scaling_factor [u] (before version 6).
    apply_b_dec_to_input (default true): b_dec is subtracted from the input: our shift.
    rescale_acts_by_decoder_norm: pre-activations times the norms of the decoder's rows, codes divided by them in the
    decoder: both go into the weights. Before version 6 topk is an `activation_fn(_str)` with `activation_fn_kwargs`.
    A gated autoencoder shares its weights, so it is a JumpReLU: with g = s W_enc, z = relu(e^r g + b_mag) where
    g + b_gate > 0, that is where pre = e^r g + b_mag > b_mag - e^r b_gate (Rajamanoharan et al. 2024, 2404.16014).
    """
    source = str(folder)
    config = read_json(folder / SAELENS_CONFIG)
    tensors = Tensors(source, read_tensors(folder / SAELENS_WEIGHTS)[0])
    architecture = _saelens_architecture(source, config)
    w_enc, w_dec = (tensors.take(name, 2).astype(np.float64) for name in ("W_enc", "W_dec"))
    b_dec = tensors.take("b_dec", 1).astype(np.float64)
    threshold: np.ndarray | None = None
    if architecture == "gated":
        gain = np.exp(tensors.take("r_mag", 1).astype(np.float64))
        b_enc = tensors.take("b_mag", 1).astype(np.float64)
        threshold = b_enc - gain * tensors.take("b_gate", 1)
        w_enc = w_enc * gain
    else:
        b_enc = tensors.take("b_enc", 1).astype(np.float64)
    if architecture == "jumprelu":
        log = "log_threshold" in tensors
        threshold = tensors.take("log_threshold" if log else "threshold", 1).astype(np.float64)
        threshold = np.exp(threshold) if log else threshold
    if architecture in ("batchtopk", "matryoshka_batchtopk"):
        threshold = np.full(len(b_enc), float(tensors.take("topk_threshold", 0)))
    if config.get("rescale_acts_by_decoder_norm", False):
        norms = np.linalg.norm(w_dec, axis=1)
        if not norms.all():
            raise UserError(
                f"{source}: the decoder has rows of zeros, and rescale_acts_by_decoder_norm divides by them."
            )
        w_enc, b_enc, w_dec = w_enc * norms, b_enc * norms, w_dec / norms[:, None]
    if "scaling_factor" in tensors:
        factor = tensors.take("scaling_factor", 1)
        # Without the setting the library refuses factors other than 1.
        if not config.get("finetuning_scaling_factor") and not np.allclose(factor, 1):
            raise UserError(f"{source}: scaling_factor is not 1 although finetuning_scaling_factor is not set.")
        w_dec = w_dec * factor[:, None]
    tensors.finish()
    if threshold is not None:
        activation = Activation("threshold", threshold=single(np.maximum(threshold, 0.0)))
    elif architecture == "topk":
        kwargs = config.get("activation_fn_kwargs") or {}
        activation = Activation("topk", k=_integer(source, {"k": config.get("k", kwargs.get("k"))}, "k"))
    else:
        activation = Activation("relu")
    norm, factor = _saelens_norm(folder, config)
    sae = PortableSae(
        single(w_enc),
        single(b_enc),
        single(w_dec),
        single(b_dec),
        shift=single(b_dec if config.get("apply_b_dec_to_input", True) else np.zeros_like(b_dec)),
        activation=activation,
        token_norm=norm,
        source=source,
        metadata=config.get("metadata") or {k: config[k] for k in ("model_name", "hook_name") if k in config},
    )
    return sae if factor is None else sae.with_input(0.0, factor)


def _saelens_architecture(source: str, config: dict[str, Any]) -> str:
    architecture = config.get("architecture", "standard")
    function = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    if architecture == "standard" and function == "topk":
        architecture = "topk"
    elif function not in ("relu", "topk"):
        raise UserError(f"{source}: activation_fn is {function!r}; relu and topk can be read.")
    known = ("standard", "topk", "jumprelu", "gated", "batchtopk", "matryoshka_batchtopk")
    if architecture not in known:
        raise UserError(f"{source}: architecture is {architecture!r}; {', '.join(known)} can be read.")
    return architecture


def _saelens_norm(folder: Path, config: dict[str, Any]) -> tuple[Any, float | None]:
    """Token normalisation, and the factor on inputs that was not folded into the weights yet."""
    norm = config.get("normalize_activations") or "none"
    if norm in ("none", "layer_norm", "constant_norm_rescale"):
        return norm, None
    if norm in (True, "expected_average_only_in"):
        if not (folder / SAELENS_SCALER).is_file():
            raise UserError(
                f"{folder}: inputs are scaled to a mean norm (normalize_activations {norm!r}), but the factor is neither in "
                f"the weights nor in {SAELENS_SCALER}. Export with fold_activation_norm_scaling_factor first."
            )
        factor = read_json(folder / SAELENS_SCALER).get("scaling_factor")
        return "none", float(factor) if factor is not None else 1.0
    raise UserError(f"{folder}: normalize_activations is {norm!r}; fold it into the weights before saving.")


# sparsify ------------------------------------------------------------------------------------------------------------


def read_sparsify(folder: Path) -> PortableSae:
    """`cfg.json` and `sae.safetensors` of EleutherAI's sparsify (1.3; older files have `signed`, no `activation`).

    Tensors encoder.weight [u, d], encoder.bias [u], W_dec [u, d], b_dec [d]. The encoder subtracts b_dec; pre-activations
    pass a ReLU before the k largest are taken, unless `signed`.
    """
    source = str(folder)
    config = read_json(folder / SPARSIFY_CONFIG)
    for name in ("transcode", "skip_connection"):
        if config.get(name):
            raise UserError(f"{source}: {name} is set: it maps one activation to another and is no autoencoder.")
    tensors = Tensors(source, read_tensors(folder / SPARSIFY_WEIGHTS)[0])
    kind = config.get("activation", "topk")
    if kind not in ("topk", "groupmax"):
        raise UserError(f"{source}: activation is {kind!r}; topk and groupmax can be read.")
    b_dec = tensors.take("b_dec", 1)
    sae = PortableSae(
        single(tensors.take("encoder.weight", 2).T),
        tensors.take("encoder.bias", 1),
        tensors.take("W_dec", 2),
        b_dec,
        shift=b_dec,
        activation=Activation(kind, k=_integer(source, config, "k"), signed=bool(config.get("signed", False))),
        source=source,
        metadata={"hook_name": folder.name},
    )
    tensors.finish()
    return sae


# Ours ----------------------------------------------------------------------------------------------------------------


def read_plain(folder: Path) -> PortableSae:
    """What `interchange_write.write_plain` wrote."""
    source = str(folder)
    config = read_json(folder / PLAIN_CONFIG)
    if config.get("format") != PLAIN_FORMAT or config.get("version") != 1:
        raise UserError(
            f"{folder / PLAIN_CONFIG}: format {config.get('format')!r} version {config.get('version')!r}, expected "
            f"{PLAIN_FORMAT!r} version 1."
        )
    tensors = Tensors(source, read_tensors(folder / PLAIN_WEIGHTS)[0])
    act = config.get("activation") or {}
    if act.get("kind") not in ("relu", "topk", "groupmax", "threshold"):
        raise UserError(f"{folder / PLAIN_CONFIG}: activation is {act!r}.")
    sae = PortableSae(
        **{name: tensors.take(name, 2) for name in ("w_enc", "w_dec")},
        **{name: tensors.take(name, 1) for name in ("b_enc", "b_dec", "shift")},
        activation=Activation(
            act["kind"],
            k=act.get("k"),
            signed=bool(act.get("signed")),
            threshold=tensors.take("threshold", 1) if act["kind"] == "threshold" else None,
        ),
        token_norm=config.get("token_norm", "none"),
        source=source,
        metadata=config.get("metadata", {}),
    )
    tensors.finish()
    return sae
