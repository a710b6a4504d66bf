"""`topk_encode`: XLA against the float64 reference, its edges, and its use inside traced and differentiated code."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.kernels import topk_encode
from sbm_jax.kernels.topk_encode.api import IMPLEMENTATIONS

SHAPES = [(1, 1, 1, 1), (5, 3, 7, 2), (17, 33, 65, 65), (64, 96, 768, 16), (2, 300, 40, 1)]  # b, d, u, k
implementations = pytest.mark.parametrize("implementation", list(IMPLEMENTATIONS))


def arrays(b: int, d: int, u: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, b, d, u])
    x, w = rng.normal(size=(b, d)), rng.normal(size=(d, u)) / np.sqrt(d)
    return tuple(a.astype(np.float32) for a in (x, w, rng.normal(size=u) * 0.3))


def bound(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> float:
    """Rounding of a dot product of d terms in float32: a few sqrt(d) eps times the product of the norms."""
    scale = np.linalg.norm(x, axis=-1).max() * np.linalg.norm(w, axis=0).max() + np.abs(b).max()
    return float(np.finfo(np.float32).eps * (4 * np.sqrt(w.shape[0]) + 8) * scale)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_xla_equals_reference(shape):
    *size, k = shape
    x, w, b = arrays(*size)
    values, units = topk_encode(x, w, b, k, implementation="xla")
    want, _ = topk_encode(x, w, b, k, implementation="reference")
    eps = bound(x, w, b)
    assert values.shape == units.shape == (size[0], k) and values.dtype == jnp.float32
    np.testing.assert_allclose(values, want, atol=eps, rtol=0)
    # Every unit is what its value claims; near-ties may swap, so units are judged by their own pre-activations.
    pre = x.astype(np.float64) @ w + b
    own = np.maximum(np.take_along_axis(pre, np.asarray(units), axis=1), 0)
    np.testing.assert_allclose(values, own, atol=eps, rtol=0)
    assert all(len(set(row.tolist())) == k for row in np.asarray(units))


@implementations
def test_definition_written_out(implementation):
    x = np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]], np.float32)
    w = np.array([[1.0, 3.0, -2.0, 0.5], [0.5, -1.0, 4.0, 1.0]], np.float32)
    b = np.array([0.0, 0.25, 0.0, -5.0], np.float32)
    values, units = topk_encode(x, w, b, 2, implementation=implementation)
    # rows of x w + b: [1, 3.25, -2, -4.5], [1, -1.75, 8, -3], [-1.5, -1.75, -2, -6.5]
    np.testing.assert_array_equal(values, [[3.25, 1], [8, 1], [0, 0]])
    np.testing.assert_array_equal(units, [[1, 0], [2, 0], [0, 1]])


@implementations
def test_ties_go_to_the_lowest_unit(implementation):
    x = np.ones((2, 4), np.float32)
    w = np.ones((4, 9), np.float32)
    w[:, 5] = 2
    values, units = topk_encode(x, w, np.zeros(9, np.float32), 4, implementation=implementation)
    np.testing.assert_array_equal(units, [[5, 0, 1, 2]] * 2)
    np.testing.assert_array_equal(values, [[8, 4, 4, 4]] * 2)


@implementations
def test_values_descend_and_are_never_negative(implementation, rng):
    x, w, b = arrays(30, 8, 50)
    values = np.asarray(topk_encode(x, w, b - 2, 20, implementation=implementation)[0])
    assert (np.diff(values, axis=1) <= 0).all() and (values >= 0).all()
    assert (values == 0).any() and (values > 0).any()


@implementations
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
def test_leading_axes(lead, implementation):
    x, w, b = arrays(6, 5, 11)
    x = x[: int(np.prod(lead, dtype=int))].reshape(*lead, 5)
    values, units = topk_encode(x, w, b, 3, implementation=implementation)
    flat = topk_encode(x.reshape(-1, 5), w, b, 3, implementation=implementation)
    np.testing.assert_allclose(np.reshape(values, (-1, 3)), flat[0], atol=bound(x, w, b))
    np.testing.assert_array_equal(np.reshape(units, (-1, 3)), flat[1])


def test_traced_under_jit_and_vmap():
    """A stack of three encoders at once, as training runs them."""
    parts = [arrays(7, 6, 20, seed) for seed in range(3)]
    x, w, b = (np.stack(a) for a in zip(*parts, strict=True))
    values, units = jax.jit(jax.vmap(lambda x, w, b: topk_encode(x, w, b, 4)))(x, w, b)
    for i, (xi, wi, bi) in enumerate(parts):
        want_values, want_units = topk_encode(xi, wi, bi, 4, implementation="reference")
        np.testing.assert_allclose(values[i], want_values, atol=bound(xi, wi, bi))
        np.testing.assert_array_equal(units[i], want_units)


def test_gradients_are_those_of_the_masked_dense_encoder():
    """d(sum c z)/d(x, w, b) where z keeps the chosen, positive pre-activations: the selection itself has no gradient."""
    x, w, b = arrays(9, 6, 25)
    weight = np.random.default_rng(1).normal(size=(9, 5)).astype(np.float32)
    units = topk_encode(x, w, b, 5, implementation="reference")[1]

    def sparse(x, w, b):
        return jnp.sum(weight * topk_encode(x, w, b, 5, implementation="xla")[0])

    mask = np.zeros((9, 25))
    np.put_along_axis(mask, units, weight, axis=1)
    mask *= x.astype(np.float64) @ w + b > 0
    want = (mask @ w.T, x.T @ mask, mask.sum(axis=0))
    for got, expected in zip(jax.grad(sparse, argnums=(0, 1, 2))(x, w, b), want, strict=True):
        # Sums of at most 25 products of values below 4.
        np.testing.assert_allclose(got, expected, atol=32 * np.finfo(np.float32).eps * 16, rtol=0)


@pytest.mark.parametrize(
    ("x", "w", "b", "k", "message"),
    [
        ((2, 3), (4, 5), (5,), 1, "do not fit"),
        ((2, 4), (4, 5), (4,), 1, "do not fit"),
        ((2, 4), (4, 5), (1, 5), 1, "do not fit"),
        ((2, 4), (4, 5), (5,), 0, r"k is 0, allowed 1\.\.5"),
        ((2, 4), (4, 5), (5,), 6, r"k is 6, allowed 1\.\.5"),
    ],
)
def test_bad_arguments(x, w, b, k, message):
    with pytest.raises(ValueError, match=message):
        topk_encode(np.zeros(x), np.zeros(w), np.zeros(b), k)


def test_unknown_implementation():
    with pytest.raises(ValueError, match="no implementation 'gpu'"):
        topk_encode(np.ones((1, 2)), np.ones((2, 3)), np.ones(3), 1, implementation="gpu")


encode_law = jax.jit(lambda x, w, b: topk_encode(x, w, b, 6))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_whole_numbers_are_exact_ties_included(seed):
    """Small whole numbers are exact in float32, so units must agree with the reference, ties and all."""
    rng = np.random.default_rng(seed)
    x, w, b = (rng.integers(-2, 3, size=s).astype(np.float32) for s in ((5, 4), (4, 40), (40,)))
    got = encode_law(x, w, b)
    want = topk_encode(x, w, b, 6, implementation="reference")
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])
