"""Assignments of the tiny run, recomputed from the lists of the alignment and from codes and responses in float64."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import linear_sum_assignment, linprog

from sbm_jax.stages.report_assign import assign_tables

MODES = ("cls", "patch_mean", "patch_max", "raw", "random")
TOLERANCE = 2e-6  # float32 sums over 36 images


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=("subj01", "subj02"))
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def lists(stores, mode, subject):
    """Listed pairs of responsive voxels as a dense table [voxel, unit over all layers], NaN where a pair is not listed."""
    values, units, unit_values, unit_voxels = (
        stores.array("align", f"{mode}/{key}", subject)
        for key in ("voxel_values", "voxel_units", "unit_values", "unit_voxels")
    )
    n_units = unit_values.shape[0] * unit_values.shape[1]
    out = np.full((len(values), n_units), np.nan)
    by_unit = unit_voxels.reshape(n_units, -1)
    out[by_unit, np.arange(n_units)[:, None]] = unit_values.reshape(n_units, -1)
    out[np.arange(len(values))[:, None], units] = values
    varying = (unit_values.reshape(n_units, -1) != 0).any(axis=1)
    return out[stores.brain(subject).responsive], varying


@pytest.fixture
def record(stores, mode, subject):
    return stores.document("assign", "assign.json", subject)[mode]


def _assigned(stores, mode, subject, *keys):
    return [stores.array("assign", f"{mode}/{key}", subject) for key in keys]


def test_one_to_one_is_the_hungarian_solution_of_the_lists(stores, mode, subject, lists, record):
    alive = stores.brain(subject).responsive
    unit, value = _assigned(stores, mode, subject, "one_to_one_unit", "one_to_one_value")
    assert (unit[~alive] == -1).all() and np.isnan(value[~alive]).all()
    table, varying = lists
    unit, value = unit[alive], value[alive]
    taken = unit >= 0
    assert len(np.unique(unit[taken])) == taken.sum() > 0 and varying[unit[taken]].all()
    np.testing.assert_allclose(value[taken], table[np.flatnonzero(taken), unit[taken]], atol=1e-7)
    assert (value[~taken] == 0).all()
    weights = np.maximum(np.nan_to_num(table), 0)
    best = weights[linear_sum_assignment(weights, maximize=True)].sum()
    assert value.sum(dtype=np.float64) == pytest.approx(best, rel=1e-6)
    bounds = record["bounds"]["one_to_one"]
    assert bounds["lower"] == pytest.approx(best / len(unit), rel=1e-6) and abs(bounds["gap"]) < 1e-9
    argmax = stores.array("align", f"{mode}/voxel_values", subject)[alive, 0]
    assert bounds["lower"] <= bounds["upper"] <= argmax.mean(dtype=np.float64) + 1e-6
    assert bounds["moved"] == pytest.approx(taken.mean())
    assert record["units"] == varying.sum() and record["too_few_units"] == max(0, len(unit) - varying.sum())
    assert record["pairs"] == (table[:, varying] > 0).sum()


def test_held_out_scores_are_those_of_the_shared_images(stores, mode, subject, correlation):
    """Of pairs in the lists of voxels and in those of units alone."""
    brain, codes = stores.brain(subject), stores.codes(mode)
    unit, held_out = _assigned(stores, mode, subject, "one_to_one_unit", "one_to_one_held_out")
    rows, y = brain.part("held_out")
    flat = codes.transpose(1, 0, 2).reshape(codes.shape[1], -1)[rows]
    taken = np.flatnonzero(unit >= 0)
    expected = np.array([correlation(flat[:, [unit[v]]], y[:, [v]])[0, 0] for v in taken])
    np.testing.assert_allclose(held_out[taken], expected, atol=TOLERANCE)
    assert (held_out[brain.responsive & (unit < 0)] == 0).all() and np.isnan(held_out[~brain.responsive]).all()
    listed = (stores.array("align", f"{mode}/voxel_units", subject)[taken] == unit[taken, None]).any(axis=1)
    assert listed.any() and not listed.all()


@pytest.mark.parametrize("mode", ["cls", "raw"], indirect=True)
@pytest.mark.parametrize("subject", ["subj01"], indirect=True)
def test_soft_matching_is_the_linear_program_of_the_lists(stores, mode, subject, lists, record):
    table, varying = lists
    voxels, units = np.nonzero(table[:, varying] > 0)
    s, (v, u) = table[:, varying][voxels, units], (len(table), varying.sum())
    rows = np.concatenate([units, u + voxels])
    limits = sparse.csr_array((np.ones(2 * len(s)), (rows, np.tile(np.arange(len(s)), 2))), shape=(u + v, len(s)))
    masses = np.concatenate([np.full(u, v / u), np.ones(v)])
    solved = linprog(-s, A_ub=limits, b_ub=masses, method="highs-ds")
    bounds = record["bounds"]["soft"]
    assert bounds["lower"] == pytest.approx(-solved.fun / v, rel=1e-6) and abs(bounds["gap"]) < 1e-6
    assert bounds["lower"] <= bounds["upper"]
    brain = stores.brain(subject)
    value, held_out = _assigned(stores, mode, subject, "soft_value", "soft_held_out")
    assert value[brain.responsive].mean(dtype=np.float64) == pytest.approx(bounds["lower"], rel=1e-6)
    assert np.isnan(value[~brain.responsive]).all() and np.isfinite(held_out[brain.responsive]).all()
    best = stores.array("align", f"{mode}/voxel_values", subject)[:, 0]
    assert (value <= np.maximum(best, 0) + 1e-6)[brain.responsive].all()


def test_means_of_every_region(stores, mode, subject, record):
    brain = stores.brain(subject)
    units, values, scores = (
        stores.array("align", f"{mode}/{key}", subject)[:, 0] for key in ("voxel_units", "voxel_values", "held_out")
    )
    keys = ("one_to_one_unit", "one_to_one_value", "one_to_one_held_out", "soft_value", "soft_held_out")
    arrays = dict(zip(keys, _assigned(stores, mode, subject, *keys), strict=True))
    masks = {"all responsive": brain.responsive}
    masks |= {roi: mask & brain.responsive for roi, mask in stores.rois(subject).items()}
    assert set(record["rois"]) == {roi for roi, mask in masks.items() if mask.sum() >= 5}
    for roi, found in record["rois"].items():
        inside = masks[roi]
        same = units[inside][:, None] == units[inside][None, :]
        assert found["voxels"] == inside.sum() and found["unmatched"] == (arrays["one_to_one_unit"][inside] < 0).sum()
        assert found["shared"] == pytest.approx((same.sum(axis=1) > 1).mean())
        assert found["distinct"] == pytest.approx(len(set(units[inside])) / inside.sum())
        means = {"argmax": values, "argmax_held_out": scores, "one_to_one": arrays["one_to_one_value"]}
        means |= {"one_to_one_held_out": arrays["one_to_one_held_out"], "soft": arrays["soft_value"]}
        for key, x in {**means, "soft_held_out": arrays["soft_held_out"]}.items():
            assert found[key] == pytest.approx(x[inside].mean(dtype=np.float64), abs=1e-6)


def test_the_table(tiny, stores):
    """A row per mode in the fixed order, `raw` with fewer units than voxels; without soft matching three columns less."""
    page = (tiny.out / "report.html").read_text(encoding="utf-8")
    records = {name: stores.document("assign", "assign.json", name) for name in ("subj01", "subj02")}
    for table, (name, modes) in zip(assign_tables({"assign": records}), records.items(), strict=True):
        assert table.title == f"One-to-one and soft matching, {name}" and table.title in page
        assert len(table.rows) == len(MODES) and {len(row) for row in table.rows} == {len(table.columns)}
        raw = modes["raw"]
        all_voxels = raw["rois"]["all responsive"]
        assert all_voxels["unmatched"] >= raw["too_few_units"] == all_voxels["voxels"] - raw["units"] > 0
        assert table.rows[3][0] == "raw neurons" and all_voxels["unmatched"] in table.rows[3]
        for record in modes.values():
            del record["bounds"]["soft"]
    (short, _) = assign_tables({"assign": records})
    assert len(short.columns) == len(table.columns) - 3 == len(short.rows[0])
