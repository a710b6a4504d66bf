"""betas: single trials to one response per image and voxel, with reliability. One store per subject, voxel-major."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np

from sbm_jax.brain.betas import stream_betas
from sbm_jax.brain.convert import StoredTrials, convert_trials, finished_trials
from sbm_jax.brain.dataset import Subject
from sbm_jax.brain.reliability import noise_ceiling
from sbm_jax.errors import UserError
from sbm_jax.progress import log, progress
from sbm_jax.stages.context import Context
from sbm_jax.stages.image_sets import image_sets
from sbm_jax.stages.repeats import single_trials
from sbm_jax.store.buffer import ShardBuffer
from sbm_jax.store.store import Store, StoreWriter

_SHARD_VOXELS = 4096
# Wider blocks fall out of the caches: 1 GiB took 1.6 times as long as 256 MiB for 30,000 trials.
_BLOCK_BYTES = 1 << 28
# Per voxel: NaN where unknown. `missing` counts trials without a value.
_PER_VOXEL = {
    "ncsnr_estimated": "float64",
    "ncsnr": "float64",
    "noise_ceiling": "float64",
    "complete": "uint8",
    "missing": "int64",
}


def run(ctx: Context, subject: Subject) -> Store:
    """Write the betas of one subject:

    `betas` [v, n], z-scored and averaged over repeats (NaN: no data); `image_rows` [n], rows of the image table; `shared`
    [n]; `ncsnr` [v], the dataset's own or `ncsnr_estimated` [v]; `noise_ceiling` [v], explainable share of variance of the
    shared images' averages (of all where none is shared); `usable` [v], 1 where every image has a value, the voxel varies
    and is reliable enough.
    `dropped.json` names the others. Trials that lie in one file per session are first brought into an order in which any
    voxels can be read (`trials`, deleted afterwards unless betas.keep_trials).
    Raises UserError when no voxel is usable, or too few images select or score (see `image_sets`).
    """
    rows = subject.seen()
    shared = ctx.dataset.images.shared[rows]
    image_sets(ctx.config.align, subject.name, shared)  # what cannot be aligned is refused before anything is read
    scored = shared if shared.any() else np.ones(len(shared), bool)
    if ctx.config.rsa.brain_metric == "crossnobis":
        single_trials(ctx, subject, rows[shared], stored=False)  # refused now rather than after the other stages
    memory = ctx.config.betas.memory_mb << 20
    trials = subject if subject.responses.by_voxel else _converted(ctx, subject, memory)
    writer = ctx.writer(ctx.specs.betas[subject.name])
    n_voxels, options = subject.n_voxels, {"shard_rows": _SHARD_VOXELS, "compress": False}
    writer.create("betas", (n_voxels, len(rows)), ctx.config.betas.dtype, dimensions=("v", "n"), **options)
    for name, dtype in _PER_VOXEL.items():
        writer.create(name, (n_voxels,), dtype, dimensions=("v",), **options)
    writer.put("image_rows", rows.astype(np.int64), dimensions=("n",))
    writer.put("shared", shared.astype(np.uint8), dimensions=("n",))
    start = min(writer.cursor * _SHARD_VOXELS, n_voxels)
    buffer = ShardBuffer(writer, min(_SHARD_VOXELS, n_voxels), n_voxels, start, resumable=True)
    with progress(f"betas {subject.name}", n_voxels, "voxels", start) as task:
        for block in stream_betas(trials, rows, min(memory, _BLOCK_BYTES), ctx.config.betas.zscore, start):
            betas = block.betas_nv
            ncsnr, ceiling = _reliability(ctx, subject, block.voxels, block.ncsnr_v, block.counts_nv[scored])
            complete = np.isfinite(betas).all(axis=0) & (np.ptp(betas, axis=0) > 0)
            columns = (block.ncsnr_v, ncsnr, ceiling, complete.astype(np.uint8), block.missing_v)
            buffer.add({"betas": np.ascontiguousarray(betas.T), **dict(zip(_PER_VOXEL, columns, strict=True))})
            task.advance(betas.shape[1])
    buffer.close()
    _write_usable(ctx, subject, writer)
    store = writer.commit()
    if trials is not subject and not ctx.config.betas.keep_trials:
        shutil.rmtree(ctx.specs.trials[subject.name].path(ctx.stores))
    return store


def _converted(ctx: Context, subject: Subject, memory_bytes: int) -> Subject:
    """The subject with its trials in a store of the run, written there first when they are not yet."""
    spec = ctx.specs.trials[subject.name]
    if not ctx.has(spec):
        writer = ctx.writer(spec)
        done = finished_trials(subject.responses, writer)
        with progress(f"convert {subject.name}", subject.n_trials, "trials", done) as task:
            convert_trials(subject.responses, writer, memory_bytes, task.advance)
        writer.commit()
    return dataclasses.replace(subject, responses=StoredTrials(ctx.open(spec), subject.responses))


def _reliability(
    ctx: Context, subject: Subject, voxels: slice, estimated_v: np.ndarray, counts_nv: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """ncsnr and noise ceiling [v]: the dataset's own where it brings one and the settings do not say otherwise."""
    source = ctx.config.betas.ncsnr
    if source != "estimated" and subject.ncsnr is not None:
        ncsnr = subject.ncsnr[voxels]
    elif source != "estimated" and subject.noise_ceiling is not None:
        # signal to noise of the responses as the dataset brings them: NC = ncsnr^2 / (ncsnr^2 + 1)
        ceiling = subject.noise_ceiling[voxels]
        return np.sqrt(ceiling / np.maximum(1 - ceiling, 1e-12)), ceiling
    elif source == "shipped":
        raise UserError(
            f"betas.ncsnr is shipped, but the dataset brings no ncsnr and no noise ceiling for {subject.name}"
        )
    else:
        ncsnr = estimated_v
    return ncsnr, noise_ceiling(ncsnr, counts_nv)


