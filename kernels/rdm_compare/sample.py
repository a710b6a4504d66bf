"""Scores and noise ceilings of many models in many ROIs under whole-number weights of images and subjects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sbm_jax.kernels.rdm_compare import reference
from sbm_jax.kernels.rdm_compare.ranks import sort_values
from sbm_jax.kernels.rdm_compare.whitened import WHITENED, correction, n_images, row_sums

_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Sample:
    """scores_rm: mean over subjects of each model's similarity; lower_r, upper_r: noise ceiling (NaN for one subject)."""

    scores_rm: np.ndarray
    lower_r: np.ndarray
    upper_r: np.ndarray


class Linear:
    """corr, cosine, corr_cov, cosine_cov: everything follows from the weighted products of the RDMs with each other, for the
    pooled RDMs are sums of the subjects'. Holds the RDMs in float64; a block of 64 MiB beside them per draw."""

    def __init__(self, models_mp: np.ndarray, brains_rsp: np.ndarray, method: str) -> None:
        self.m, (self.r, self.s, pairs) = len(models_mp), brains_rsp.shape
        self.method, self.n = method, n_images(pairs)
        self.z = np.concatenate([models_mp, brains_rsp.reshape(-1, pairs)]).astype(np.float64)
        if method.startswith("corr"):
            self.z -= self.z.mean(axis=1, keepdims=True)  # what is left to subtract in a draw is then small
        self.z /= np.maximum(np.abs(self.z).max(axis=1, keepdims=True), np.finfo(float).tiny)

    def sample(self, weights_n: np.ndarray, counts_s: np.ndarray) -> Sample:
        plain, products = self._products(weights_n)
        norms = np.sqrt(np.maximum(np.diag(products), 0))
        inverse = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
        cosines = products * inverse[:, None] * inverse
        scores = np.empty((self.r, self.m))
        lower, upper = np.full(self.r, np.nan), np.full(self.r, np.nan)
        # A pool sums RDMs divided by their root mean square or standard deviation.
        size = np.sqrt(np.maximum(np.diag(plain), 0))
        scale = np.divide(1, size, out=np.zeros_like(size), where=size > 0)
        present = np.flatnonzero(counts_s)
        for roi in range(self.r):
            at = self.m + roi * self.s + np.arange(self.s)
            scores[roi] = cosines[: self.m, at] @ counts_s / counts_s.sum()
            if self.s > 1:
                pools = _pools(counts_s) * scale[at]
                with_each = pools @ products[np.ix_(at, at)]
                length = np.sqrt(np.maximum((with_each * pools).sum(axis=1), 0))
                with_each *= inverse[at]
                similar = np.divide(with_each, length[:, None], out=np.zeros_like(with_each), where=length[:, None] > 0)
                upper[roi] = similar[0, present].mean()
                lower[roi] = similar[1 + np.arange(len(present)), present].mean()
        return Sample(scores, lower, upper)

    def _products(self, weights_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weighted products of all RDMs, plain and (for the whitened methods) under V^-1; both [k, k]."""
        k, whitened = len(self.z), self.method in WHITENED
        keep = np.flatnonzero(weights_n)
        w = weights_n[keep].astype(np.float64)
        rows, columns = np.triu_indices(len(keep), 1)
        place = _condensed_index(self.n, keep[rows], keep[columns])
        q = w[rows] * w[columns]
        plain, total, mean = np.zeros((k, k)), q.sum(), np.zeros(k)
        sums = np.zeros((k, len(keep)))
        step = max(1, _BLOCK_BYTES // (8 * k))
        for start in range(0, len(place), step):
            part = slice(start, start + step)
            z = self.z[:, place[part]]
            weighted = z * q[part]
            plain += weighted @ z.T
            mean += weighted.sum(axis=1)
        if whitened:
            sums = w * row_sums(self.z if len(keep) == self.n else self.z[:, place], w)
        if self.method.startswith("corr"):
            mean /= total
            plain -= total * np.outer(mean, mean)
            sums -= mean[:, None] * (w * (w.sum() - w))
        return plain, plain / 2 - correction(sums, w) if whitened else plain


class Ranked:
    """spearman, rho-a, tau-a: ranks within the draw, from an order found once. Holds one order per RDM (8 bytes a
    pair, 16 at most with ties)."""

    def __init__(self, models_mp: np.ndarray, brains_rsp: np.ndarray, method: str) -> None:
        self.method, self.n = method, n_images(models_mp.shape[1])
        self.models = [sort_values(x) for x in models_mp]
        self.brains = [[sort_values(x) for x in subjects] for subjects in brains_rsp]

    def sample(self, weights_n: np.ndarray, counts_s: np.ndarray) -> Sample:
        rows, columns = np.triu_indices(self.n, 1)
        q = weights_n[rows] * weights_n[columns]
        used = np.flatnonzero(q)
        q_used = q[used]
        present = np.flatnonzero(counts_s)
        models = np.stack([x.ranks(q)[used] for x in self.models])
        scores = np.empty((len(self.brains), len(models)))
        lower, upper = np.full(len(self.brains), np.nan), np.full(len(self.brains), np.nan)
        for roi, subjects in enumerate(self.brains):
            ranks = np.stack([subjects[s].ranks(q)[used] for s in present])
            counts = counts_s[present]
            scores[roi] = _rank_similarity(models, ranks, q_used, self.method) @ counts / counts.sum()
            if len(subjects) > 1:
                # Sums of half ranks are exact, so that ties of the pool stay ties.
                pooled = (sort_values(x).ranks(q_used) for x in _pools(counts) @ ranks)
                everyone, *others = pooled
                upper[roi] = _rank_similarity(everyone[None], ranks, q_used, self.method).mean()
                each = [
                    _rank_similarity(x[None], y[None], q_used, self.method) for x, y in zip(others, ranks, strict=True)
                ]
                lower[roi] = np.mean(each)
        return Sample(scores, lower, upper)


def _pools(counts_s: np.ndarray) -> np.ndarray:
    """[1 + subjects present, s]: how often each subject is in the pool of all, and in those without one subject."""
    present = np.flatnonzero(counts_s)
    pools = np.repeat(counts_s[None], 1 + len(present), axis=0).astype(np.float64)
    if len(present) > 1:
        pools[1 + np.arange(len(present)), present] = 0
    return pools


def _rank_similarity(a_mp: np.ndarray, b_kp: np.ndarray, q_p: np.ndarray, method: str) -> np.ndarray:
    """[m, k] from average ranks of pairs that are there q_p times."""
    if method == "tau-a":
        a, b = np.repeat(a_mp, q_p, axis=1), np.repeat(b_kp, q_p, axis=1)
        return np.array([[reference.compare(x, y, method) for y in b] for x in a])
    total = float(q_p.sum())
    a, b = a_mp - (total + 1) / 2, b_kp - (total + 1) / 2
    products = (a * q_p) @ b.T
    if method == "rho-a":
        return 12 * products / (total**3 - total)
    norms = np.sqrt(np.outer(np.square(a) @ q_p, np.square(b) @ q_p))
    return np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)


def _condensed_index(n: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Place of pair (row < column) among the n (n - 1) / 2 of the row-major upper triangle."""
    rows = rows.astype(np.int64)
    return rows * (2 * n - rows - 1) // 2 + columns - rows - 1
