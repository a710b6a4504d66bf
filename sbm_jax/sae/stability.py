"""How alike the dictionaries of two autoencoders are that differ in their seed, over units that are alive.

Definitions follow Paulo and Belrose 2025 (arXiv 2501.16615) and Song et al. 2025 (arXiv 2505.20254); no product of the
two dictionaries is ever held whole unless the exact assignment asks for it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sbm_jax.errors import UserError

SHARED_COSINE = 0.7  # Paulo and Belrose's threshold
EXACT_UNITS = (
    8192  # beyond it: the exact assignment holds two u^2 float64 arrays (1.1 GB here) and takes O(u^3) at worst
)
BLOCK_BYTES = 256 * 2**20  # largest block of cosines held at once


@dataclass(frozen=True)
class Stability:
    """Agreement of two dictionaries A and B; cosines of decoder rows over alive units only, n_a and n_b of them.

    mean_max_cosine: half of (mean over A of the largest cosine to B) + (the same with A and B swapped). Not one-to-one.
    mean_matched_cosine: mean cosine of the min(n_a, n_b) pairs of a one-to-one assignment that maximises their sum.
    exact: whether that assignment is the optimum (Hungarian) or the greedy one (see `greedy_assignment`).
    matched_bound: no assignment has a larger mean cosine than this.
    shared: 2 (pairs of the assignment with cosine > 0.7 in decoder and encoder) / (n_a + n_b); None without encoders.
    """

    mean_max_cosine: float
    mean_matched_cosine: float
    exact: bool
    matched_bound: float
    shared: float | None
    n_a: int
    n_b: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def unit_vectors(w_ud: np.ndarray, alive_u: np.ndarray | None, what: str) -> np.ndarray:
    """Rows of alive units scaled to norm 1, float32 [alive, d].

    Raises UserError when none is alive, a row is not finite, or an alive row is zero (it has no direction).
    """
    w = np.asarray(w_ud, np.float32)
    if alive_u is not None:
        w = w[np.asarray(alive_u, bool)]
    if not len(w):
        raise UserError(f"{what}: no unit is alive; there is nothing to compare.")
    norm = np.linalg.norm(w.astype(np.float64), axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norm[:, 0]) & (norm[:, 0] > 0)))
    if len(bad):
        raise UserError(
            f"{what}: {len(bad)} alive units have a weight vector that is zero or not finite (the first: {bad[0]} of the "
            "alive ones). Leave them out as dead."
        )
    return (w / norm).astype(np.float32)


@jax.jit
def _block_best(
    a: jax.Array, b: jax.Array, start: jax.Array, columns: jax.Array, n_rows: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Best column of each row of a block, and best row of the block for each column: cosines and indices.

    Of equal cosines a row takes the nearest column to its right and a column the nearest row to its left, counted in a
    circle: rules that agree with each other, so that whole runs of equal pairs are settled in one round.
    """
    cosine = jnp.einsum("ad,bd->ab", a, b, precision=jax.lax.Precision.HIGHEST)
    # Padding rows and columns stand behind the real ones.
    real = (jnp.arange(len(a))[:, None] + start < n_rows) & (columns[None, :] >= 0)
    cosine = jnp.where(real, cosine, -jnp.inf)
    apart = jnp.mod(columns[None, :] - (jnp.arange(len(a))[:, None] + start), len(b))
    row, column = cosine.max(axis=1), cosine.max(axis=0)
    nearest_right = jnp.argmin(jnp.where(cosine == row[:, None], apart, len(b)), axis=1)
    nearest_left = jnp.argmin(jnp.where(cosine == column[None, :], apart, len(b)), axis=0)
    return row, nearest_right, column, nearest_left


@dataclass(frozen=True)
class _Best:
    row: np.ndarray  # largest cosine of each row [n_a]
    row_at: np.ndarray  # its column
    column: np.ndarray  # largest cosine of each column [n_b]
    column_at: np.ndarray  # its row


