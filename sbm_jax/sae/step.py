"""One training step of a stack of autoencoders, spread over a mesh (sae, units, data) by shard_map.

Along `sae` nothing is communicated. Along `units` a dictionary is cut in blocks: candidates for the k largest and partial
reconstructions travel. Along `data` the batch is split; parameters and Adam's moments are split there too, by units: the
step gathers the parameters, and gradients come back summed and split. One jitted program with donated state.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sbm_jax.config import TrainConfig
from sbm_jax.sae.auxiliary import with_auxiliary
from sbm_jax.sae.model import PER_UNIT, Norm, Params, decoder_rows, each, normalise, per_unit, turned, unit_rows
from sbm_jax.sae.objectives import OBJECTIVES, Terms
from sbm_jax.sae.over import ALONE, Over

SAE, UNITS, DATA = "sae", "units", "data"
_ADAM_EPS = 6.25e-10  # the loss is a mean over elements, so gradients are small (value of Gao et al. 2024)
_CUT_MEMORY = 0.99  # of the running mean of BatchTopK's cut, which is used when codes are computed token by token


class Knobs(NamedTuple):
    """Per autoencoder [a]: learning rate, weight of sparsity."""

    lr: jax.Array
    sparsity: jax.Array


class TrainState(NamedTuple):
    """Everything a resumed run needs: parameters with w_enc turned to [a, u, d] (as its gradient comes), Adam's moments,
    tokens since each unit fired [a, u], running mean of BatchTopK's cut [a], step, log of the mean squared error [logs, a].
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
    """Adam; gradients come clipped."""
    return optax.adam(schedule(config), eps=_ADAM_EPS)


def init_state(params: Any, config: TrainConfig, n_logs: int) -> TrainState:
    """Fresh state; `losses` [n_logs, a] is filled as training goes."""
    a, u = params.b_enc.shape
    params = turned(params)
    return TrainState(
        params=params,
        adam=jax.vmap(optimiser(config).init)(params),
        silent=jnp.zeros((a, u), jnp.int32),
        cut=jnp.zeros(a),
        step=jnp.zeros((), jnp.int32),
        losses=jnp.zeros((n_logs, a)),
    )


# Cut along `units`, and again along `data`; other arrays are whole on every device that shares an autoencoder.
_SPLIT = {*PER_UNIT, "silent"}


def state_specs(state: TrainState) -> Any:
    """PartitionSpecs: autoencoders along `sae`; units along `units`; the share of the optimiser along `data`."""

    def spec(path: Any, _: Any) -> P:
        name = path[-1].name
        if name in _SPLIT:
            return P(SAE, (UNITS, DATA))
        return {"step": P(), "losses": P(None, SAE)}.get(name, P(SAE))

    return jax.tree_util.tree_map_with_path(spec, state)


def put_state(state: TrainState, mesh: Mesh) -> TrainState:
    """The state laid over the mesh."""
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), state, state_specs(state))


def _gathered(params: Params) -> Params:
    """The parameters of the block of units of this device, of which it holds the share of its place along `data`."""
    if jax.lax.axis_size(DATA) == 1:  # XLA would copy them
        return params
    return per_unit(lambda x: jax.lax.all_gather(x, DATA, axis=1, tiled=True), lambda x: x, params)


def _summed(grads: Params) -> Params:
    """Mean of the gradients over `data`, each device its share."""
    size = jax.lax.axis_size(DATA)
    if size == 1:
        return grads
    return per_unit(
        lambda g: jax.lax.psum_scatter(g, DATA, scatter_dimension=1, tiled=True) / size,
        lambda g: jax.lax.pmean(g, DATA),
        grads,
    )


def _clipped(grads: Params, limit: float) -> Any:
    """Every autoencoder's gradient scaled to at most `limit` in norm, over all devices that share it."""
    square = {
        name: jnp.sum(g.astype(jnp.float32) ** 2, axis=tuple(range(1, g.ndim)))
        for name, g in grads._asdict().items()
        if g is not None
    }
    split = sum(value for name, value in square.items() if name in PER_UNIT)
    norm = jnp.sqrt(jax.lax.psum(split, (UNITS, DATA)) + sum(v for n, v in square.items() if n not in PER_UNIT))
    scale = limit / jnp.maximum(norm, limit)
    return jax.tree.map(lambda g: g * scale.reshape(-1, *[1] * (g.ndim - 1)), grads)


def loss_terms(
    params: Params, x: jax.Array, config: TrainConfig, sparsity: jax.Array, over: Over = ALONE
) -> tuple[jax.Array, Terms]:
    """Per autoencoder the mean squared error [a], and the terms of the objective. w_enc is turned, as in the state."""
    objective = OBJECTIVES[config.objective]
    # Turned back one by one: XLA drops the two swaps of axes where they meet, and would else copy the weights.
    terms = each(lambda p, x, lam: objective.terms(turned(p), x, config.k, lam, over), params, x, sparsity)
    return jnp.mean(terms.residual**2, axis=(1, 2)), terms


