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
from sbm_jax.sae.model import Norm, Params, decode, encode, normalise, unit_rows

SAE, DATA = "sae", "data"
_PRECISION = jax.lax.Precision.HIGHEST
AUX_SHARE = 4  # the auxiliary loss looks at a quarter of the tokens: its top-k over dead units is dear
# Below it the decoder is a dense product, whose gradient needs no scatter-add of rows; bench/sae_step.py times both forms.
_DENSE_UNITS_PER_KEPT = 128
_ADAM_EPS = 6.25e-10  # the loss is a mean over elements, so gradients are small (value of Gao et al. 2024)


class TrainState(NamedTuple):
    """Everything a resumed run needs: parameters, Adam's moments, tokens since each unit fired [a, u], step, loss log."""

    params: Params
    adam: Any
    silent: jax.Array
    step: jax.Array
    losses: jax.Array


def schedule(config: TrainConfig) -> optax.Schedule:
    """Linear warm-up, constant, linear decay to 0 at the last step."""
    rise = max(1, round(config.warmup * config.steps))
    fall = max(1, round(config.decay * config.steps))
    flat = max(0, config.steps - rise - fall)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, config.lr, rise),
            optax.constant_schedule(config.lr),
            optax.linear_schedule(config.lr, 0.0, fall),
        ],
        [rise, rise + flat],
    )


def optimiser(config: TrainConfig) -> optax.GradientTransformation:
    """Adam after clipping by the global norm; applied per autoencoder by vmap, so each has its own norm."""
    return optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(schedule(config), eps=_ADAM_EPS))


def init_state(params: Params, config: TrainConfig, n_logs: int) -> TrainState:
    """Fresh state; `losses` [n_logs, a] is filled as training goes."""
    a, _, u = params.w_enc.shape
    return TrainState(
        params=params,
        adam=jax.vmap(optimiser(config).init)(params),
        silent=jnp.zeros((a, u), jnp.int32),
        step=jnp.zeros((), jnp.int32),
        losses=jnp.zeros((n_logs, a)),
    )


def state_specs(state: TrainState) -> Any:
    """PartitionSpecs: every array with a leading autoencoder axis is split along `sae`."""
    specs: Any = {
        "params": jax.tree.map(lambda _: P(SAE), state.params),
        "adam": jax.tree.map(lambda _: P(SAE), state.adam),
        "silent": P(SAE),
        "step": P(),
        "losses": P(None, SAE),
    }
    return TrainState(**specs)


def put_state(state: TrainState, mesh: Mesh) -> TrainState:
    """The state laid over the mesh."""
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), state, state_specs(state))


def _dense(values_bk: jax.Array, units_bk: jax.Array, u: int) -> jax.Array:
    """Codes as [b, u]; for one batch inside the step only."""
    rows = jnp.arange(values_bk.shape[0])[:, None]
    return jnp.zeros((values_bk.shape[0], u), jnp.float32).at[rows, units_bk].add(values_bk)


def _reconstruct(params: Params, values: jax.Array, units: jax.Array) -> jax.Array:
    """x^ [a, b, d]: by a dense product for small dictionaries, by gathering rows for large ones (same numbers)."""
    u, k = params.b_enc.shape[1], values.shape[2]
    if u > _DENSE_UNITS_PER_KEPT * k:
        return decode(params, values, units)
    z = jax.vmap(lambda v, i: _dense(v, i, u))(values, units)
    return jnp.einsum("abu,aud->abd", z, params.w_dec, precision=_PRECISION) + params.b_dec[:, None]


