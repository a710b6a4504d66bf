"""The joint stage of the tiny run, recomputed in float64 from codes and responses alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sbm_jax.kernels.pursuit.reference import pursue

SUBJECTS = ("subj01", "subj02")
MODES = ("patch_mean", "raw")  # joint.modes of the tiny run
ATOMS, CANDIDATES, LAMBDAS = 3, 8, (0.1, 10.0)
VALIDATION = 7  # of 36 unique images


class Fit:
    """One mode and subject: codes of all layers side by side, responses, and the images of each use."""

    def __init__(self, stores, mode: str, subject: str):
        self.brain, codes = stores.brain(subject), stores.codes(mode)
        self.flat = codes.transpose(1, 0, 2).reshape(codes.shape[1], -1)[self.brain.rows]
        self.y, self.fit, self.score = self.brain.betas_vn.T, ~self.brain.shared, self.brain.shared
        rows = np.flatnonzero(self.fit)
        self.validation = np.zeros_like(self.fit)
        self.validation[np.random.default_rng([0, len(rows)]).permutation(rows)[:VALIDATION]] = True
        self.inner = self.fit & ~self.validation
        self.alive = np.flatnonzero(self.brain.responsive)
        self.found = lambda name: stores.array("joint", f"{mode}/{name}", subject)


@pytest.fixture(params=[(m, s) for m in MODES for s in SUBJECTS], ids=str, scope="module")
def one(request, stores) -> Fit:
    return Fit(stores, *request.param)


def test_the_first_atom_is_the_best_unit(stores):
    for mode in MODES:
        for subject in SUBJECTS:
            units, scores = (stores.array("joint", f"{mode}/{key}", subject) for key in ("omp_units", "omp_held_out"))
            align = [stores.array("align", f"{mode}/{key}", subject)[:, 0] for key in ("voxel_units", "held_out")]
            alive = stores.brain(subject).responsive
            np.testing.assert_array_equal(units[alive, 0], align[0][alive])
            np.testing.assert_allclose(scores[0, alive], align[1][alive], atol=1e-5)
            assert (units[~alive] == -1).all() and np.isnan(scores[:, ~alive]).all()


def test_pursuit(one, correlation):
    """The whole chain for some voxels: candidates, atoms, their number on validation images, scores on shared ones."""
    units, curve, in_sample, number, chosen = (
        one.found(f"omp_{key}") for key in ("units", "held_out", "in_sample", "atoms", "chosen")
    )
    same = 0
    for v in one.alive[:: max(1, len(one.alive) // 12)]:
        results = []
        for fit, score in ((one.inner, one.validation), (one.fit, one.score)):
            r = correlation(one.flat[fit], one.y[fit][:, [v]])[:, 0]
            r = np.where(r == 0, -2, r)
            # similarities are float32: units that say the same come in the order of their numbers
            candidates = np.lexsort((np.arange(len(r)), -r.astype(np.float32)))[:CANDIDATES]
            at, *scores = pursue(one.flat[:, candidates], one.y[:, v], fit, score, ATOMS)
            results.append((np.where(at >= 0, candidates[at], -1), *scores))
        _, _, validated = results[0]
        expected, own, held_out = results[1]
        if (expected == units[v]).all():
            same += 1
            np.testing.assert_allclose(curve[:, v], held_out, atol=2e-4)
            np.testing.assert_allclose(in_sample[:, v], own, atol=2e-4)
            assert validated[number[v] - 1] > validated.max() - 1e-4 or np.ptp(validated) == 0
        assert chosen[v] == curve[number[v] - 1, v]
    assert same >= 9
    assert set(number) <= {0, 1, 2, 3} and (number == 0).sum() == len(number) - len(one.alive)


def _ridge(one: Fit, units: np.ndarray, fit, score, penalty: float, voxels: np.ndarray) -> np.ndarray:
    """Pearson's r [v] of the normal equations' predictions."""
    x, z = one.flat[fit][:, units], one.flat[score][:, units]
    real = np.ptp(x, axis=0) > 1e-6 * np.abs(x).max(axis=0)
    mean, deviation = x[:, real].mean(axis=0), x[:, real].std(axis=0)
    x, z = (x[:, real] - mean) / deviation, (z[:, real] - mean) / deviation
    y = one.y[fit][:, voxels]
    w = np.linalg.solve(x.T @ x / len(x) + penalty * np.eye(x.shape[1]), x.T @ (y - y.mean(axis=0)) / len(x))
    a, b = z @ w, one.y[score][:, voxels]
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return (a * b).sum(axis=0) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0)


def test_ridge_at_an_equal_budget(one, correlation):
    """The predictors explain most over all responsive voxels of the unique images; r follows from them and the penalty."""
    units, held_out, penalty = (one.found(f"ridge_{key}") for key in ("units", "held_out", "lambda"))
    r = correlation(one.flat[one.fit], one.y[one.fit][:, one.alive])
    lists = np.argsort(-np.where(r == 0, -2, r), axis=0, kind="stable")[:CANDIDATES]
    mass = np.zeros(len(r))
    np.add.at(mass, lists, np.maximum(np.take_along_axis(r, lists, axis=0), 0) ** 2)
    expected = np.argsort(-mass, kind="stable")[: len(units)]
    assert len(np.intersect1d(units, expected)) >= 0.97 * len(units)
    assert set(np.unique(penalty[one.alive])) <= {np.float32(x) for x in LAMBDAS}
    for x in LAMBDAS:
        mine = one.alive[penalty[one.alive] == np.float32(x)]
        np.testing.assert_allclose(held_out[mine], _ridge(one, units, one.fit, one.score, x, mine), atol=1e-3)
    assert np.isnan(held_out[~one.brain.responsive]).all() and np.isnan(penalty[~one.brain.responsive]).all()


@pytest.mark.parametrize("subject", SUBJECTS)
def test_ridge_on_one_layer_of_neurons(stores, subject):
    one = Fit(stores, "raw", subject)
    layer, penalty, held_out = (one.found(f"ridge_layer{key}") for key in ("", "_lambda", "_held_out"))
    width = one.flat.shape[1] // 2
    validated = {
        (at, x): _ridge(one, np.arange(at * width, (at + 1) * width), one.inner, one.validation, x, one.alive)
        for at in (0, 1)
        for x in LAMBDAS
    }
    best = np.max(list(validated.values()), axis=0)
    for (at, x), r in validated.items():
        mine = (layer[one.alive] == at) & (penalty[one.alive] == np.float32(x))
        assert (r[mine] > best[mine] - 1e-3).all()
        expected = _ridge(one, np.arange(at * width, (at + 1) * width), one.fit, one.score, x, one.alive[mine])
        np.testing.assert_allclose(held_out[one.alive[mine]], expected, atol=1e-3)
    assert set(layer[~one.brain.responsive]) <= {-1}


def test_summary_and_page(stores, tiny):
    summary = json.loads((tiny.out / "summary.json").read_text())["joint"]
    for subject in SUBJECTS:
        record, brain = summary[subject], stores.brain(subject)
        assert record["images"] == {"fit": 36, "inner": 29, "validation": 7}
        assert list(record["modes"]) == list(MODES) and record["voxels"] == brain.responsive.sum()
        facts = stores.document("joint", "joint.json", subject)
        ceiling = np.sqrt(stores.array("betas", "noise_ceiling", subject))
        rois = {"all responsive": np.ones(len(ceiling), bool), **stores.rois(subject)}
        for mode, found in record["modes"].items():
            assert found.items() >= facts["modes"][mode].items()
            assert found["candidates"] == CANDIDATES
            curve = stores.array("joint", f"{mode}/omp_held_out", subject)
            np.testing.assert_allclose(found["curve"], np.nanmean(curve.astype(np.float64), axis=1), atol=1e-6)
            models = {"unit": curve[0]}
            names = {"omp": "omp_chosen", "ridge": "ridge_held_out", "ridge_layer": "ridge_layer_held_out"}
            for key, name in names.items():
                if key != "ridge_layer" or mode == "raw":
                    models[key] = stores.array("joint", f"{mode}/{name}", subject)
            for roi, row in found["rois"].items():
                inside = rois[roi] & brain.responsive
                assert row["voxels"] == inside.sum() >= 5
                for key, r in models.items():
                    assert row[key] == pytest.approx(r[inside].mean(dtype=np.float64), abs=1e-6)
                    share = np.mean(r[inside & (ceiling > 0)] / ceiling[inside & (ceiling > 0)], dtype=np.float64)
                    assert row[f"{key}_of_ceiling"] == pytest.approx(share, abs=1e-5)
            assert (found["rois"]["all responsive"]["ridge_layer"] is None) == (mode != "raw")
    page = (tiny.out / "report.html").read_text()
    assert all(
        f"Joint models, {subject}" in page and f"Several units per voxel, {subject}" in page for subject in SUBJECTS
    )
