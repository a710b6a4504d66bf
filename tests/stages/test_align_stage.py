"""The alignment of the tiny run against every unit x every voxel in float64."""

from __future__ import annotations

import numpy as np
import pytest

MODES = ("cls", "patch_mean", "patch_max", "raw", "random")
TOLERANCE = 2e-6  # float32 sums over 36 images
CLOSE = 1e-5  # similarities nearer than this may change places


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=("subj01", "subj02"))
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def similarities(stores, correlation, mode, subject):
    """(in sample, held out), each [l, u, v]; a constant column has 0 in the first and is ranked by `_keys`."""
    codes, brain = stores.codes(mode), stores.brain(subject)
    out = []
    for part in ("select", "held_out"):
        rows, y = brain.part(part)
        out.append(np.stack([correlation(layer[rows], y) for layer in codes]))
    return out


def _keys(s: np.ndarray) -> np.ndarray:
    """Constant candidates rank below every real one."""
    return np.where(s == 0, -2.0, s)


def test_voxel_lists(stores, mode, subject, similarities):
    in_sample, held_out = (s.reshape(-1, s.shape[2]) for s in similarities)
    values, units, scores = (
        stores.array("align", f"{mode}/{key}", subject) for key in ("voxel_values", "voxel_units", "held_out")
    )
    every = np.arange(values.shape[0])[:, None]
    keys = _keys(in_sample)
    best = -np.sort(-keys, axis=0)[:3].T
    assert stores.brain(subject).usable.all()
    np.testing.assert_allclose(values, best, atol=TOLERANCE)
    np.testing.assert_allclose(values, in_sample[units, every], atol=TOLERANCE)
    np.testing.assert_allclose(scores, held_out[units, every], atol=TOLERANCE)
    # Where the first is clearly first, it is that very unit.
    clear = best[:, 0] - best[:, 1] > CLOSE
    assert clear.mean() > 0.5  # CLS units that fire on one image alone are exact ties
    np.testing.assert_array_equal(units[clear, 0], keys.argmax(axis=0)[clear])
    # No unit is listed twice.
    assert all((units[:, i] != units[:, j]).all() for i, j in ((0, 1), (0, 2), (1, 2)))


def test_layers(stores, mode, subject, similarities):
    in_sample, held_out = similarities
    layers, per_layer, n_voxels = in_sample.shape
    values, units, scores = (
        stores.array("align", f"{mode}/layer_{key}", subject) for key in ("values", "units", "held_out")
    )
    assert values.shape == (layers, n_voxels)
    np.testing.assert_allclose(values, _keys(in_sample).max(axis=1), atol=TOLERANCE)
    for layer in range(layers):
        assert (units[layer] // per_layer == layer).all()
        chosen = held_out[layer][units[layer] % per_layer, np.arange(n_voxels)]
        np.testing.assert_allclose(scores[layer], chosen, atol=TOLERANCE)


def test_unit_lists(stores, mode, subject, similarities):
    in_sample = similarities[0]
    values, voxels = (stores.array("align", f"{mode}/unit_{key}", subject) for key in ("values", "voxels"))
    silent = (in_sample == 0).all(axis=2)
    best = -np.sort(-in_sample, axis=2)[:, :, :3]
    np.testing.assert_allclose(values, np.where(silent[:, :, None], 0, best), atol=TOLERANCE)
    layer, unit, slot = np.nonzero(np.broadcast_to(~silent[:, :, None], values.shape))
    listed = in_sample[layer, unit, voxels[layer, unit, slot]]
    np.testing.assert_allclose(values[layer, unit, slot], listed, atol=TOLERANCE)
    assert not silent.all()


def test_shuffled_control(stores, mode, subject, correlation):
    """The same search with images permuted: one order for all voxels and layers, from (seed, image counts)."""
    codes, brain = stores.codes(mode), stores.brain(subject)
    alive = brain.responsive
    values, units, scores = (
        stores.array("align", f"{mode}/shuffled_{key}", subject) for key in ("values", "units", "held_out")
    )
    assert values.shape[0] == 2
    assert (units[:, ~alive] == -1).all() and np.isnan(values[:, ~alive]).all() and np.isnan(scores[:, ~alive]).all()
    (select, y_select), (held_out, y_held_out) = brain.part("select"), brain.part("held_out")
    rng = np.random.default_rng([0, len(select), len(held_out)])
    for b in range(2):
        orders = rng.permutation(len(select)), rng.permutation(len(held_out))
        rows = select[orders[0]], held_out[orders[1]]
        s, t = (
            np.concatenate([correlation(layer[r], y[:, alive]) for layer in codes])
            for r, y in zip(rows, (y_select, y_held_out), strict=True)
        )
        np.testing.assert_allclose(values[b, alive], _keys(s).max(axis=0), atol=TOLERANCE)
        np.testing.assert_allclose(scores[b, alive], t[units[b, alive], np.arange(alive.sum())], atol=TOLERANCE)
    assert not np.allclose(values[0, alive], values[1, alive])


def test_decoder_rows(stores, mode, subject):
    folder = stores.folder("align", subject) / mode
    if mode in ("raw", "random"):
        assert not (folder / "decoder").exists()
        return
    kind = "cls" if mode == "cls" else "patch"
    members = [(m["kind"], m["hook"]) for m in stores.document("saes", "metrics.json")["members"]]
    w_dec, scale = stores.array("saes", "w_dec"), stores.array("saes", "scale")
    best = stores.array("align", f"{mode}/voxel_units", subject)[:, 0]
    layer, unit = np.divmod(best, w_dec.shape[1])
    member = np.array([members.index((kind, hook)) for hook in ("block01.resid", "block05.resid")])[layer]
    expected = w_dec[member, unit] / scale[member][:, None]
    np.testing.assert_allclose(stores.array("align", f"{mode}/decoder", subject), expected, rtol=1e-6)
