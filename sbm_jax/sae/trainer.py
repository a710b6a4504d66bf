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
from sbm_jax.sae.model import Norm, Params, init_params, with_points, with_threshold
from sbm_jax.sae.objectives import OBJECTIVES
from sbm_jax.sae.stack import Group, Stack, points
from sbm_jax.sae.step import AUX_SHARE, DATA, SAE, Knobs, TrainState, init_state, make_step, put_state
from sbm_jax.sae.stream import TokenStream, array_name, batches
from sbm_jax.store.store import Store

STATISTICS_IMAGES = 4096  # enough for a mean to 1.6 % of a standard deviation even when patches of one image are equal
_READ_IMAGES = 256
_LOGS = 50


@dataclass(frozen=True)
class Trained:
    """Result of training, on the host, one entry per member of the stack (see `model`): losses [logs, a] and the step of
    each; silent [a, u], tokens since each unit fired; threshold [a, u], below which codes are 0.
    """

    norm: Norm
    params: Params
    losses: np.ndarray
    loss_steps: np.ndarray
    silent: np.ndarray
    threshold: np.ndarray


def input_norm(store: Store, stack: Stack, images: np.ndarray, seed: int) -> Norm:
    """mean [m, d] and scale [m] of every stream of tokens, over at most STATISTICS_IMAGES of the images; float64 sums.

    Raises UserError when the tokens of a layer do not vary.
    """
    chosen = np.sort(np.random.default_rng([seed, 0]).permutation(images)[:STATISTICS_IMAGES])
    means, scales = [], []
    for kind, hook in stack.tokens:
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
    if stack.points != points(config):
        raise ValueError("the stack's grid points are not those of the configuration")
    groups = stack.groups(config)
    _check_k(stack, units, d)
    m = len(stack.tokens)
    # Whole fours of tokens on every device, so that the auxiliary loss sees the same tokens on every mesh.
    splits = config.batch // AUX_SHARE if config.batch % AUX_SHARE == 0 else 1
    mesh = two_axes(SAE, m, DATA, splits, devices)
    log(f"train: {len(stack.members)} autoencoders of {units} units over mesh {dict(mesh.shape)}")
    for group in groups if len(stack.points) > 1 else []:
        log("  in one program: " + "; ".join(map(str, group.points)))
    log_every = max(1, config.steps // _LOGS)
    n_logs = -(-config.steps // log_every)
    norm = input_norm(store, stack, images, config.seed)
    sample = None
    if any(point.objective == "archetypal" for point in stack.points):
        sample = _sample(store, stack, images, norm, config)
    programs = [_program(group, norm, sample, mesh, units, n_logs, log_every) for group in groups]
    manager = Checkpoints(checkpoints)
    try:
        states = tuple(state for state, _ in programs)
        start = manager.latest() or 0
        if start:
            states = manager.restore(states, mesh)
        steps = [step for _, step in programs]
        states = _loop(states, steps, streams, config, start, mesh, manager, log_every, checkpoints)
    finally:
        manager.close()
    return _gather(stack, groups, states, norm, log_every * np.arange(n_logs))


def _check_k(stack: Stack, units: int, d: int) -> None:
    for point in stack.points:
        if OBJECTIVES[point.objective].uses_k and not 0 < point.k <= units:
            raise UserError(f"train.k is {point.k}, but the dictionary has only {units} units (expansion x width {d}).")


def _sample(store: Store, stack: Stack, images: np.ndarray, norm: Norm, config: TrainConfig) -> np.ndarray:
    """Normalised tokens float32 [m, c, d] of randomly chosen images and places: the points of archetypal decoders.

    c is train.points, or the number of tokens of the chosen images where that is less.
    """
    rng = np.random.default_rng([config.seed, 2])
    chosen = np.sort(rng.permutation(images)[: config.points])
    tokens = {kind: int(np.prod(store.array(array_name(stack.hooks[0], kind)).shape[1:-1])) for kind in stack.kinds}
    count = min(config.points, len(chosen) * min(tokens.values()))
    out = []
    for j, (kind, hook) in enumerate(stack.tokens):
        x = store.read(array_name(hook, kind), chosen).astype(np.float32)
        x = x.reshape(-1, x.shape[-1])
        x = x[np.sort(rng.permutation(len(x))[:count])]
        out.append((x - np.asarray(norm.mean[j])) * float(norm.scale[j]))
    return np.stack(out)


def _program(
    group: Group, norm: Norm, sample: np.ndarray | None, mesh: Any, units: int, n_logs: int, log_every: int
) -> tuple[TrainState, Any]:
    """First state and step of one group, over the mesh."""
    config, count = group.config, len(group.points)
    m, d = norm.mean.shape
    seeds = np.array([token + 1_000 * point.seed for token in range(m) for point in group.points])
    params = init_params(seeds, d, units, config.encoder_scale)
    if config.objective == "jumprelu":
        params = with_threshold(params)
    if config.objective == "tied_relu":
        params = params._replace(w_enc=params.w_dec.transpose(0, 2, 1))
    if config.objective == "archetypal":
        assert sample is not None
        params = with_points(params, seeds, jnp.asarray(np.repeat(sample, count, axis=0)), config.encoder_scale)
    split = NamedSharding(mesh, P(SAE))
    spread = jax.device_put(Norm(*(jnp.repeat(x, count, axis=0) for x in norm)), split)
    lr = np.tile([point.lr for point in group.points], m).astype(np.float32)
    sparsity = np.tile([point.sparsity for point in group.points], m).astype(np.float32)
    knobs = jax.device_put(Knobs(jnp.asarray(lr), jnp.asarray(sparsity)), split)
    state = put_state(init_state(params, config, n_logs), mesh)
    aux_k = min(config.aux_k or d // 2, units)
    return state, make_step(mesh, config, spread, aux_k, log_every, knobs)


def _gather(
    stack: Stack, groups: list[Group], states: tuple[TrainState, ...], norm: Norm, steps: np.ndarray
) -> Trained:
    """All groups on the host, in the order of the stack's members."""
    order, hosts = stack.order(groups), [jax.device_get(state) for state in states]
    thresholds = []
    for host in hosts:
        shape = host.params.b_enc.shape
        learned = host.params.threshold
        thresholds.append(np.exp(learned) if learned is not None else np.broadcast_to(host.cut[:, None], shape))

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(host.params, name) for host in hosts])[order]

    mean, scale = (np.tile(np.asarray(x), (len(stack.points), *[1] * (x.ndim - 1))) for x in norm)
    return Trained(
        norm=Norm(mean, scale),  # pyright: ignore[reportArgumentType]
        params=Params(*map(joined, ("w_enc", "b_enc", "w_dec", "b_dec"))),  # pyright: ignore[reportArgumentType]
        losses=np.concatenate([host.losses for host in hosts], axis=1)[:, order],
        loss_steps=steps,
        silent=np.concatenate([host.silent for host in hosts])[order],
        threshold=np.concatenate(thresholds)[order].astype(np.float32),
    )


def _loop(
    states: tuple[TrainState, ...],
    steps: list[Any],
    streams,
    config: TrainConfig,
    start: int,
    mesh,
    manager: Checkpoints,
    log_every: int,
    folder: Path,
) -> tuple[TrainState, ...]:
    sharding = NamedSharding(mesh, P(SAE, DATA))
    with progress("train", config.steps, "steps", start) as task:
        for index, batch in enumerate(batches(streams, start, config.steps), start=start):
            x = jax.device_put(batch, sharding)
            done = [step(state, x) for step, state in zip(steps, states, strict=True)]
            states = tuple(state for state, _ in done)
            count = index + 1
            saving = count % config.checkpoint_every == 0 or count == config.steps
            if saving or count % log_every == 0:
                mse = np.concatenate([np.asarray(mse) for _, mse in done])
                _check_finite(mse, count - log_every, count, manager, folder)
            if saving:
                manager.save(states, count)
            task.advance()
    return states


def _check_finite(mse: np.ndarray, first: int, last: int, manager: Checkpoints, folder: Path) -> None:
    if np.isfinite(mse).all():
        return
    bad = np.flatnonzero(~np.isfinite(mse)).tolist()
    raise UserError(
        f"train: the loss of autoencoders {bad} became non-finite between steps {max(0, first)} and {last}. "
        f"The last good checkpoint is step {manager.latest()} in {folder}. Lower train.lr or train.aux_weight."
    )
