"""The training loop: steps over a token stream, checkpoints, and a stop on non-finite loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sbm_jax.config import TrainConfig
from sbm_jax.errors import UserError
from sbm_jax.mesh import put, to_host, training_mesh
from sbm_jax.progress import log, progress
from sbm_jax.sae import memory
from sbm_jax.sae.auxiliary import SHARE
from sbm_jax.sae.checkpoint import Checkpoints
from sbm_jax.sae.model import Norm, Params, turned
from sbm_jax.sae.objectives import OBJECTIVES
from sbm_jax.sae.stack import Group, Stack, points
from sbm_jax.sae.start import Program, geometric_median, input_norm, sampled_tokens
from sbm_jax.sae.step import DATA, SAE, Step, TrainState
from sbm_jax.sae.stream import Activations, TokenStream, batches

_LOGS = 50
_MEDIAN_TOKENS = 4096


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


def train(
    store: Activations,
    stack: Stack,
    images: np.ndarray,
    config: TrainConfig,
    devices: list[Any],
    checkpoints: Path,
) -> tuple[Trained, ...]:
    """Train all autoencoders of `stack` on the tokens of `images`; goes on from the newest checkpoint if there is one.

    One result for every dictionary size, in the order of `stack.sizes`. On one topology a killed and resumed run ends with
    the same bits as an uninterrupted one. With several processes each calls it with the same arguments and all devices.
    Raises UserError for too few tokens, k above the dictionary size, inputs that do not vary, a step that does not fit
    into memory, or a non-finite loss.
    """
    streams = [
        TokenStream(store, stack.hooks, kind, images, config.batch, config.pool_tokens, config.seed)
        for kind in stack.kinds
    ]
    d = streams[0].width
    if stack.points != points(config):
        raise ValueError("the stack's grid points are not those of the configuration")
    norm = input_norm(store, stack, images, config.seed)
    archetypal = any(point.objective == "archetypal" for point in stack.points)
    sample = sampled_tokens(store, stack, images, norm, config.points, config.seed) if archetypal else None
    centre = np.zeros_like(norm.mean)
    if config.centre == "geometric_median":
        some = sampled_tokens(store, stack, images, norm, _MEDIAN_TOKENS, config.seed)
        centre = np.stack([geometric_median(x) for x in some]).astype(np.float32)
    mesh = mesh_for(stack, config, d, devices)
    programs = make_programs(stack, config, norm, sample, centre, mesh)
    steps = fitting_steps(programs, len(stack.tokens), streams[0].dtype)
    manager = Checkpoints(checkpoints)
    try:
        start = manager.latest() or 0
        if start:
            states = manager.restore(tuple(program.shapes for program in programs))
        else:
            states = tuple(program.first_state() for program in programs)
        states = _loop(states, steps, streams, config, start, mesh, manager, checkpoints)
    finally:
        manager.close()
    return _gather(stack, config, states, norm)


def dry_run(stack: Stack, config: TrainConfig, d: int, dtype: Any, devices: list[Any]) -> memory.Needed:
    """Bytes per device of training on tokens of width d, from the compiled steps; nothing is read or made.

    Raises UserError as `train` does, where it does not fit.
    """
    m = len(stack.tokens)
    norm = Norm(np.zeros((m, d), np.float32), np.ones(m, np.float32))  # pyright: ignore[reportArgumentType]
    sample = np.zeros((m, config.points, d), np.float32)
    mesh = mesh_for(stack, config, d, devices)
    programs = make_programs(stack, config, norm, sample, np.zeros((m, d), np.float32), mesh)
    return memory.needed(programs, fitting_steps(programs, m, dtype))


def log_every(config: TrainConfig) -> int:
    """Steps between entries of the log of losses."""
    return max(1, config.steps // _LOGS)


def mesh_for(stack: Stack, config: TrainConfig, d: int, devices: list[Any]) -> Mesh:
    """The mesh of a run. Raises UserError where the dictionaries cannot be cut as train.split_units asks."""
    parts = config.split_units
    if parts > len(devices):
        raise UserError(f"train.split_units is {parts}, but there are {len(devices)} devices")
    sizes = [expansion * d for expansion in stack.sizes]
    wrong = [u for u in sizes if u % parts]
    if wrong:
        raise UserError(f"train.split_units is {parts}, which does not divide the {wrong[0]} units of a dictionary")
    # Whole fours of tokens on every device, so that the auxiliary loss sees the same tokens on every mesh.
    splits = config.batch // SHARE if config.batch % SHARE == 0 else 1
    return training_mesh(len(stack.tokens), parts, math.gcd(splits, d, *(u // parts for u in sizes)), devices)


def make_programs(
    stack: Stack, config: TrainConfig, norm: Norm, sample: np.ndarray | None, centre: np.ndarray, mesh: Mesh
) -> list[Program]:
    """One program per group. Raises UserError when a token may keep more units than a dictionary has."""
    groups, d = stack.groups(config), norm.mean.shape[1]
    for group in groups:
        if OBJECTIVES[group.config.objective].uses_k and not 0 < group.config.k <= group.units(d):
            raise UserError(
                f"train.k is {group.config.k}, but the dictionary has only {group.units(d)} units (expansion x width {d})."
            )
    sizes = "/".join(str(expansion * d) for expansion in stack.sizes)
    log(f"train: {len(stack.members)} autoencoders of {sizes} units over mesh {dict(mesh.shape)}")
    for group in groups if len(stack.points) > 1 else []:
        log("  in one program: " + "; ".join(map(str, group.points)))
    n_logs = -(-config.steps // log_every(config))
    return [Program(group, norm, sample, centre, mesh, n_logs, log_every(config)) for group in groups]


def fitting_steps(programs: list[Program], streams: int, dtype: Any) -> list[Step]:
    """The compiled steps. Raises UserError, before any state is made, where they do not fit into a device's memory."""
    config, mesh = programs[0].config, programs[0].mesh
    d = programs[0].shapes.params.b_dec.shape[1]
    x = jax.ShapeDtypeStruct((streams, config.batch, d), dtype, sharding=NamedSharding(mesh, P(SAE, DATA)))
    steps = [program.step.compiled(program.shapes, x) for program in programs]
    memory.check(memory.needed(programs, steps), list(mesh.devices.flat))
    return steps


