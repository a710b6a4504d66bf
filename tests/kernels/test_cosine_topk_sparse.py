"""The sparse search: the reference's results at awkward shapes, exact ties, bounds that are never too low."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.kernels import SparseCodes, cosine_topk, cosine_topk_both, cosine_topk_voxels, prepare_responses
from sbm_jax.kernels.codes import unit_values
from sbm_jax.kernels.cosine_topk import bounds, columns, cost, reference, rows, sparse
from sbm_jax.kernels.cosine_topk.cases import CASES

TESTED = [c for c in CASES if "test" in c.tags and c.k]


def check(codes, y, k_voxel, k_unit, center=True, **options):
    """Values within f32 rounding of the reference's, every index recomputed to the value it claims, none twice."""
    n = y.shape[0]
    got = cosine_topk_both(codes, y, k_voxel, k_unit, center=center, implementation="sparse", **options)
    want = cosine_topk_both(codes, y, k_voxel, k_unit, center=center, implementation="reference")
    s, real = reference.similarity(codes.to_dense(np.float64), y, center)
    # A dot product of unit vectors of length n in f32: a few ulp times sqrt(n); 32 eps is ample at n <= 1,000.
    eps = 32 * np.finfo(np.float32).eps * max(1.0, np.sqrt(n) / 8)
    for values, index, expected, table in ((got[0], got[1], want[0], s.T), (got[2], got[3], want[2], s)):
        np.testing.assert_allclose(values, expected, atol=eps, rtol=0)
        np.testing.assert_allclose(np.take_along_axis(table, index, axis=1), values, atol=eps, rtol=0)
        for row in index:
            assert len(set(row.tolist())) == len(row)
    n_real = int(real.sum())
    assert real[got[1][:, :n_real]].all()
    np.testing.assert_array_equal(got[1][:, n_real:], want[1][:, n_real:])
    return got


def some_codes(rng, n, u, counts, negative=False):
    """Codes [n, u] with unit j on counts[j] random images, as rows padded with zeros."""
    dense = np.zeros((n, u), np.float32)
    for unit, m in enumerate(counts):
        dense[rng.permutation(n)[:m], unit] = rng.gamma(2.0, size=m) + 0.1
    if negative:
        dense *= rng.choice([-1, 1], size=dense.shape)
    return from_dense(dense)


def from_dense(dense):
    u = dense.shape[1]
    k = max(1, int((dense != 0).sum(axis=1).max()))
    units = np.argsort(dense == 0, axis=1, kind="stable")[:, :k].astype(np.int32)
    return SparseCodes(np.take_along_axis(dense, units, axis=1), units, u)


@pytest.mark.parametrize("center", [True, False], ids=["centred", "raw"])
@pytest.mark.parametrize("case", TESTED, ids=lambda c: c.name)
def test_shared_cases(case, center):
    check(*case.make(), case.k_voxel, case.k_unit, center, memory_bytes=1 << 20)


@pytest.mark.parametrize("negative", [False, True], ids=["positive", "signed"])
@pytest.mark.parametrize("center", [True, False], ids=["centred", "raw"])
def test_units_of_every_width(rng, center, negative):
    """On none, on one, of every bucket, wide ones, dense ones, on all images; voxels that divide by nothing."""
    n = 300
    counts = [0, 1, 1, 2, 3, 4, 5, 6, 7, 9, 12, 16, 17, 24, 32, 33, 40, 48, 50, 51, 100, 149, 150, 151, 200, 299, 300]
    codes = some_codes(rng, n, len(counts), counts, negative)
    y = rng.normal(size=(n, 61)).astype(np.float32)
    y[:, 5], y[:, 7] = 0, 3.0  # constant voxels
    check(codes, y, 4, 5, center)
    check(codes, y, 4, 0, center)
    if center and not negative:
        check(codes, y, len(counts), 61)


def test_long_lists(rng):
    codes = some_codes(rng, 64, 500, rng.integers(0, 12, 500))
    check(codes, rng.normal(size=(64, 35)).astype(np.float32), 40, 0)


