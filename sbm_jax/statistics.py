"""Significance over many voxels: permutation p values, false discovery rate, family-wise error; intervals; exact tails of counts.

NumPy only. The p values are those of Phipson & Smyth (2010), the step-up procedure is that of Benjamini & Hochberg (1995),
the maximum statistic that of Westfall & Young (1993; for images of the brain Nichols & Holmes 2002).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

ALPHA = 0.05  # of what is called significant; family-wise, and as a false discovery rate


def permutation_p(observed_v: np.ndarray, null_bv: np.ndarray, *, tie: float = 0.0) -> np.ndarray:
    """p_v = (1 + #{b : null_bv >= observed_v - tie}) / (1 + B): one-sided, large is extreme, never 0.

    Args: observed_v [v]. null_bv [b, v], the same statistic under B permutations, or [b, 1] where all share one null.
        tie: differences up to it are rounding, and count against the observation.
    Returns float64 [v], NaN where observed_v is NaN. Raises ValueError for no permutation, shapes that disagree, or a NaN in
    the null of an observed value.
    """
    observed, null = np.asarray(observed_v), np.asarray(null_bv)
    if observed.ndim != 1 or null.ndim != 2 or null.shape[1] not in (1, len(observed)):
        raise ValueError(f"permutation_p: expected null [b, {len(observed)}] or [b, 1], found {null.shape}")
    if not len(null):
        raise ValueError("permutation_p: the null holds no permutation")
    known = ~np.isnan(observed)
    threshold = observed - np.float32(tie)
    reached = np.zeros(len(observed), np.int64)
    for row in null:  # never another array of the size of the null
        if np.isnan(row[known] if len(row) == len(known) else row).any():
            raise ValueError("permutation_p: the null of an observed value holds NaN")
        reached += row >= threshold
    return np.where(known, (1 + reached) / (1 + len(null)), np.nan)


def sequential_p(reached_v: np.ndarray, stopped_v: np.ndarray, most: int, stop_after: int) -> np.ndarray:
    """p_v = h / l_v where the h-th permutation that reaches the observation was the l-th, else (1 + b_v) / (1 + B).

    Besag & Clifford (1991): permutations are drawn until h of them reach the observation, at most B; P(p <= alpha) <= alpha
    under the null as for a fixed number, while unpromising voxels stop early.

    Args: reached_v [v], how many reached (b). stopped_v [v], the number of the permutation that was the h-th (0: none).
        most: B. stop_after: h, at least 1.
    Returns float64 [v]. Raises ValueError for a voxel that stopped later than B or reached h without stopping.
    """
    reached, stopped = np.asarray(reached_v), np.asarray(stopped_v)
    if stop_after < 1 or (stopped > most).any() or ((stopped == 0) & (reached >= stop_after)).any():
        raise ValueError(f"sequential_p: counts do not fit {stop_after} of at most {most} permutations")
    return np.where(stopped > 0, stop_after / np.maximum(stopped, 1), (1 + reached) / (1 + most))


def familywise_p(observed_v: np.ndarray, null_bv: np.ndarray, *, tie: float = 0.0) -> np.ndarray:
    """p_v against the maximum over voxels of each permutation: P(any voxel of an all-null family at or below alpha) <= alpha.

    Arguments and result as in `permutation_p`; voxels whose observed value is NaN are not part of the family.
    """
    observed, null = np.asarray(observed_v), np.asarray(null_bv)
    known = ~np.isnan(observed)
    if not known.any():
        return np.full(len(observed), np.nan)
    return permutation_p(observed, null[:, known].max(axis=1, keepdims=True), tie=tie)


def familywise_threshold(null_bv: np.ndarray, alpha: float) -> float:
    """The value that an observation must exceed to have `familywise_p` (without ties) at or below alpha.

    inf where B permutations cannot reach alpha, that is 1 / (1 + B) > alpha.
    """
    highest = -np.sort(-np.asarray(null_bv).max(axis=1))
    reachable = (1 + np.arange(len(highest) + 1)) / (1 + len(highest))
    allowed = int((reachable <= alpha).sum())  # one more than how many of the null may reach the observation
    if allowed == 0:
        return float("inf")
    return float(highest[allowed - 1]) if allowed <= len(highest) else -float("inf")


def fdr_adjusted(p_v: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg adjusted p: min over ranks j >= rank(v) of V p_(j) / j, at most 1. NaN is no test and stays NaN.

    Holds under independence and positive regression dependence. Raises ValueError for p outside of [0, 1].
    """
    p = np.asarray(p_v, np.float64)
    out = np.full(p.shape, np.nan)
    known = ~np.isnan(p)
    tests = p[known]
    if ((tests < 0) | (tests > 1)).any():
        raise ValueError(f"fdr_adjusted: p values span {tests.min()}..{tests.max()}, allowed 0..1")
    order = np.argsort(tests, kind="stable")
    scaled = tests[order] * len(tests) / np.arange(1, len(tests) + 1)
    adjusted = np.empty(len(tests))
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    out[known] = adjusted
    return out


def benjamini_hochberg(p_v: np.ndarray, q: float) -> np.ndarray:
    """Which tests are rejected, bool [v], with the expected share of false ones among them at most q; False where NaN."""
    return fdr_adjusted(p_v) <= q


def bootstrap_interval(
    statistic: Callable[[np.ndarray], np.ndarray | float],
    n: int,
    *,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int | list[int] = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval (Efron 1979): quantiles of a statistic over `samples` draws of n items with replacement.

    Args: statistic: from the drawn items, int [n] in 0..n-1, to a number or an array. NaN draws are left out.
    Returns low and high, float64, of the statistic's shape. Raises ValueError for n, samples < 1 or confidence outside (0, 1).
    """
    if n < 1 or samples < 1 or not 0 < confidence < 1:
        raise ValueError(f"bootstrap_interval: n {n}, samples {samples}, confidence {confidence} are not possible")
    rng = np.random.default_rng(seed)
    drawn = np.stack([np.asarray(statistic(rng.integers(0, n, n)), np.float64) for _ in range(samples)])
    return percentile_interval(drawn, confidence)


def percentile_interval(drawn_bv: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """The two quantiles of draws [b, ...] that leave out (1 - confidence) / 2 each, linear between draws.

    Returns low and high of the shape and dtype of one draw. NaN draws are left out; NaN where every draw is.
    """
    ordered = np.sort(drawn_bv, axis=0)  # NaN goes to the end
    last = np.maximum((~np.isnan(ordered)).sum(axis=0) - 1, 0)
    tail = (1 - confidence) / 2

    def quantile(q: float) -> np.ndarray:
        at = q * last
        below = np.floor(at).astype(np.int64)
        step = (at - below).astype(ordered.dtype)
        lower, upper = (np.take_along_axis(ordered, i[None], axis=0)[0] for i in (below, np.minimum(below + 1, last)))
        return lower + step * (upper - lower)

    return quantile(tail), quantile(1 - tail)


def wilson_interval(hits: np.ndarray, trials: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's (1927) interval of a share p = hits / trials: the p0 with |p - p0| <= z sqrt(p0 (1 - p0) / trials).

    Its ends stay within 0 and 1, and it is not empty at 0 or all hits. Returns low and high, float64, NaN without a trial.
    """
    from statistics import NormalDist

    x, n = np.asarray(hits, np.float64), np.asarray(trials, np.float64)
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        p = x / n
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = np.sqrt(z2 * (p * (1 - p) + z2 / (4 * n)) / n) / (1 + z2 / n)
    # exact at the ends, where rounding would leave 1e-17
    return np.where(x == 0, 0.0, centre - half) + 0 * p, np.where(x == n, 1.0, centre + half) + 0 * p


def hypergeometric_tail(drawn: int, marked: int, total: int) -> np.ndarray:
    """P(X >= x) for x = 0..drawn: X of `drawn` things are marked, taken without putting back from `total`, `marked` of them so.

    Fisher's exact one-sided p; float64 [drawn + 1]. Raises ValueError where there are fewer things than drawn or marked.
    """
    if not 0 <= drawn <= total or not 0 <= marked <= total:
        raise ValueError(f"hypergeometric_tail: {drawn} drawn and {marked} marked of {total}")
    x = np.arange(drawn + 1)
    possible = (x <= marked) & (drawn - x <= total - marked)
    log = np.full(drawn + 1, -np.inf)
    some = x[possible]
    log[possible] = _log_choose(marked, some) + _log_choose(total - marked, drawn - some)
    log[possible] -= _log_choose(total, np.array([drawn]))
    return np.minimum(np.cumsum(np.exp(log)[::-1])[::-1], 1.0)


def binomial_tail(drawn: int, rate: float) -> np.ndarray:
    """P(X >= x) for x = 0..drawn of a binomial count; float64 [drawn + 1]. Raises ValueError for a rate outside of 0..1."""
    if not 0 <= rate <= 1:
        raise ValueError(f"binomial_tail: rate {rate}")
    x = np.arange(drawn + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log = (
            _log_choose(drawn, x)
            + np.where(x > 0, x * np.log(rate), 0)
            + np.where(x < drawn, (drawn - x) * np.log1p(-rate), 0)
        )
    return np.minimum(np.cumsum(np.exp(log)[::-1])[::-1], 1.0)


def _log_choose(n: int, k: np.ndarray) -> np.ndarray:
    gamma = np.vectorize(math.lgamma, otypes=[np.float64])
    return math.lgamma(n + 1) - gamma(k + 1) - gamma(n - k + 1)