def _gather(stack: Stack, config: TrainConfig, states: tuple[TrainState, ...], norm: Norm) -> tuple[Trained, ...]:
    """All groups on the host, by dictionary size, in the order of the stack's members."""
    hosts = {
        group.points: host._replace(params=turned(host.params))
        for group, host in zip(stack.groups(config), map(to_host, states), strict=True)
    }
    steps = log_every(config) * np.arange(-(-config.steps // log_every(config)))
    return tuple(
        _joined(part, groups, [hosts[group.points] for group in groups], norm, steps)
        for part in stack.by_size()
        for groups in [part.groups(config)]
    )


def _joined(stack: Stack, groups: list[Group], hosts: list[TrainState], norm: Norm, steps: np.ndarray) -> Trained:
    order = stack.order(groups)
    thresholds = []
    for host in hosts:
        shape = host.params.b_enc.shape
        learned = host.params.threshold
        thresholds.append(np.exp(learned) if learned is not None else np.broadcast_to(host.cut[:, None], shape))

    def of(host: TrainState, group: Group, name: str) -> np.ndarray:
        tied = name == "w_enc" and OBJECTIVES[group.config.objective].tied
        return host.params.w_dec.transpose(0, 2, 1) if tied else getattr(host.params, name)

    def joined(name: str) -> np.ndarray:
        return np.concatenate([of(host, group, name) for host, group in zip(hosts, groups, strict=True)])[order]

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
    steps: list[Step],
    streams: list[TokenStream],
    config: TrainConfig,
    start: int,
    mesh: Mesh,
    manager: Checkpoints,
    folder: Path,
) -> tuple[TrainState, ...]:
    sharding, every = NamedSharding(mesh, P(SAE, DATA)), log_every(config)
    with progress("train", config.steps, "steps", start) as task:
        for index, batch in enumerate(batches(streams, start, config.steps), start=start):
            x = put(batch, sharding)
            done = [step(state, x) for step, state in zip(steps, states, strict=True)]
            states = tuple(state for state, _ in done)
            count = index + 1
            saving = count % config.checkpoint_every == 0 or count == config.steps
            if saving or count % every == 0:
                mse = np.concatenate([to_host(mse) for _, mse in done])
                _check_finite(mse, count - every, count, manager, folder)
                if saving:
                    manager.save(states, count, float(mse.mean()))
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