def test_k_beyond_the_real_candidates(rng):
    codes = some_codes(rng, 20, 9, [0, 3, 20, 0, 1, 0, 2, 0, 1])
    codes.values_nk[codes.units_nk == 2] = 0.5  # constant: on all images with one value
    _, units, _, _ = check(codes, rng.normal(size=(20, 6)).astype(np.float32), 9, 6)
    np.testing.assert_array_equal(units[:, 4:], np.tile([0, 2, 3, 5, 7], (6, 1)))


def test_only_silent_units(rng):  # nothing is compiled
    codes = SparseCodes(np.zeros((5, 2), np.float32), np.zeros((5, 2), np.int32), 7)
    y = rng.normal(size=(5, 4)).astype(np.float32)
    y[:, 1] = 2
    values, units, by_unit, voxels = check(codes, y, 3, 4)
    assert (values == 0).all() and (by_unit == 0).all()
    np.testing.assert_array_equal(units, np.tile([0, 1, 2], (4, 1)))
    np.testing.assert_array_equal(voxels, np.tile([0, 2, 3, 1], (7, 1)))


def test_two_images():
    codes = SparseCodes(np.float32([[2, 0], [1, 3]]), np.int32([[0, 1], [2, 1]]), 4)
    check(codes, np.float32([[1, 0, 2], [0, 1, 2]]), 4, 3)
    check(codes, np.float32([[1, 0, 2], [0, 1, 2]]), 2, 2, center=False)


def test_the_same_unit_twice_in_a_row_adds_up(rng):
    values = rng.gamma(2.0, size=(30, 6)).astype(np.float32)
    units = rng.integers(0, 9, size=(30, 6)).astype(np.int32)
    values[:, 5] = 0  # padding, whatever its unit
    values[3, 1], values[3, 2], units[3, 1:3] = 1, -1, 4  # adds up to nothing
    check(SparseCodes(values, units, 9), rng.normal(size=(30, 11)).astype(np.float32), 3, 3)


@pytest.mark.parametrize("k_unit", [0, 2])
def test_ties_between_units_of_different_widths_go_to_the_lowest_index(k_unit):
    """Powers of two, not centred: all products are exact, units on 16 or 4 images equal units on one."""
    n, quarter = 64, np.zeros((64, 9), np.float32)
    quarter[0:4, [7, 2]] = 1  # weights 1/2 on four images
    quarter[4, [5, 0]] = 1  # weight 1 on one
    quarter[8:24, 3] = 1  # weights 1/4 on sixteen
    quarter[30, [4, 6]] = 1, 2
    quarter[40:44, 1] = -1
    y = np.zeros((n, 40), np.float32)
    y[0:4], y[4], y[8:24] = 1, 2, 0.5  # each of these columns has similarity 2 |y|
    y[30], y[40:44] = 1, -1
    y[50:54] = np.float32([6, 3, 1, 1])[:, None]  # norm 8: the normalised columns are exact, too
    codes = from_dense(quarter)
    options = {"center": False, "implementation": "sparse"}
    _, units, _, voxels = cosine_topk_both(codes, y, 6, k_unit, **options)
    np.testing.assert_array_equal(units, np.tile([0, 1, 2, 3, 5, 7], (40, 1)))
    np.testing.assert_array_equal(voxels, np.tile(np.arange(k_unit), (9, 1)))


def test_a_rare_unit_wins_a_tie_with_a_dense_one_that_came_first(rng, monkeypatch):
    """Its bound equals the k-th best: the voxel must not be left out. (The last 200 voxels may: phases pay.)"""
    monkeypatch.setattr(cost, "COPY", 0.0)
    monkeypatch.setattr(cost, "PHASE", 0.0)
    monkeypatch.setattr(cost, "BOUND", 0.0)
    n, u = 64, 40
    dense = np.zeros((n, u), np.float32)
    dense[0:4, 30:] = 1
    dense[4, :3] = 1
    y = np.zeros((n, 300), np.float32)
    y[0:4], y[4] = 1, 2
    y[4, 100:] = 0
    y[5:, 100:] = 0.125 * rng.normal(size=(n - 5, 200))
    (_, units, _, _), stats = sparse.search(from_dense(dense), prepare_responses(y, center=False), 1, 0)
    assert [p["voxels"] for p in stats.phases] == [300, 100]
    np.testing.assert_array_equal(units[:, 0], np.repeat([0, 30], [100, 200]))


