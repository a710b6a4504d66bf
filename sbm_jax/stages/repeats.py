"""Cross-validated RDMs of ROIs from single trials of images that were shown repeatedly."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from sbm_jax.brain.betas import mark_missing, voxels_per_block, zscore_groups, zscore_sessions
from sbm_jax.brain.convert import StoredTrials
from sbm_jax.brain.dataset import Subject
from sbm_jax.brain.responses import even_blocks
from sbm_jax.errors import UserError
from sbm_jax.kernels.rdm.api import crossnobis
from sbm_jax.kernels.rdm_compare.api import upper_triangle
from sbm_jax.progress import progress
from sbm_jax.stages.context import Context

LEAST = 3  # images: two have one distance, which correlates with nothing
_AT_ONCE = 512  # voxels in one product; one shape for all ROIs, compiled once


@dataclass(frozen=True)
class RepeatedRdm:
    """One ROI of one subject. rdm: float32 [pairs] over the images asked for, NaN where one was not repeated.

    images: those repeated. repeats: folds, what each of them has at least. voxels: those with a value in all these trials.
    """

    rdm: np.ndarray
    images: int
    repeats: int
    voxels: int


class _Distances:
    """Sum over voxels of crossnobis distances (without whitening they add up), `_AT_ONCE` voxels held."""

    def __init__(self, m: int, n: int) -> None:
        self.total = np.zeros((n, n))
        self.voxels = self.filled = 0
        self.waiting = np.zeros((m, n, _AT_ONCE), np.float32)

    def add(self, x_mnv: np.ndarray) -> None:
        self.voxels += x_mnv.shape[2]
        start = 0
        while start < x_mnv.shape[2]:
            part = x_mnv[:, :, start : start + _AT_ONCE - self.filled]
            self.waiting[:, :, self.filled : self.filled + part.shape[2]] = part
            start, self.filled = start + part.shape[2], self.filled + part.shape[2]
            if self.filled == _AT_ONCE:
                self._sum()

    def _sum(self) -> None:
        self.waiting[:, :, self.filled :] = 0
        self.total += crossnobis(self.waiting).astype(np.float64) * _AT_ONCE
        self.filled = 0

    def mean(self) -> np.ndarray:
        """float32 [n, n]: over the voxels added; NaN for none."""
        if self.filled:
            self._sum()
        return (self.total / self.voxels if self.voxels else np.full_like(self.total, np.nan)).astype(np.float32)


def repeated_trials(trial_image: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """bool [n]: images of `rows` shown at least twice; int [m, images used]: the trial of each one's r-th repeat.

    m is the smallest number of repeats among the images used; what some have beyond it is left out.
    """
    trials = [np.flatnonzero(trial_image == row) for row in rows]
    used = np.array([len(of_image) > 1 for of_image in trials], bool)
    m = min((len(of_image) for of_image in trials if len(of_image) > 1), default=0)
    return used, np.array([of_image[:m] for of_image in trials if len(of_image) > 1], np.int64).reshape(-1, max(m, 1)).T


def single_trials(ctx: Context, subject: Subject, rows: np.ndarray, *, stored: bool = True) -> Subject:
    """The subject with trials of which any voxels can be read.

    Args: rows: of the image table, the images to be repeated. stored: False before the betas are made, which keep them.
    Raises UserError where fewer than `LEAST` of the images are repeated, or trials must be converted and are not kept.
    """
    n = int(repeated_trials(subject.trial_image, rows)[0].sum())
    if subject.averaged or n < LEAST:
        why = "the dataset brings averages over repeats" if subject.averaged else f"{n} of {len(rows)} are repeated"
        raise UserError(
            f"rsa.brain_metric: crossnobis needs at least {LEAST} shared images that {subject.name} saw twice or more; {why}. "
            "Set rsa.brain_metric: same, or leave the subject out (data.subjects)."
        )
    if subject.responses.by_voxel:
        return subject
    spec, betas = ctx.specs.trials[subject.name], ctx.specs.betas[subject.name]
    if ctx.has(spec):
        return dataclasses.replace(subject, responses=StoredTrials(ctx.open(spec), subject.responses))
    if ctx.config.betas.keep_trials and not stored:
        return subject
    again = f", delete {betas.path(ctx.stores)} and run `sbm-jax betas` again" if stored else ""
    raise UserError(
        f"rsa.brain_metric: crossnobis reads single trials of {subject.name}, which are deleted after averaging. "
        f"Set betas.keep_trials: true{again}; or set rsa.brain_metric: same."
    )


def crossnobis_rdms(
    trials: Subject, rows: np.ndarray, rois: dict[str, np.ndarray], zscore: str, memory_bytes: int
) -> dict[str, RepeatedRdm]:
    """`kernels.rdm.crossnobis` of each ROI over the images `rows` (of the image table); fold r is the r-th repeat.

    Trials are z-scored as for the averages, over all trials of the session. A voxel without a value in one of the trials
    used is left out. One pass over the responses, blocks of voxels within `memory_bytes`; beside them per ROI n x n
    float64 and `_AT_ONCE` voxels of the trials used.

    Args: trials: see `single_trials`. rois: bool [v] by name. zscore: `betas.zscore`.
    """
    used, trial_mn = repeated_trials(trials.trial_image, rows)
    sums = {name: _Distances(*trial_mn.shape) for name in rois}
    wanted = np.any(list(rois.values()), axis=0) if rois else np.zeros(trials.n_voxels, bool)
    groups = zscore_groups(trials, zscore)
    width = voxels_per_block(trials.n_trials, 0, memory_bytes)
    with progress(f"rsa repeats {trials.name}", trials.n_voxels, "voxels") as task:
        for block in even_blocks(trials.n_voxels, width):
            columns = np.flatnonzero(wanted[block])
            if len(columns):
                stored = trials.responses.read_voxels(block)[:, columns]
                x_tv = stored.astype(np.float32) / np.float32(trials.responses.divisor)
                if trials.responses.zero_is_missing:
                    mark_missing(x_tv, trials.session)
                x_mnv = (x_tv if groups is None else zscore_sessions(x_tv, groups))[trial_mn]
                present = np.isfinite(x_mnv).all(axis=(0, 1))
                for name, inside in rois.items():
                    sums[name].add(x_mnv[:, :, present & inside[block][columns]])
            task.advance(block.stop - block.start)
    return {
        name: RepeatedRdm(_over_all(total.mean(), used), int(used.sum()), len(trial_mn), total.voxels)
        for name, total in sums.items()
    }


def _over_all(rdm_nn: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Condensed over all images, NaN where one of a pair is not used."""
    out = np.full((len(used),) * 2, np.nan, np.float32)
    out[np.ix_(used, used)] = rdm_nn
    return upper_triangle(out)
