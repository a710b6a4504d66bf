"""One autoencoder in raw input coordinates, as every library's checkpoint can be said, with its meaning in NumPy float64.

    s = t(x) - shift;  pre = s w_enc + b_enc;  z = activation(pre);  x^ = t^-1(z w_dec + b_dec)

t is the identity, or a normalisation of each token by its own statistics (`TokenNorm`). Codes z are those of the library
that wrote the checkpoint: whatever it does to its input is in `shift` and in the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from sbm_jax.errors import UserError

Kind = Literal["relu", "topk", "groupmax", "threshold"]
TokenNorm = Literal["none", "layer_norm", "constant_norm_rescale"]
LAYER_NORM_EPS = 1e-5  # added to the standard deviation, which has d - 1 in its denominator (SAELens)


@dataclass(frozen=True)
class Activation:
    """What makes codes of pre-activations.

    relu: max(pre, 0).
    topk: the k largest of each token, the others 0 (of equals the lower index); then max(., 0) unless `signed`.
    groupmax: u units in k runs of u / k neighbours; the largest of each run, the others 0; then max(., 0).
    threshold: pre where pre > threshold [u] (float32, >= 0), else 0. BatchTopK in evaluation, JumpReLU and gated
    autoencoders are of this kind.
    """

    kind: Kind
    k: int | None = None
    signed: bool = False
    threshold: np.ndarray | None = None

    def apply(self, pre: np.ndarray) -> np.ndarray:
        """Codes [n, u] of pre-activations [n, u]."""
        if self.kind == "relu":
            return np.maximum(pre, 0.0)
        if self.kind == "threshold":
            return np.where(pre > self.threshold, pre, 0.0)
        assert self.k is not None
        if self.kind == "groupmax":
            n, u = pre.shape
            kept = np.argmax(pre.reshape(n, self.k, u // self.k), axis=2) + np.arange(self.k) * (u // self.k)
        else:
            kept = np.argsort(-pre, axis=1, kind="stable")[:, : self.k]
        values = np.take_along_axis(pre, kept, axis=1)
        codes = np.zeros_like(pre)
        np.put_along_axis(codes, kept, values if self.signed else np.maximum(values, 0.0), axis=1)
        return codes


def at_least(threshold: np.ndarray) -> np.ndarray:
    """The float32 numbers t' for which `pre > t'` says `pre >= threshold` of any float32 pre."""
    return np.nextafter(threshold.astype(np.float32), np.float32(-np.inf))


@dataclass(frozen=True)
class PortableSae:
    """An autoencoder of d dimensions and u units; see the module for its equations. Arrays are float32.

    w_enc [d, u], b_enc [u], w_dec [u, d], b_dec [d], shift [d]. source: the file, for messages. metadata: JSON that came
    with it and what is said of it on export (`model_name`, `hook_name`).
    Raises UserError when shapes do not fit, numbers are not finite, or k is not in 1..u.
    """

    w_enc: np.ndarray
    b_enc: np.ndarray
    w_dec: np.ndarray
    b_dec: np.ndarray
    shift: np.ndarray
    activation: Activation
    token_norm: TokenNorm = "none"
    source: str = "autoencoder"
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        d, u = self.w_enc.shape if self.w_enc.ndim == 2 else (-1, -1)
        shapes = {"w_enc": (d, u), "b_enc": (u,), "w_dec": (u, d), "b_dec": (d,), "shift": (d,)}
        for name, shape in shapes.items():
            self._check(name, getattr(self, name), shape)
        act = self.activation
        if (act.kind == "threshold") != (act.threshold is not None) or (act.kind in ("topk", "groupmax")) != (
            act.k is not None
        ):
            raise ValueError(f"activation {act.kind} with k {act.k} and threshold {act.threshold}")
        if act.threshold is not None:
            self._check("threshold", act.threshold, (u,))
        if act.k is not None and not 1 <= act.k <= u:
            raise UserError(f"{self.source}: k is {act.k}, but the dictionary has {u} units.")
        if act.kind == "groupmax" and u % (act.k or 1):
            raise UserError(f"{self.source}: {u} units cannot be cut into k = {act.k} groups of one size.")

    def _check(self, name: str, value: np.ndarray, shape: tuple[int, ...]) -> None:
        if value.shape != shape or min(shape) < 1:
            raise UserError(
                f"{self.source}: {name} has shape {list(value.shape)}, expected {list(shape)} "
                f"(w_enc is {list(self.w_enc.shape)}, read as [d, u]). The file is of another layout."
            )
        if value.dtype != np.float32:
            raise ValueError(f"{name} is {value.dtype}, not float32")
        if not np.isfinite(value).all():
            raise UserError(f"{self.source}: {name} has numbers that are not finite; training had diverged.")

    @property
    def d(self) -> int:
        return self.w_enc.shape[0]

    @property
    def units(self) -> int:
        return self.w_enc.shape[1]

    def with_input(self, mean: np.ndarray | float, scale: float) -> PortableSae:
        """The same autoencoder for raw tokens, when it was made for scale (x - mean), and gives that back undone.

        s = scale (x - mean) - shift = scale (x - (mean + shift / scale)), so shift becomes mean + shift / scale, w_enc is
        multiplied by scale, and the output (z w_dec + b_dec) / scale + mean goes into w_dec and b_dec. Products in
        float64, each number rounded once to float32. Codes do not change.
        """
        if not (math.isfinite(scale) and scale > 0):
            raise UserError(f"{self.source}: the input scale is {scale}, expected a positive number.")
        if self.token_norm != "none":
            raise UserError(f"{self.source}: normalises each token ({self.token_norm}); give no input mean or scale.")
        w = {name: getattr(self, name).astype(np.float64) for name in ("w_enc", "w_dec", "b_dec", "shift")}
        return replace(
            self,
            w_enc=single(w["w_enc"] * scale),
            w_dec=single(w["w_dec"] / scale),
            b_dec=single(w["b_dec"] / scale + mean),
            shift=single(w["shift"] / scale + mean),
        )


def single(x: np.ndarray) -> np.ndarray:
    """As contiguous float32."""
    return np.asarray(x, np.float32, order="C")  # ascontiguousarray would give a scalar an axis


def from_model(
    w_enc: np.ndarray,
    b_enc: np.ndarray,
    w_dec: np.ndarray,
    b_dec: np.ndarray,
    mean: np.ndarray,
    scale: np.ndarray | float,
    activation: Activation,
    source: str,
    metadata: dict[str, Any],
) -> PortableSae:
    """One autoencoder of this project: x' = scale (x - mean), codes of x' w_enc + b_enc, output z w_dec + b_dec.

    Shapes as in `model`, without the leading axis.
    """
    made = PortableSae(
        single(w_enc),
        single(b_enc),
        single(w_dec),
        single(b_dec),
        shift=np.zeros(len(b_dec), np.float32),
        activation=activation,
        source=source,
        metadata=metadata,
    )
    return made.with_input(np.asarray(mean, np.float64), float(scale))


def as_model(sae: PortableSae) -> tuple[dict[str, np.ndarray], str, int | None]:
    """Arrays as a store of autoencoders has them (no leading axis), the objective whose codes they are, and its k.

    w_enc, b_enc, w_dec, b_dec, threshold [u], mean, scale; the objective is topk, relu or jumprelu. mean is `shift`,
    scale 1, and b_dec is counted from the mean, as `model` has it. Decoder rows keep their norms: to scale them to 1 would
    change which units are the k largest. Raises UserError for codes that may be negative, groups, and token norms.
    """
    act = sae.activation
    if act.kind == "groupmax" or act.signed or sae.token_norm != "none":
        raise UserError(
            f"{sae.source}: {act.kind} activation{' with negative codes' if act.signed else ''}, token normalisation "
            f"{sae.token_norm}; our model has non-negative topk, relu and threshold codes of raw tokens only."
        )
    arrays = {
        "w_enc": sae.w_enc,
        "b_enc": sae.b_enc,
        "w_dec": sae.w_dec,
        "b_dec": single(sae.b_dec.astype(np.float64) - sae.shift),
        "threshold": np.zeros(sae.units, np.float32) if act.threshold is None else act.threshold,
        "mean": sae.shift,
        "scale": np.ones((), np.float32),
    }
    return arrays, {"topk": "topk", "relu": "relu", "threshold": "jumprelu"}[act.kind], act.k


def _token_norm(kind: TokenNorm, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normalised tokens [n, d], and what undoes it: factor [n, 1] and offset [n, 1] with x = factor t(x) + offset.

    layer_norm is undone with the plain standard deviation although it was divided by std + eps, as SAELens does.
    """
    n, d = x.shape
    if kind == "none":
        return x, np.ones((n, 1)), np.zeros((n, 1))
    if kind == "layer_norm":
        offset = x.mean(axis=1, keepdims=True)
        factor = (x - offset).std(axis=1, keepdims=True, ddof=1)
        return (x - offset) / (factor + LAYER_NORM_EPS), factor, offset
    factor = np.linalg.norm(x, axis=1, keepdims=True) / math.sqrt(d)
    return x / factor, factor, np.zeros((n, 1))


def encode_reference(sae: PortableSae, x: np.ndarray) -> np.ndarray:
    """Codes [n, u] of raw tokens [n, d], in float64: the specification of every reader and writer."""
    normalised, _, _ = _token_norm(sae.token_norm, np.asarray(x, np.float64))
    return sae.activation.apply((normalised - sae.shift) @ sae.w_enc.astype(np.float64) + sae.b_enc)


def decode_reference(sae: PortableSae, z: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Reconstruction [n, d] of codes [n, u], in float64. x [n, d] gives the statistics that undo a token norm."""
    _, factor, offset = _token_norm(sae.token_norm, np.asarray(x, np.float64))
    return (np.asarray(z, np.float64) @ sae.w_dec.astype(np.float64) + sae.b_dec) * factor + offset
