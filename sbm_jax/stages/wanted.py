"""Which units are looked into: those that a voxel, an ROI or the user asked for, and some at random beside them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sbm_jax.axes import SAE_MODES, TOKEN_KIND
from sbm_jax.errors import UserError
from sbm_jax.stages.exemplar_lists import CONTROL, ROI, USER, VOXEL
from sbm_jax.stages.inputs import responsive
from sbm_jax.stages.roi_rankings import RANKINGS, ranking_name

if TYPE_CHECKING:
    from sbm_jax.stages.context import Context


def user_units(
    names: Sequence[str], kinds: Sequence[str], hooks: Sequence[str], n_units: int
) -> dict[tuple[str, str], list[int]]:
    """Units per (kind, hook) of names such as `patch/block03.resid/17`. Raises UserError for one that is not there."""
    found: dict[tuple[str, str], list[int]] = {}
    for name in names:
        kind, _, rest = name.partition("/")
        hook, _, unit = rest.rpartition("/")
        known = kind in kinds and hook in hooks and unit.isdecimal() and int(unit) < n_units
        if not known:
            raise UserError(
                f"exemplars.units: {name!r} is no unit of this run. Expected KIND/HOOK/UNIT with KIND of {', '.join(kinds)}, "
                f"HOOK of {', '.join(hooks)}, and UNIT of 0..{n_units - 1}."
            )
        found.setdefault((kind, hook), []).append(int(unit))
    return found


def wanted_units(ctx: Context, numbers: Mapping[tuple[str, str], int]) -> dict[tuple[str, str], np.ndarray]:
    """uint8 [u] per (kind, hook), a sum of VOXEL, ROI, USER, CONTROL; 0: nobody wants the unit.

    numbers: of the autoencoders in their store. VOXEL: the best unit of a responsive voxel of any subject, by any encoded mode of
    the kind. ROI: in a ranking of the roi store. CONTROL: drawn from all units that fired on the tokens that the autoencoder was
    measured on, whoever else wants them, so that they stand for the dictionary.
    """
    config, hooks, saes = ctx.config, ctx.facts.hooks, ctx.open(ctx.specs.saes)
    u = saes.array("b_enc").shape[1]
    named = user_units(config.exemplars.units, config.kinds, hooks, u)
    out = {}
    for kind in config.kinds:
        modes = [mode for mode in config.encode.modes if mode in SAE_MODES and TOKEN_KIND[mode] == kind]
        voxels, rois = _of_voxels(ctx, modes, u), _of_rois(ctx, modes, u)
        for layer, hook in enumerate(hooks):
            why = np.zeros(u, np.uint8)
            why[voxels[layer]] |= VOXEL
            why[rois[layer]] |= ROI
            why[named.get((kind, hook), [])] |= USER
            a = numbers[kind, hook]
            fires = np.flatnonzero(saes.read("rate", slice(a, a + 1))[0])
            rng = np.random.default_rng([config.exemplars.seed, zlib.crc32(f"{kind}/{hook}".encode())])
            why[rng.permutation(fires)[: config.exemplars.random]] |= CONTROL
            out[kind, hook] = why
    return out


def _of_voxels(ctx: Context, modes: Sequence[str], u: int) -> np.ndarray:
    """bool [l, u]."""
    found = np.zeros(len(ctx.facts.hooks) * u, bool)
    for subject in ctx.subjects:
        align = ctx.open(ctx.specs.align[subject.name])
        alive = responsive(ctx.open(ctx.specs.betas[subject.name]), ctx.config.align.min_ncsnr)
        for mode in modes:
            best = align.read(f"{mode}/voxel_units")[alive, 0]
            found[best[best >= 0]] = True
    return found.reshape(len(ctx.facts.hooks), u)


def _of_rois(ctx: Context, modes: Sequence[str], u: int) -> np.ndarray:
    """bool [l, u]."""
    found = np.zeros((len(ctx.facts.hooks), u), bool)
    roi = ctx.open(ctx.specs.roi)
    for subject, record in roi.json("rois.json").items():
        for name in record["rois"]:
            for mode in (mode for mode in modes if mode in ctx.config.roi.modes):
                for ranking in RANKINGS:
                    units = roi.read(f"{ranking_name(mode, subject, name, ranking)}_units")
                    np.put_along_axis(found, units.astype(np.int64), True, axis=1)
    return found