def _write_usable(ctx: Context, subject: Subject, writer: StoreWriter) -> None:
    """`usable` and dropped.json from what the blocks gave. Raises UserError when nothing is left."""
    config = ctx.config.betas
    complete = writer.read("complete").astype(bool)
    usable = complete.copy()
    floors = {"ncsnr": config.min_ncsnr, "noise_ceiling": config.min_noise_ceiling}
    below = {}
    for name, floor in floors.items():
        if floor > 0:
            values = writer.read(name)
            if np.isnan(values).all():
                raise UserError(
                    f"betas.min_{name} is {floor}, but {name} of {subject.name} is unknown: no image was shown twice and "
                    "the dataset brings none. Set it to 0."
                )
            keep = np.nan_to_num(values) >= floor
            below[name] = int((complete & ~keep).sum())
            usable &= keep
    incomplete = int((~complete).sum())
    if not usable.any():
        files = subject.responses.files
        raise UserError(
            f"{files[0] if len(files) == 1 else files[0].parent}: not one of {subject.n_voxels} voxels of {subject.name} is left: "
            f"{incomplete} lack a value for some image or do not vary"
            + "".join(f", {count} have a {name} below {floors[name]}" for name, count in below.items())
        )
    if incomplete:
        first = subject.responses.column(int(np.argmin(complete)))
        log(
            f"betas {subject.name}: {incomplete} of {subject.n_voxels} voxels are constant or lack data and are left out "
            f"(first: {first})"
        )
    for name, count in below.items():
        log(f"betas {subject.name}: {count} voxels with a {name} below {floors[name]} are left out")
    dropped = np.flatnonzero(~usable)
    writer.put("usable", usable.astype(np.uint8), dimensions=("v",))
    record = {"voxels": dropped, "missing_trials": writer.read("missing")[dropped], "n_voxels": subject.n_voxels}
    writer.put_json(
        "dropped.json", {**record, "incomplete": incomplete, "below": below, "notes": list(map(str, subject.dropped))}
    )
