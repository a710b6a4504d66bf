"""Ridge regression of many voxels on one set of features: one decomposition for all voxels and penalties.

With X [n, p] standardised over the fitting images and y centred there, w = argmin |y - X w|^2 / n + lambda |w|^2. From
X'X / n = V diag(s) V' (p <= n) or X X' / n = U diag(s) U' (p > n) a prediction is Z diag(1 / (s + lambda)) B y, with Z, B
as in `Spectrum` (Hastie & Tibshirani 2004 for the dual form). The penalty is per image, so that one chosen on fewer images
holds for more.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from sbm_jax.kernels.cosine_topk.prepared import unit_columns
from sbm_jax.kernels.cosine_topk.reference import CONSTANT

PRECISION = jax.lax.Precision.HIGHEST


class Spectrum(NamedTuple):
    """values_q: s; fit_nq: B', over the fitting images; score_mq: Z, over the scoring images. float32; q = min(n, p)."""

    values_q: jax.Array
    fit_nq: jax.Array
    score_mq: jax.Array


def spectrum(fit_np: np.ndarray, score_mp: np.ndarray) -> Spectrum:
    """Decompose features [n, p], and bring those of other images [m, p] along; in float64 on the host.

    Both are standardised with mean and deviation of the fitting images; a feature that is constant there counts for nothing.
    """
    x, z = np.asarray(fit_np, np.float64), np.asarray(score_mp, np.float64)
    n, p = x.shape
    mean, norm = x.mean(axis=0), np.linalg.norm(x, axis=0)
    x = x - mean
    deviation = np.linalg.norm(x, axis=0)
    real = deviation > CONSTANT * norm
    scale = np.where(real, np.sqrt(n) / np.where(real, deviation, 1.0), 0.0)
    x, z = x * scale, (z - mean) * scale
    values, vectors = scipy.linalg.eigh(x.T @ x / n if p <= n else x @ x.T / n)
    fit, score = (x @ vectors / n, z @ vectors) if p <= n else (vectors, z @ (x.T @ vectors) / n)
    return Spectrum(*(jnp.asarray(np.asarray(part, np.float32)) for part in (np.maximum(values, 0), fit, score)))


def path(spectrum: Spectrum, y_nv: np.ndarray, y_mv: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """Pearson's r on the scoring images under every penalty, float32 [penalties, v]; 0 where either side is constant."""
    v = y_nv.shape[1]
    return np.asarray(_path(spectrum, _wide(y_nv), _wide(y_mv), np.asarray(penalties, np.float32)))[:, :v]


def score(spectrum: Spectrum, y_nv: np.ndarray, y_mv: np.ndarray, penalty_v: np.ndarray) -> np.ndarray:
    """The same [v] with a penalty of each voxel's own."""
    v = y_nv.shape[1]
    penalty = np.pad(np.asarray(penalty_v, np.float32), (0, _missing(v)), constant_values=1)
    return np.asarray(_score(spectrum, _along(spectrum, _wide(y_nv)), _wide(y_mv), penalty[None]))[:v]


def _missing(v: int) -> int:
    """Columns up to the next power of two: blocks of other sizes share the compiled program."""
    return (1 << (v - 1).bit_length()) - v


def _wide(y_nv: np.ndarray) -> np.ndarray:
    return np.pad(np.asarray(y_nv, np.float32), ((0, 0), (0, _missing(y_nv.shape[1]))))


@jax.jit
def _path(spectrum: Spectrum, y_nv: jax.Array, y_mv: jax.Array, penalties: jax.Array) -> jax.Array:
    along = _along(spectrum, y_nv)
    return jax.lax.map(lambda penalty: _score(spectrum, along, y_mv, penalty), penalties)


@jax.jit
def _along(spectrum: Spectrum, y_nv: jax.Array) -> jax.Array:
    return jnp.dot(spectrum.fit_nq.T, unit_columns(y_nv, True)[0], precision=PRECISION)


@jax.jit
def _score(spectrum: Spectrum, along_qv: jax.Array, y_mv: jax.Array, penalty: jax.Array | float) -> jax.Array:
    shrunk = along_qv / (spectrum.values_q[:, None] + penalty)
    predicted = jnp.dot(spectrum.score_mq, shrunk, precision=PRECISION)
    return jnp.sum(unit_columns(predicted, True)[0] * unit_columns(y_mv, True)[0], axis=0)
