"""What `proofs.py` measures on simulated brains with known wiring: error rates, power, bias, coverage, noise ceilings."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.spatial.distance import pdist

from sbm_jax.bench.proofs_brains import (
    REPEATS,
    Estimate,
    binomial_interval,
    brain,
    correlations,
    estimate,
    experiments,
    search,
    unit_codes,
)
from sbm_jax.brain.reliability import average_repeats, ncsnr, noise_ceiling
from sbm_jax.config import RsaConfig
from sbm_jax.stages.layers import centre_of_mass
from sbm_jax.stages.profile_draws import draw_weights, profile_draws
from sbm_jax.stages.resampled import resampled
from sbm_jax.statistics import ALPHA, bootstrap_interval

N_SELECT, N_HELD_OUT = 150, 100
LEVELS = (0.0, 0.1, 0.2, 0.4, 0.8)  # ncsnr
PROFILE = (0.45, 0.3, 0.15, 0.05, 0.0, 0.0)  # population r of a simulated voxel with its unit in each of six layers


def null_brains(
    brains: int, voxels: int, shuffles: int, common: float, seed: int = 0, max_shuffles: int = 0
) -> dict[str, Any]:
    """Brains that respond to nothing: share of voxels with p <= .05, and shares of brains with any voxel called significant."""

    def one(rng: np.random.Generator, i: int) -> dict[str, float]:
        found = search(brain(rng, N_SELECT + 3, np.zeros(voxels), common=common), N_SELECT, shuffles, i, max_shuffles)
        return {
            "p": float(np.mean(found["p"] <= ALPHA)),
            "fwe": float((found["p_fwe"] <= ALPHA).any()),
            "fdr": float((found["p_fdr"] <= ALPHA).any()),
        }

    found = experiments(brains, seed, one)
    return {
        "brains": brains,
        "voxels": voxels,
        "shuffles": shuffles,
        "max_shuffles": max_shuffles,
        "common": common,
        "false_positives": estimate(found["p"]),
        "any_fwe": _share(found["fwe"]),
        "any_fdr": _share(found["fdr"]),
    }


def mixed_brains(brains: int, voxels: int, shuffles: int, null: float, common: float, seed: int = 1) -> dict[str, Any]:
    """Brains in which a share `null` of the voxels responds to nothing and the others have ncsnr .25: the share of false
    voxels among those with p_fdr <= .05 (0 where there are none), and of the others that are found.
    """
    levels = np.where(np.arange(voxels) < round(null * voxels), 0, 0.25)

    def one(rng: np.random.Generator, i: int) -> dict[str, float]:
        called = search(brain(rng, N_SELECT + 3, levels, common=common), N_SELECT, shuffles, i)["p_fdr"] <= ALPHA
        return {
            "false": float(called[levels == 0].sum() / max(1, called.sum())),
            "found": float(called[levels > 0].mean()),
        }

    found = experiments(brains, seed, one)
    return {
        "brains": brains,
        "voxels": voxels,
        "shuffles": shuffles,
        "null": null,
        "common": common,
        "false_discoveries": estimate(found["false"]),
        "found": estimate(found["found"]),
    }


def power(brains: int, voxels: int, shuffles: int, sparse: bool, seed: int = 2) -> list[dict[str, Any]]:
    """Per ncsnr, `voxels` of each in every brain: share with p <= .05, share whose best unit is the one that drives them, mean
    in-sample and held-out score, and what these exceed the population r of the chosen unit by.
    """
    level_v = np.repeat(LEVELS, voxels)

    def one(rng: np.random.Generator, i: int) -> dict[str, dict[float, float]]:
        made = brain(rng, N_SELECT + N_HELD_OUT, level_v, sparse=sparse)
        found = search(made, N_SELECT, shuffles, i)
        right = found["voxel_units"][:, 0] == made.unit
        truth = np.where(right, made.r, 0)  # other units are independent of the voxel
        in_sample, held_out = found["voxel_values"][:, 0], found["held_out"][:, 0]
        rows = {
            "power": found["p"] <= ALPHA,
            "recovered": right,
            "in_sample": in_sample,
            "held_out": held_out,
            "in_sample_bias": in_sample - truth,
            "held_out_bias": held_out - truth,
        }
        return {key: {level: float(x[level_v == level].mean()) for level in LEVELS} for key, x in rows.items()}

    found = experiments(brains, seed, one)
    return [
        {
            "ncsnr": level,
            "r": float(np.sqrt(level**2 / (level**2 + 1 / REPEATS))),
            **{key: estimate(record[level] for record in records) for key, records in found.items()},
        }
        for level in LEVELS
    ]


def r_coverage(n: int, rho: float, sparse: bool, voxels: int = 400, draws: int = 400, seed: int = 3) -> dict[str, Any]:
    """How often the 95 % bootstrap interval of r over n images holds the population r; independent voxels, draws in common."""
    rng = np.random.default_rng([seed, n])
    a = unit_codes(rng, (n, voxels), sparse)
    y = rho * a + (1 - rho**2) ** 0.5 * rng.standard_normal((n, voxels))
    low, high = bootstrap_interval(lambda i: correlations(a[i], y[i]), n, samples=draws, seed=seed)
    return {"images": n, "r": rho, "sparse": sparse, "covered": _share((low <= rho) & (rho <= high))}


def profile_coverage(n: int, voxels: int = 600, group: int = 20, draws: int = 200, seed: int = 4) -> dict[str, Any]:
    """The same for the intervals of the `layers` stage: each layer's r, the mean r of a region of `group` voxels, and depth;
    and mean estimated depth and mean depth over draws' ends, beside the depth of the true profile.
    """
    rng = np.random.default_rng([seed, n])
    truth = np.array(PROFILE)
    a_lnv = unit_codes(rng, (len(PROFILE), n, voxels)).astype(np.float32)
    noise = rng.standard_normal((n, voxels)) * (1 - truth @ truth) ** 0.5
    y_nv = (np.einsum("l,lnv->nv", truth, a_lnv) + noise).astype(np.float32)
    masks = {str(i): np.arange(voxels) // group == i for i in range(voxels // group)}
    found = profile_draws(
        lambda layer, some: a_lnv[layer][:, some],
        lambda some: y_nv[:, some],
        draw_weights(n, draws, seed),
        np.arange(voxels),
        len(PROFILE),
        voxels,
        masks,
        voxels,
    )
    depth = float(np.arange(len(truth)) @ truth / truth.sum())
    ends = np.stack([region.profile for region in found.rois.values()], axis=1)
    scores = np.stack([correlations(a, y_nv) for a in a_lnv])
    return {
        "images": n,
        "profile": _share((found.low <= truth[:, None]) & (truth[:, None] <= found.high)),
        "region": _share((ends[..., 0] <= truth[:, None]) & (truth[:, None] <= ends[..., 1])),
        "depth": _share((found.depth_low <= depth) & (depth <= found.depth_high)),
        "depth_truth": depth,
        "depth_estimated": estimate(centre_of_mass(scores)),
        "depth_interval": [float(found.depth_low.mean()), float(found.depth_high.mean())],
    }


def rdm_coverage(n: int, trials: int, subjects: int, d: int = 8, draws: int = 200, seed: int = 5) -> dict[str, Any]:
    """The same for the RDM bootstrap: a model's RDM of n images with the mean over subjects of noisy RDMs of the same patterns.

    The population's value is that of 1,200 images.
    """

    def pair(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        model = rng.standard_normal((count, d))
        noise = rng.standard_normal((subjects, count, d))
        return pdist(model, "sqeuclidean"), np.stack([pdist(model + x, "sqeuclidean") for x in noise])

    model, brains = pair(np.random.default_rng([seed, 0, 1200]), 1200)
    truth = np.mean([np.corrcoef(model, x)[0, 1] for x in brains])

    def one(rng: np.random.Generator, i: int) -> dict[str, float]:
        model, brains = pair(rng, n)
        (found,) = resampled(model[None], brains[None], RsaConfig(bootstrap=draws, method="corr", seed=i))
        return {"covered": float(found.scores[0, 1] <= truth <= found.scores[0, 2])}

    return {"images": n, "subjects": subjects, "covered": _share(experiments(trials, seed, one)["covered"])}


def ceilings(level: float, voxels: int, n: int = 1000, n_held_out: int = 250, seed: int = 6) -> dict[str, Any]:
    """A model that knows the signal: its r with averaged responses to `n_held_out` images over the ceiling that is estimated
    from the repeats of all n images. Voxels whose estimated ncsnr is 0 have none.
    """
    rng = np.random.default_rng([seed, n])
    signal = level * rng.standard_normal((n, voxels))
    image_t = np.repeat(np.arange(n), REPEATS)
    trials = signal[image_t] + rng.standard_normal((n * REPEATS, voxels))
    z = (trials - trials.mean(axis=0)) / trials.std(axis=0)
    estimated = ncsnr(z, image_t)
    betas = average_repeats(z.astype(np.float32), image_t, n)[0][:n_held_out]
    ceiling = np.sqrt(noise_ceiling(estimated, np.full(n_held_out, REPEATS)))
    r, known = correlations(signal[:n_held_out], betas), ceiling > 0
    return {
        "ncsnr": level,
        "voxels": int(known.sum()),
        "estimated_ncsnr": estimate(estimated),
        "r": estimate(r),
        "r_of_ceiling": estimate(r[known] / ceiling[known]),
    }


def _share(hits: Any) -> dict[str, Any]:
    hits = np.asarray(hits, bool).ravel()
    return {
        "share": float(hits.mean()),
        "of": hits.size,
        "interval": list(binomial_interval(int(hits.sum()), hits.size)),
    }


def plain(value: Any) -> Any:
    """For JSON: an Estimate as its mean and standard error."""
    if isinstance(value, Estimate):
        return {"mean": value.mean, "error": value.error}
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list) else value
