"""`pursue` for XLA, many voxels at a time: all that a pursuit asks for is in Gram matrices of k candidates.

Batch OMP (Rubinstein, Zibulevsky & Elad 2008) with a Cholesky factor that grows by one row per atom.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from sbm_jax.kernels.cosine_topk.paired import unit_rows
from sbm_jax.kernels.cosine_topk.reference import CONSTANT
from sbm_jax.kernels.pursuit.reference import DEPENDENT, STOP, TIE

PRECISION = jax.lax.Precision.HIGHEST
_MOST = 256  # voxels at a time; more gain nothing


def pursue(
    columns_wn: np.ndarray,
    y_vn: np.ndarray,
    place_vk: np.ndarray,
    fit_n: np.ndarray,
    score_n: np.ndarray,
    atoms: int,
    memory_bytes: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `reference.pursue` for every voxel v over its candidates columns_wn[place_vk[v]], float32.

    Args: columns_wn [w, n] codes of w units, float32. y_vn [v, n] responses. memory_bytes: for the gathered columns.
    Returns position in the voxel's list [v, atoms] int32 (-1: none was left), r on the fitting and on the scoring images,
    float32 [v, atoms].
    """
    v, k = place_vk.shape
    n = int(fit_n.sum() + score_n.sum())
    fit_wn, score_wn = _standard(columns_wn, fit_n, score_n)
    y_fit, y_score = unit_rows(y_vn[:, fit_n]), unit_rows(y_vn[:, score_n])
    # Powers of two: blocks of other sizes share the compiled programs.
    size = min(_power(v, up=True), _power(max(1, memory_bytes // (4 * k * n)), up=False), _MOST)
    rows = _power(len(columns_wn), up=True) - len(columns_wn)
    fit_wn, score_wn = (jnp.asarray(np.pad(x, ((0, rows), (0, 0)))) for x in (fit_wn, score_wn))
    out = []
    for start in range(0, v, size):
        block = [x[start : start + size] for x in (place_vk, y_fit, y_score)]
        place, one, two = (np.pad(x, ((0, size - len(x)), (0, 0))) for x in block)
        found = _pursue(*_grams(fit_wn, place, one), *_grams(score_wn, place, two), atoms=atoms)
        out.append([np.asarray(x)[: len(block[0])] for x in found])
    units, in_sample, held_out = (np.concatenate(parts) for parts in zip(*out, strict=True))
    return units, in_sample, held_out


def _power(size: int, *, up: bool) -> int:
    return 1 << ((size - 1).bit_length() if up else size.bit_length() - 1)


def _standard(columns_wn: np.ndarray, fit_n: np.ndarray, score_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows centred on each set of images and divided by their norm over the fitting images; float32 from float64 sums."""
    fit, score = (_centred(columns_wn[:, rows]) for rows in (fit_n, score_n))
    norm = np.sqrt(np.einsum("wn,wn->w", fit, fit, dtype=np.float64))[:, None]
    scale = np.where(norm > 0, 1 / np.where(norm > 0, norm, 1.0), 0.0).astype(np.float32)
    return fit * scale, score * scale


def _centred(x_wn: np.ndarray) -> np.ndarray:
    x = np.ascontiguousarray(x_wn, np.float32)
    before = np.einsum("wn,wn->w", x, x, dtype=np.float64)
    x = x - x.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    real = np.einsum("wn,wn->w", x, x, dtype=np.float64) > CONSTANT**2 * before
    return np.where(real[:, None], x, np.float32(0))


@jax.jit
def _grams(a_wn: jax.Array, place_bk: jax.Array, y_bn: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Products of each voxel's candidates with each other [b, k, k] and with its response [b, k]."""
    a = a_wn[place_bk]
    gram = jnp.einsum("bkn,bjn->bkj", a, a, precision=PRECISION)
    return gram, jnp.einsum("bkn,bn->bk", a, y_bn, precision=PRECISION)


@functools.partial(jax.jit, static_argnames="atoms")
def _pursue(gram_bkk, along_bk, score_bkk, score_bk, *, atoms: int):
    return jax.vmap(functools.partial(_one, atoms=atoms))(gram_bkk, along_bk, score_bkk, score_bk)


def _one(gram_kk, along_k, score_kk, score_k, *, atoms: int):
    """One voxel. Row t of `rows` holds the products of all candidates with q_t, the part of atom t outside of the earlier
    ones, scaled to norm 1; beta_t the response's product with it.
    """
    k = len(along_k)

    def step(t, state):
        rows, along, left, free, atom, beta = state
        likeness = jnp.where(free & (left > DEPENDENT), jnp.abs(along), -1.0)
        best = (likeness >= likeness.max() - TIE).argmax()
        real = likeness[best] > STOP
        root = jnp.sqrt(jnp.where(real, left[best], 1.0))
        row = jnp.where(real, (gram_kk[best] - jnp.dot(rows[:, best], rows, precision=PRECISION)) / root, 0.0)
        b = jnp.where(real, along[best] / root, 0.0)
        free = free & ~(real & (jnp.arange(k) == best))
        atom = atom.at[t].set(jnp.where(real, best, -1))
        return rows.at[t].set(row), along - b * row, left - row * row, free, atom, beta.at[t].set(b)

    start = (
        jnp.zeros((atoms, k)),
        along_k,
        jnp.diagonal(gram_kk),
        jnp.ones(k, bool),
        jnp.full(atoms, -1, jnp.int32),
        jnp.zeros(atoms),
    )
    rows, _, _, _, atom, beta = jax.lax.fori_loop(0, atoms, step, start)
    # a_t = sum_s lower[t, s] q_s over the fitting images; the same sums of the scoring images' columns predict there
    real = atom >= 0
    lower = jnp.where(real[:, None], jnp.tril(rows[:, atom].T), jnp.eye(atoms))
    score_kk = jnp.where(real[:, None] & real[None], score_kk[atom][:, atom], 0.0)
    half = solve_triangular(lower, score_kk, lower=True)
    q_gram = solve_triangular(lower, half.T, lower=True) * beta[:, None] * beta[None]
    q_along = solve_triangular(lower, jnp.where(real, score_k[atom], 0.0), lower=True) * beta
    variance = jnp.diagonal(q_gram.cumsum(axis=0).cumsum(axis=1))
    known = variance > CONSTANT * jnp.diagonal(jnp.abs(q_gram).cumsum(axis=0).cumsum(axis=1))
    held_out = jnp.where(known, q_along.cumsum() / jnp.sqrt(jnp.where(known, variance, 1.0)), 0.0)
    return atom, jnp.sqrt((beta * beta).cumsum()), held_out
