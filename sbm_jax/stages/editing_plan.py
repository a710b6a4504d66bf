"""What a causal edit is, and cases of edits as the arrays that the jitted network reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from sbm_jax.errors import UserError

How = Literal["zero", "set", "scale", "clamp", "rebuild"]
_LEAST_UNITS = 8


@dataclass(frozen=True)
class UnitEdit:
    """What is done to units of the autoencoder of one token kind at one hook, at some patches (None: at all).

    how: `zero`: z' = 0; `set`: z' = value; `scale`: z' = value z; `clamp`: z' = value x the largest code of the unit. `rebuild`
    names no units: the whole reconstruction stands in for the tokens, which shows the autoencoder's own error (the control).
    """

    kind: str
    hook: str
    units: tuple[int, ...]
    how: How
    value: float = 0.0
    patches: tuple[int, ...] | None = None


class Dictionary(NamedTuple):
    """Number of units of an autoencoder, and the largest code of each [u] where it is known."""

    units: int
    largest: np.ndarray | None


class Changes(NamedTuple):
    """Changes of codes, z' - z = slope z + shift, at the j hooks with an autoencoder of one kind of token.

    units: int32 [j, e, s], padded with the number of units. slope, shift: float32 [j, e, s, t], t = 1 where all tokens are
    treated alike. rebuild: bool [j, e, t]: the reconstruction stands in for these tokens.
    """

    units: np.ndarray
    slope: np.ndarray
    shift: np.ndarray
    rebuild: np.ndarray


class Plan(NamedTuple):
    """places: per kind int32 [l], for every block the number of its hook among the stacked autoencoders; -1: no edit there."""

    places: dict[str, np.ndarray]
    kinds: dict[str, Changes]


def check_case(
    case: Sequence[UnitEdit], known: Mapping[tuple[str, str], Dictionary], hooks: Sequence[str], patches: int
) -> None:
    """Raises UserError for an edit of what is not there, naming what is."""
    for edit in case:
        here = (edit.kind, edit.hook)
        if here not in known or edit.hook not in hooks:
            have = ", ".join(f"{kind}/{hook}" for kind, hook in known if hook in hooks) or "none"
            raise UserError(
                f"edit at {edit.kind}/{edit.hook}: only residual streams with an autoencoder of that kind of token can be "
                f"edited; there are {have}"
            )
        size, largest = known[here]
        if edit.how not in get_args(How):
            raise UserError(f"edit at {edit.kind}/{edit.hook}: {edit.how!r} is none of {', '.join(get_args(How))}")
        if wrong := [unit for unit in edit.units if not 0 <= unit < size]:
            raise UserError(f"edit at {edit.kind}/{edit.hook}: units {wrong} are not within 0..{size - 1}")
        if not math.isfinite(edit.value):
            raise UserError(f"edit at {edit.kind}/{edit.hook}: the value {edit.value} is not a finite number")
        if edit.how == "clamp" and largest is None:
            raise UserError(f"edit at {edit.kind}/{edit.hook}: clamp needs the largest codes, which are not known here")
        if edit.patches is not None:
            if edit.kind == "cls":
                raise UserError(f"edit at {edit.kind}/{edit.hook}: the CLS token has no patches; leave them out")
            if wrong := [patch for patch in edit.patches if not 0 <= patch < patches]:
                raise UserError(f"edit at {edit.kind}/{edit.hook}: patches {wrong} are not within 0..{patches - 1}")


def first_block(cases: Sequence[Sequence[UnitEdit]], hooks: Sequence[str]) -> int:
    """The first block after which any case edits; the last where none does."""
    return min((hooks.index(edit.hook) for case in cases for edit in case), default=len(hooks) - 1)


def plan_cases(
    cases: Sequence[Sequence[UnitEdit]],
    known: Mapping[tuple[str, str], Dictionary],
    stacked: Mapping[str, Sequence[str]],
    hooks: Sequence[str],
    patches: int,
    room: int,
) -> Plan:
    """Checked cases as arrays, padded to `room` cases without edits. stacked: the hooks of each kind's autoencoders in order."""
    kinds, places = {}, {}
    for kind, of_kind in stacked.items():
        found = [[_by_hook(case, kind, hook) for case in cases] for hook in of_kind]
        used = [edit for of_cases in found for edits in of_cases for edit in edits]
        widest = max((len({u for edit in edits for u in edit.units}) for x in found for edits in x), default=0)
        # Few shapes, few programs: room for all hooks of a kind, for all patches or one value for all, for 8, 32, 128 ... units.
        shape = (len(of_kind), room, _room_for(widest))
        tokens = patches if any(edit.patches is not None for edit in used) else 1
        changes = Changes(
            np.full(shape, known[kind, of_kind[0]].units, np.int32),
            np.zeros((*shape, tokens), np.float32),
            np.zeros((*shape, tokens), np.float32),
            np.zeros((*shape[:2], tokens), bool),
        )
        places[kind] = np.full(len(hooks), -1, np.int32)
        for j, (hook, of_cases) in enumerate(zip(of_kind, found, strict=True)):
            if any(of_cases):
                places[kind][hooks.index(hook)] = j
            for e, edits in enumerate(of_cases):
                _fill(changes, j, e, edits, known[kind, hook].largest)
        kinds[kind] = changes
    return Plan(places, kinds)


def _room_for(units: int) -> int:
    room = _LEAST_UNITS
    while room < units:
        room *= 4
    return room


def _by_hook(case: Sequence[UnitEdit], kind: str, hook: str) -> list[UnitEdit]:
    return [edit for edit in case if edit.kind == kind and edit.hook == hook]


def _fill(changes: Changes, j: int, e: int, edits: Sequence[UnitEdit], largest: np.ndarray | None) -> None:
    """z -> gain z + shift, one edit after the other."""
    units = sorted({unit for edit in edits for unit in edit.units})
    column = {unit: s for s, unit in enumerate(units)}
    changes.units[j, e, : len(units)] = units
    gain = np.ones(changes.slope.shape[2:])
    shift = np.zeros(changes.shift.shape[2:])
    for edit in edits:
        tokens = slice(None) if edit.patches is None else np.asarray(edit.patches, int)
        if edit.how == "rebuild":
            changes.rebuild[j, e, tokens] = True
        for unit in edit.units:
            s = column[unit]
            if edit.how == "scale":
                gain[s, tokens] *= edit.value
                shift[s, tokens] *= edit.value
                continue
            gain[s, tokens] = 0
            factor = 1.0
            if edit.how == "clamp":
                assert largest is not None
                factor = float(largest[unit])
            shift[s, tokens] = 0.0 if edit.how == "zero" else edit.value * factor
    changes.slope[j, e] = gain - 1
    changes.shift[j, e] = shift
