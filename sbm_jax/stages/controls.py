"""Features that were not learned, of a dictionary's size, beside the autoencoders: whatever they reach, learning did not add.

With x [t, d] the patch tokens of an image, m [d] their mean over the fitting images and w_u [d] random unit vectors:

    raw          mean_t x_t
    pca          V' (mean_t x_t - m), V the principal axes of the image means; an axis without variance is left 0
    random       w_u . mean_t x_t
    random_relu  mean_t relu(w_u . (x_t - m)), the patch code of an autoencoder whose encoder was never trained
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sbm_jax.sae.stream import Activations, array_name

FITTING_IMAGES = 4096
_READ_IMAGES = 256


class Controls(NamedTuple):
    """directions [d, u], unit columns; mean [d]; axes [d, d], columns by falling variance. float32, of one hook."""

    directions: np.ndarray
    mean: np.ndarray
    axes: np.ndarray


def fit(acts: Activations, hooks: Sequence[str], images: np.ndarray, u: int, seed: int) -> dict[str, Controls]:
    """Controls of every hook from at most FITTING_IMAGES of `images`, drawn by seed; without images mean and axes are empty."""
    d = acts.array(array_name(hooks[0], "patch")).shape[2]
    directions = np.random.default_rng([seed, d, u]).standard_normal((d, u))
    directions = (directions / np.linalg.norm(directions, axis=0)).astype(np.float32)
    chosen = np.sort(np.random.default_rng([seed, 1]).permutation(images)[:FITTING_IMAGES])
    means: dict[str, list[np.ndarray]] = {hook: [] for hook in hooks}
    for start in range(0, len(chosen), _READ_IMAGES):
        for hook in hooks:
            x = acts.read(array_name(hook, "patch"), chosen[start : start + _READ_IMAGES])
            means[hook].append(x.astype(np.float32).mean(axis=1))
    empty = np.empty(0, np.float32)
    return {
        hook: Controls(directions, *principal_axes(np.concatenate(x))) if x else Controls(directions, empty, empty)
        for hook, x in means.items()
    }


def principal_axes(x_nd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """mean [d] and axes [d, d], float32: unit columns by falling variance, the largest entry of each positive; an axis whose
    standard deviation is below float32 rounding of the largest is 0.
    """
    x = x_nd.astype(np.float64)
    mean = x.mean(axis=0)
    x -= mean
    variances, axes = np.linalg.eigh(x.T @ x)
    variances, axes = variances[::-1], axes[:, ::-1]
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.sign(axes[largest, np.arange(axes.shape[1])])
    axes = np.where(variances > variances[0] * np.finfo(np.float32).eps ** 2, axes, 0)
    return mean.astype(np.float32), axes.astype(np.float32)


def codes(mode: str, controls: Controls, x_ntd: np.ndarray, raw_nd: np.ndarray, mesh: Mesh, step: int) -> np.ndarray:
    """float32 [n, d] or [n, u] of one mode; raw_nd is mean_t x_t. `step` images go to the devices at a time."""
    if mode == "raw":
        return raw_nd
    if mode == "pca":
        return (raw_nd - controls.mean) @ controls.axes
    if mode == "random":
        return raw_nd @ controls.directions
    blocks = []
    for start in range(0, len(x_ntd), step):
        x = x_ntd[start : start + step]
        padded = np.pad(x, [(0, step - len(x)), (0, 0), (0, 0)])
        blocks.append(np.asarray(_pooled_relu(mesh)(controls.mean, controls.directions, padded))[: len(x)])
    return np.concatenate(blocks)


@functools.lru_cache(maxsize=8)
def _pooled_relu(mesh: Mesh) -> Callable[..., jax.Array]:
    """Jitted (mean [d], directions [d, u], x [b, t, d]) -> [b, u]; images over the mesh's `data` axis."""

    def local(mean: jax.Array, directions: jax.Array, x_ntd: jax.Array) -> jax.Array:
        def image(x_td: jax.Array) -> jax.Array:
            z = jnp.dot(x_td.astype(jnp.float32) - mean[None], directions, precision=jax.lax.Precision.HIGHEST)
            return jax.nn.relu(z).mean(axis=0)

        return jax.lax.map(image, x_ntd)  # one image at a time: codes of all tokens of a batch would not fit

    split = P("data")
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P(), P(), split), out_specs=split, check_vma=False))
