"""Bootstrap of RDM comparisons over images and subjects, with the noise ceiling inside every draw (Schütt et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sbm_jax.kernels.rdm_compare.api import METHODS
from sbm_jax.kernels.rdm_compare.sample import Linear, Ranked, Sample
from sbm_jax.kernels.rdm_compare.whitened import WHITENED, n_images


@dataclass(frozen=True)
class Bootstrap:
    """Scores [r ROIs, m models] (means over subjects) and noise ceilings [r]: of the data, and of every draw.

    Draws of fewer than 3 different images are NaN throughout. lower and upper are NaN for one subject.
    """

    estimate: Sample
    scores_brm: np.ndarray
    lower_br: np.ndarray
    upper_br: np.ndarray

    def interval(self, level: float = 0.95) -> dict[str, np.ndarray]:
        """Percentile intervals: `scores` [2, r, m], `lower` [2, r] and `upper` [2, r], ends first."""
        ends = [50 * (1 - level), 50 * (1 + level)]
        parts = {"scores": self.scores_brm, "lower": self.lower_br, "upper": self.upper_br}
        usable = ~np.isnan(self.scores_brm[:, 0, 0])
        return {name: np.percentile(x[usable], ends, axis=0) for name, x in parts.items()}


def bootstrap(
    models_mp: np.ndarray,
    brains_rsp: np.ndarray,
    method: str = "spearman",
    *,
    draws: int = 1000,
    images: bool = True,
    subjects: bool = True,
    seed: int = 0,
) -> Bootstrap:
    """All models against all ROIs in one pass over the draws; definitions of rsatoolbox 0.3.2 (`eval_bootstrap`,
    `eval_bootstrap_pattern`, `eval_bootstrap_rdm`).

    A draw takes n images and / or s subjects with replacement. Pairs of an image with its own copy are left out. The score is
    the mean over the subjects drawn, copies included. The ceiling leaves out a subject with all its copies and is the mean
    over different subjects; a draw of one subject alone has nothing else to pool and counts itself.

    RDMs are made ready once: a draw is whole-number weights w_i w_j on the pairs. corr, cosine and their whitened forms need one
    weighted product of all RDMs; spearman and rho-a one running sum per RDM over an order found once, and sorts only for
    the pooled RDMs of the ceiling. tau-a is written out pair by pair and is slow.

    Args: models_mp: [m, pairs]; brains_rsp: [r ROIs, s subjects, pairs], condensed, all finite. Draw i depends on `seed` and i
    alone. Raises ValueError for an unknown method, sizes that disagree, NaN (leave out the image everywhere first), or
    nothing to draw.
    """
    models, brains = _checked(models_mp, brains_rsp, method, draws, images or subjects)
    n, s = n_images(models.shape[1]), brains.shape[1]
    data = (Linear if method in ("corr", "cosine", *WHITENED) else Ranked)(models, brains, method)
    estimate = data.sample(np.ones(n, np.int64), np.ones(s, np.int64))
    shape = (draws, len(brains))
    scores, lower, upper = np.full((*shape, len(models)), np.nan), np.full(shape, np.nan), np.full(shape, np.nan)
    for draw in range(draws):
        weights, counts = draw_weights(n, s, seed, draw, images=images, subjects=subjects)
        if np.count_nonzero(weights) >= 3:
            found = data.sample(weights, counts)
            scores[draw], lower[draw], upper[draw] = found.scores_rm, found.lower_r, found.upper_r
    return Bootstrap(estimate, scores, lower, upper)


def draw_weights(
    n: int, s: int, seed: int, draw: int, *, images: bool = True, subjects: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """How often each of n images and s subjects is in one draw, int64; all once where they are not drawn."""
    rng = np.random.default_rng([seed, draw])
    weights = np.bincount(rng.integers(0, n, n), minlength=n)
    counts = np.bincount(rng.integers(0, s, s), minlength=s)
    return (weights if images else np.ones(n, np.int64)), (counts if subjects else np.ones(s, np.int64))


def evaluate(models_mp: np.ndarray, brains_rsp: np.ndarray, method: str = "spearman") -> Sample:
    """Scores and noise ceilings of all models in all ROIs without resampling; arguments as in `bootstrap`."""
    return bootstrap(models_mp, brains_rsp, method, draws=0).estimate


def _checked(
    models_mp: np.ndarray, brains_rsp: np.ndarray, method: str, draws: int, drawn: bool
) -> tuple[np.ndarray, np.ndarray]:
    if method not in METHODS + WHITENED:
        raise ValueError(f"bootstrap: unknown method {method!r}; there are {', '.join(METHODS + WHITENED)}")
    models, brains = np.asarray(models_mp), np.asarray(brains_rsp)
    if models.ndim != 2 or brains.ndim != 3 or models.shape[1] != brains.shape[2]:
        raise ValueError(
            f"bootstrap: models must be [m, pairs] and brains [r, s, pairs], found {models.shape} and {brains.shape}"
        )
    if min(models.shape[0], *brains.shape) < 1 or n_images(models.shape[1]) < 3:
        raise ValueError(
            f"bootstrap: at least 1 model, 1 subject and 3 images, found {models.shape} and {brains.shape}"
        )
    if not (np.isfinite(models).all() and np.isfinite(brains).all()):
        raise ValueError("bootstrap: RDMs hold NaN or infinity; leave out those images in all RDMs first")
    if draws < 0 or not drawn:
        raise ValueError(f"bootstrap: {draws} draws of {'something' if drawn else 'neither images nor subjects'}")
    return models, brains
