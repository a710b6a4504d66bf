"""The auxiliary loss that revives dead units (Gao et al. 2024, arXiv 2406.04093, A.2), and its gradient.

The residual e = stop_gradient(x - x^) is reconstructed from the `aux_k` strongest dead units without bias, on every fourth
token: |e - e^|^2 / |e|^2; 0 where no unit is dead.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sbm_jax.sae.model import Params, each, per_unit, turned
from sbm_jax.sae.objectives import decoded, largest, pre_activations
from sbm_jax.sae.over import Over

SHARE = 4  # it looks at a quarter of the tokens: its top-k over dead units is dear
# Every fourth, not the first quarter: the same tokens however the batch is split over devices.
_PART = slice(None, None, SHARE)


def auxiliary_loss(
    params: Params, x: jax.Array, residual: jax.Array, dead: jax.Array, aux_k: int, over: Over
) -> jax.Array:
    """Per autoencoder [a]; x and residual [a, b, d], dead bool [a, u]. Reads the whole dictionary: the specification of
    the gradients that `with_auxiliary` adds.
    """

    def from_dead(p: Params, x_bd: jax.Array, dead_u: jax.Array) -> jax.Array:
        pre = jnp.where(dead_u[None], pre_activations(p, x_bd, over.dtype), -jnp.inf)
        return decoded(p, largest(pre, aux_k, over), over)

    return _error(each(from_dead, params, x[:, _PART], dead), residual, _count(dead, over), over)


def with_auxiliary(
    grads: Params,
    weight: float,
    params: Params,
    x: jax.Array,
    residual: jax.Array,
    dead: jax.Array,
    aux_k: int,
    over: Over,
) -> Params:
    """`grads` + `weight` times the gradient of the sum over autoencoders of `auxiliary_loss`.

    In both, as in the state of a step, w_enc is turned. The gradients are left as they are while no unit is dead; while at
    most `aux_k` are, only the rows of those are read and changed, since there is nothing to select.
    """
    count = _count(dead, over)
    arrays = x, residual, dead

    def many(grads: Params) -> Params:
        def loss(p: Params) -> jax.Array:
            return weight * jnp.sum(auxiliary_loss(turned(p), *arrays, aux_k, over))

        return jax.tree.map(jnp.add, grads, jax.grad(loss)(params))

    def few(grads: Params) -> Params:
        places = min(aux_k, dead.shape[1])
        units = each(lambda dead_u: jnp.flatnonzero(dead_u, size=places, fill_value=0), dead)
        real = jnp.arange(places)[None] < dead.sum(axis=1)[:, None]

        def loss(rows: Params) -> jax.Array:
            e_hat = each(lambda r, x_bd, m: _from_all(r, x_bd, m, over), rows, x[:, _PART], real)
            return weight * jnp.sum(_error(e_hat, residual, count, over))

        return each(_added, grads, jax.grad(loss)(each(_taken, params, units)), units)

    crowded = (count > aux_k).any()
    return _if(crowded, many, _if((count > 0).any() & ~crowded, few, grads))


def _if(when: jax.Array, change: Callable[[Params], Params], grads: Params) -> Params:
    """change(grads) or grads; as a loop of at most one round, in which XLA works in place where `cond` would copy."""
    _, grads = jax.lax.while_loop(lambda c: c[0], lambda c: (jnp.zeros((), bool), change(c[1])), (when, grads))
    return grads


def _from_all(rows: Params, x_bd: jax.Array, real: jax.Array, over: Over) -> jax.Array:
    """Reconstruction without bias from all units of `rows` that are `real`."""
    z = jnp.where(real[None], jax.nn.relu(pre_activations(turned(rows), x_bd, over.dtype)), 0.0)
    return decoded(rows, z, over)


def _taken(params: Params, units: jax.Array) -> Params:
    """Some units of one autoencoder."""
    return per_unit(lambda value: value[units], lambda value: value, params)


def _added(grads: Params, change: Params, units: jax.Array) -> Params:
    """The gradients with those of some units added; units that stand for nothing bring 0."""
    return per_unit(lambda g, c: g.at[units].add(c), jnp.add, grads, change)


def _count(dead: jax.Array, over: Over) -> jax.Array:
    return over.total(dead.sum(axis=1))


def _error(e_hat: jax.Array, residual: jax.Array, count: jax.Array, over: Over) -> jax.Array:
    target = jax.lax.stop_gradient(residual[:, _PART])
    scale = over.mean(jnp.mean(target**2, axis=(1, 2))) + 1e-12
    return jnp.where(count > 0, jnp.mean((target - e_hat) ** 2, axis=(1, 2)) / scale, 0.0)
