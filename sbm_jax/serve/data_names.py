"""What units are called: by the judges of `explain`, and by the labels that a unit's code follows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sbm_jax.serve.library import Library
from sbm_jax.stages.exemplar_lists import read_exemplars
from sbm_jax.stages.explain_names import FDR, judges_of, read_judged
from sbm_jax.stages.inputs import relative_extents

FOLLOWS = "follows"  # the judge made of the roi store: the label that a unit's code correlates with most


@dataclass(frozen=True)
class Judgement:
    """One judge's view of all units of a token kind, layer after layer: int [l * u] concept (-1 none) into `concepts`, exemplars
    that show it (-1 unknown), whether it is stable, and the effect with the ends of its interval (NaN unknown).
    """

    concepts: tuple[str, ...]
    concept: np.ndarray
    count: np.ndarray
    stable: np.ndarray
    effect: np.ndarray
    low: np.ndarray
    high: np.ndarray


def judges(lib: Library) -> dict[str, tuple[str, ...]]:
    """Names of the judges there are, with their concepts."""
    out: dict[str, tuple[str, ...]] = {}
    if explain := lib.optional("explain"):
        out |= {name: tuple(record["concepts"]) for name, record in explain.json("explain.json")["judges"].items()}
    if lib.images.labels and lib.optional("roi"):
        out[FOLLOWS] = tuple(relative_extents(lib.images.labels)[0])
    return out


def judgement(lib: Library, judge: str, kind: str) -> Judgement | None:
    """None where this judge says nothing of this token kind."""
    names = judges(lib).get(judge)
    modes = lib.modes_of(kind)
    if names is None or not modes:
        return None
    if judge != FOLLOWS and judge not in judges_of(lib.store(lib.ctx.specs.explain), kind):
        return None
    width = lib.units_per_layer[modes[0]]
    key = ("judgement", judge, kind, lib.key())
    make = (
        (lambda: _follows(lib, kind, names)) if judge == FOLLOWS else (lambda: _judged(lib, judge, kind, width, names))
    )
    return lib.kept.get(key, make, lambda j: 0 if j is None else 22 * len(j.concept))


def _empty(names: tuple[str, ...], count: int) -> Judgement:
    nan = [np.full(count, np.nan, np.float32) for _ in range(3)]
    return Judgement(names, np.full(count, -1), np.full(count, -1), np.zeros(count, bool), *nan)


def _follows(lib: Library, kind: str, names: tuple[str, ...]) -> Judgement | None:
    modes = [mode for mode in lib.modes_of(kind) if mode in lib.ctx.config.roi.modes]
    if not modes:
        return None
    concepts = lib.array(lib.store(lib.ctx.specs.roi), f"{modes[0]}/concepts").reshape(-1)
    blank = _empty(names, len(concepts))
    return Judgement(names, concepts, blank.count, blank.stable, blank.effect, blank.low, blank.high)


def _judged(lib: Library, judge: str, kind: str, width: int, names: tuple[str, ...]) -> Judgement:
    """Names that are more frequent than chance gives (false discovery rate, as the stage has it); the others are none."""
    explain, exemplars = lib.store(lib.ctx.specs.explain), lib.store(lib.ctx.specs.exemplars)
    out = _empty(names, len(lib.hooks) * width)
    for layer, hook in enumerate(lib.hooks):
        found = read_judged(explain, judge, kind, hook)
        at = layer * width + read_exemplars(exemplars, kind, hook).units
        out.concept[at] = np.where(found.q <= FDR, found.concept, -1)
        out.count[at], out.stable[at] = found.count, found.stable
        out.effect[at], out.low[at], out.high[at] = found.effect, found.effect_low, found.effect_high
    return out


def names_of(lib: Library, kind: str, flat: np.ndarray) -> list[dict[str, str]]:
    """judge -> concept of some units (layer * units + unit); only what has a name."""
    out: list[dict[str, str]] = [{} for _ in flat]
    for judge in judges(lib):
        found = judgement(lib, judge, kind)
        if found is None:
            continue
        for record, concept in zip(out, found.concept[flat].tolist(), strict=True):
            if concept >= 0:
                record[judge] = found.concepts[concept]
    return out
