"""Responses made ready once for many searches: centred, unit norm, on the devices that will use them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sbm_jax.kernels.cosine_topk import bounds
from sbm_jax.kernels.cosine_topk.reference import CONSTANT

UNITS, VOXELS, IMAGES = "units", "voxels", "images"


def image_parts(mesh: Mesh) -> int:
    """Into how many parts a mesh cuts the images: 1 without an axis `images`."""
    return mesh.shape.get(IMAGES, 1)


def put(x: np.ndarray, mesh: Mesh, spec: P) -> jax.Array:
    """A host array that every process has, laid over the mesh; each process copies its own parts alone."""
    return jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), lambda index: x[index])


@dataclass(frozen=True)
class Prepared:
    """Unit columns y_nv [n, v] float32 (zero where constant) and which are real [v].

    With a mesh voxels are padded with constant ones to a multiple of its axes `voxels` x `images`, and split along `voxels`. Where
    it has an axis `images`, rows are split along that, padded with `padding_n` rows of zeros. `n_voxels`, `n_images`: without
    padding.
    """

    y_nv: jax.Array
    real_v: jax.Array
    n_voxels: int
    center: bool
    mesh: Mesh | None
    padding_n: int = 0
    _one: list[Prepared] = field(default_factory=list, compare=False, repr=False)
    _limits: dict[tuple[int, bool], np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @property
    def n_images(self) -> int:
        return self.y_nv.shape[0] - self.padding_n

    @property
    def split_images(self) -> bool:
        """Whether no device holds all images of a voxel."""
        return self.mesh is not None and image_parts(self.mesh) > 1

    @property
    def on_host(self) -> bool:
        """Whether all of it lies in this process's own memory, whole columns together."""
        if self.split_images:
            return False
        return self.y_nv.is_fully_addressable and all(d.platform == "cpu" for d in self.y_nv.devices())

    def on_one_device(self) -> Prepared:
        """The same without a mesh; a copy, made once, where there is one."""
        if self.mesh is None:
            return self
        if not self._one:
            device, v = next(iter(self.y_nv.devices())), self.n_voxels
            y_nv = jax.device_put(np.asarray(self.y_nv)[: self.n_images, :v], device)
            real_v = jax.device_put(np.asarray(self.real_v)[:v], device)
            self._one.append(Prepared(y_nv, real_v, v, self.center, None))
        return self._one[0]

    def most_similar(self, m: int, positive: bool) -> np.ndarray:
        """`bounds.most_similar` for weights of norm 1, found once: it holds for all codes, and for permuted images."""
        if (m, positive) not in self._limits:
            self._limits[m, positive] = bounds.most_similar(self.y_nv, [m], positive)[0]
        return self._limits[m, positive]


@functools.partial(jax.jit, static_argnames=("center", "split_n"))
def unit_columns(x_nc: jax.Array, center: bool, split_n: int | None = None) -> tuple[jax.Array, jax.Array]:
    """Columns centred and scaled to unit norm (zero when constant), and which are real. f32 sums.

    split_n: in a `shard_map` over `images` x_nc are the rows of one device, of split_n images in all; the last devices' rows
    behind those are padding, zero before and after. Three sums per column travel.
    """
    x = x_nc.astype(jnp.float32)

    def over_images(x: jax.Array) -> jax.Array:
        sums = jnp.sum(x, axis=0, keepdims=True)
        return sums if split_n is None else jax.lax.psum(sums, IMAGES)

    before = jnp.sqrt(over_images(x * x))
    if center:
        x = x - over_images(x) / (split_n or len(x))
    if split_n is not None:
        row = jax.lax.axis_index(IMAGES) * len(x) + jnp.arange(len(x))
        x = jnp.where(row[:, None] < split_n, x, 0.0)
    norm = jnp.sqrt(over_images(x * x))
    real = norm > CONSTANT * before
    return jnp.where(real, x / jnp.where(real, norm, 1.0), 0.0), real[0]


def prepare(responses_nv: np.ndarray, center: bool, mesh: Mesh | None) -> Prepared:
    """Responses that were checked already; see `api.prepare_responses`."""
    n_voxels = responses_nv.shape[1]
    if mesh is None:
        y_nv, real_v = unit_columns(jnp.asarray(responses_nv), center)
        return Prepared(y_nv, real_v, n_voxels, center, None)
    n, parts = len(responses_nv), image_parts(mesh)
    padding_n = -n % parts
    padded = np.pad(responses_nv, ((0, padding_n), (0, -n_voxels % (mesh.shape[VOXELS] * parts))))
    if parts == 1:
        y_nv, real_v = unit_columns(put(padded, mesh, P(None, VOXELS)), center)
    else:
        y_nv, real_v = unit_columns_over(mesh, center, n)(put(padded, mesh, P(IMAGES, VOXELS)))
    return Prepared(y_nv, real_v, n_voxels, center, mesh, padding_n)


@functools.lru_cache(maxsize=64)
def unit_columns_over(mesh: Mesh, center: bool, n: int) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """`unit_columns` of n images that are split over the mesh's axis `images`, with rows of padding at the end."""
    local = functools.partial(unit_columns, center=center, split_n=n)
    specs = {"in_specs": P(IMAGES, VOXELS), "out_specs": (P(IMAGES, VOXELS), P(VOXELS))}
    return jax.jit(jax.shard_map(local, mesh=mesh, check_vma=False, **specs))
