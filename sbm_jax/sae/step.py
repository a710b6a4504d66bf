"""One training step of a stack of autoencoders, spread over a mesh (sae, data) by shard_map.

Along `sae` nothing is communicated: each device owns whole autoencoders. Along `data` gradients, losses and firing
counts are summed. The step is one jitted program with donated state.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sbm_jax.config import TrainConfig
from sbm_jax.sae.model import Norm, Params, decoder_rows, normalise, unit_rows
from sbm_jax.sae.objectives import ALONE, OBJECTIVES, PRECISION, Over, Terms, pre_activations, scattered

SAE, DATA = "sae", "data"
AUX_SHARE = 4  # the auxiliary loss looks at a quarter of the tokens: its top-k over dead units is dear
_ADAM_EPS = 6.25e-10  # the loss is a mean over elements, so gradients are small (value of Gao et al. 2024)
_CUT_MEMORY = 0.99  # of the running mean of BatchTopK's cut, which is used when codes are computed token by token


class Knobs(NamedTuple):
    """Per autoencoder [a]: learning rate, weight of sparsity."""

    lr: jax.Array
    sparsity: jax.Array


class TrainState(NamedTuple):
    """Everything a resumed run needs: parameters, Adam's moments, tokens since each unit fired [a, u], running mean of
    BatchTopK's cut [a], step, log of the mean squared error [logs, a].
    """

    params: Any  # Params; optax's types know no named tuples
    adam: Any
    silent: jax.Array
    cut: jax.Array
    step: jax.Array
    losses: jax.Array


def schedule(config: TrainConfig) -> optax.Schedule:
    """Linear warm-up to 1, constant, linear decay to 0 at the last step; every autoencoder multiplies its own rate."""
    rise = max(1, round(config.warmup * config.steps))
    fall = max(1, round(config.decay * config.steps))
    flat = max(0, config.steps - rise - fall)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, 1.0, rise),
            optax.constant_schedule(1.0),
            optax.linear_schedule(1.0, 0.0, fall),
        ],
        [rise, rise + flat],
    )


def optimiser(config: TrainConfig) -> optax.GradientTransformation:
    """Adam after clipping by the global norm; applied per autoencoder by vmap, so each has its own norm."""
    return optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(schedule(config), eps=_ADAM_EPS))


def init_state(params: Any, config: TrainConfig, n_logs: int) -> TrainState:
    """Fresh state; `losses` [n_logs, a] is filled as training goes."""
    a, _, u = params.w_enc.shape
    return TrainState(
        params=params,
        adam=jax.vmap(optimiser(config).init)(params),
        silent=jnp.zeros((a, u), jnp.int32),
        cut=jnp.zeros(a),
        step=jnp.zeros((), jnp.int32),
        losses=jnp.zeros((n_logs, a)),
    )


def state_specs(state: TrainState) -> Any:
    """PartitionSpecs: every array with a leading autoencoder axis is split along `sae`."""
    specs: Any = {
        "params": jax.tree.map(lambda _: P(SAE), state.params),
        "adam": jax.tree.map(lambda _: P(SAE), state.adam),
        "silent": P(SAE),
        "cut": P(SAE),
        "step": P(),
        "losses": P(None, SAE),
    }
    return TrainState(**specs)


def put_state(state: TrainState, mesh: Mesh) -> TrainState:
    """The state laid over the mesh."""
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), state, state_specs(state))


def loss_terms(
    params: Params,
    x: jax.Array,
    dead: jax.Array,
    config: TrainConfig,
    sparsity: jax.Array,
    aux_k: int,
    over: Over = ALONE,
) -> tuple[jax.Array, tuple[jax.Array, Terms]]:
    """Per autoencoder the loss [a], and the mean squared error [a] with the terms of the objective.

    The auxiliary loss (Gao et al. 2024, A.2) comes on top where the objective has dead units to revive: the residual
    e = stop_gradient(x - x^) is reconstructed from the `aux_k` strongest dead units without bias, on every fourth token;
    |e - e^|^2 / |e|^2; 0 where no unit is dead.
    """
    objective = OBJECTIVES[config.objective]
    terms = jax.vmap(lambda p, x, lam: objective.terms(p, x, config.k, lam, over))(params, x, sparsity)
    mse = jnp.mean(terms.residual**2, axis=(1, 2))
    loss = terms.loss
    if objective.revives and config.aux_weight > 0:
        loss = loss + config.aux_weight * _auxiliary(params, x, terms.residual, dead, aux_k, over)
    return loss, (mse, terms)


def _auxiliary(params: Params, x: jax.Array, residual: jax.Array, dead: jax.Array, aux_k: int, over: Over) -> jax.Array:
    # Every fourth token, not the first quarter: the same tokens however the batch is split over devices.
    part = slice(None, None, AUX_SHARE)
    target = jax.lax.stop_gradient(residual[:, part])
    scale = over.mean(jnp.mean(target**2, axis=(1, 2))) + 1e-12

    def one(p: Params, x_bd: jax.Array, e_bd: jax.Array, dead_u: jax.Array, scale: jax.Array) -> jax.Array:
        v, i = jax.lax.top_k(jnp.where(dead_u[None], pre_activations(p, x_bd), -jnp.inf), aux_k)
        v = jnp.where(jnp.isfinite(v), jax.nn.relu(v), 0.0)
        z = scattered(v, i, dead_u.shape[0])
        e_hat = jnp.einsum("bu,ud->bd", z, decoder_rows(p), precision=PRECISION)
        return jnp.where(dead_u.any(), jnp.mean((e_bd - e_hat) ** 2) / scale, 0.0)

    def auxiliary() -> jax.Array:
        return jax.vmap(one)(params, x[:, part], target, dead, scale)

    return jax.lax.cond(dead.any(), auxiliary, lambda: jnp.zeros(len(x)))


def _constrained(params: Params, config: TrainConfig) -> Params:
    """Decoder rows at norm 1, or mixed from data points, or the encoder tied to them, as the objective says."""
    objective = OBJECTIVES[config.objective]
    if params.mix is not None:
        return params._replace(w_dec=decoder_rows(params))
    if objective.unit_rows:
        return params._replace(w_dec=unit_rows(params.w_dec))
    return params._replace(w_enc=params.w_dec.transpose(0, 2, 1)) if objective.tied else params


def make_step(
    mesh: Mesh, config: TrainConfig, norm: Norm, aux_k: int, log_every: int, knobs: Knobs | None = None
) -> Callable[[TrainState, jax.Array], tuple[TrainState, jax.Array]]:
    """Jitted (state, x [m, b, d] raw activations) -> (state, mse [a]); the state is donated.

    a is a multiple of m: autoencoders i a/m to (i + 1) a/m - 1 see the tokens x[i]. knobs: by default those of `config`.
    """
    adam = optimiser(config)
    objective = OBJECTIVES[config.objective]
    a = len(norm.scale)
    chosen = knobs or Knobs(jnp.full(a, config.lr), jnp.full(a, config.sparsity))
    over = Over(lambda v: jax.lax.pmean(v, DATA), lambda v: jax.lax.pmax(v, DATA))

    def local(state: TrainState, norm: Norm, knobs: Knobs, x_raw: jax.Array) -> tuple[TrainState, jax.Array]:
        # Every point of the grid sees the same tokens; repeated here, on the device that has them.
        x = normalise(norm, jnp.repeat(x_raw, len(norm.scale) // len(x_raw), axis=0))
        dead = state.silent >= config.dead_tokens

        def total(params: Params) -> tuple[jax.Array, tuple[jax.Array, Terms]]:
            loss, aux = loss_terms(params, x, dead, config, knobs.sparsity, aux_k, over)
            # A sum over autoencoders: their gradients do not meet.
            return jnp.sum(loss), aux

        (_, (mse, terms)), grads = jax.value_and_grad(total, has_aux=True)(state.params)
        grads, mse = jax.lax.pmean((grads, mse), DATA)
        fired = jax.lax.psum(terms.fired, DATA)
        if objective.unit_rows:
            # The part of the gradient along a unit row would only change its norm, which is reset below.
            along = jnp.sum(grads.w_dec * state.params.w_dec, axis=-1, keepdims=True)
            grads = grads._replace(w_dec=grads.w_dec - along * state.params.w_dec)
        updates, new_adam = jax.vmap(adam.update)(grads, state.adam, state.params)
        updates = jax.tree.map(lambda g: g * knobs.lr.reshape(-1, *[1] * (g.ndim - 1)), updates)
        params: Any = optax.apply_updates(state.params, updates)
        params = _constrained(params, config)
        tokens = x.shape[1] * jax.lax.axis_size(DATA)
        silent = jnp.where(fired > 0, 0, state.silent + tokens)
        # The mean of the cuts so far until the running mean has enough of them.
        weight = jnp.maximum(1 - _CUT_MEMORY, 1.0 / (state.step + 1.0))
        cut = state.cut + weight * (terms.cut - state.cut)
        losses = state.losses.at[state.step // log_every].set(mse)
        return TrainState(params, new_adam, silent, cut, state.step + 1, losses), mse

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, x: jax.Array) -> tuple[TrainState, jax.Array]:
        specs = state_specs(state)
        sharded = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(specs, P(SAE), P(SAE), P(SAE, DATA)),
            out_specs=(specs, P(SAE)),
            check_vma=False,
        )
        return sharded(state, norm, chosen, x)

    return step
