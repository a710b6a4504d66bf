"""The architecture of a backbone with the weights that its family's training starts from: a control for what training adds.

Biases are 0 and gains of LayerNorm 1 throughout; kernels, tokens and positions by family (`SCHEMES`), sd = standard deviation:

    clip                    normal: patches .02, query, key, value and the second MLP layer (2 L d)^-1/2, attention output d^-1/2,
                            the first MLP layer (2 d)^-1/2; CLS d^-1/2, positions .02 (OpenAI's and transformers' CLIP)
    siglip, siglip2         Glorot uniform, patches LeCun normal; positions d^-1/2 (big_vision)
    vit, torchvision_vit    Glorot uniform, patches LeCun normal; CLS 0, positions .02 (Dosovitskiy et al. 2021)
    vit_mae                 Glorot uniform; CLS .02, the fixed sines and cosines of the model as positions (He et al. 2022)
    dinov2..., dinov3_vit   normal .02 everywhere (the reference code truncates at +-2, which is 100 sd away)

Layer scale is 1, as in the configurations of transformers: at the 1e-5 from which DINOv2 starts, blocks would add nothing to
the patch embedding, and all layers would be the same control.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from sbm_jax.backbones.loader import Backbone
from sbm_jax.backbones.spec import VisionSpec
from sbm_jax.backbones.vit import VisionTransformer

_SPREAD = 0.02


class Law(NamedTuple):
    """Standard deviation, and whether numbers are uniform instead of normal."""

    sd: float
    uniform: bool = False


def _glorot(fan_in: int, fan_out: int) -> Law:
    return Law(math.sqrt(2 / (fan_in + fan_out)), uniform=True)


def _clip(layer: str, shape: tuple[int, ...], spec: VisionSpec) -> Law:
    d = spec.block.width
    sds = {"patches": _SPREAD, "out": d**-0.5, "mlp_in": (2 * d) ** -0.5, "projection": d**-0.5}
    return Law(sds.get(layer, (2 * spec.n_layers * d) ** -0.5))


def _vit(layer: str, shape: tuple[int, ...], spec: VisionSpec) -> Law:
    return Law(shape[0] ** -0.5) if layer == "patches" else _glorot(*shape)


def _mae(layer: str, shape: tuple[int, ...], spec: VisionSpec) -> Law:
    return _glorot(*shape)


def _dino(layer: str, shape: tuple[int, ...], spec: VisionSpec) -> Law:
    return Law(_SPREAD)


class Scheme(NamedTuple):
    """kernel: law of a dense layer by its name and shape [in, out]. cls, positions: standard deviations; None: d^-1/2.
    fixed: positions are no parameters and stay those of the model.
    """

    kernel: Callable[[str, tuple[int, ...], VisionSpec], Law]
    cls: float | None = _SPREAD
    positions: float | None = _SPREAD
    fixed: bool = False


SCHEMES = {
    "clip": Scheme(_clip, cls=None),
    "siglip": Scheme(_vit, positions=None),
    "siglip2": Scheme(_vit, positions=None),
    "vit": Scheme(_vit, cls=0.0),
    "torchvision_vit": Scheme(_vit, cls=0.0),
    "vit_mae": Scheme(_mae, fixed=True),
    "dinov2": Scheme(_dino),
    "dinov2_with_registers": Scheme(_dino),
    "dinov3_vit": Scheme(_dino),
}


def untrained_twin(backbone: Backbone, seed: int) -> Backbone:
    """The same backbone before its training; its vision tower only. The same numbers for a seed on every machine."""
    scheme, spec = SCHEMES[backbone.family], backbone.model.spec
    graph, state = nnx.split(nnx.eval_shape(lambda: VisionTransformer(spec, nnx.Rngs(0))))
    for path, leaf in nnx.to_flat_state(state):
        names = [str(part) for part in path]
        if names[-1] == "positions" and scheme.fixed:
            leaf.set_value(backbone.model.positions[...])  # pyright: ignore[reportOptionalSubscript]
            continue
        # By name, so that the numbers do not depend on the order of the parameters.
        rng = np.random.default_rng([seed, zlib.crc32("/".join(names).encode())])
        leaf.set_value(jnp.asarray(_draw(rng, names, leaf.shape, scheme, spec), leaf.dtype))
    return replace(backbone, model=nnx.merge(graph, state), text=None)


def _draw(
    rng: np.random.Generator, names: list[str], shape: tuple[int, ...], scheme: Scheme, spec: VisionSpec
) -> np.ndarray:
    name = names[-1]
    if name == "bias" or name.startswith("scale"):
        return np.full(shape, float(name != "bias"), np.float32)
    if name == "kernel":
        law = scheme.kernel(names[-2], shape, spec)
    else:
        sd = {"cls": scheme.cls, "positions": scheme.positions}.get(name, _SPREAD)
        law = Law(spec.block.width**-0.5 if sd is None else sd)
    if law.uniform:
        return math.sqrt(3) * law.sd * (2 * rng.random(shape, np.float32) - 1)
    return law.sd * rng.standard_normal(shape, np.float32)
