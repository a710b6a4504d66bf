"""`select.top_k` gives exactly what a stable descending sort gives: same values, same indices, same order."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.kernels import select

FAST = [(256, 1), (512, 2), (1024, 3), (4096, 16), (8192, 5), (8192, 32), (480, 2)]
PLAIN = [(1, 1), (33, 33), (255, 1), (257, 1), (480, 8), (1000, 3)]

top_k = jax.jit(select.top_k, static_argnums=1)


def check(x: np.ndarray, k: int) -> None:
    values, indices = top_k(x, k)
    want = np.argsort(-x, axis=-1, kind="stable")[..., :k]
    np.testing.assert_array_equal(indices, want)
    np.testing.assert_array_equal(values, np.take_along_axis(x, want, axis=-1))
    assert values.shape == indices.shape == (*x.shape[:-1], k) and indices.dtype == jnp.int32


def awkward_rows(u: int, k: int) -> dict[str, np.ndarray]:
    """One row per difficulty."""
    rng = np.random.default_rng([u, k])
    few = np.full(u, -np.inf)
    few[rng.integers(0, u, size=max(1, k // 2))] = rng.normal()
    crowded = rng.normal(size=u)
    crowded[u // 2 : u // 2 + 32] += 100
    spread = rng.normal(size=u)
    spread[31::32] = 50.0
    last = rng.normal(size=u)
    last[-k:] = 60.0 + np.arange(k)
    return {
        "random": rng.normal(size=u),
        "falling": -np.arange(u, dtype=float),
        "rising": np.arange(u, dtype=float),
        "heavy ties": rng.integers(0, 3, size=u).astype(float),
        "two values": rng.integers(0, 2, size=u).astype(float),
        "all zero": np.zeros(u),
        "all negative": np.full(u, -2.0),
        "all -inf": np.full(u, -np.inf),
        "all inf": np.full(u, np.inf),
        "fewer real values than k": few,
        "mostly -inf": np.where(rng.random(u) < 0.97, -np.inf, rng.integers(0, 3, size=u)),
        "the best in one chunk": crowded,
        "equal best in every chunk": spread,
        "the best at the end": last,
    }


@pytest.mark.parametrize(("u", "k"), FAST + PLAIN)
def test_awkward_rows(u, k):
    check(np.stack(list(awkward_rows(u, k).values())).astype(np.float32), k)


@pytest.mark.parametrize(("u", "k"), FAST + PLAIN)
def test_rows_are_ranked_where_these_tests_think_they_are(u, k):
    """The program counts bits exactly when the row is ranked and not handed to `lax.top_k` whole."""
    text = top_k.lower(jax.ShapeDtypeStruct((2, u), np.float32), k).as_text()
    assert ("popcnt" in text) == ((u, k) in FAST)


@pytest.mark.parametrize(("u", "k"), FAST)
def test_ordinary_rows_do_not_need_the_slow_branch(u, k, rng):
    """Random rows, rows with one huge value, and rows of both signs and all sizes leave room in the list."""
    x = rng.normal(size=(200, u)).astype(np.float32)
    x[50:100, 7] = 1e30
    x[100:150] **= 9
    x[150:] -= 10
    ranked = jax.jit(select._ranked, static_argnums=1)
    assert bool(ranked(x, k)[2])
    assert not bool(ranked(np.zeros_like(x), k)[2])


@pytest.mark.parametrize(("u", "k"), [(1024, 3), (4096, 16)])
def test_nan_and_signed_zeros_are_treated_as_lax_top_k_does(u, k, rng):
    x = rng.normal(size=(6, u)).astype(np.float32)
    x[0, 5] = np.nan
    x[1, 5] = -np.nan
    x[2, ::7] = np.nan
    x[3] = np.where(rng.random(u) < 0.5, -0.0, 0.0)
    x[4] = -np.abs(x[4])
    x[4, [3, 90, 700]] = [-0.0, 0.0, -0.0]
    for rows in (x, *x[:, None]):
        for got, want in zip(top_k(rows, k), jax.lax.top_k(rows, k), strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("u", [1000, 1024])
def test_gradient_reaches_the_selected_values_alone(u, rng):
    x = rng.normal(size=(2, u)).astype(np.float32)
    grad = jax.grad(lambda x: jnp.sum(select.top_k(x, 3)[0] * jnp.arange(1.0, 4.0)[None]))(x)
    want = np.zeros_like(x)
    np.put_along_axis(want, np.argsort(-x, axis=1)[:, :3], np.arange(1.0, 4.0, dtype=np.float32), axis=1)
    np.testing.assert_array_equal(grad, want)


def test_equals_lax_top_k_on_both_paths(rng):
    for u, k in ((1024, 3), (1000, 3)):
        x = rng.integers(0, 50, size=(64, u)).astype(np.float32)
        for got, want in zip(top_k(x, k), jax.lax.top_k(x, k), strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("lead", [(), (1,), (2, 3)], ids=str)
def test_leading_axes(lead, rng):
    check(rng.integers(0, 99, size=(*lead, 1024)).astype(np.float32), 3)


@pytest.mark.parametrize("dtype", [np.int32, np.float16])
def test_other_dtypes(dtype, rng):
    check(rng.integers(-50, 50, size=(4, 1024)).astype(dtype), 3)


def test_under_vmap(rng):
    x = rng.normal(size=(3, 4, 512)).astype(np.float32)
    _, indices = jax.jit(jax.vmap(lambda row: select.top_k(row, 2)))(x)
    np.testing.assert_array_equal(indices, np.argsort(-x, axis=-1)[..., :2])


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), levels=st.integers(1, 40), infinite=st.floats(0, 1), k=st.sampled_from([1, 2, 4]))
def test_law(seed, levels, infinite, k):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, levels, size=(3, 1024)).astype(np.float32)
    x[rng.random(x.shape) < infinite] = -np.inf
    check(x, k)