def test_equal_columns_in_far_apart_places_tie_exactly(rng):
    n, u = 64, 900
    dense = some_codes(rng, n, u, rng.integers(2, 5, u)).to_dense()
    twins = rng.permutation(np.flatnonzero(dense.any(axis=0)))[:40].reshape(2, 20)
    dense[:, twins[1]] = dense[:, twins[0]]
    y = rng.normal(size=(n, 20)).astype(np.float32) * 0.1 + dense[:, twins[0]]
    values, units = cosine_topk(from_dense(dense), y, 2, implementation="sparse")
    np.testing.assert_array_equal(units, np.sort(twins, axis=0).T)
    np.testing.assert_array_equal(values[:, 0], values[:, 1])


def test_units_that_fire_on_one_image_share_a_column(rng):
    n, u = 40, 300
    codes = SparseCodes(
        rng.gamma(2.0, size=(n, 7)).astype(np.float32), np.arange(n * 7, dtype=np.int32).reshape(n, 7), u
    )
    y = 0.01 * rng.normal(size=(n, n)).astype(np.float32) + np.eye(n, dtype=np.float32)
    (values, units, by_unit, voxels), stats = sparse.search(codes, prepare_responses(y), 5, 2)
    np.testing.assert_array_equal(units, codes.units_nk[:, :5])
    assert stats.columns == n and stats.units_real == 7 * n
    np.testing.assert_array_equal(voxels[: 7 * n, 0], np.repeat(np.arange(n), 7))
    assert (values == values[:, :1]).all() and len(by_unit) == u


def planted(rng, n=400, u=2000, v=300):
    """Zipf-like codes; every voxel follows a unit that fires on many images."""
    codes = some_codes(rng, n, u, np.maximum(1, 0.375 * n / (1 + np.arange(u)) ** 0.7).astype(int))
    y = codes.to_dense()[:, rng.integers(0, 20, v)] + 0.8 * rng.normal(size=(n, v))
    return codes, y.astype(np.float32)


def test_signal_rules_out_rare_units_and_changes_nothing(rng, monkeypatch):
    monkeypatch.setattr(cost, "COPY", 0.1)  # small problems are not worth a second phase
    monkeypatch.setattr(cost, "PHASE", 0.0)
    monkeypatch.setattr(cost, "BOUND", 0.1)
    codes, y = planted(rng)
    (values, units, _, _), stats = sparse.search(codes, prepare_responses(y), 1, 0)
    plain = cosine_topk(codes, y, 1, implementation="xla")
    np.testing.assert_allclose(values, plain[0], atol=1e-5)
    np.testing.assert_array_equal(units, plain[1])
    assert stats.share_pruned > 0.5
    assert stats.pairs_evaluated == sum(p["columns"] * p["voxels"] for p in stats.phases)
    assert stats.phases[0]["voxels"] == 300 > stats.phases[-1]["voxels"]


def test_per_unit_lists_leave_nothing_out(rng):
    codes, y = planted(rng, u=300)
    (_, _, values, voxels), stats = sparse.search(codes, prepare_responses(y), 3, 2)
    assert stats.share_pruned == 0
    plain = cosine_topk_voxels(codes, y, 2, implementation="xla")
    np.testing.assert_allclose(values, plain[0], atol=1e-5)
    np.testing.assert_array_equal(voxels, plain[1])


