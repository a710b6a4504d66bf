"""Checkpoints of saev and overcomplete, which are torch files: read by torch itself with `weights_only=True`, never unpickled.

Without torch, write the same tensors to a safetensors file where torch is (the error messages say how) and read that.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sbm_jax.errors import UserError
from sbm_jax.sae.interchange import Activation, PortableSae, at_least, single
from sbm_jax.sae.interchange_files import Tensors, read_tensors

SAEV_KEY = "saev"  # metadata key under which a converted saev file keeps the header line
_NORM_EPS = 1e-8  # added by overcomplete to norms and row sums that it divides by
DictionaryNorm = Literal["l2", "max_l2", "l1", "max_l1", "identity"]

_CONVERT_SAEV = (
    'with open("sae.pt", "rb") as f: header = f.readline().decode(); state = torch.load(f, weights_only=True); '
    'safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, "sae.safetensors", {"saev": header})'
)
_CONVERT_OVERCOMPLETE = (
    'safetensors.torch.save_file({k: v.contiguous().clone() for k, v in sae.state_dict().items()}, "sae.safetensors")'
)


def _torch_state(path: Path, data: bytes, convert: str) -> dict[str, np.ndarray]:
    """A state dict as float32 arrays. Raises UserError without torch, or when the file holds more than tensors."""
    try:
        import torch  # pyright: ignore[reportMissingImports]  (optional)
    except ImportError:
        raise UserError(
            f"{path} is a torch file and torch is not installed. Install torch, or convert the file where torch is:\n  "
            f"{convert}\nand read sae.safetensors."
        ) from None
    try:
        state: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises unpickling, zip, runtime and value errors
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path}: torch does not read it as plain tensors ({reason}). If a whole module was saved, load it with its "
            f"library and save the tensors:\n  {convert}"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(f"{path}: holds a {type(state).__name__}, expected a state dict (names to tensors).")
    return {str(name): single(value.detach().to(torch.float32).numpy()) for name, value in state.items()}


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}).") from None


# saev ----------------------------------------------------------------------------------------------------------------


def read_saev(path: Path, k: int | None = None, threshold: float | None = None) -> PortableSae:
    """saev's `sae.pt`: one line of JSON, then a torch state dict W_enc [d, u], b_enc [u], W_dec [u, d], b_dec [d].

    The line has `schema` (none, 1 to 5) and the configuration. The tensors do not say what the encoder did with b_dec:
    it subtracted it from the input as long as the header named the activation as the class of the configuration
    (`cls` Relu, TopK or BatchTopK of schema 1, or no schema at all), and has not done so since. saev's present loader
    reads the old files too but no longer subtracts, so it gives other codes for them.
    TopK keeps negative values (no ReLU). BatchTopK in evaluation is pre > `activation.threshold` (a ReLU where that is
    not positive); files from before that tensor chose over the batch, so `threshold` must say where to cut.
    saev centres and scales activations in its data loader at times and keeps no record of it here: see
    `PortableSae.with_input`. Raises UserError also for a `k` unlike the file's.
    """
    if path.suffix == ".safetensors":
        state, metadata = read_tensors(path)
        line = metadata.get(SAEV_KEY, "")
    else:
        first, _, rest = _bytes(path).partition(b"\n")
        line = first.decode("utf-8", errors="replace")
        state = _torch_state(path, rest, _CONVERT_SAEV)
    source = str(path)
    header = _saev_header(source, line)
    name, params, subtracts = _saev_config(source, header)
    tensors = Tensors(source, state)
    w_enc, b_enc = tensors.take("W_enc", 2), tensors.take("b_enc", 1)
    w_dec, b_dec = tensors.take("W_dec", 2), tensors.take("b_dec", 1)
    if name == "Relu":
        activation = Activation("relu")
    elif name == "TopK":
        stated = int(params.get("top_k", 32))
        if k not in (None, stated):
            raise UserError(f"{source}: k is {k}, but the file says {stated}.")
        activation = Activation("topk", k=min(stated, len(b_enc)), signed=True)
    elif name == "BatchTopK":
        if "activation.threshold" in tensors:
            threshold = float(tensors.take("activation.threshold", 0))
        elif threshold is None:
            raise UserError(
                f"{source}: a BatchTopK without activation.threshold (written before saev kept one): its codes depend on "
                "the batch. Give threshold, the smallest pre-activation to keep."
            )
        cut = np.full(len(b_enc), max(threshold or 0.0, 0.0), np.float32)
        activation = Activation("threshold", threshold=cut)
    else:
        raise UserError(f"{source}: activation {name!r}; Relu, TopK and BatchTopK can be read.")
    tensors.finish()
    return PortableSae(
        w_enc,
        b_enc,
        w_dec,
        b_dec,
        shift=b_dec if subtracts else np.zeros_like(b_dec),
        activation=activation,
        source=source,
        metadata={"saev": header},
    )


def _saev_header(source: str, line: str) -> dict[str, Any]:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise UserError(f"{source}: does not begin with a line of JSON, as saev's checkpoints do.")
    return header


def _saev_config(source: str, header: dict[str, Any]) -> tuple[str, dict[str, Any], bool]:
    """Activation class, its parameters, and whether the encoder subtracted b_dec."""
    schema = header.get("schema", 0)
    if schema not in (0, 1, 2, 3, 4, 5):
        raise UserError(f"{source}: saev schema {schema!r}; 1 to 5 and files without one can be read.")
    if schema == 0:
        return "Relu", {}, True
    config = header.get("cfg")
    if not isinstance(config, dict):
        raise UserError(f"{source}: the header has no cfg.")
    if schema == 1 and header.get("cls") != "SparseAutoencoderConfig" and "activation" not in config:
        return str(header.get("cls")), config, True
    activation = config.get("activation")
    if not isinstance(activation, dict) or "cls" not in activation:
        # Some files of schema 1 name no activation: it was the default.
        if schema == 1 and activation is None:
            return "Relu", {}, False
        raise UserError(f"{source}: cfg.activation is {activation!r}, expected its class and parameters.")
    return str(activation["cls"]), activation.get("params") or {}, False


# overcomplete --------------------------------------------------------------------------------------------------------


def read_overcomplete(
    path: Path,
    k: int | None = None,
    threshold: float | None = None,
    dictionary_norm: DictionaryNorm = "l2",
    delta: float = 1.0,
) -> PortableSae:
    """State dict of an overcomplete 0.3 SAE with a linear encoder, as torch or safetensors file; tokens enter as they are.

    Encoder: encoder.final_block.0.weight [u, d] and .bias [u] (linear), encoder.weight and perhaps encoder.bias
    (untied), or the dictionary itself (tied). Dictionary: dictionary._weights [u, d] normalised, or for an archetypal one
    rows of relu(dictionary.W), made to sum to 1, times dictionary.C, plus dictionary.Relax cut to length delta; times
    exp(dictionary.multiplier). Codes after a ReLU: with `thresholds` [u], kept where >= exp(thresholds) (JumpSAE).

    Args (the file does not say them):
        k: `top_k` of a TopKSAE: the k largest codes.
        threshold: `running_threshold` of a BatchTopKSAE: codes >= it; 0 for a plain SAE.
        dictionary_norm: `normalization` of the dictionary; `delta`: of an archetypal one. The library's defaults.
    """
    source = str(path)
    if path.suffix == ".safetensors":
        state = read_tensors(path)[0]
    else:
        state = _torch_state(path, _bytes(path), _CONVERT_OVERCOMPLETE)
    tied = {name for name in state if name.startswith("encoder.tied_to.")}  # the dictionary a second time
    tensors = Tensors(source, {name: value for name, value in state.items() if name not in tied})
    dictionary = _dictionary(source, tensors, dictionary_norm, delta)
    bias = np.zeros(len(dictionary))
    if tied:
        w_enc = dictionary.T
    elif "encoder.weight" in tensors:
        w_enc = tensors.take("encoder.weight", 2).T
    else:
        w_enc = tensors.take("encoder.final_block.0.weight", 2).T
        bias = tensors.take("encoder.final_block.0.bias", 1)
    if "encoder.bias" in tensors:
        bias = tensors.take("encoder.bias", 1)
    jump = tensors.take("thresholds", 1) if "thresholds" in tensors else None
    tensors.finish()
    return PortableSae(
        single(w_enc),
        single(bias),
        single(dictionary),
        b_dec=np.zeros(dictionary.shape[1], np.float32),
        shift=np.zeros(dictionary.shape[1], np.float32),
        activation=_overcomplete_activation(source, len(dictionary), jump, k, threshold),
        source=source,
        metadata={},
    )


def _overcomplete_activation(
    source: str, units: int, jump: np.ndarray | None, k: int | None, threshold: float | None
) -> Activation:
    given = [name for name, value in (("k", k), ("threshold", threshold)) if value is not None]
    if jump is not None:
        if given:
            raise UserError(f"{source}: has thresholds of its own (JumpSAE); leave out {' and '.join(given)}.")
        return Activation("threshold", threshold=np.maximum(at_least(np.exp(jump)), 0.0))
    if len(given) != 1:
        raise UserError(
            f"{source}: the file does not say how codes are chosen. Give either k (TopKSAE: sae.top_k) or threshold "
            f"(BatchTopKSAE: sae.running_threshold; 0 for a plain SAE); given: {' and '.join(given) or 'neither'}."
        )
    if k is not None:
        return Activation("topk", k=k)
    cut = np.full(units, threshold, np.float32)
    return Activation("threshold", threshold=np.maximum(at_least(cut), 0.0)) if cut[0] > 0 else Activation("relu")


def _dictionary(source: str, tensors: Tensors, norm: DictionaryNorm, delta: float) -> np.ndarray:
    """Rows of the dictionary [u, d], float64, as the library fuses them when it goes to evaluation."""
    scale = float(np.exp(tensors.take("dictionary.multiplier", 0).astype(np.float64)))
    if "dictionary.C" in tensors:
        points = tensors.take("dictionary.C", 2).astype(np.float64)
        weights = np.maximum(tensors.take("dictionary.W", 2).astype(np.float64), 0.0)
        weights = weights / (weights.sum(axis=1, keepdims=True) + _NORM_EPS)
        relax = tensors.take("dictionary.Relax", 2).astype(np.float64)
        length = np.linalg.norm(relax, axis=1, keepdims=True)
        shrink = np.where(length > delta, delta / np.where(length > 0, length, 1.0), 1.0)
        return (weights @ points + relax * shrink) * scale
    rows = tensors.take("dictionary._weights", 2).astype(np.float64)
    if norm not in ("l2", "max_l2", "l1", "max_l1", "identity"):
        raise UserError(f"{source}: dictionary_norm is {norm!r}; expected l2, max_l2, l1, max_l1 or identity.")
    if norm == "identity":
        return rows * scale
    length = np.linalg.norm(rows, ord=2 if norm.endswith("l2") else 1, axis=1, keepdims=True)
    return rows / (length.max() if norm.startswith("max_") else length + _NORM_EPS) * scale
