"""Every implementation of `cosine_topk` against the float64 reference, at awkward shapes."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.kernels import (
    SparseCodes,
    cosine_topk,
    cosine_topk_both,
    cosine_topk_voxels,
    merge_topk,
    paired_cosine,
    prepare_responses,
)
from sbm_jax.kernels.cosine_topk import reference, sharded, xla
from sbm_jax.kernels.cosine_topk.cases import CASES

TESTED = [c for c in CASES if "test" in c.tags]


def mesh(units: int, voxels: int) -> jax.sharding.Mesh:
    assert jax.device_count() == 8
    types = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((units, voxels), ("units", "voxels"), axis_types=types)


def check(codes, y, k_voxel, k_unit, center=True, **options):
    """Values within f32 rounding of the reference's, every index recomputed to the value it claims, none twice."""
    n = y.shape[0]
    got = cosine_topk_both(codes, y, k_voxel, k_unit, center=center, **options)
    want = cosine_topk_both(codes, y, k_voxel, k_unit, center=center, implementation="reference")
    dense = codes.to_dense(np.float64) if isinstance(codes, SparseCodes) else codes
    s, _ = reference.similarity(dense, y, center)
    # A dot product of unit vectors of length n in f32: a few ulp times sqrt(n); 32 eps is ample at n <= 1,000.
    eps = 32 * np.finfo(np.float32).eps * max(1.0, np.sqrt(n) / 8)
    for values, index, expected, table in ((got[0], got[1], want[0], s.T), (got[2], got[3], want[2], s)):
        np.testing.assert_allclose(values, expected, atol=eps, rtol=0)
        assert (np.diff(values, axis=1) <= 0).all() or (values == 0).any()
        np.testing.assert_allclose(np.take_along_axis(table, index, axis=1), values, atol=eps, rtol=0)
        for row in index:
            assert len(set(row.tolist())) == len(row)
    return got


@pytest.mark.parametrize("center", [True, False], ids=["centred", "raw"])
@pytest.mark.parametrize("case", TESTED, ids=lambda c: c.name)
@pytest.mark.parametrize("implementation", ["xla", "host"])
def test_blocks_match_reference(case, center, implementation):
    check(*case.make(), case.k_voxel, case.k_unit, center, implementation=implementation, memory_bytes=1 << 20)


@pytest.mark.parametrize("shape", [(1, 8), (4, 2), (8, 1)], ids=str)
@pytest.mark.parametrize("case", TESTED, ids=lambda c: c.name)
def test_sharded_matches_reference(case, shape):
    check(*case.make(), case.k_voxel, case.k_unit, implementation="sharded", mesh=mesh(*shape))


@pytest.mark.parametrize("implementation", ["xla", "host", "sharded"])
def test_units_that_fire_on_one_image_alone_tie_exactly(rng, implementation):
    """Whatever the value, the block and the device: the lowest of them is chosen. Dense units lie between them."""
    n, u = 40, 700
    values = np.zeros((n, 3), np.float32)
    units = np.zeros((n, 3), np.int32)
    single = rng.permutation(np.arange(10, u))[: 2 * n].reshape(n, 2)  # two units for each image, anywhere
    values[:, :2], units[:, :2] = rng.gamma(1.0, size=(n, 2)) + 0.01, single
    values[:, 2], units[:, 2] = 0.01 * rng.gamma(1.0, size=n), np.arange(n) % 10
    y = rng.normal(size=(n, 90)).astype(np.float32)
    y[np.arange(n), np.arange(n)] += 30  # voxel i < n is all but image i
    options = {"mesh": mesh(8, 1)} if implementation == "sharded" else {"memory_bytes": 1 << 15}
    similar, chosen = cosine_topk(SparseCodes(values, units, u), y, 2, implementation=implementation, **options)
    np.testing.assert_array_equal(chosen[:n], np.sort(single, axis=1))
    np.testing.assert_array_equal(similar[:n, 0], similar[:n, 1])