def loss_terms(
    params: Params,
    x: jax.Array,
    dead: jax.Array,
    k: int,
    aux_k: int,
    over_data: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Per autoencoder: mean squared error, the auxiliary loss, and how often each unit fired.

    MSE = mean over tokens and dimensions of (x - x^)^2 (inputs have unit mean square, so this is 1 - EV nearly).
    Auxiliary loss (Gao et al. 2024, A.2): the residual e = stop_gradient(x - x^) is reconstructed from the `aux_k`
    strongest dead units without bias, on every fourth token; |e - e^|^2 / |e|^2; 0 where no unit is dead.
    """
    values, units = encode(params, x, k)
    residual = x - _reconstruct(params, values, units)
    mse = jnp.mean(residual**2, axis=(1, 2))
    # Every fourth token, not the first quarter: the same tokens however the batch is split over devices.
    part = slice(None, None, AUX_SHARE)
    scale = over_data(jnp.mean(jax.lax.stop_gradient(residual[:, part]) ** 2, axis=(1, 2))) + 1e-12

    def auxiliary() -> jax.Array:
        target = jax.lax.stop_gradient(residual[:, part])

        def one(p: Params, x_bd: jax.Array, e_bd: jax.Array, dead_u: jax.Array, scale: jax.Array) -> jax.Array:
            pre = jnp.einsum("bd,du->bu", x_bd, p.w_enc, precision=_PRECISION) + p.b_enc[None]
            v, i = jax.lax.top_k(jnp.where(dead_u[None], pre, -jnp.inf), aux_k)
            v = jnp.where(jnp.isfinite(v), jax.nn.relu(v), 0.0)
            e_hat = jnp.einsum("bu,ud->bd", _dense(v, i, dead_u.shape[0]), p.w_dec, precision=_PRECISION)
            error = jnp.mean((e_bd - e_hat) ** 2) / scale
            return jnp.where(dead_u.any(), error, 0.0)

        return jax.vmap(one)(params, x[:, part], target, dead, scale)

    aux = jax.lax.cond(dead.any(), auxiliary, lambda: jnp.zeros_like(mse))
    fired = jax.vmap(lambda v, i: jnp.zeros(dead.shape[1], jnp.int32).at[i].add((v > 0).astype(jnp.int32)))(
        values.reshape(len(mse), -1), units.reshape(len(mse), -1)
    )
    return aux, (mse, fired)


def make_step(
    mesh: Mesh, config: TrainConfig, norm: Norm, aux_k: int, log_every: int
) -> Callable[[TrainState, jax.Array], tuple[TrainState, jax.Array]]:
    """Jitted (state, x [a, b, d] raw activations) -> (state, mse [a]); the state is donated."""
    adam = optimiser(config)

    def local(state: TrainState, norm: Norm, x_raw: jax.Array) -> tuple[TrainState, jax.Array]:
        x = normalise(norm, x_raw)
        dead = state.silent >= config.dead_tokens

        def objective(params: Params) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            aux, (mse, fired) = loss_terms(params, x, dead, config.k, aux_k, lambda v: jax.lax.pmean(v, DATA))
            # A sum over autoencoders: their gradients do not meet.
            return jnp.sum(mse + config.aux_weight * aux), (mse, fired)

        (_, (mse, fired)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        grads, mse = jax.lax.pmean((grads, mse), DATA)
        fired = jax.lax.psum(fired, DATA)
        # The part of the gradient along a unit row would only change its norm, which is reset below.
        along = jnp.sum(grads.w_dec * state.params.w_dec, axis=-1, keepdims=True)
        grads = grads._replace(w_dec=grads.w_dec - along * state.params.w_dec)
        updates, new_adam = jax.vmap(adam.update)(grads, state.adam, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        params = params._replace(w_dec=unit_rows(params.w_dec))
        tokens = x.shape[1] * jax.lax.axis_size(DATA)
        silent = jnp.where(fired > 0, 0, state.silent + tokens)
        losses = state.losses.at[state.step // log_every].set(mse)
        return TrainState(params, new_adam, silent, state.step + 1, losses), mse

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, x: jax.Array) -> tuple[TrainState, jax.Array]:
        specs = state_specs(state)
        sharded = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(specs, P(SAE), P(SAE, DATA)),
            out_specs=(specs, P(SAE)),
            check_vma=False,
        )
        return sharded(state, norm, x)

    return step