def _best(a: np.ndarray, b: np.ndarray, block_bytes: int) -> _Best:
    """Largest cosine of every row and of every column, in blocks of rows of at most `block_bytes` of float32 cosines.

    Lengths are padded to powers of two, so that few shapes are compiled.
    """
    wide = _power_of_two(len(b))
    rows = max(8, min(_power_of_two(len(a)), _power_of_two(block_bytes // (4 * wide) + 1) // 2))
    b_padded = jnp.asarray(np.pad(b, ((0, wide - len(b)), (0, 0))))
    columns = jnp.where(jnp.arange(wide) < len(b), jnp.arange(wide), -1)
    row, row_at = np.empty(len(a), np.float32), np.empty(len(a), np.int64)
    column, column_at = np.full(len(b), -np.inf, np.float32), np.zeros(len(b), np.int64)
    for start in range(0, len(a), rows):
        part = a[start : start + rows]
        padded = np.pad(part, ((0, rows - len(part)), (0, 0)))
        got = _block_best(padded, b_padded, jnp.int32(start), columns, jnp.int32(len(a)))
        r, r_at, c, c_at = (np.asarray(x) for x in got)
        row[start : start + len(part)], row_at[start : start + len(part)] = r[: len(part)], r_at[: len(part)]
        c, c_at = c[: len(b)], c_at[: len(b)].astype(np.int64) + start
        circle = len(b_padded)
        there = np.arange(len(b))
        nearer = (c == column) & ((there - c_at) % circle < (there - column_at) % circle)
        better = (c > column) | nearer
        column, column_at = np.where(better, c, column), np.where(better, c_at, column_at)
    return _Best(row, row_at, column, column_at)


def _power_of_two(n: int) -> int:
    return 1 << max(0, (n - 1).bit_length())


def greedy_assignment(a: np.ndarray, b: np.ndarray, block_bytes: int = BLOCK_BYTES) -> np.ndarray:
    """Pairs [min(n_a, n_b), 2] of unit vectors a [n_a, d], b [n_b, d]: again and again the pair with the largest cosine left.

    Found in rounds: pairs that are each other's best among those left are all chosen by that rule, so they are taken
    together (Preis 1999). If no chosen cosine is negative, their sum is at least half of the optimum. Each round is one
    pass of blocks over what is left; on dictionaries of unrelated directions about half of it goes in each.
    """
    left_a, left_b = np.arange(len(a)), np.arange(len(b))
    pairs = []
    while len(left_a) and len(left_b):
        best = _best(a[left_a], b[left_b], block_bytes)
        mutual = best.column_at[best.row_at] == np.arange(len(left_a))
        chosen = best.row_at[mutual]
        pairs.append(np.stack([left_a[mutual], left_b[chosen]], axis=1))
        left_a, left_b = left_a[~mutual], np.delete(left_b, chosen)
    return np.concatenate(pairs)


def exact_assignment(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pairs [min(n_a, n_b), 2] with the largest sum of cosines (Jonker and Volgenant's algorithm, from SciPy)."""
    from scipy.optimize import linear_sum_assignment

    return np.stack(linear_sum_assignment(a.astype(np.float64) @ b.astype(np.float64).T, maximize=True), axis=1)


def stability(
    w_dec_a: np.ndarray,
    w_dec_b: np.ndarray,
    *,
    w_enc_a: np.ndarray | None = None,
    w_enc_b: np.ndarray | None = None,
    alive_a: np.ndarray | None = None,
    alive_b: np.ndarray | None = None,
    exact_units: int = EXACT_UNITS,
    block_bytes: int = BLOCK_BYTES,
) -> Stability:
    """Compare two autoencoders of the same inputs; see `Stability`.

    Args:
        w_dec_a, w_dec_b: decoders [u, d]. Two dictionaries may have different u.
        w_enc_a, w_enc_b: encoders [d, u], or neither.
        alive_a, alive_b: bool [u], units that fire on held-out tokens (None: all). The others are left out.
        exact_units: up to this many alive units (of the larger side) the assignment is the optimum, beyond it greedy.
        block_bytes: memory for one block of cosines; what is made of it on the way takes about twice that more.
    Raises UserError when widths differ, no unit is alive, or an alive unit has no direction.
    """
    if (w_enc_a is None) != (w_enc_b is None):
        raise ValueError("give both encoders or neither")
    if w_dec_a.shape[1] != w_dec_b.shape[1]:
        raise UserError(
            f"the two decoders have {w_dec_a.shape[1]} and {w_dec_b.shape[1]} dimensions; they can only be compared on "
            "one backbone and hook."
        )
    a, b = unit_vectors(w_dec_a, alive_a, "decoder A"), unit_vectors(w_dec_b, alive_b, "decoder B")
    best = _best(a, b, block_bytes)
    exact = max(len(a), len(b)) <= exact_units
    pairs = exact_assignment(a, b) if exact else greedy_assignment(a, b, block_bytes)
    cosine = _row_dots(a[pairs[:, 0]], b[pairs[:, 1]])
    n = len(pairs)
    # Every pair has at most the best cosine of either of its ends, and each end is in one pair at most.
    bound = min(np.sort(side.astype(np.float64))[::-1][:n].mean() for side in (best.row, best.column))
    shared = None
    if w_enc_a is not None and w_enc_b is not None:
        p, q = unit_vectors(w_enc_a.T, alive_a, "encoder A"), unit_vectors(w_enc_b.T, alive_b, "encoder B")
        both = (cosine > SHARED_COSINE) & (_row_dots(p[pairs[:, 0]], q[pairs[:, 1]]) > SHARED_COSINE)
        shared = float(2 * both.sum() / (len(a) + len(b)))
    return Stability(
        mean_max_cosine=float((best.row.mean(dtype=np.float64) + best.column.mean(dtype=np.float64)) / 2),
        mean_matched_cosine=float(cosine.mean()),
        exact=exact,
        matched_bound=float(cosine.mean()) if exact else float(bound),
        shared=shared,
        n_a=len(a),
        n_b=len(b),
    )


def _row_dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", a, b, dtype=np.float64)
