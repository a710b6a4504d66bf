"""The compiled part of the sparse search: rows of similarities by gather-and-add, and the best of them per voxel and unit.

A block of voxels [n, bv] stays in the cache. All rows of a phase are written [rows, bv], voxels contiguous, so that every
step is a vector operation: a row is a sum of m rows of y. The best k per voxel come from group maxima: candidates lie in
order of their units, in groups of `GROUP`; the k best groups (by maximum, ties to the first) hold the k best candidates.
For if a candidate lies in none of them, k groups are better, or equal and before it, and so are their best candidates.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from sbm_jax.kernels.cosine_topk.columns import CHUNK, DENSE_CHUNK, GROUP, WIDE, WIDE_CHUNK, WIDTHS, Tables
from sbm_jax.kernels.cosine_topk.merge import merge_topk
from sbm_jax.kernels.cosine_topk.xla import BELOW_ALL, NEVER, PADDING, PRECISION
from sbm_jax.kernels.select import top_k

_TAKEN = -5.0  # key of a candidate that was chosen already
_GROUPS_AT_ONCE = 8
_FEW = 8  # lists up to this long are found by so many passes, longer ones by selection along rows


@functools.partial(jax.jit, static_argnames=("n_rows", "k_unit"))
def search_rows(
    t: Tables,
    y_nv: jax.Array,
    real_v: jax.Array,
    voxels: jax.Array,
    count: jax.Array,
    best: tuple[jax.Array, jax.Array],
    *,
    n_rows: int,
    k_unit: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Merge a phase's rows into the lists of some voxels.

    y_nv [n, v], real_v [v]: all responses; voxels [blocks, bv]: which are searched, of which the first `count` count;
    best: keys [blocks, k, bv] and units, so far (best first). Returns these lists, and keys and voxels [n_rows, k_unit]
    of every row (places in 0..blocks bv - 1).
    """
    bv = voxels.shape[1]
    k = best[0].shape[1]

    def block(b: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        s, values, units, values_u, voxels_u = carry
        s = _rows(t, _voxels(y_nv, voxels[b]), s)
        if k:
            merged = _best(t, s, (values[b], units[b]))
            values, units = values.at[b].set(merged[0]), units.at[b].set(merged[1])
        if k_unit:
            place = b * bv + jnp.arange(bv)
            other = jnp.where(place < count, jnp.where(real_v[voxels[b]], 0.0, BELOW_ALL), PADDING)
            top, slot = top_k(jnp.where(other[None] == 0, s, other[None]), min(k_unit, bv))
            values_u, voxels_u = merge_topk(values_u, voxels_u, top, b * bv + slot, k_unit)
        return s, values, units, values_u, voxels_u

    start_u = (jnp.full((n_rows, k_unit), NEVER), jnp.zeros((n_rows, k_unit), jnp.int32))
    return lax.fori_loop(0, (count + bv - 1) // bv, block, (jnp.full((n_rows, bv), NEVER), *best, *start_u))[1:]


def _voxels(y_nv: jax.Array, which: jax.Array) -> jax.Array:
    """Some columns; consecutive ones are several times faster."""
    size = len(which)

    def taken() -> jax.Array:
        return y_nv.at[:, which].get(mode="promise_in_bounds")

    if size > y_nv.shape[1]:
        return taken()
    return lax.cond(
        (which == which[0] + jnp.arange(size)).all(), lambda: lax.dynamic_slice_in_dim(y_nv, which[0], size, 1), taken
    )


def _rows(t: Tables, y: jax.Array, s: jax.Array) -> jax.Array:
    """Write all rows of similarities of a block y [n, bv] into s [rows, bv]; the last stays as it is."""
    bv = y.shape[1]

    def dense(c: jax.Array, s: jax.Array) -> jax.Array:
        a = lax.dynamic_slice_in_dim(t.dense, c * DENSE_CHUNK, DENSE_CHUNK)
        return lax.dynamic_update_slice_in_dim(s, jnp.dot(a, y, precision=PRECISION), c * DENSE_CHUNK, 0)

    def entries(start: jax.Array, units: int, width: int) -> tuple[jax.Array, jax.Array]:
        weights, images = (lax.dynamic_slice(x, (start,), (units * width,)) for x in (t.weights, t.images))
        return weights.reshape(units, width), images.reshape(units, width)

    def wide(c: jax.Array, s: jax.Array) -> jax.Array:
        def piece(j: jax.Array, total: jax.Array) -> jax.Array:
            return _add(total, *entries(t.wide[c, 0] + j * WIDE_CHUNK * WIDE, WIDE_CHUNK, WIDE), y)

        total = lax.fori_loop(0, t.wide[c, 1], piece, jnp.zeros((WIDE_CHUNK, bv)))
        return lax.dynamic_update_slice_in_dim(s, total, t.counts[2] + c * WIDE_CHUNK, 0)

    s = lax.fori_loop(0, t.counts[0], dense, s)
    s = lax.fori_loop(0, t.counts[1], wide, s)
    for i, (width, units) in enumerate(zip(WIDTHS, CHUNK, strict=True)):

        def narrow(c: jax.Array, s: jax.Array, i: int = i, width: int = width, units: int = units) -> jax.Array:
            first, row = t.narrow[i, 0], t.narrow[i, 1]
            total = _add(jnp.zeros((units, bv)), *entries(first + c * units * width, units, width), y)
            return lax.dynamic_update_slice_in_dim(s, total, row + c * units, 0)

        s = lax.fori_loop(0, t.narrow[i, 2], narrow, s)
    return s


def _add(total: jax.Array, weights: jax.Array, images: jax.Array, y: jax.Array) -> jax.Array:
    """total [u, bv] plus the weighted rows of y, one loop over [u, bv] for all entries [u, width]."""
    for j in range(weights.shape[1]):
        total = total + weights[:, j, None] * y.at[images[:, j]].get(mode="promise_in_bounds")
    return total


def _best(t: Tables, s: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The k best of the lists `now` [k, bv] and all candidates; ties to the lowest unit."""
    k, bv = now[0].shape
    n_groups = t.rows.shape[0] // GROUP
    rows = t.rows.reshape(n_groups, GROUP)

    def maxima(c: jax.Array, out: jax.Array) -> jax.Array:
        r = lax.dynamic_slice_in_dim(rows, c * _GROUPS_AT_ONCE, _GROUPS_AT_ONCE)
        best = functools.reduce(jnp.maximum, [s.at[r[:, j]].get(mode="promise_in_bounds") for j in range(GROUP)])
        return lax.dynamic_update_slice_in_dim(out, best, c * _GROUPS_AT_ONCE, 0)

    top = lax.fori_loop(0, -(-t.counts[3] // _GROUPS_AT_ONCE), maxima, jnp.full((n_groups, bv), NEVER))
    group = _first(top, min(k, n_groups))
    position = (group[:, None] * GROUP + jnp.arange(GROUP, dtype=jnp.int32)[None, :, None]).reshape(-1, bv)
    row = t.rows.at[position].get(mode="promise_in_bounds")
    lane = jnp.arange(bv, dtype=jnp.int32)[None]
    values = s.at[row, lane].get(mode="promise_in_bounds")
    units = t.units.at[position].get(mode="promise_in_bounds")
    if k > _FEW:  # candidates lie in order of their units
        kept = _first(values, k)
        values, units = (jnp.take_along_axis(x, kept, axis=0, mode="promise_in_bounds") for x in (values, units))
    return _extract(jnp.concatenate([now[0], values]), jnp.concatenate([now[1], units]), k)


def _first(values: jax.Array, k: int) -> jax.Array:
    """Places [k, bv], ascending, of the k best along the first axis; equal values by ascending place."""
    if k > _FEW:
        return jnp.sort(top_k(values.T, k)[1], axis=1).T
    place = jnp.broadcast_to(jnp.arange(len(values), dtype=jnp.int32)[:, None], values.shape)
    return _extract(values, place, k)[1]


def _extract(values: jax.Array, index: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k best along the first axis, one after another; equal values by ascending index."""
    none = jnp.iinfo(jnp.int32).max

    def one(j: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        values, best, chosen = carry
        high = values.max(axis=0)
        at = jnp.where(values == high[None], index, none).min(axis=0)
        values = jnp.where((values == high[None]) & (index == at[None]), _TAKEN, values)
        return (
            values,
            lax.dynamic_update_slice_in_dim(best, high[None], j, 0),
            lax.dynamic_update_slice_in_dim(chosen, at[None], j, 0),
        )

    shape = (k, values.shape[1])
    return lax.fori_loop(0, k, one, (values, jnp.full(shape, NEVER), jnp.full(shape, none)))[1:]
