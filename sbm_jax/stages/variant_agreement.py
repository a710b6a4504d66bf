"""Whether a voxel has a unit with the same code under two settings of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from sbm_jax.stages.context import Context
from sbm_jax.stages.halves import Columns
from sbm_jax.stages.inputs import Codes, n_units, read_codes, subject_images
from sbm_jax.stages.rows import Row, row


def between_assignments(
    own: Context, other: Context, label: str, name: str, mode: str, voxels: np.ndarray
) -> Iterator[Row]:
    """Of one subject's voxels: r over the subject's images of the codes of its best units under both settings, share with the best
    unit in the same layer, and where the dictionaries are the same the share with the same unit. By chance: with the best unit of
    another of these voxels.
    """
    if mode not in other.config.encode.modes:
        return
    images = subject_images(own.open(own.specs.betas[name]))
    order = np.random.default_rng([own.config.stability.seed, len(voxels)]).permutation(len(voxels))
    best, columns, per_layer = [], [], []
    for run in (own, other):
        codes, saes = run.open(run.specs.codes), run.open(run.specs.saes)
        units = n_units(codes, saes, mode, run.facts.hooks[0])
        layers: list[Callable[[], Codes]] = [
            partial(read_codes, codes, mode, hook, images.rows, units) for hook in run.facts.hooks
        ]
        best.append(run.open(run.specs.align[name]).read(f"{mode}/voxel_units", voxels)[:, 0])
        columns.append(Columns(layers, units, best[-1], None))
        per_layer.append(units)
    where, n = f"{name}, {mode}", len(voxels)
    one = best[0]
    both = [(one, two) for two in (best[1], best[1][order])]
    known = [(a >= 0) & (b >= 0) for a, b in both]
    r = [columns[0].r(a, columns[1].of(b))[ok] for (a, b), ok in zip(both, known, strict=True)]
    layer = [(a // per_layer[0] == b // per_layer[1])[ok] for (a, b), ok in zip(both, known, strict=True)]
    found = {"codes' r": r, "same layer": layer}
    if own.specs.saes == other.specs.saes:
        found["same unit"] = [(a == b)[ok] for (a, b), ok in zip(both, known, strict=True)]
    for measure, (values, chance) in found.items():
        means = [[x.mean(dtype=np.float64)] if x.size else [] for x in (values, chance)]
        yield row(label, "voxel's unit", where, measure, np.array(means[0]), means[1], n)
