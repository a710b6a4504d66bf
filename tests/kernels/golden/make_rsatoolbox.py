"""Golden numbers of rsatoolbox 0.3.2: `python make_rsatoolbox.py` where it is installed writes rsatoolbox.json beside this."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
from rsatoolbox.data import Dataset
from rsatoolbox.inference.noise_ceiling import boot_noise_ceiling
from rsatoolbox.rdm import RDMs, calc_rdm, compare

warnings.simplefilter("ignore")  # its warning on tau
METHODS = ("corr", "cosine", "spearman", "rho-a", "tau-a", "corr_cov", "cosine_cov")


def evaluations(models: RDMs, brains: RDMs) -> dict:
    """Per method: mean score of every model over subjects, and the noise ceiling."""
    out = {}
    for name in METHODS:
        lower, upper = boot_noise_ceiling(brains, method=name)
        out[name] = {
            "scores": np.mean(compare(models, brains, name), axis=1).tolist(),
            "ceiling": [float(lower), float(upper)],
        }
    return out


def main() -> None:
    rng = np.random.default_rng(20)
    folds, n, d, subjects = 3, 9, 5, 4
    x = np.round(rng.normal(size=(folds, n, d)), 3)
    a = rng.normal(size=(d, 2 * d))
    precision = np.round(a @ a.T / (2 * d), 3)
    order = [f"{i:03d}" for i in range(n)]  # it sorts conditions by name
    data = Dataset(
        x.reshape(-1, d),
        obs_descriptors={"image": order * folds, "fold": np.repeat(np.arange(folds), n)},
    )
    patterns = Dataset(x[0], obs_descriptors={"image": order})
    rdms = {
        "crossnobis": calc_rdm(data, "crossnobis", "image", cv_descriptor="fold"),
        "crossnobis_precision": calc_rdm(data, "crossnobis", "image", noise=precision, cv_descriptor="fold"),
        "correlation": calc_rdm(patterns, "correlation", "image"),
        "euclidean": calc_rdm(patterns, "euclidean", "image"),
    }
    pairs = n * (n - 1) // 2
    truth = rng.gamma(2.0, size=pairs)
    brains = np.round(truth + rng.gamma(2.0, size=(subjects, pairs)), 1)  # with ties
    models = np.round(np.stack([truth, truth + rng.gamma(2.0, size=pairs), rng.gamma(2.0, size=pairs)]), 1)
    missing = [3, 17, 20]
    holes = [np.where(np.isin(np.arange(pairs), missing), np.nan, y) for y in (models[1], brains[0])]
    draws = []
    for _ in range(4):
        images, people = np.sort(rng.integers(0, n, n)), rng.integers(0, subjects, subjects)
        sampled = RDMs(brains).subsample("index", people).subsample_pattern("index", images)
        found = evaluations(RDMs(models).subsample_pattern("index", images), sampled)
        draws.append({"images": images.tolist(), "subjects": people.tolist(), "found": found})
    alone = RDMs(brains).subsample("index", np.zeros(subjects, int))
    record = {
        "by": "rsatoolbox 0.3.2",
        "patterns": x.tolist(),
        "precision": precision.tolist(),
        "rdms": {name: y.get_vectors()[0].tolist() for name, y in rdms.items()},
        "models": models.tolist(),
        "brains": brains.tolist(),
        "all": evaluations(RDMs(models), RDMs(brains)),
        "one_subject_alone": evaluations(RDMs(models), alone),
        "missing": missing,
        "compare_with_missing": {
            name: float(compare(RDMs(holes[0][None]), RDMs(holes[1][None]), name)[0, 0]) for name in METHODS
        },
        "draws": draws,
    }
    Path(__file__).with_name("rsatoolbox.json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
