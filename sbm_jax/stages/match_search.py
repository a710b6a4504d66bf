"""Which unit of one dictionary is which of another: by their codes on the same images, and by decoder rows in one space."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from sbm_jax.kernels import SparseCodes, cosine_topk_both, merge_topk
from sbm_jax.kernels.cosine_topk.paired import chosen_columns, unit_rows
from sbm_jax.stages.matching import candidates, matching_prices, one_to_one, upper_bounds
from sbm_jax.stages.ranking import as_keys, empty, from_keys


@dataclass(frozen=True)
class Lists:
    """Best partners in both directions, best first: r float32 and units int32 (NaN and -1: none), [u_a, k] and [u_b, k]."""

    a_values: np.ndarray
    a_units: np.ndarray
    b_values: np.ndarray
    b_units: np.ndarray


def firing(codes: SparseCodes) -> np.ndarray:
    """Images on which each unit is active, int [u]."""
    return np.bincount(codes.units_nk[codes.values_nk != 0], minlength=codes.n_units)


def without_rare(codes: SparseCodes, least: int) -> SparseCodes:
    """The codes with units that are active on fewer than `least` images silenced: any two that share their one image have r = 1."""
    often = firing(codes) >= least
    return codes._replace(values_nk=np.where(often[codes.units_nk], codes.values_nk, 0))


def best_by_codes(a: SparseCodes, b: SparseCodes, k: int, memory_bytes: int) -> Lists:
    """The k partners of largest Pearson r over images, of every unit of `a` in `b` and of `b` in `a`; ties to the lowest unit.

    Codes of one set of images; units whose code is constant have no partner and are none. Dense columns of `b` exist for a block
    of units at a time, a quarter of the budget.
    """
    n, u_a, u_b = a.n_images, a.n_units, b.n_units
    k_a, k_b = min(k, u_b), min(k, u_a)
    a_keys, a_units = empty(u_a, k_a)
    b_keys, b_units = empty(u_b, k_b)
    for block in _blocks(u_b, max(256, memory_bytes // (16 * n))):
        y_nb = chosen_columns(b, block).T
        found = cosine_topk_both(a, y_nb, k_b, min(k_a, len(block)), memory_bytes=memory_bytes)
        b_keys[block], b_units[block] = as_keys(found[0]), found[1]
        keys, units = merge_topk(a_keys, a_units, as_keys(found[2]), found[3] + block[0], k_a)
        a_keys, a_units = np.asarray(keys), np.asarray(units)
    return Lists(*_partners(a_keys, a_units), *_partners(b_keys, b_units))


def _partners(keys: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """r and units; NaN and -1 where a column is constant, for which the kernel says exactly 0."""
    values = from_keys(keys)
    real = np.isfinite(values) & (values != 0)
    return np.where(real, values, np.nan).astype(np.float32), np.where(real, units, -1).astype(np.int32)


def best_by_chance(
    a: SparseCodes, b: SparseCodes, draws: int, seed: int, memory_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Largest r of every unit with any unit of the other dictionary when the images of `b` are permuted, float32 [u_a, draws] and
    [u_b, draws]; NaN for units with a constant code. Blocks of both are dense, an eighth of the budget each.
    """
    out = [np.full((codes.n_units, draws), -np.inf, np.float32) for codes in (a, b)]
    real = [np.zeros(codes.n_units, bool) for codes in (a, b)]
    orders = [np.random.default_rng([seed, draw]).permutation(b.n_images) for draw in range(draws)]
    size = max(256, memory_bytes // (32 * a.n_images))
    for mine in _blocks(a.n_units, size):
        a_un = unit_rows(chosen_columns(a, mine))
        real[0][mine] = a_un.any(axis=1)
        for theirs in _blocks(b.n_units, size):
            b_un = unit_rows(chosen_columns(b, theirs))
            real[1][theirs] = b_un.any(axis=1)
            there = (jnp.asarray(a_un), jnp.asarray(b_un), jnp.asarray(real[0][mine]), jnp.asarray(real[1][theirs]))
            for draw, order in enumerate(orders):
                for side, block, most in zip((0, 1), (mine, theirs), _largest(*there, order), strict=True):
                    out[side][block, draw] = np.maximum(out[side][block, draw], np.asarray(most))
    to_b, to_a = (np.where(np.isfinite(x) & told[:, None], x, np.nan) for x, told in zip(out, real, strict=True))
    return to_b, to_a


@jax.jit
def _largest(
    a_un: jax.Array, b_un: jax.Array, real_a: jax.Array, real_b: jax.Array, order_n: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Largest product of every row of a with the rows of b that are real, and the other way round; b's images in another order."""
    r = jnp.einsum("an,bn->ab", a_un, b_un[:, order_n], precision=jax.lax.Precision.HIGHEST)
    to_b, to_a = jnp.where(real_b[None, :], r, -jnp.inf), jnp.where(real_a[:, None], r, -jnp.inf)
    return to_b.max(axis=1), to_a.max(axis=0)


def _blocks(units: int, size: int) -> list[np.ndarray]:
    return [np.arange(i, min(i + size, units)) for i in range(0, units, size)]


@dataclass(frozen=True)
class Matching:
    """One-to-one over the listed pairs: partner in b of every unit of a, int32 [u_a] (-1: alone), and r [u_a] (NaN). pairs: how
    many; mean: of r over the min(n_a, n_b) pairs that there could be, alone counts 0; bound: no matching over all pairs has more.
    """

    units: np.ndarray
    values: np.ndarray
    pairs: int
    mean: float
    bound: float


def match_one_to_one(found: Lists) -> Matching:
    """The one-to-one matching of largest total r (exact; `matching.one_to_one`) over the pairs with r > 0 in either list."""
    u_a = len(found.a_units)
    units, values = np.full(u_a, -1, np.int32), np.full(u_a, np.nan, np.float32)
    in_a, in_b = found.a_units[:, 0] >= 0, found.b_units[:, 0] >= 0
    most = int(min(in_a.sum(), in_b.sum()))
    if not most:
        return Matching(units, values, 0, float("nan"), float("nan"))
    c = candidates(found.b_values, found.b_units, found.a_values[None], found.a_units[None], taken=in_b)
    partner = one_to_one(c)
    places = np.flatnonzero(partner >= 0)
    pair = c.find(partner[places], places)
    mine = c.unit_ids[partner[places]]
    units[mine], values[mine] = np.flatnonzero(in_b)[places], c.values[pair]
    bound = upper_bounds(c, matching_prices(c, partner), 1.0, 1.0)[1]
    return Matching(units, values, len(places), float(c.values[pair].sum() / most), bound / most)


@dataclass(frozen=True)
class Decoders:
    """Decoder rows of norm 1 [u, d] of both dictionaries, zero for units that take no part."""

    a: np.ndarray
    b: np.ndarray

    @staticmethod
    def of(a_ud: np.ndarray, b_ud: np.ndarray, found: Lists) -> Decoders:
        """Rows of the units that have partners."""
        parts = ((a_ud, found.a_units), (b_ud, found.b_units))
        return Decoders(*(unit_rows(w, center=False) * (units[:, :1] >= 0) for w, units in parts))

    def at(self, units_ak: np.ndarray) -> np.ndarray:
        """Cosine of every unit of a with the units of b that it lists, float32 [u_a, k]; NaN where it lists none."""
        cosine = np.einsum("ad,akd->ak", self.a, self.b[units_ak])
        return np.where(units_ak >= 0, cosine, np.nan).astype(np.float32)

    def swapped(self) -> Decoders:
        return Decoders(self.b, self.a)

    def best(self, memory_bytes: int) -> Lists:
        """The partner of largest cosine in both directions, [u, 1]."""
        values_b, units_b, values_a, units_a = cosine_topk_both(
            np.ascontiguousarray(self.a.T),
            np.ascontiguousarray(self.b.T),
            1,
            1,
            center=False,
            memory_bytes=memory_bytes,
        )
        return Lists(*_partners(as_keys(values_a), units_a), *_partners(as_keys(values_b), units_b))

    def turned(self, seed: int) -> Decoders:
        """b under a random rotation: its rows keep their angles to each other, and lose their place among the neurons."""
        return Decoders(self.a, self.b @ _rotation(self.b.shape[1], seed))


@functools.lru_cache(maxsize=2)
def _rotation(d: int, seed: int) -> np.ndarray:
    """A random orthogonal matrix, uniformly distributed (Mezzadri 2007), float32 [d, d]."""
    q, r = np.linalg.qr(np.random.default_rng([seed, d]).standard_normal((d, d)))
    return (q * np.sign(np.diag(r))).astype(np.float32)