def test_little_memory_means_more_phases_not_other_results(rng):
    codes, y = planted(rng, u=1500)
    some, stats = sparse.search(codes, prepare_responses(y), 3, 2, memory_bytes=1 << 16)
    whole, _ = sparse.search(codes, prepare_responses(y), 3, 2)
    assert len(stats.phases) > 1
    for a, b in zip(some, whole, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_nothing_as_large_as_units_times_voxels_is_allocated():
    """Rows of a phase times voxels of a block, for 20 blocks: the temporaries hold one block of rows."""
    n, v, size = 16, 1280, columns.Sizes(32, 1 << 14, 16, 8192, 8192)
    whole = [
        np.zeros(0, t) for t in (np.float32, np.float32, np.int32, np.int32, np.int32, np.int32, np.int32, np.int32)
    ]
    empty = columns.Tables(*whole)._replace(
        dense=np.zeros((0, n), np.float32), narrow=np.zeros((10, 3), np.int32),
        wide=np.zeros((0, 2), np.int32), counts=np.zeros(4, np.int32),
    )  # fmt: skip
    best = np.zeros((20, 3, 64), np.float32), np.zeros((20, 3, 64), np.int32)
    lowered = rows.search_rows.lower(
        columns.pad(empty, size), np.zeros((n, v), np.float32), np.ones(v, bool),
        np.zeros((20, 64), np.int32), 1280, best, n_rows=size.rows, k_unit=0,
    )  # fmt: skip
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 2 * size.rows * 64 * 4


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 3, 17, 60]), st.booleans(), st.booleans())
def test_no_similarity_exceeds_its_bound(seed, n, center, negative):
    """For any columns: heavy tails, ties and few images included."""
    rng = np.random.default_rng(seed)
    u, v = 30, 8
    codes = some_codes(rng, n, u, rng.integers(0, n + 1, u), negative)
    y = rng.standard_t(1.5, size=(n, v)).astype(np.float32)
    y[:, 0] = rng.integers(0, 2, n)
    y[:, 1] = 0
    values, units, shift, _ = unit_values(codes, center, reference.CONSTANT)
    prepared = prepare_responses(y, center=center)
    s = reference.similarity(codes.to_dense(np.float64), y, center)[0]
    for unit in range(u):
        at = units == unit
        if at.any() and shift[unit] == 0:
            limit = bounds.most_similar(prepared.y_nv, [int(at.sum())], not negative)[0]
            norm = np.sqrt((values[at].astype(np.float64) ** 2).sum())
            # The bound is of the computed similarity, which may miss the true one by rounding.
            assert (s[unit] <= norm * limit + 1e-6).all()


def test_the_bound_is_tight_for_gaussian_voxels(rng):
    y = rng.normal(size=(1000, 50)).astype(np.float32)
    prepared = np.asarray(prepare_responses(y).y_nv)
    squares = np.sort(np.maximum(prepared, 0) ** 2, axis=0)[::-1]
    limit = bounds.most_similar(prepared, [1, 8, 64], True)
    exact = np.sqrt(np.cumsum(squares, axis=0)[[0, 7, 63]])
    assert (limit >= exact).all()
    assert (limit / exact).mean(axis=1).max() < 1.1


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([0, 2]))
def test_sparse_and_dense_passes_agree(seed, negative, k_unit):
    rng = np.random.default_rng(seed)
    n, u, v = 64, 96, 35
    codes = some_codes(rng, n, u, rng.integers(0, 1 + rng.integers(1, n), u), negative)
    y = rng.normal(size=(n, v)).astype(np.float32)
    y += codes.to_dense()[:, rng.integers(0, u, v)] * rng.uniform(0, 3)
    ours = cosine_topk_both(codes, y, 3, k_unit, implementation="sparse")
    plain = cosine_topk_both(codes, y, 3, k_unit, implementation="xla")
    np.testing.assert_allclose(ours[0], plain[0], atol=2e-6)
    np.testing.assert_allclose(ours[2], plain[2], atol=2e-6)


def test_the_cost_model_chooses_by_sparsity(rng):
    n = 200
    rare = SparseCodes(np.ones((n, 4), np.float32), rng.integers(0, 5000, (n, 4)).astype(np.int32), 5000)
    full = SparseCodes(np.ones((n, 64), np.float32), np.tile(np.arange(64, dtype=np.int32), (n, 1)), 64)
    assert cost.sparse_wins(rare, 20_000, 0) and not cost.sparse_wins(full, 20_000, 0)
    assert jax.default_backend() == "cpu"


def test_what_it_cannot_do_is_refused(rng):
    y = rng.normal(size=(8, 3)).astype(np.float32)
    with pytest.raises(NotImplementedError, match="dense"):
        cosine_topk(np.eye(8, dtype=np.float32), y, 1, implementation="sparse")
