"""Reading what judges said: names of units, and which concept a region is known for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sbm_jax.stages.inputs import ROI_CONCEPTS
from sbm_jax.store.store import Store

JUDGES = ("labels", "clip", "masks")
FDR = 0.05  # of the names that are shown
_SAME = {"faces": "face", "bodies": "body", "places": "place", "words": "word", "foods": "food"}


@dataclass(frozen=True)
class Judged:
    """What one judge said of the wanted units of one dictionary, in the order of the exemplar lists.

    concept: int [w], index of `concepts`, -1 for none. count: its exemplars. stable: bool [w]. effect, effect_low, effect_high:
    share of exemplars minus base rate. q: p of the name adjusted over the units of the kind. counts: int [w, c]. judged: int [w],
    exemplars the judge has seen.
    """

    concepts: tuple[str, ...]
    concept: np.ndarray
    count: np.ndarray
    stable: np.ndarray
    effect: np.ndarray
    effect_low: np.ndarray
    effect_high: np.ndarray
    q: np.ndarray
    counts: np.ndarray
    judged: np.ndarray


def judges_of(store: Store, kind: str) -> list[str]:
    """The judges that named units of a token kind."""
    return [name for name in JUDGES if kind in store.json("explain.json")["judges"].get(name, {}).get("kinds", ())]


def read_judged(store: Store, judge: str, kind: str, hook: str) -> Judged:
    concepts = tuple(store.json("explain.json")["judges"][judge]["concepts"])
    parts = [store.read(f"{judge}/{kind}/{hook}/{part}") for part in list(Judged.__dataclass_fields__)[1:]]
    return Judged(concepts, *parts)


def unit_names(store: Store, judge: str, kind: str, hook: str) -> list[str]:
    """Of each wanted unit: its concept where its exemplars show that more often than chance (false discovery rate .05 over the
    units of the kind), else "". Raises ValueError for a judge that named no unit of the kind.
    """
    if judge not in judges_of(store, kind):
        raise ValueError(f"{judge} named no {kind} units; there are {judges_of(store, kind)}")
    judged = read_judged(store, judge, kind, hook)
    sure = (judged.concept >= 0) & (judged.q <= FDR)
    return [judged.concepts[c] if known else "" for c, known in zip(judged.concept, sure, strict=True)]


def canonical(concept: str) -> str:
    """Lower case and singular, for the concepts that regions are known for."""
    name = concept.strip().lower()
    return _SAME.get(name, name)


def roi_concept(roi: str, concepts: Sequence[str]) -> int | None:
    """Index of the concept that a region is known for (`inputs.ROI_CONCEPTS`), None where there is none or the judge lacks it."""
    wanted = ROI_CONCEPTS.get(roi.split("/")[0])
    names = [canonical(concept) for concept in concepts]
    return names.index(wanted) if wanted in names else None
