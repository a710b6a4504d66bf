"""The training loop: statistics of the inputs, steps over a token stream, checkpoints, and a stop on non-finite loss."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sbm_jax.config import TrainConfig
from sbm_jax.errors import UserError
from sbm_jax.mesh import two_axes
from sbm_jax.progress import log, progress
from sbm_jax.sae.checkpoint import Checkpoints
from sbm_jax.sae.model import Norm, Params, init_params
from sbm_jax.sae.step import AUX_SHARE, DATA, SAE, TrainState, init_state, make_step, put_state
from sbm_jax.sae.stream import TokenStream, array_name, batches
from sbm_jax.store.store import Store

STATISTICS_IMAGES = 4096  # enough for a mean to 1.6 % of a standard deviation even when patches of one image are equal
_READ_IMAGES = 256
_LOGS = 50


@dataclass(frozen=True)
class Stack:
    """Which autoencoders are trained together: every kind with every hook, kinds outermost."""

    hooks: tuple[str, ...]
    kinds: tuple[str, ...]

    @property
    def members(self) -> list[tuple[str, str]]:
        return [(kind, hook) for kind in self.kinds for hook in self.hooks]


@dataclass(frozen=True)
class Trained:
    """Result of training: arrays on the host (see `model`), losses [logs, a] and the step of each."""

    norm: Norm
    params: Params
    losses: np.ndarray
    loss_steps: np.ndarray
    silent: np.ndarray


def input_norm(store: Store, stack: Stack, images: np.ndarray, seed: int) -> Norm:
    """mean [a, d] and scale [a] over the tokens of at most STATISTICS_IMAGES of the images; float64 sums.

    Raises UserError when the tokens of a layer do not vary.
    """
    chosen = np.sort(np.random.default_rng([seed, 0]).permutation(images)[:STATISTICS_IMAGES])
    means, scales = [], []
    for kind, hook in stack.members:
        total, square, count = 0.0, 0.0, 0
        for start in range(0, len(chosen), _READ_IMAGES):
            x = store.read(array_name(hook, kind), chosen[start : start + _READ_IMAGES])
            x = x.reshape(-1, x.shape[-1]).astype(np.float64)
            total, square, count = total + x.sum(axis=0), square + (x * x).sum(axis=0), count + len(x)
        mean = total / count
        variance = float(np.mean(np.maximum(square / count - mean**2, 0.0)))
        if not variance > 1e-12 * float(np.mean(square / count)):
            raise UserError(
                f"{hook}: the {kind} tokens of {len(chosen)} images do not vary; there is nothing to train on."
            )
        means.append(mean)
        scales.append(1.0 / np.sqrt(variance))
    return Norm(jnp.asarray(np.stack(means), jnp.float32), jnp.asarray(scales, jnp.float32))


def train(
    store: Store,
    stack: Stack,
    images: np.ndarray,
    config: TrainConfig,
    devices: list[Any],
    checkpoints: Path,
) -> Trained:
    """Train all autoencoders of `stack` on the tokens of `images`; goes on from the newest checkpoint if there is one.

    On one topology a killed and resumed run ends with the same bits as an uninterrupted one.
    Raises UserError for too few tokens, k above the dictionary size, inputs that do not vary, or a non-finite loss.
    """
    streams = [
        TokenStream(store, stack.hooks, kind, images, config.batch, config.pool_tokens, config.seed)
        for kind in stack.kinds
    ]
    d = store.array(array_name(stack.hooks[0], stack.kinds[0])).shape[-1]
    units = config.expansion * d
    if config.k > units:
        raise UserError(f"train.k is {config.k}, but the dictionary has only {units} units (expansion x width {d}).")
    a = len(stack.members)
    # Whole fours of tokens on every device, so that the auxiliary loss sees the same tokens on every mesh.
    splits = config.batch // AUX_SHARE if config.batch % AUX_SHARE == 0 else 1
    mesh = two_axes(SAE, a, DATA, splits, devices)
    log(f"train: {a} autoencoders of {units} units over mesh {dict(mesh.shape)}")
    log_every = max(1, config.steps // _LOGS)
    n_logs = -(-config.steps // log_every)
    seeds = np.arange(a) + 1_000 * config.seed
    norm = input_norm(store, stack, images, config.seed)
    norm = jax.device_put(norm, NamedSharding(mesh, P(SAE)))
    state = put_state(init_state(init_params(seeds, d, units, config.encoder_scale), config, n_logs), mesh)
    aux_k = min(config.aux_k or d // 2, units)
    step = make_step(mesh, config, norm, aux_k, log_every)
    manager = Checkpoints(checkpoints)
    try:
        start = manager.latest() or 0
        if start:
            state = manager.restore(state, mesh)
        state = _loop(state, step, streams, config, start, mesh, manager, log_every, checkpoints)
    finally:
        manager.close()
    host = jax.device_get(state)
    return Trained(jax.device_get(norm), host.params, host.losses, log_every * np.arange(n_logs), host.silent)


def _loop(
    state: TrainState,
    step,
    streams,
    config: TrainConfig,
    start: int,
    mesh,
    manager: Checkpoints,
    log_every: int,
    folder: Path,
) -> TrainState:
    sharding = NamedSharding(mesh, P(SAE, DATA))
    with progress("train", config.steps, "steps", start) as task:
        for index, batch in enumerate(batches(streams, start, config.steps), start=start):
            state, mse = step(state, jax.device_put(batch, sharding))
            done = index + 1
            saving = done % config.checkpoint_every == 0 or done == config.steps
            if saving or done % log_every == 0:
                _check_finite(np.asarray(mse), done - log_every, done, manager, folder)
            if saving:
                manager.save(state, done)
            task.advance()
    return state


def _check_finite(mse: np.ndarray, first: int, last: int, manager: Checkpoints, folder: Path) -> None:
    if np.isfinite(mse).all():
        return
    bad = np.flatnonzero(~np.isfinite(mse)).tolist()
    raise UserError(
        f"train: the loss of autoencoders {bad} became non-finite between steps {max(0, first)} and {last}. "
        f"The last good checkpoint is step {manager.latest()} in {folder}. Lower train.lr or train.aux_weight."
    )
