"""`sparse_decode`: both implementations against the dense product, values and gradients, traced and batched."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.kernels import sparse_decode
from sbm_jax.kernels.sparse_decode.api import IMPLEMENTATIONS

SHAPES = [(1, 1, 1, 1), (5, 2, 7, 3), (17, 65, 65, 33), (64, 16, 768, 96), (3, 1, 2, 300)]  # b, k, u, d
EPS = np.finfo(np.float32).eps
implementations = pytest.mark.parametrize("implementation", list(IMPLEMENTATIONS))


def arrays(b: int, k: int, u: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """values, units (with repeats within a row) and the decoder."""
    rng = np.random.default_rng([seed, b, k, u, d])
    values = rng.normal(size=(b, k)).astype(np.float32)
    return values, rng.integers(0, u, size=(b, k)).astype(np.int32), rng.normal(size=(u, d)).astype(np.float32)


def dense(values, units, u: int):
    """Codes [..., u] by one-hot rows, which adds up repeated units; differentiable."""
    return jnp.einsum("...k,...ku->...u", values, jax.nn.one_hot(units, u), precision="highest")


def direct(values: np.ndarray, units: np.ndarray, w: np.ndarray) -> np.ndarray:
    out = np.zeros((*values.shape[:-1], w.shape[1]))
    for at in np.ndindex(values.shape):
        out[at[:-1]] += float(values[at]) * w[units[at]].astype(np.float64)
    return out


def bound(values: np.ndarray, w: np.ndarray, implementation: str) -> float:
    """A sum of k products: k eps times the largest sum of magnitudes is never exceeded."""
    k = values.shape[-1]
    eps = EPS if implementation == "xla" else np.finfo(np.float64).eps
    return float((k + 2) * eps * np.abs(values).sum(axis=-1).max() * np.abs(w).max())


@implementations
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_a_loop(shape, implementation):
    values, units, w = arrays(*shape)
    got = sparse_decode(values, units, w, implementation=implementation)
    assert got.shape == (shape[0], shape[3])
    np.testing.assert_allclose(got, direct(values, units, w), atol=bound(values, w, implementation), rtol=0)


@implementations
@pytest.mark.parametrize("lead", [(), (4,), (2, 2)], ids=str)
def test_leading_axes(lead, implementation):
    values, units, w = arrays(4, 3, 9, 5)
    count = int(np.prod(lead, dtype=int))
    values, units = values[:count].reshape(*lead, 3), units[:count].reshape(*lead, 3)
    got = sparse_decode(values, units, w, implementation=implementation)
    assert got.shape == (*lead, 5)
    np.testing.assert_allclose(got, direct(values, units, w), atol=bound(values, w, implementation), rtol=0)


@implementations
def test_the_same_unit_twice_adds_up_and_padding_adds_nothing(implementation):
    w = np.array([[1, 0], [0, 1], [5, 5]], np.float32)
    values = np.array([[2, 3, 0], [0, 0, 0]], np.float32)
    units = np.array([[1, 1, 2], [2, 2, 2]], np.int32)
    np.testing.assert_array_equal(sparse_decode(values, units, w, implementation=implementation), [[0, 5], [0, 0]])


@implementations
def test_no_active_unit_at_all(implementation):
    nothing = np.zeros((3, 0), np.float32), np.zeros((3, 0), np.int32)
    got = sparse_decode(*nothing, np.ones((4, 2), np.float32), implementation=implementation)
    np.testing.assert_array_equal(got, np.zeros((3, 2)))


def test_gradients_equal_those_of_the_dense_product():
    values, units, w = arrays(11, 6, 9, 7)
    target = np.random.default_rng(2).normal(size=(11, 7)).astype(np.float32)

    def sparse_loss(values, w):
        return jnp.sum((sparse_decode(values, units, w, implementation="xla") - target) ** 2)

    def dense_loss(values, w):
        return jnp.sum((jnp.einsum("bu,ud->bd", dense(values, units, 9), w, precision="highest") - target) ** 2)

    want = jax.grad(dense_loss, argnums=(0, 1))(values, w)
    got = jax.jit(jax.grad(sparse_loss, argnums=(0, 1)))(values, w)
    # Sums of up to 66 products of a residual (below 20) and a value or weight (below 4), each rounded twice.
    for one, two in zip(got, want, strict=True):
        np.testing.assert_allclose(one, two, atol=66 * EPS * 80, rtol=0)
    # And the closed form, in float64: dL/dw[u] = 2 sum z[b, u] r[b], dL/dv[b, k] = 2 <r[b], w[units[b, k]]>.
    residual = direct(values, units, w) - target
    z = np.asarray(dense(values, units, 9), np.float64)
    np.testing.assert_allclose(got[1], 2 * z.T @ residual, atol=66 * EPS * 80, rtol=0)
    np.testing.assert_allclose(
        got[0], 2 * np.einsum("bd,bkd->bk", residual, w[units].astype(float)), atol=66 * EPS * 80, rtol=0
    )


def test_rows_that_no_token_uses_have_no_gradient():
    values, units, w = arrays(4, 3, 50, 6)
    grad = jax.grad(lambda w: jnp.sum(sparse_decode(values, units, w) ** 2))(jnp.asarray(w))
    unused = np.setdiff1d(np.arange(50), units)
    assert len(unused) and (np.asarray(grad)[unused] == 0).all() and (np.asarray(grad)[units] != 0).any()


def test_second_derivative_of_a_linear_map_is_zero():
    values, units, w = arrays(3, 2, 5, 4)
    out, tangent = jax.jvp(lambda v: sparse_decode(v, units, w), (jnp.asarray(values),), (jnp.ones_like(values),))
    np.testing.assert_allclose(tangent, direct(np.ones_like(values), units, w), atol=1e-5)
    np.testing.assert_allclose(out, direct(values, units, w), atol=1e-5)


def test_traced_under_jit_and_vmap():
    """A stack of three decoders at once, as training runs them."""
    parts = [arrays(6, 4, 20, 5, seed) for seed in range(3)]
    values, units, w = (np.stack(a) for a in zip(*parts, strict=True))
    got = jax.jit(jax.vmap(sparse_decode))(values, units, w)
    for i, part in enumerate(parts):
        np.testing.assert_allclose(got[i], direct(*part), atol=bound(part[0], part[2], "xla"), rtol=0)


@pytest.mark.parametrize(
    ("values", "units", "w"), [((2, 3), (2, 4), (5, 6)), ((2, 3), (3,), (5, 6)), ((2, 3), (2, 3), (5,))]
)
def test_bad_arguments(values, units, w):
    with pytest.raises(ValueError, match="do not fit"):
        sparse_decode(np.zeros(values), np.zeros(units, int), np.zeros(w))


def test_unknown_implementation():
    with pytest.raises(ValueError, match="no implementation 'gpu'"):
        sparse_decode(np.zeros((1, 1)), np.zeros((1, 1), int), np.zeros((1, 1)), implementation="gpu")


decode_law = jax.jit(sparse_decode)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_linear_in_values_exactly_for_whole_numbers(seed):
    rng = np.random.default_rng(seed)
    units = rng.integers(0, 8, size=(4, 5))
    one, two = (rng.integers(-9, 9, size=(4, 5)).astype(np.float32) for _ in range(2))
    w = rng.integers(-9, 9, size=(8, 6)).astype(np.float32)
    whole = decode_law(one + 2 * two, units, w)
    np.testing.assert_array_equal(whole, decode_law(one, units, w) + 2 * decode_law(two, units, w))
    np.testing.assert_array_equal(whole, direct(one + 2 * two, units, w))
