"""Bootstrap intervals of RDM comparisons: images, and subjects where there are several, drawn with replacement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sbm_jax.config import RsaConfig
from sbm_jax.kernels.rdm_compare.bootstrap import bootstrap
from sbm_jax.kernels.rdm_compare.whitened import n_images, row_sums

LEVEL = 0.95
_FEWEST = 5  # images; percentiles over draws of fewer say nothing


@dataclass(frozen=True)
class Resampled:
    """n_images: those whose pairs are there in every RDM. scores [m, 3]: mean over subjects and the ends of its interval;
    ceiling [2, 3]: lower and upper bound with theirs, NaN for one subject.
    """

    n_images: int
    scores: np.ndarray
    ceiling: np.ndarray


def resampled(models_mp: np.ndarray, brains_rsp: np.ndarray, config: RsaConfig) -> list[Resampled]:
    """One per ROI, all in one pass over the draws; none without draws (`rsa.bootstrap` 0), or with fewer than 5 images that
    have all their pairs.

    Args: models_mp [m, pairs], brains_rsp [r, s, pairs]: condensed, NaN where a pattern was constant.
    """
    observed = ~np.isnan(models_mp.sum(axis=0) + brains_rsp.sum(axis=(0, 1)))
    whole = row_sums(observed[None].astype(np.float64))[0] > 0
    if not config.bootstrap or whole.sum() < _FEWEST:
        return []
    rows, columns = np.triu_indices(n_images(len(observed)), 1)
    both = whole[rows] & whole[columns]
    found = bootstrap(
        models_mp[:, both],
        brains_rsp[:, :, both],
        config.method,
        draws=config.bootstrap,
        subjects=brains_rsp.shape[1] > 1,
        seed=config.seed,
    )
    ends, estimate = found.interval(LEVEL), found.estimate
    bounds = np.stack([estimate.lower_r, estimate.upper_r], axis=1)
    spans = np.stack([ends["lower"].T, ends["upper"].T], axis=1)
    return [
        Resampled(
            int(whole.sum()),
            np.column_stack([estimate.scores_rm[r], ends["scores"][:, r].T]),
            np.column_stack([bounds[r], spans[r]]),
        )
        for r in range(len(brains_rsp))
    ]
