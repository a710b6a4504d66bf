"""RDMs in tiles, and Spearman from exact ranks and from bins: against SciPy, with the stated bound checked."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import squareform

from sbm_jax.kernels import rdm
from sbm_jax.kernels.rdm.api import METRICS
from sbm_jax.kernels.rdm.tiles import Tiles, matrix_tiles, pattern_tiles
from sbm_jax.kernels.rdm_compare import streamed
from sbm_jax.kernels.rdm_compare.api import upper_triangle
from sbm_jax.kernels.rdm_compare.streamed import spearman_tiles


def whole(tiles: Tiles) -> np.ndarray:
    out = np.zeros((tiles.n, tiles.n), np.float32)
    for i in range(0, tiles.n, tiles.size):
        for j in range(i, tiles.n, tiles.size):
            block = tiles.block(i, j)
            out[i : i + len(block), j : j + block.shape[1]] = block
    return np.triu(out, 1)


def patterns(n: int, d: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, n])
    x = rng.normal(size=(n, d)).astype(np.float32)
    return x, (x + rng.normal(size=(n, d))).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("size", [7, 16, 100])
def test_tiles_are_the_rdm(metric, size):
    x, _ = patterns(40)
    tiles = pattern_tiles(x, metric, size=size)
    np.testing.assert_allclose(whole(tiles), np.triu(rdm(x, metric), 1), atol=2e-6, rtol=0)
    assert sum(map(len, tiles.values())) == tiles.pairs == 780
    np.testing.assert_array_equal(whole(matrix_tiles(rdm(x, metric), size=size)), np.triu(rdm(x, metric), 1))


def exact(a: Tiles, b: Tiles) -> float:
    return float(stats.spearmanr(*(np.concatenate(list(x.values())) for x in (a, b))).statistic)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("size", [16, 64])
def test_exact_within_the_budget_and_binned_within_the_bound_beyond_it(metric, size):
    tiles = [pattern_tiles(x, metric, size=size) for x in patterns(90)]
    want = exact(*tiles)
    found = spearman_tiles(tiles[:1], tiles[1:], memory_mb=1)
    assert (found.bins, found.bound_mk[0, 0]) == (0, 0)
    assert found.rho_mk[0, 0] == pytest.approx(want, abs=1e-12)
    need = 4005 * (16 + 36) / 2**20
    assert spearman_tiles(tiles[:1], tiles[1:], memory_mb=need).bins == 0
    binned = streamed._binned(tiles, 1, 4096)
    assert 0 < binned.bound_mk[0, 0] < 4e-3
    assert abs(binned.rho_mk[0, 0] - want) <= binned.bound_mk[0, 0]
    # errors of many pairs cancel
    assert abs(binned.rho_mk[0, 0] - want) < 1e-4


def test_the_budget_decides_on_the_bins():
    tiles = [pattern_tiles(x, size=64) for x in patterns(220)]
    found = [spearman_tiles(tiles[:1], tiles[1:], memory_mb=mb) for mb in (0.25, 0.5, 1.0)]
    assert [x.bins for x in found] == [4096, 8192, 16384]
    bounds = [x.bound_mk[0, 0] for x in found]
    assert bounds[0] > bounds[1] > bounds[2] > 0
    assert all(abs(x.rho_mk[0, 0] - exact(*tiles)) <= x.bound_mk[0, 0] for x in found)
    with pytest.raises(ValueError, match=r"2048 bins for 2 RDMs; at least 0.25 MB"):
        spearman_tiles(tiles[:1], tiles[1:], memory_mb=0.125)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    bins=st.sampled_from([1, 2, 3, 5, 16, 100]),
    levels=st.sampled_from([1, 2, 6, 10**6]),
    skew=st.sampled_from([1.0, 6.0]),
    mix=st.sampled_from([-1.0, 0.0, 0.7, 1.0]),
)
def test_the_bound_holds_however_coarse_the_bins(seed, bins, levels, skew, mix):
    """Few bins, ties, skewed values, opposite and equal RDMs."""
    rng = np.random.default_rng(seed)
    a = np.floor(rng.random(45) ** skew * levels).astype(np.float32)
    b = (mix * a + (1 - abs(mix)) * levels * rng.random(45)).astype(np.float32)
    tiles = [matrix_tiles(squareform(x), size=4) for x in (a, b)]
    found = streamed._binned(tiles, 1, bins)
    want = exact(*tiles) if np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0
    assert abs(found.rho_mk[0, 0] - want) <= found.bound_mk[0, 0] + 1e-12


@pytest.mark.parametrize("scale", [1e-36, 1e30])
def test_tiny_and_huge_values_fall_into_bins_alike(scale):
    x = patterns(30)
    squares = [rdm(z, "euclidean") for z in x]
    found = [streamed._binned([matrix_tiles(np.float32(k) * z, size=8) for z in squares], 1, 4096) for k in (1, scale)]
    assert found[1].rho_mk[0, 0] == pytest.approx(found[0].rho_mk[0, 0], abs=1e-4)
    assert found[1].bound_mk[0, 0] < 4e-3


def test_values_of_one_bin_each_are_exact():
    """As many bins as whole numbers: every bin holds ties alone, so ranks are those of SciPy though the bound is not 0."""
    rng = np.random.default_rng(1)
    squares = [squareform(rng.integers(0, 8, 190)) for _ in range(2)]
    tiles = [dataclasses.replace(matrix_tiles(x, size=6), limits=(0.0, 8.0)) for x in squares]
    found = streamed._binned(tiles, 1, 8)
    want = stats.spearmanr(*(upper_triangle(x) for x in squares)).statistic
    assert found.rho_mk[0, 0] == pytest.approx(want, abs=1e-12) and found.bound_mk[0, 0] > 0


@pytest.mark.parametrize("memory_mb", [0.8, 8.0])
def test_many_models_and_rois_in_one_pass(memory_mb):
    """Each RDM is made twice when streamed (its range is known) and once when held."""
    made = []

    def counted(x: np.ndarray, name: int) -> Tiles:
        tiles = pattern_tiles(x, size=50)
        return dataclasses.replace(tiles, block=lambda i, j: (made.append(name), tiles.block(i, j))[1])

    models = [counted(x, k) for k, x in enumerate(patterns(150))]
    rois = [counted(x, 2 + k) for k, x in enumerate([*patterns(150, seed=1), patterns(150)[0] + 0.5])]
    found = spearman_tiles(models, rois, memory_mb=memory_mb)
    assert found.bins == (4096 if memory_mb < 1 else 0)
    per_pass = 6  # tiles on or above the diagonal of 3 x 3
    assert all(made.count(k) == per_pass * (1 if found.bins == 0 else 2) for k in range(5))
    for i, a in enumerate(models):
        for j, b in enumerate(rois):
            assert abs(found.rho_mk[i, j] - exact(a, b)) <= found.bound_mk[i, j] + 1e-12


def test_bad_arguments():
    x, y = patterns(20)
    a, b = pattern_tiles(x, size=8), pattern_tiles(y, size=10)
    with pytest.raises(ValueError, match="20 images in tiles of 10, 20 images in tiles of 7"):
        spearman_tiles([a], [b])
    with pytest.raises(ValueError, match="found"):
        spearman_tiles([], [b])
    bad = rdm(x).copy()
    bad[3, 5] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        spearman_tiles([matrix_tiles(bad)], [matrix_tiles(bad)])
    with pytest.raises(ValueError, match="NaN or infinity"):
        streamed._binned([matrix_tiles(bad)] * 2, 1, 16)
    x[4] = 3
    with pytest.raises(ValueError, match="1 images have no correlation dissimilarity, the first is 4"):
        pattern_tiles(x)
    with pytest.raises(ValueError, match="unknown metric"):
        pattern_tiles(y, "crossnobis")
    with pytest.raises(ValueError, match=r"\[n, n\], found shape \(3, 4\)"):
        matrix_tiles(np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"found shape \(3,\)"):
        pattern_tiles(np.zeros(3))
