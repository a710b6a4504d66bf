"""Exact top-k along the last axis in vector operations: a lower bound, one bit per value, a ranking of the few that pass.

With the row dealt into n = u / 32 groups, the k-th largest group maximum is a lower bound of the k-th largest value, and
only about -n log(1 - k/n) values reach it. Those are kept as bits, listed by position, and ranked by comparing each
with each, ties to the lowest index. `lax.top_k` (one thread per device on CPU, value by value) stays for short rows,
and for a call in which ties crowd the bound.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_WORD = 32  # bits
_LEAST_GROUPS = 2  # per kept value: with fewer, too many values reach the bound
_ROOM = 2  # places per kept value; 1.39 are used on average with the fewest groups
_LANES = 16
_HALVINGS = 16  # of the span of the maxima, counted in representable numbers
_LARGEST_K = 64  # the ranking compares (_ROOM k)^2 pairs


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Values and indices of the k largest along the last axis, descending, ties to the lowest index.

    Exactly what `lax.top_k` gives, NaN and signed zeros included. Under vmap the entries of the mapped axis are taken
    in turn, so that the rare slow branch is not computed for all.
    """
    u = x.shape[-1]
    rows = x.reshape(-1, u)
    if x.dtype != jnp.float32 or u % _WORD or u < _WORD * _LEAST_GROUPS * k or k > _LARGEST_K or not rows.size:
        values, indices = lax.top_k(x, k)
        return values, indices
    values, indices = _in_turn(k)(rows)
    return values.reshape(*x.shape[:-1], k), indices.reshape(*x.shape[:-1], k)


@top_k.defjvp
def _top_k_jvp(k, primals, tangents):
    values, indices = top_k(primals[0], k)
    along = jnp.take_along_axis(tangents[0], indices, axis=-1)
    return (values, indices), (along, np.zeros(indices.shape, jax.dtypes.float0))


@functools.cache
def _in_turn(k: int):
    def select(x_bu: jax.Array) -> tuple[jax.Array, jax.Array]:
        values, indices, complete = _ranked(x_bu, k)
        return lax.cond(complete, lambda: (values, indices), lambda: tuple(lax.top_k(x_bu, k)))

    return jax.custom_batching.sequential_vmap(select)


def _key(x: jax.Array) -> jax.Array:
    """int32 in the total order of float32 (-0 below 0)."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _bound(maxima_bn: jax.Array, k: int) -> jax.Array:
    """[b] a value that at least k maxima reach, and hardly more: bisection of the keys."""
    key = _key(maxima_bn)

    def halve(_: int, span: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = span
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, without overflow
        enough = _count(key >= middle[:, None]) >= k
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low, _ = lax.fori_loop(0, _HALVINGS, halve, (key.min(axis=1), key.max(axis=1)))
    return lax.bitcast_convert_type(jnp.where(low < 0, low ^ 0x7FFFFFFF, low), jnp.float32)


def _count(true_bn: jax.Array) -> jax.Array:
    """Sum along the last axis, lanes first: XLA does not vectorise a sum along the fastest axis."""
    n = true_bn.shape[1]
    whole = n - n % _LANES
    lanes = jnp.zeros((true_bn.shape[0], _LANES), jnp.int32)
    for start in range(0, whole, _LANES):
        lanes = lanes + true_bn[:, start : start + _LANES].astype(jnp.int32)
    return lanes.sum(axis=1) + true_bn[:, whole:].astype(jnp.int32).sum(axis=1)


def _bit_of_rank(word: jax.Array, rank: jax.Array) -> jax.Array:
    """Position of the set bit that has `rank` set bits below it."""
    at = jnp.zeros(word.shape, jnp.uint32)
    for width in (16, 8, 4, 2, 1):
        below = lax.population_count((word >> at) & jnp.uint32((1 << width) - 1)).astype(jnp.int32)
        higher = rank >= below
        rank = jnp.where(higher, rank - below, rank)
        at = jnp.where(higher, at + width, at)
    return at.astype(jnp.int32)


def _listed(words_bn: jax.Array, room: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Word and bit [b, room] of the set bits, by word, and how many there are [b]; places beyond that hold anything."""
    b, n = words_bn.shape
    count = lax.population_count(words_bn)
    # A product with a triangle is a cumulative sum that uses all cores; the counts are exact in float32.
    upto = jnp.dot(count.astype(jnp.float32), jnp.triu(jnp.ones((n, n))), precision=lax.Precision.HIGHEST)
    upto = upto.astype(jnp.int32)
    before = upto - count.astype(jnp.int32)
    rows, place = jnp.arange(b)[:, None], jnp.arange(room)[None]
    first = jnp.where(count > 0, before, room)
    number = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (b, n))
    word = jnp.zeros((b, room), jnp.int32).at[rows, first].set(number, mode="drop")
    step = 1
    while step < room:  # running maximum: each place belongs to the last word that starts at or before it
        word = jnp.maximum(word, jnp.pad(word[:, :-step], ((0, 0), (step, 0))))
        step *= 2
    bit = _bit_of_rank(_take(words_bn, word), place - _take(before, word))
    return word, bit, upto[:, -1]


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, index, axis=1, mode="promise_in_bounds")


def _ranked(x_bu: jax.Array, k: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Values and indices [b, k], and whether they are right: no NaN, and room for all values at the bound."""
    b, u = x_bu.shape
    n, room = u // _WORD, _ROOM * k
    groups = [x_bu[:, i * n : (i + 1) * n] for i in range(_WORD)]  # value i n + j is bit i of word j
    maxima = functools.reduce(jnp.maximum, groups)
    bound = _bound(maxima, k)[:, None]
    words = jnp.zeros((b, n), jnp.uint32)
    for i, group in enumerate(groups):
        words = words | ((group >= bound).astype(jnp.uint32) << i)
    word, bit, total = _listed(words, room)
    place = jnp.arange(room)[None]
    real = place < total[:, None]
    index = jnp.where(real, bit * n + word, 0)
    values = _take(x_bu, index)
    key = jnp.where(real, _key(values), jnp.iinfo(jnp.int32).min)
    index = jnp.where(real, index, u + place)
    rank = jnp.zeros((b, room), jnp.int32)
    for j in range(room):
        other, at = key[:, j, None], index[:, j, None]
        rank = rank + ((other > key) | ((other == key) & (at < index))).astype(jnp.int32)
    rows = jnp.arange(b)[:, None]
    out = jnp.zeros((b, k), jnp.float32).at[rows, rank].set(values, mode="drop", unique_indices=True)
    indices = jnp.zeros((b, k), jnp.int32).at[rows, rank].set(index, mode="drop", unique_indices=True)
    # The sum of the maxima is NaN when one is; infinities of both signs also take the slow way.
    return out, indices, ((total >= k) & (total <= room) & ~jnp.isnan(maxima.sum(axis=1))).all()
