"""`topk_autoencode` against its float64 specification: outputs, gradients, stacks, meshes, and awkward rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sbm_jax.kernels.topk_autoencode import reference
from sbm_jax.kernels.topk_autoencode.api import topk_autoencode
from sbm_jax.kernels.topk_autoencode.cases import CASES
from sbm_jax.mesh import make_mesh

SMALL = [case for case in CASES if "test" in case.tags]
NAMES = [case.name for case in SMALL]


def bound(reduction: int) -> float:
    """Relative to the largest entry: float32 rounding of a sum of this many terms, with a factor for unlucky orders."""
    return 8 * np.finfo(np.float32).eps * np.sqrt(reduction)


def close(got, want, reduction: int) -> None:
    want = np.asarray(want)
    np.testing.assert_allclose(got, want, rtol=0, atol=bound(reduction) * max(np.abs(want).max(), 1e-30))


def pull_back(arrays, k, g, g_values=None):
    def scalar(*arrays):
        x_hat, values, _ = topk_autoencode(*arrays, k=k)
        total = jnp.sum(g * x_hat)
        return total if g_values is None else total + jnp.sum(g_values * values)

    return jax.jit(jax.grad(scalar, argnums=(0, 1, 2, 3, 4)))(*arrays)


@pytest.mark.parametrize("case", SMALL, ids=NAMES)
def test_outputs_are_those_of_the_specification(case):
    arrays = case.make()
    x_hat, values, units = jax.jit(topk_autoencode, static_argnames="k")(*arrays, k=case.k)
    want_x, want_values, want_units = reference.topk_autoencode(*arrays, k=case.k)
    np.testing.assert_array_equal(units, want_units)
    close(values, want_values, case.d)
    close(x_hat, want_x, case.d + case.k)


@pytest.mark.parametrize("case", SMALL, ids=NAMES)
def test_gradients_are_those_of_dense_products(case):
    arrays = case.make(1)
    g = np.random.default_rng(2).normal(size=(case.b, case.d)).astype(np.float32)
    for got, want in zip(pull_back(arrays, case.k, g), reference.gradients(*arrays, k=case.k, g_bd=g), strict=True):
        close(got, want, case.b * case.d)


def test_gradients_flow_through_the_values_too():
    """sum |values| alone: the gradient of the encoder is x summed over the tokens for which the unit is active."""
    case = SMALL[NAMES.index("ranked")]
    arrays = case.make()
    ones = np.ones((case.b, case.k), np.float32)
    zero = np.zeros((case.b, case.d), np.float32)
    _, w_enc, b_enc, w_dec, _ = pull_back(arrays, case.k, zero, ones)
    _, values, units = reference.topk_autoencode(*arrays, k=case.k)
    active = np.zeros((case.b, case.u))
    np.put_along_axis(active, units, (values > 0).astype(float), axis=1)
    close(w_enc, arrays[0].T.astype(float) @ active, case.b)
    np.testing.assert_array_equal(b_enc, active.sum(axis=0))
    assert not np.any(w_dec)


def test_negative_codes_are_zero_and_pass_no_gradient():
    x, w_enc, b_enc, w_dec, b_dec = SMALL[NAMES.index("ranked")].make()
    arrays = x, w_enc, b_enc - 100, w_dec, b_dec
    x_hat, values, _ = topk_autoencode(*arrays, k=8)
    assert not np.any(values)
    np.testing.assert_array_equal(x_hat, np.broadcast_to(b_dec, x.shape))
    grads = pull_back(arrays, 8, np.ones_like(x))
    assert not any(np.any(g) for g in grads[:4])
    np.testing.assert_array_equal(grads[4], len(x))


def test_ties_go_to_the_lowest_unit():
    """Tokens of zeros with equal biases tie everywhere; the other tokens of their block do not."""
    case = SMALL[NAMES.index("ranked")]
    x, w_enc, b_enc, w_dec, b_dec = case.make()
    x[::3] = 0
    arrays = x, w_enc, np.full_like(b_enc, 0.25), w_dec, b_dec
    _, values, units = topk_autoencode(*arrays, k=case.k)
    np.testing.assert_array_equal(units[::3], np.broadcast_to(np.arange(case.k), units[::3].shape))
    np.testing.assert_array_equal(values[::3], 0.25)
    np.testing.assert_array_equal(units, reference.topk_autoencode(*arrays, k=case.k)[2])


def test_a_unit_with_bias_minus_infinity_is_never_active():
    case = SMALL[NAMES.index("odd")]
    x, w_enc, b_enc, w_dec, b_dec = case.make()
    b_enc[3:] = -np.inf
    arrays = x, w_enc, b_enc, w_dec, b_dec
    _, values, units = topk_autoencode(*arrays, k=case.k)
    assert np.all(np.asarray(units)[np.asarray(values) > 0] < 3)
    grads = pull_back(arrays, case.k, np.ones_like(x))
    assert all(np.isfinite(g).all() for g in grads[1:])
    assert not np.any(np.asarray(grads[1])[:, 3:])


def test_nan_inputs_stay_nan():
    x, *rest = SMALL[NAMES.index("ranked")].make()
    x[4, 2] = np.nan
    x_hat, _, _ = topk_autoencode(x, *rest, k=8)
    assert np.isnan(x_hat[4]).any() and np.isfinite(np.delete(x_hat, 4, axis=0)).all()


def test_a_stack_equals_its_members():
    case = SMALL[NAMES.index("ranked")]
    members = [case.make(seed) for seed in range(2)]
    stack = [np.stack(arrays) for arrays in zip(*members, strict=True)]

    def loss(x, *params):
        return jnp.mean((x - topk_autoencode(x, *params, k=case.k)[0]) ** 2)

    step = jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4))
    values, grads = jax.jit(jax.vmap(step))(*stack)
    for a, arrays in enumerate(members):
        value, want = jax.jit(step)(*arrays)
        np.testing.assert_array_equal(values[a], value)
        for got, single in zip(grads, want, strict=True):
            np.testing.assert_array_equal(got[a], single)


def test_inside_shard_map_the_gradients_of_the_parts_add_up():
    case = SMALL[NAMES.index("ranked")]
    arrays = [array[None] for array in case.make()]
    n = min(2, len(jax.devices()))
    mesh = make_mesh({"sae": 1, "data": n}, jax.devices())

    def loss(params, x):
        return jnp.sum(jax.vmap(lambda x, *p: jnp.sum((x - topk_autoencode(x, *p, k=case.k)[0]) ** 2))(x, *params))

    def local(params, x):
        return jax.lax.psum(jax.grad(loss)(params, x), "data")

    split = jax.shard_map(local, mesh=mesh, in_specs=(P("sae"), P("sae", "data")), out_specs=P("sae"), check_vma=False)
    got = jax.jit(split)(tuple(arrays[1:]), arrays[0])
    for part, whole in zip(got, jax.grad(loss)(tuple(arrays[1:]), arrays[0]), strict=True):
        close(part, whole, case.b)


def test_the_program_holds_no_dense_codes():
    """No [b, u] and no [b, k, d] array in the forward and backward program: only blocks of them."""
    b, d, u, k = 2048, 64, 1024, 8
    shapes = [jax.ShapeDtypeStruct(s, np.float32) for s in ((b, d), (d, u), (u,), (u, d), (d,))]

    def loss(x, *params):
        return jnp.mean((x - topk_autoencode(x, *params, k=k)[0]) ** 2)

    text = jax.jit(jax.grad(loss, argnums=(1, 2, 3, 4))).lower(*shapes).compile().as_text()
    assert text is not None
    assert "[256,1024]" in text and "[2048,1024]" not in text
    assert "[2048,8,64]" not in text and "[16384,64]" not in text


@pytest.mark.parametrize(
    "change", [{"k": 0}, {"k": 302}, {"x": (37, 12)}, {"b_enc": (300,)}, {"w_dec": (301, 12)}, {"b_dec": (12,)}]
)
def test_shapes_that_disagree_are_refused(change):
    case = SMALL[NAMES.index("odd")]
    names = dict(zip(("x", "w_enc", "b_enc", "w_dec", "b_dec"), case.make(), strict=True))
    k = change.pop("k", case.k)
    names.update({name: np.zeros(shape, np.float32) for name, shape in change.items()})
    with pytest.raises(ValueError, match="topk_autoencode"):
        topk_autoencode(*names.values(), k=k)
