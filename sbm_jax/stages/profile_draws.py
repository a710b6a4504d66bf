"""Bootstrap of layer profiles over images: what each layer's fixed unit scores when the scoring images are drawn again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sbm_jax.statistics import percentile_interval

LEVEL = 0.95
FEWEST = 5  # images; percentiles over draws of fewer say nothing
# A column whose variance in a draw is this small a part of its second moment is constant up to float32 sums.
_CONSTANT = 1e-5
_dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@dataclass(frozen=True)
class RoiDraws:
    """Ends of the intervals of a region's means over voxels: profile float64 [l, 2] and depth [2] (NaN: no draw has one)."""

    profile: np.ndarray
    depth: np.ndarray


@dataclass(frozen=True)
class ProfileDraws:
    """Percentiles over draws, float32, NaN for voxels that were not drawn for: `low`, `high` [l, v] of each layer's r;
    `depth_low`, `depth_high` [v] over the draws that have a depth; `best_share` [l, v], the share of draws in which the layer
    scores highest and above 0 (ties to the first). rois: by the names of the masks.
    """

    low: np.ndarray
    high: np.ndarray
    depth_low: np.ndarray
    depth_high: np.ndarray
    best_share: np.ndarray
    rois: dict[str, RoiDraws] = field(default_factory=dict)


def draw_weights(n: int, draws: int, seed: int) -> np.ndarray:
    """How often each of n images is drawn, over n: float32 [draws, n], multinomial; one set for all voxels and layers."""
    return (np.random.default_rng([seed, n]).multinomial(n, np.full(n, 1 / n), draws) / n).astype(np.float32)


def profile_draws(
    columns: Callable[[int, np.ndarray], np.ndarray],
    responses: Callable[[np.ndarray], np.ndarray],
    weights_bn: np.ndarray,
    voxels: np.ndarray,
    n_layers: int,
    n_voxels: int,
    masks: dict[str, np.ndarray],
    block: int,
) -> ProfileDraws:
    """Redraw the images of the profiles of some voxels, `block` of them at a time (see `block_voxels`).

    Args:
        columns: from (layer, voxels [w]) to the codes [n, w] of the unit that the layer has for each of them.
        responses: from voxels [w] to their responses [n, w]. weights_bn: of `draw_weights`.
        voxels: int [w] out of `n_voxels`. masks: name -> bool [n_voxels], regions whose mean over `voxels` is drawn too.
    """
    b = len(weights_bn)
    low, high, share = (np.full((n_layers, n_voxels), np.nan, np.float32) for _ in range(3))
    depth = np.full((2, n_voxels), np.nan, np.float32)
    inside_rv = np.array([mask[voxels] for mask in masks.values()], np.float32).reshape(len(masks), len(voxels))
    roi_sums_lbr = np.zeros((n_layers, b, len(masks)))
    depth_sums_br, depth_counts_br = np.zeros((2, b, len(masks)))
    weights = jnp.asarray(weights_bn)
    for start in range(0, len(voxels), block):
        some, inside = voxels[start : start + block], inside_rv[:, start : start + block].T
        y = responses(some)
        y_nv = jnp.asarray(y - y.mean(axis=0, dtype=np.float64).astype(np.float32))
        of_y = _moments(weights, y_nv)
        best, best_layer = np.zeros((b, len(some)), np.float32), np.full((b, len(some)), -1, np.int32)
        total, moment = np.zeros((2, b, len(some)), np.float32)
        for layer in range(n_layers):
            r = np.asarray(_redrawn(weights, from_the_median(columns(layer, some)), y_nv, of_y))
            low[layer, some], high[layer, some] = percentile_interval(r, LEVEL)
            roi_sums_lbr[layer] += r @ inside
            best_layer[r > best] = layer
            np.maximum(best, r, out=best)
            positive = np.maximum(r, 0)
            total += positive
            moment += layer * positive
        share[:, some] = [(best_layer == layer).mean(axis=0) for layer in range(n_layers)]
        centre = np.divide(moment, total, out=np.full_like(total, np.nan), where=total > 0)
        depth[:, some] = percentile_interval(centre, LEVEL)
        depth_sums_br += np.nan_to_num(centre) @ inside
        depth_counts_br += np.isfinite(centre) @ inside
    with np.errstate(invalid="ignore"):
        depths_br = depth_sums_br / depth_counts_br
        profiles_lbr = roi_sums_lbr / inside_rv.sum(axis=1)
    rois = {
        name: RoiDraws(
            np.stack(percentile_interval(profiles_lbr[:, :, r].T, LEVEL), axis=1),
            np.stack(percentile_interval(depths_br[:, r], LEVEL)),
        )
        for r, name in enumerate(masks)
    }
    return ProfileDraws(low, high, depth[0], depth[1], share, rois)


def block_voxels(memory_bytes: int, n_read: int, n: int, draws: int) -> int:
    """Voxels at a time within a budget, where the responses to `n_read` images are read and n of them are redrawn."""
    # beside what is read: float32 copies and products of two columns [n]; sums, r and running results [draws], as counted
    return max(1, memory_bytes // (8 * n_read + 36 * n + 64 * draws))


def from_the_median(a_nv: np.ndarray) -> np.ndarray:
    """Columns minus their median, scaled to at most 1; float32. r does not change, and a sparse column keeps its exact zeros:
    where a draw leaves out all images that a unit fires on, its sums are exactly 0.
    """
    shifted = a_nv - np.median(a_nv, axis=0)
    top = np.abs(shifted).max(axis=0)
    return (shifted / np.where(top > 0, top, 1)).astype(np.float32)


@jax.jit
def _moments(w_bn: jax.Array, x_nv: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weighted mean and mean square of columns, [b, v]."""
    return _dot(w_bn, x_nv), _dot(w_bn, x_nv * x_nv)


@jax.jit
def _redrawn(w_bn: jax.Array, a_nv: jax.Array, y_nv: jax.Array, of_y: tuple[jax.Array, jax.Array]) -> jax.Array:
    """r [b, v] of each column of a with that of y, whose moments are `of_y`, under image weights w (rows sum to 1); 0 where
    either is constant.
    """
    (mean_a, square_a), (mean_y, square_y) = _moments(w_bn, a_nv), of_y
    var_a, var_y = square_a - mean_a**2, square_y - mean_y**2
    real = (var_a > _CONSTANT * square_a) & (var_y > _CONSTANT * square_y)
    r = (_dot(w_bn, a_nv * y_nv) - mean_a * mean_y) / jnp.sqrt(jnp.where(real, var_a * var_y, 1))
    return jnp.where(real, jnp.clip(r, -1, 1), 0)
