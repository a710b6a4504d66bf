"""The dense passes: running lists against a stable sort, named precisions within their bounds, the host's blocks at their edges."""

from __future__ import annotations

import tracemalloc

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.kernels import SparseCodes, cosine_topk, cosine_topk_both, prepare_responses
from sbm_jax.kernels.cosine_topk import cost, lists, reference
from sbm_jax.kernels.cosine_topk.precision import PRECISIONS, error_bound


def mesh(units: int, voxels: int) -> jax.sharding.Mesh:
    types = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((units, voxels), ("units", "voxels"), axis_types=types)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 40),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(1, 9),
    st.booleans(),
)
def test_running_lists_are_those_of_a_stable_sort(seed, k, blocks, r, transposed):
    """Many ties (five values, -0 among them); blocks of padded candidates; some rows come later than others."""
    rng = np.random.default_rng(seed)
    found, seen = lists.Lists(r, k), []
    for j, block in enumerate(blocks):
        s = rng.choice(np.array([-0.5, -0.0, 0.0, 0.25, 1.0], np.float32), size=(32 * block, r))
        s[32 * block - rng.integers(0, 32) :] = lists.NEVER
        rows = np.arange(r) if j else np.arange(r // 2, r)
        part = np.ascontiguousarray(s[:, rows].T).T if transposed else np.ascontiguousarray(s[:, rows])
        found.update(part, rows, np.arange(1000 * j, 1000 * j + len(s), dtype=np.int32))
        if not j:
            s[:, : r // 2] = lists.NEVER
        seen.append(s)
    s = np.concatenate(seen)
    names = np.concatenate([1000 * j + np.arange(len(x)) for j, x in enumerate(seen)])
    order = np.argsort(-s, axis=0, kind="stable")[:k].T
    want = np.take_along_axis(s.T, order, axis=1)
    kept = want > lists.NEVER
    width = want.shape[1]
    np.testing.assert_array_equal(found.keys[:, :width], want)
    np.testing.assert_array_equal(found.index[:, :width][kept], names[order][kept])
    assert (found.keys[:, width:] == lists.NEVER).all()


def test_crowding_ties_are_looked_into_part_by_part(monkeypatch):
    """All candidates tie: the groups of all of them pass, in more rows than are looked into together."""
    monkeypatch.setattr(lists, "_AT_ONCE", 1000)
    found = lists.Lists(20, 3)
    for first in (0, 64):
        found.update(np.full((64, 20), 0.5, np.float32), np.arange(20), np.arange(first, first + 64, dtype=np.int32))
    np.testing.assert_array_equal(found.index, np.tile([0, 1, 2], (20, 1)))


def test_constant_columns_in_any_block_of_the_host_come_last(rng):
    """Whole blocks of constant units, lists longer than there are real candidates: every index is the reference's."""
    codes, y = rng.normal(size=(37, 300)).astype(np.float32), rng.normal(size=(37, 150)).astype(np.float32)
    codes[:, 64:130] = 2.5
    codes[:, rng.permutation(300)[:60]] = 0
    y[:, rng.permutation(150)[:40]] = -1.0
    got = cosine_topk_both(codes, y, 300, 150, implementation="host", memory_bytes=1 << 15)
    want = cosine_topk_both(codes, y, 300, 150, implementation="reference")
    for values, index in ((0, 1), (2, 3)):
        np.testing.assert_allclose(got[values], want[values], atol=error_bound("f32", 37), rtol=0)
        np.testing.assert_array_equal(got[index], want[index])


def test_the_host_never_allocates_units_times_voxels():
    rng = np.random.default_rng(0)
    codes, y = (rng.normal(size=(16, 4096)).astype(np.float32) for _ in range(2))
    responses = prepare_responses(y)
    tracemalloc.start()
    cosine_topk_both(codes, responses, 3, 3, implementation="host", memory_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < codes.shape[1] * y.shape[1] * 4 / 8


def similarities(codes, y, **options):
    """[u, v] from lists that keep every unit."""
    values, units = cosine_topk(codes, y, codes.shape[1], **options)
    out = np.full(values.shape, np.nan)
    np.put_along_axis(out, units.astype(np.int64), values, axis=1)
    return out.T


@pytest.mark.parametrize(
    ("implementation", "shape"), [("xla", (2, 3, 5)), ("xla", (301, 65, 34)), ("sharded", (19, 33, 7))], ids=str
)
def test_errors_of_each_precision_are_within_its_bound_and_no_better_than_its_name(implementation, shape, rng):
    n, u, v = shape
    codes, y = rng.normal(size=(n, u)).astype(np.float32), rng.normal(size=(n, v)).astype(np.float32)
    codes[:, 0] = 5 + np.abs(codes[:, 0])  # a unit that always fires
    options = {"implementation": implementation, "mesh": mesh(4, 2) if implementation == "sharded" else None}
    exact, _ = reference.similarity(codes, y, True)
    error = {p: np.abs(similarities(codes, y, precision=p, **options) - exact).max() for p in PRECISIONS}
    for precision in PRECISIONS:
        assert error[precision] <= error_bound(precision, n)
    if n > 2:  # two centred images are +-1/sqrt(2)
        assert error["bf16"] > 10 * error["bf16x3"] and error["bf16"] > 10 * error_bound("f32", n)
        assert error["bf16x3"] > 2 * error["f32"]


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("precision", ["bf16x3", "bf16"])
def test_only_products_on_devices_have_other_precisions(sparse, precision, rng):
    codes = rng.normal(size=(12, 4)).astype(np.float32)
    y = rng.normal(size=(12, 9)).astype(np.float32)
    if sparse:
        codes = SparseCodes(codes, np.tile(np.arange(4, dtype=np.int32), (12, 1)), 6)
    for implementation in ("host", "sparse", "reference"):
        with pytest.raises(NotImplementedError):
            cosine_topk(codes, y, 2, implementation=implementation, precision=precision)
    chosen = cosine_topk(codes, y, 2, precision=precision)
    for a, b in zip(chosen, cosine_topk(codes, y, 2, precision=precision, implementation="xla"), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_unknown_precision_is_named():
    with pytest.raises(ValueError, match="no precision 'f16'; there are f32, bf16x3, bf16"):
        cosine_topk(np.eye(3), np.eye(3), 1, precision="f16")  # type: ignore[arg-type]


def test_sparse_codes_are_searched_as_columns_though_responses_lie_on_a_mesh(monkeypatch, rng):
    monkeypatch.setattr(cost, "sparse_wins", lambda *_: True)
    units = rng.integers(0, 40, size=(30, 2)).astype(np.int32)
    codes = SparseCodes(rng.gamma(2.0, size=units.shape).astype(np.float32), units, 40)
    spread = prepare_responses(rng.normal(size=(30, 21)).astype(np.float32), mesh=mesh(1, 8))
    one = spread.on_one_device()
    assert spread.on_host and one.mesh is None and one.y_nv.shape == (30, 21)
    for a, b in zip(cosine_topk(codes, spread, 2), cosine_topk(codes, one, 2, implementation="sparse"), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(NotImplementedError, match="mesh"):
        cosine_topk(codes, spread, 2, implementation="sparse")
