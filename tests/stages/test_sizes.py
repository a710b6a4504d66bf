"""Score against dictionary size: nested random subsets against a plain search, noise alone, and the tiny run's full sizes."""

from __future__ import annotations

import numpy as np
import pytest

from sbm_jax.kernels import SparseCodes
from sbm_jax.stages.nested import Nested, subset_sizes
from sbm_jax.stages.report_sizes import size_plots, size_tables

TOLERANCE = 2e-6  # float32 sums over some dozens of images
CLOSE = 1e-5


def test_sizes_are_halves_down_to_sixteen():
    assert subset_sizes(1024) == [16, 32, 64, 128, 256, 512, 1024]
    assert subset_sizes(768) == [24, 48, 96, 192, 384, 768]
    assert subset_sizes(37) == [18, 37]
    assert subset_sizes(31) == [31] and subset_sizes(1) == [1]


@pytest.fixture(params=("sparse", "dense"))
def layers(request, rng):
    """Two layers of codes of 41 + 23 images over 37 units, of which some never fire, some always alike, and two are the same."""
    n, u, k = 64, 37, 5
    out = []
    for _ in range(2):
        units = np.stack([rng.permutation(u - 4)[:k] for _ in range(n)]).astype(np.int32)
        values = rng.random((n, k)).astype(np.float32) * (rng.random((n, k)) < 0.8)
        dense = SparseCodes(values, units, u).to_dense()
        dense[:, 0] = 0
        dense[3, 0] = dense[3, 1] = 0.5  # two units that fire on one image alone tie exactly
        dense[:, 1] = dense[:, 0]
        dense[:, u - 1] = 0.25
        every = np.argsort(dense == 0, axis=1, kind="stable")[:, : (dense != 0).sum(axis=1).max()].astype(np.int32)
        sparse = SparseCodes(np.take_along_axis(dense, every, axis=1), every, u)
        np.testing.assert_array_equal(sparse.to_dense(), dense)
        out.append(sparse if request.param == "sparse" else dense)
    return out


def dense_of(codes) -> np.ndarray:
    return codes.to_dense(np.float64) if isinstance(codes, SparseCodes) else codes.astype(np.float64)


def rows(codes, index):
    return codes.rows(index) if isinstance(codes, SparseCodes) else codes[index]


@pytest.mark.parametrize("absolute", [False, True])
def test_every_subset_against_a_plain_search(layers, rng, correlation, absolute):
    select, held_out = slice(0, 41), slice(41, 64)
    y = rng.standard_normal((64, 19)).astype(np.float32)
    y[:41, 4] = y[41:, 7] = 1.0  # a voxel without variance
    sizes, draws, seed, u = subset_sizes(37), 3, 5, 37
    search = Nested(y[select], sizes, draws, seed, 1 << 16, absolute)
    for layer, codes in enumerate(layers):
        search.layer(layer, rows(codes, select))
    found = search.in_sample
    scores = search.held_out([rows(codes, held_out) for codes in layers], y[held_out])
    assert found.shape == scores.shape == (draws, len(sizes), 19)
    s, t = (np.concatenate([correlation(dense_of(c)[part], y[part]) for c in layers]) for part in (select, held_out))
    constant = np.concatenate([np.ptp(dense_of(c)[select], axis=0) == 0 for c in layers])
    assert constant.any()
    sign = np.where(s < 0, -1, 1) if absolute else np.ones(s.shape)
    s, t = sign * s, sign * t
    s_key = np.where(constant[:, None], -2, s)
    for d in range(draws):
        order = [np.random.default_rng([seed, layer, d]).permutation(u) for layer in range(2)]
        for j, m in enumerate(sizes):
            allowed = np.sort(np.concatenate([order[layer][:m] + layer * u for layer in range(2)]))
            best = allowed[s_key[allowed].argmax(axis=0)]
            every = np.arange(19)
            np.testing.assert_allclose(found[d, j], s[best, every], atol=TOLERANCE)
            assert set(search.units[d, j]) <= set(allowed)
            top = -np.sort(-s_key[allowed], axis=0)
            clear = top[0] - top[1] > CLOSE
            np.testing.assert_array_equal(search.units[d, j][clear], best[clear])
            np.testing.assert_allclose(scores[d, j], t[search.units[d, j], every], atol=TOLERANCE)
            for first in {0, u} & set(allowed):  # ties go to the first of two equal units
                assert first + 1 not in search.units[d, j]
    assert (found[:, -1] == found[:1, -1]).all() and (search.units[:, -1] == search.units[:1, -1]).all()
    assert (np.diff(found, axis=1) >= 0).all()


