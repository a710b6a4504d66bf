"""Autoencoders written for others: a folder that SAELens opens, or plain safetensors with JSON; one folder each of a store.

Both hold the codes of raw activations: the input normalisation of training is in the weights.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sbm_jax.errors import UserError
from sbm_jax.sae.interchange import Activation, PortableSae, from_model, single
from sbm_jax.sae.interchange_read import (
    PLAIN_CONFIG,
    PLAIN_FORMAT,
    PLAIN_WEIGHTS,
    SAELENS_CONFIG,
    SAELENS_WEIGHTS,
)
from sbm_jax.sae.objectives import OBJECTIVES
from sbm_jax.store.arrays import guarded
from sbm_jax.store.spec import pretty_json
from sbm_jax.store.store import Store

SAELENS_VERSION = "6.0.0"  # whose configuration is written; SAELens takes one without a version for an older one
WriteFormat = Literal["saelens", "plain"]


def write_sae(sae: PortableSae, folder: Path, format: WriteFormat) -> Path:
    """Write one autoencoder into the new folder. Raises UserError when it exists, or the format has no such autoencoder."""
    if format == "saelens":
        return write_saelens(sae, folder)
    if format == "plain":
        return write_plain(sae, folder)
    raise UserError(f"format is {format!r}; saelens and plain can be written.")


def write_saelens(sae: PortableSae, folder: Path) -> Path:
    """`cfg.json` and `sae_weights.safetensors` for `SAE.load_from_disk` (SAELens 6 and later).

    SAELens subtracts b_dec from the input where we subtract `shift`, so with apply_b_dec_to_input
    (x - shift) w_enc + b_enc = (x - b_dec) w_enc + [b_enc + (b_dec - shift) w_enc]; the bracket is the b_enc written,
    computed in float64. Codes and reconstructions are the same but for float32 rounding. The input is centred before the
    product as in training: leaving that to b_enc alone would cost digits where activations have a large mean.
    Architecture: standard (relu), topk, or jumprelu (threshold). Raises UserError for groupmax and signed codes.
    """
    act = sae.activation
    if act.kind == "groupmax" or act.signed:
        kind = "groupmax codes" if act.kind == "groupmax" else f"{act.kind} codes that may be negative"
        raise UserError(f"{sae.source}: SAELens has no autoencoder with {kind}. Write format plain.")
    moved = (sae.b_dec.astype(np.float64) - sae.shift) @ sae.w_enc.astype(np.float64)
    tensors = {"W_enc": sae.w_enc, "b_enc": single(sae.b_enc + moved), "W_dec": sae.w_dec, "b_dec": sae.b_dec}
    config: dict[str, Any] = {
        "architecture": {"relu": "standard", "topk": "topk", "threshold": "jumprelu"}[act.kind],
        "d_in": sae.d,
        "d_sae": sae.units,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": sae.token_norm,
        "reshape_activations": "none",
        "metadata": {**_names(sae.metadata), "sae_lens_version": SAELENS_VERSION},
    }
    if act.kind == "topk":
        config |= {"k": act.k, "rescale_acts_by_decoder_norm": False}
    if act.threshold is not None:
        tensors["threshold"] = act.threshold
    return _write(folder, SAELENS_WEIGHTS, tensors, SAELENS_CONFIG, config)


def _names(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What SAELens looks at, and our own record of where the autoencoder came from."""
    kept = ("model_name", "hook_name", "token_kind", "store", "objective", "k", "sparsity", "lr", "seed")
    return {key: metadata[key] for key in kept if key in metadata}


def write_plain(sae: PortableSae, folder: Path) -> Path:
    """`sae.json` and `weights.safetensors`: w_enc [d, u], b_enc, w_dec [u, d], b_dec, shift, threshold, all float32.

    They mean what `PortableSae` says. Written and read again, every number is the same.
    """
    names = ("w_enc", "b_enc", "w_dec", "b_dec", "shift")
    tensors = {name: getattr(sae, name) for name in names}
    act = sae.activation
    if act.threshold is not None:
        tensors["threshold"] = act.threshold
    config = {
        "format": PLAIN_FORMAT,
        "version": 1,
        "equations": "s = t(x) - shift; pre = s w_enc + b_enc; z = activation(pre); x_hat = t_inverse(z w_dec + b_dec)",
        "activation": {"kind": act.kind, "k": act.k, "signed": act.signed},
        "token_norm": sae.token_norm,
        "metadata": sae.metadata,
    }
    return _write(folder, PLAIN_WEIGHTS, tensors, PLAIN_CONFIG, config)


def _write(
    folder: Path, weights: str, tensors: dict[str, np.ndarray], config_name: str, config: dict[str, Any]
) -> Path:
    """Both files in a folder that has its name only when it is complete."""
    from safetensors.numpy import save_file

    if folder.exists():
        raise UserError(f"{folder} exists already. Name a new folder, or delete it.")
    partial = folder.with_name(folder.name + ".partial")
    with guarded(f"writing {partial}"):
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        save_file({name: single(value) for name, value in tensors.items()}, partial / weights, {"format": "pt"})
        (partial / config_name).write_text(pretty_json(config), encoding="utf-8")
        os.replace(partial, folder)  # noqa: PTH105  (a folder)
    return folder


def export_store(store: Store, out: Path, format: WriteFormat, model_name: str = "") -> list[Path]:
    """One folder `<number>.<hook>.<kind>` per autoencoder of a `saes` store under `out`; the folders, in the store's order.

    model_name: the backbone, for SAELens's metadata. Raises UserError when `store` holds no autoencoders or a folder exists.
    """
    if store.spec.get("kind") != "saes":
        raise UserError(
            f"{store.path} is a store of {store.spec.get('kind')!r}, expected saes (made by the train stage)."
        )
    folders = []
    members = store.json("metrics.json")["members"]
    first = members[0]["expansion"]
    for index, member in enumerate(members):
        # Not an autoencoder of the model, but of its architecture before training.
        twin = " (untrained)" if member["kind"] == "untrained" else ""
        names = {
            "model_name": model_name + twin,
            "hook_name": member["hook"],
            "token_kind": member["kind"],
            "store": store.name,
        }
        # Arrays of further dictionary sizes lie in a folder of their own.
        size = member["expansion"]
        place = sum(other["expansion"] == size for other in members[:index])
        sae = stored_sae(store, "" if size == first else f"expansion{size}/", place, member, names)
        folders.append(write_sae(sae, out / f"{index:03d}.{member['hook']}.{member['kind']}", format))
    return folders


def stored_sae(
    store: Store, folder: str, index: int, member: Mapping[str, Any], metadata: dict[str, Any]
) -> PortableSae:
    """Autoencoder `index` of the arrays in `folder` of a `saes` store; member: its record in `metrics.json`."""
    arrays = {
        name: store.read(folder + name, slice(index, index + 1))[0]
        for name in ("w_enc", "b_enc", "w_dec", "b_dec", "mean", "scale", "threshold")
    }
    threshold = arrays.pop("threshold")
    if not OBJECTIVES[member["objective"]].dense:
        activation = Activation("topk", k=int(member["k"]))
    elif threshold.any():
        activation = Activation("threshold", threshold=threshold)
    else:
        activation = Activation("relu")
    point = {name: member[name] for name in ("objective", "k", "sparsity", "lr", "seed", "expansion")}
    return from_model(
        **arrays, activation=activation, source=f"{store.path} {folder}[{index}]", metadata={**metadata, **point}
    )
