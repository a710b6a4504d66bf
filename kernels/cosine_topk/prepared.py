"""Responses made ready once for many searches: centred, unit norm, on the devices that will use them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sbm_jax.kernels.cosine_topk import bounds
from sbm_jax.kernels.cosine_topk.reference import CONSTANT

UNITS, VOXELS = "units", "voxels"


@dataclass(frozen=True)
class Prepared:
    """Unit columns y_nv [n, v] float32 (zero where constant) and which are real [v].

    With a mesh both are padded to a multiple of its `voxels` axis and split along it; `n_voxels` is without padding.
    """

    y_nv: jax.Array
    real_v: jax.Array
    n_voxels: int
    center: bool
    mesh: Mesh | None
    _one: list[Prepared] = field(default_factory=list, compare=False, repr=False)
    _limits: dict[tuple[int, bool], np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @property
    def on_host(self) -> bool:
        """Whether all of it lies in this process's own memory."""
        return self.y_nv.is_fully_addressable and all(d.platform == "cpu" for d in self.y_nv.devices())

    def on_one_device(self) -> Prepared:
        """The same without a mesh; a copy, made once, where there is one."""
        if self.mesh is None:
            return self
        if not self._one:
            device, v = next(iter(self.y_nv.devices())), self.n_voxels
            y_nv, real_v = (jax.device_put(np.asarray(x)[..., :v], device) for x in (self.y_nv, self.real_v))
            self._one.append(Prepared(y_nv, real_v, v, self.center, None))
        return self._one[0]

    def most_similar(self, m: int, positive: bool) -> np.ndarray:
        """`bounds.most_similar` for weights of norm 1, found once: it holds for all codes, and for permuted images."""
        if (m, positive) not in self._limits:
            self._limits[m, positive] = bounds.most_similar(self.y_nv, [m], positive)[0]
        return self._limits[m, positive]


@functools.partial(jax.jit, static_argnames="center")
def unit_columns(x_nc: jax.Array, center: bool) -> tuple[jax.Array, jax.Array]:
    """Columns centred and scaled to unit norm (zero when constant), and which are real. f32 sums."""
    x = x_nc.astype(jnp.float32)
    before = jnp.sqrt(jnp.sum(x * x, axis=0, keepdims=True))
    if center:
        x = x - jnp.mean(x, axis=0, keepdims=True)
    norm = jnp.sqrt(jnp.sum(x * x, axis=0, keepdims=True))
    real = norm > CONSTANT * before
    return jnp.where(real, x / jnp.where(real, norm, 1.0), 0.0), real[0]


def prepare(responses_nv: np.ndarray, center: bool, mesh: Mesh | None) -> Prepared:
    """Responses that were checked already; see `api.prepare_responses`."""
    n_voxels = responses_nv.shape[1]
    if mesh is None:
        y_nv, real_v = unit_columns(jnp.asarray(responses_nv), center)
        return Prepared(y_nv, real_v, n_voxels, center, None)
    padded = np.pad(responses_nv, ((0, 0), (0, -n_voxels % mesh.shape[VOXELS])))
    y = jax.device_put(padded, NamedSharding(mesh, P(None, VOXELS)))
    y_nv, real_v = unit_columns(y, center)
    return Prepared(y_nv, real_v, n_voxels, center, mesh)