@pytest.mark.parametrize("implementation", ["xla", "host"])
def test_columns_that_fire_on_almost_every_image_are_centred_first(implementation, rng):
    """Sums of thousands, differences of thousandths; float32 inputs as they are, so the float64 result is the truth."""
    n, u = 50, 40
    values = (1000 + rng.normal(size=(n, u))).astype(np.float32)
    values[rng.random((n, u)) < 0.02] = 0
    codes = SparseCodes(values, np.tile(np.arange(u, dtype=np.int32), (n, 1)), u)
    check(codes, rng.normal(size=(n, 30)).astype(np.float32), 3, 3, implementation=implementation)


def test_sharded_results_lie_on_all_devices():
    codes, y = next(c for c in TESTED if c.name == "odd").make()
    prepared = prepare_responses(y, mesh=mesh(4, 2))
    values_v, _, values_u, _ = sharded.sharded_topk(codes, prepared, 3, 3, memory_bytes=1 << 22)
    assert len(values_v.sharding.device_set) == 8
    assert values_v.addressable_shards[0].data.shape[0] == -(-y.shape[1] // 2)
    assert values_u.addressable_shards[0].data.shape[0] == -(-codes.shape[1] // 4)


def test_nothing_as_large_as_units_times_voxels_is_allocated():
    """The largest buffer of the compiled pass is a block or an input, never U x V (here 64 MB)."""
    n, u, v = 16, 4096, 4096
    shapes = [jax.ShapeDtypeStruct(s, np.float32) for s in ((n, u), (n, v))]
    real = jax.ShapeDtypeStruct((v,), bool)
    options = {"n_units": u, "k_voxel": 3, "k_unit": 3, "center": True, "bu": 256, "bv": 256}
    memory = xla.topk_blocks.lower(*shapes, real, **options).compile().memory_analysis()
    assert memory.temp_size_in_bytes < u * v * 4 / 8


implementations = pytest.mark.parametrize(
    "options",
    [{"implementation": "reference"}, {"implementation": "xla"}, {"implementation": "host"}, {"mesh": (4, 2)}],
    ids=str,
)


def prepared(options):
    return {"implementation": "sharded", "mesh": mesh(*options["mesh"])} if "mesh" in options else options


@implementations
def test_constant_and_silent_units_are_never_chosen_over_real_ones(options, rng):
    y = rng.normal(size=(8, 5)).astype(np.float32)
    codes = np.zeros((8, 4), np.float32)
    codes[:, 1] = 3.0
    codes[:, 2] = -y[:, 0]
    values, units = cosine_topk(codes, y, 4, **prepared(options))
    assert units[0, 0] == 2 and values[0, 0] == pytest.approx(-1, abs=1e-6)
    np.testing.assert_array_equal(units[:, 1:], np.tile([0, 1, 3], (5, 1)))
    np.testing.assert_array_equal(values[:, 1:], 0)


@implementations
def test_constant_voxels_are_never_chosen_over_real_ones(options, rng):
    y = np.zeros((8, 4), np.float32)
    y[:, 3] = 7.0
    y[:, 2] = rng.normal(size=8)
    values, voxels = cosine_topk_voxels(-y[:, 2:3], y, 4, **prepared(options))
    np.testing.assert_array_equal(voxels[0], [2, 0, 1, 3])
    np.testing.assert_allclose(values[0], [-1, 0, 0, 0], atol=1e-6)


@implementations
def test_a_constant_that_is_large_stays_constant(options, rng):
    codes = np.full((9, 3), 0.1, np.float32) * 1e4
    codes[:, 2] = rng.normal(size=9)
    _, units = cosine_topk(codes, rng.normal(size=(9, 2)).astype(np.float32), 1, **prepared(options))
    np.testing.assert_array_equal(units, 2)


@implementations
def test_ties_go_to_the_lowest_index(options):
    # Powers of two: every product is exact, so equal columns have equal similarities in every block.
    column = np.array([1, -1, 1, -1, 1, -1, 1, -1], np.float32)
    codes = np.repeat(column[:, None], 9, axis=1) * np.array([-1, 1, 1, -1, 1, 1, 1, 1, 1], np.float32)
    _, units = cosine_topk(codes, column[:, None].repeat(3, axis=1), 4, **prepared(options))
    np.testing.assert_array_equal(units, np.tile([1, 2, 4, 5], (3, 1)))
    _, voxels = cosine_topk_voxels(codes, column[:, None].repeat(3, axis=1), 3, **prepared(options))
    np.testing.assert_array_equal(voxels, np.tile([0, 1, 2], (9, 1)))


def test_nan_is_an_error_that_names_the_column(rng):
    codes, y = rng.normal(size=(6, 4)), rng.normal(size=(6, 5))
    y[2, 3] = np.nan
    with pytest.raises(ValueError, match="nan at image 2, voxel 3"):
        cosine_topk(codes, y, 1)
    codes[5, 1] = np.inf
    with pytest.raises(ValueError, match="inf at image 5, unit 1"):
        cosine_topk(codes, y, 1)


@pytest.mark.parametrize(
    ("codes", "y", "k", "message"),
    [
        (np.zeros((6, 4)), np.zeros((5, 3)), 1, "6 images, responses 5"),
        (np.zeros((6, 4)), np.zeros((6, 3)), 5, "allowed 0..4"),
        (np.zeros((6, 4)), np.zeros(6), 1, "must be"),
        (SparseCodes(np.ones((6, 1)), np.full((6, 1), 9), 9), np.zeros((6, 3)), 1, "allowed 0..8"),
        (SparseCodes(np.ones((6, 1)), np.ones((6, 1)), 9), np.zeros((6, 3)), 1, "must be integers"),
        (np.zeros((1, 4)), np.zeros((1, 3)), 1, "at least 2 images"),
    ],
)
def test_bad_arguments(codes, y, k, message):
    with pytest.raises(ValueError, match=message):
        cosine_topk(codes, y, k)


def test_unknown_implementation_and_named_one_does_not_fall_back():
    with pytest.raises(ValueError, match="no implementation 'cuda'"):
        cosine_topk(np.eye(3), np.eye(3), 1, implementation="cuda")
    with pytest.raises(NotImplementedError, match="no mesh"):
        cosine_topk(np.eye(3), np.eye(3), 1, implementation="sharded")


def test_no_voxels_and_no_units():
    values, units, by_unit, _ = cosine_topk_both(np.ones((4, 3)), np.ones((4, 0)), 2, 0)
    assert values.shape == units.shape == (0, 2) and by_unit.shape == (3, 0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from(["xla", "host"]))
def test_sparse_and_dense_codes_agree(seed, k, implementation):
    rng = np.random.default_rng(seed)
    units = rng.integers(0, 11, size=(13, k)).astype(np.int32)
    codes = SparseCodes(rng.integers(0, 4, size=(13, k)).astype(np.float32), units, 11)
    y = rng.normal(size=(13, 7)).astype(np.float32)
    for a, b in zip(
        cosine_topk_both(codes, y, 3, 2, implementation=implementation),
        cosine_topk_both(codes.to_dense(), y, 3, 2, implementation=implementation),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_merging_layers_equals_one_pass(rng):
    codes, y = rng.normal(size=(20, 30)).astype(np.float32), rng.normal(size=(20, 9)).astype(np.float32)
    whole = cosine_topk(codes, y, 4, implementation="xla")
    first, second = cosine_topk(codes[:, :13], y, 4), cosine_topk(codes[:, 13:], y, 4)
    values, units = merge_topk(first[0], first[1], second[0], second[1] + 13, 4)
    np.testing.assert_allclose(values, whole[0], atol=1e-6)
    np.testing.assert_array_equal(units, whole[1])


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
def test_paired_cosine_is_the_similarity_of_the_pair(sparse, rng):
    case = next(c for c in TESTED if c.name == ("sparse odd" if sparse else "odd"))
    codes, y = case.make()
    y[:, 4] = 2.0
    units = rng.integers(0, case.u, size=(case.v, 3))
    dense = codes.to_dense(np.float64) if isinstance(codes, SparseCodes) else codes
    s, _ = reference.similarity(dense, y, True)
    expected = np.take_along_axis(s.T, units, axis=1)
    np.testing.assert_allclose(paired_cosine(codes, y, units), expected, atol=1e-6)
    assert (paired_cosine(codes, y, units)[4] == 0).all()
