"""What causal tests of a run start from: the backbone with its autoencoders, and the units that ROIs selected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sbm_jax.backbones import load_backbone
from sbm_jax.errors import UserError
from sbm_jax.stages.context import Context
from sbm_jax.stages.editing import Editor
from sbm_jax.stages.exemplar_lists import read_firing
from sbm_jax.stages.inputs import ROI_CONCEPTS
from sbm_jax.stages.members import Code, member_numbers, read_member
from sbm_jax.stages.roi_rankings import ranking_name

# Whose ranking stands for the units of a kind of token: the first of these that the roi stage ranked.
_MODES = {"cls": ("cls",), "patch": ("patch_mean", "patch_max")}


@dataclass(frozen=True)
class Selected:
    """Units that an ROI ranked first: per hook and kind of token, and the hook at which its in-sample contrast is highest."""

    subject: str
    roi: str
    concept: str
    units: Mapping[str, Mapping[str, tuple[int, ...]]]
    best: str


def open_editor(ctx: Context, keep_streams: bool = False) -> Editor:
    """The run's backbone and autoencoders, on all devices of the run; largest codes as the exemplars stage found them."""
    assert ctx.specs.exemplars is not None
    saes, exemplars, facts = ctx.open(ctx.specs.saes), ctx.open(ctx.specs.exemplars), ctx.facts.backbone
    backbone = load_backbone(facts.path, facts.image_size, ctx.config.backbone.dtype)
    numbers = {key: a for key, a in member_numbers(saes).items() if key[0] in ctx.config.kinds}
    members = {key: read_member(saes, a) for key, a in numbers.items()}
    largest = {key: read_firing(exemplars, *key).largest for key in members}
    return Editor(
        backbone,
        members,
        Code(ctx.config.train.objective, ctx.config.train.k),
        largest,
        ctx.devices,
        keep_streams=keep_streams,
    )


def edited_hooks(ctx: Context) -> tuple[str, ...]:
    """`edit.hooks`, or all hooks of the run on the residual stream. Raises UserError for one that is not."""
    known = tuple(hook for hook in ctx.facts.hooks if hook.endswith(".resid"))
    if wrong := [hook for hook in ctx.config.edit.hooks if hook not in known]:
        raise UserError(
            f"edit.hooks: {wrong} are not residual-stream hooks of this run, which has {', '.join(known) or 'none'}"
        )
    return tuple(ctx.config.edit.hooks) or known


def ranking_modes(ctx: Context) -> dict[str, str]:
    """The mode of the roi store whose ranking is used, per kind of token."""
    ranked = ctx.config.roi.modes
    found = {kind: [mode for mode in _MODES[kind] if mode in ranked] for kind in ctx.config.kinds}
    return {kind: modes[0] for kind, modes in found.items() if modes}


def selected_units(ctx: Context, hooks: tuple[str, ...]) -> list[Selected]:
    """For every subject and ROI that is known for a concept: the first `edit.units` of its contrast ranking."""
    roi, modes = ctx.open(ctx.specs.roi), ranking_modes(ctx)
    places = {hook: ctx.facts.hooks.index(hook) for hook in hooks}
    out = []
    for subject, record in roi.json("rois.json").items():
        for name in record["rois"]:
            concept = ROI_CONCEPTS.get(name.split("/")[0])
            if concept is None or not hooks or not modes:
                continue
            units: dict[str, dict[str, tuple[int, ...]]] = {hook: {} for hook in hooks}
            scores = np.zeros(len(hooks))
            for kind, mode in modes.items():
                base = ranking_name(mode, subject, name, "contrast")
                ranked = roi.read(f"{base}_units")[:, : ctx.config.edit.units]
                values = roi.read(f"{base}_scores")[:, : ctx.config.edit.units, 0]
                for i, (hook, place) in enumerate(places.items()):
                    units[hook][kind] = tuple(int(unit) for unit in ranked[place])
                    scores[i] += values[place].mean()
            out.append(Selected(subject, name, concept, units, hooks[int(scores.argmax())]))
    return out