def test_noise_alone_grows_with_the_logarithm_in_sample_and_is_nothing_held_out(rng):
    """The best of M independent units on N images has the mean of the largest of M normals, over sqrt(N - 1)."""
    n, held, u, v, layers = 200, 100, 512, 400, 2
    x = rng.standard_normal((layers, n + held, u)).astype(np.float32)
    y = rng.standard_normal((n + held, v)).astype(np.float32)
    sizes = subset_sizes(u)
    search = Nested(y[:n], sizes, 2, 0, 1 << 24)
    for layer in range(layers):
        search.layer(layer, x[layer, :n])
    in_sample = search.in_sample.mean(axis=(0, 2))
    held_out = search.held_out(x[:, n:], y[n:])
    expected = [rng.standard_normal((2000, layers * m)).max(axis=1).mean() / np.sqrt(n - 1) for m in sizes]
    np.testing.assert_allclose(in_sample, expected, rtol=0.03)
    steps = np.diff(in_sample**2)  # about 2 ln(2) / N for every doubling
    np.testing.assert_allclose(steps, 2 * np.log(2) / n, rtol=0.35)
    assert (np.abs(held_out.mean(axis=2)) < 5 / np.sqrt(held * v)).all()


@pytest.mark.parametrize("subject", ["subj01", "subj02"])
def test_all_units_score_what_the_alignment_says(stores, subject):
    record, brain = stores.document("sizes", "sizes.json")[subject], stores.brain(subject)
    alive = np.flatnonzero(brain.responsive)
    voxels = np.sort(np.random.default_rng([0, len(alive)]).permutation(alive)[:1000])
    assert record["voxels"] == len(voxels) == 1000
    assert (record["select_images"], record["held_out_images"]) == (36, 24)
    for mode, records in record["modes"].items():
        full, units = records[-1], 128 if mode == "raw" else 256
        assert (full["units"], full["candidates"]) == (units, 2 * units)
        assert [r["units"] for r in records] == subset_sizes(units)
        assert max(full["in_sample_sd"], full["held_out_sd"]) < 1e-12  # every draw is of all units
        best = stores.array("align", f"{mode}/voxel_values", subject)[voxels, 0]
        score = stores.array("align", f"{mode}/held_out", subject)[voxels, 0]
        assert abs(full["in_sample"] - best.mean(dtype=np.float64)) < TOLERANCE
        # a few nearly equal units may change places
        assert abs(full["held_out"] - score.mean(dtype=np.float64)) < 2e-3
        assert (np.diff([r["in_sample"] for r in records]) > 0).all()
        assert all(r["held_out_sd"] > 0 for r in records[:-1])


def _summary(held_out: float | None) -> dict:
    def records(units):
        return [
            {"units": u, "candidates": 2 * u, "in_sample": u / 1e3, "held_out": held_out, "in_sample_sd": 0.0,
             "held_out_sd": held_out}
            for u in units
        ]  # fmt: skip

    modes = {"raw": records([16, 32]), "cls": records([16, 32, 64, 128])}
    return {"sizes": {name: {"voxels": 10, "modes": modes} for name in ("a", "b")}}


def test_the_page_compares_at_equal_numbers():
    plots, (table,) = size_plots(_summary(0.25)), size_tables(_summary(0.25))
    assert len(plots) == 2 and all(list(p.traces) == ["CLS SAE", "raw neurons"] and p.log_x for p in plots)
    assert plots[0].traces["CLS SAE"].x == [32, 64, 128, 256]
    assert table.rows == [
        ["CLS SAE", 64, 0.032, 0.25, 256, 0.128, 0.25],
        ["raw neurons", 64, 0.032, 0.25, 64, 0.032, 0.25],
    ]
    # with nothing held out there is one chart, and dashes
    (plot,), (table,) = size_plots(_summary(None)), size_tables(_summary(None))
    assert "in sample" in plot.title and table.rows[0][3] is None
