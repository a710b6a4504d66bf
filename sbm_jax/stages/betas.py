"""betas: single trials to one response per image and voxel, with reliability. One store per subject, voxel-major."""

from __future__ import annotations

import numpy as np

from sbm_jax.brain.betas import stream_betas
from sbm_jax.brain.dataset import Subject
from sbm_jax.brain.reliability import noise_ceiling
from sbm_jax.errors import UserError
from sbm_jax.progress import log, progress
from sbm_jax.stages.context import Context
from sbm_jax.store.buffer import ShardBuffer
from sbm_jax.store.store import Store

_SHARD_VOXELS = 4096


def run(ctx: Context, subject: Subject) -> Store:
    """Write the betas of one subject:

    `betas` [v, n] float32, z-scored within session and averaged over repeats (NaN: no data); `image_rows` [n], rows of
    the image table; `shared` [n]; `ncsnr` [v]; `noise_ceiling` [v], explainable share of variance of the shared images'
    averages; `usable` [v], 1 where every image has a value and the voxel varies. `dropped.json` names the others.
    Raises UserError when no voxel is usable, or too few images are shared or unique.
    """
    n, n_voxels = len(subject.seen()), subject.n_voxels
    rows = subject.seen()
    shared = ctx.dataset.images.shared[rows]
    if shared.sum() < 3 or (~shared).sum() < 3:
        raise UserError(
            f"{subject.name} saw {int(shared.sum())} shared and {int((~shared).sum())} unique images; at least 3 of each "
            "are needed to select units on one set and score them on the other. Check the `shared` column of images.csv."
        )
    writer = ctx.writer(ctx.specs.betas[subject.name])
    writer.create("betas", (n_voxels, n), "float32", shard_rows=_SHARD_VOXELS, compress=False, dimensions=("v", "n"))
    writer.put("image_rows", rows.astype(np.int64), dimensions=("n",))
    writer.put("shared", shared.astype(np.uint8), dimensions=("n",))
    ncsnr, ceiling = np.zeros(n_voxels), np.zeros(n_voxels)
    usable, missing = np.zeros(n_voxels, bool), np.zeros(n_voxels, np.int64)
    # A killed run starts this subject again: one pass over the trials serves all voxels.
    buffer = ShardBuffer(writer, _SHARD_VOXELS, n_voxels, resumable=False)
    with progress(f"betas {subject.name}", n_voxels, "voxels") as task:
        for block in stream_betas(subject, rows):
            betas = block.betas_nv
            ncsnr[block.voxels] = block.ncsnr_v
            ceiling[block.voxels] = noise_ceiling(block.ncsnr_v, block.counts_nv[shared])
            usable[block.voxels] = np.isfinite(betas).all(axis=0) & (np.ptp(betas, axis=0) > 0)
            missing[block.voxels] = block.missing_v
            buffer.add({"betas": np.ascontiguousarray(betas.T)})
            task.advance(betas.shape[1])
    buffer.close()
    if not usable.any():
        raise UserError(
            f"{subject.response_file}: not one of {n_voxels} voxels has a value for every image and varies."
        )
    dropped = np.flatnonzero(~usable)
    if len(dropped):
        log(
            f"betas {subject.name}: {len(dropped)} of {n_voxels} voxels are constant or lack data and are left out "
            f"(first: row {dropped[0] + 1} of voxels.csv)"
        )
    writer.put("ncsnr", ncsnr, dimensions=("v",))
    writer.put("noise_ceiling", ceiling, dimensions=("v",))
    writer.put("usable", usable.astype(np.uint8), dimensions=("v",))
    writer.put_json("dropped.json", {"voxels": dropped, "missing_trials": missing[dropped], "n_voxels": n_voxels})
    return writer.commit()