def _constrained(params: Params, config: TrainConfig) -> Params:
    """Decoder rows at norm 1, or mixed from data points, as the objective says."""
    objective = OBJECTIVES[config.objective]
    if params.mix is not None:
        return params._replace(w_dec=decoder_rows(params))
    return params._replace(w_dec=unit_rows(params.w_dec)) if objective.unit_rows else params


@dataclass(frozen=True)
class Step:
    """(state, x [m, b, d] raw activations) -> (state, mse [a]), jitted; the state is donated."""

    jitted: Any
    norm: Norm
    knobs: Knobs

    def __call__(self, state: TrainState, x: jax.Array) -> tuple[TrainState, jax.Array]:
        return self.jitted(state, self.norm, self.knobs, x)

    def lower(self, state: Any, x: Any) -> Any:
        """As `jax.jit`'s, for arrays or their shapes."""
        return self.jitted.lower(state, self.norm, self.knobs, x)

    def compiled(self, state: Any, x: Any) -> Step:
        """The same for these shapes alone, compiled now."""
        return Step(self.lower(state, x).compile(), self.norm, self.knobs)


def make_step(
    mesh: Mesh, config: TrainConfig, norm: Norm, aux_k: int, log_every: int, knobs: Knobs | None = None
) -> Step:
    """The step of a stacked autoencoders over m streams of tokens.

    a is a multiple of m: autoencoders i a/m to (i + 1) a/m - 1 see the tokens x[i]. knobs: by default those of `config`.
    mesh: axes sae, units, data; the number of units is a multiple of units x data.
    """
    adam = optimiser(config)
    objective = OBJECTIVES[config.objective]
    a = len(norm.scale)
    chosen = knobs or Knobs(jnp.full(a, config.lr), jnp.full(a, config.sparsity))
    over = Over(
        mean=lambda v: jax.lax.pmean(v, DATA),
        max=lambda v: jax.lax.pmax(v, (UNITS, DATA)),
        units=UNITS,
        parts=mesh.shape[UNITS],
        dtype=config.dtype,
    )

    def local(state: TrainState, norm: Norm, knobs: Knobs, x_raw: jax.Array) -> tuple[TrainState, jax.Array]:
        # Every point of the grid sees the same tokens; repeated here, on the device that has them.
        x = normalise(norm, jnp.repeat(x_raw, len(norm.scale) // len(x_raw), axis=0))
        dead = jax.lax.all_gather(state.silent >= config.dead_tokens, DATA, axis=1, tiled=True)

        def total(params: Params) -> tuple[jax.Array, tuple[jax.Array, Terms]]:
            mse, terms = loss_terms(params, x, config, knobs.sparsity, over)
            # A sum over autoencoders: their gradients do not meet.
            return jnp.sum(terms.loss), (mse, terms)

        params = _gathered(state.params)
        (_, (mse, terms)), grads = jax.value_and_grad(total, has_aux=True)(params)
        if objective.revives and config.aux_weight > 0:
            grads = with_auxiliary(grads, config.aux_weight, params, x, terms.residual, dead, aux_k, over)
        grads, mse = _summed(grads), jax.lax.pmean(mse, DATA)
        fired = jax.lax.psum_scatter(terms.fired, DATA, scatter_dimension=1, tiled=True)
        if objective.unit_rows:
            # The part of the gradient along a unit row would only change its norm, which is reset below.
            along = jnp.sum(grads.w_dec * state.params.w_dec, axis=-1, keepdims=True)
            grads = grads._replace(w_dec=grads.w_dec - along * state.params.w_dec)
        updates, new_adam = jax.vmap(adam.update)(_clipped(grads, config.clip), state.adam, state.params)
        updates = jax.tree.map(lambda g: g * knobs.lr.reshape(-1, *[1] * (g.ndim - 1)), updates)
        changed: Any = optax.apply_updates(state.params, updates)
        tokens = x.shape[1] * jax.lax.axis_size(DATA)
        silent = jnp.where(fired > 0, 0, state.silent + tokens)
        # The mean of the cuts so far until the running mean has enough of them.
        weight = jnp.maximum(1 - _CUT_MEMORY, 1.0 / (state.step + 1.0))
        cut = state.cut + weight * (terms.cut - state.cut)
        losses = state.losses.at[state.step // log_every].set(mse)
        return TrainState(_constrained(changed, config), new_adam, silent, cut, state.step + 1, losses), mse

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, norm: Norm, knobs: Knobs, x: jax.Array) -> tuple[TrainState, jax.Array]:
        specs = state_specs(state)
        sharded = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(specs, P(SAE), P(SAE), P(SAE, DATA)),
            out_specs=(specs, P(SAE)),
            check_vma=False,
        )
        return sharded(state, norm, knobs, x)

    return Step(step, norm, chosen)
