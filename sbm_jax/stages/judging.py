"""What all judges of units have in common: which concepts a unit's exemplars show, and what follows for its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from sbm_jax.stages.exemplar_lists import Exemplars
from sbm_jax.statistics import hypergeometric_tail, wilson_interval

NONE = -1  # of a concept: none


@dataclass(frozen=True)
class Counts:
    """shown: int [w, c], exemplars of each unit that show each concept. judged: int [w], exemplars the judge has seen at all.
    chosen: int [w], the concept a judge settles on by other means than counting. more: arrays [w, ...] of its own.
    """

    shown: np.ndarray
    judged: np.ndarray
    chosen: np.ndarray | None = None
    more: Mapping[str, np.ndarray] = field(default_factory=dict)


class Judge(Protocol):
    """Says which concepts exemplars show.

    name: of the folder in the store. about: one sentence for readers. base_c: float64 [c], how often the concept shows by
    chance, in the probe set. exclusive: an exemplar shows one concept at most. by_patch: it needs heat maps.
    """

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> str: ...

    @property
    def concepts(self) -> tuple[str, ...]: ...

    @property
    def base_c(self) -> np.ndarray: ...

    @property
    def exclusive(self) -> bool: ...

    @property
    def by_patch(self) -> bool: ...

    def count(self, exemplars: Exemplars) -> Counts: ...

    def tail(self, concept: int, judged: int) -> np.ndarray:
        """P(at least x of `judged` exemplars show the concept by chance), float64 [judged + 1]."""
        ...


@dataclass(frozen=True)
class ImageJudge:
    """A judge of whole images. shows: bool [n, c] over the probe set. seen: bool [n], images it knows about. scores: float32
    [n, c] where it has them.
    """

    name: str
    about: str
    concepts: tuple[str, ...]
    shows: np.ndarray
    seen: np.ndarray
    exclusive: bool
    scores: np.ndarray | None = None
    by_patch: bool = False

    @property
    def base_c(self) -> np.ndarray:
        return self._rates

    @cached_property
    def _rates(self) -> np.ndarray:
        return self.shows[self.seen].mean(axis=0)

    def count(self, exemplars: Exemplars) -> Counts:
        known_we = (exemplars.images >= 0) & self.seen[exemplars.images]
        shown = np.zeros((len(known_we), len(self.concepts)), np.int64)
        for e in range(known_we.shape[1]):  # never [w, e, c]
            shown += self.shows[exemplars.images[:, e]] & known_we[:, e, None]
        return Counts(shown, known_we.sum(axis=1))

    def tail(self, concept: int, judged: int) -> np.ndarray:
        """Exemplars are different images of the probe set: hypergeometric."""
        return hypergeometric_tail(judged, int(self.shows[self.seen, concept].sum()), int(self.seen.sum()))


@dataclass(frozen=True)
class Named:
    """Of each wanted unit: concept int16 (NONE: no exemplar shows any), count int16 of exemplars that show it, stable bool;
    effect, the share of exemplars minus the base rate, with its interval; p, corrected for the choice among concepts.
    """

    concept: np.ndarray
    count: np.ndarray
    stable: np.ndarray
    effect: np.ndarray
    effect_low: np.ndarray
    effect_high: np.ndarray
    p: np.ndarray


def name_units(judge: Judge, counts: Counts, stable: int) -> Named:
    """The concept of most exemplars (ties: of greater effect, then the first); where an exemplar may show several concepts
    that of greatest effect, since the commonest would win otherwise; or what the judge chose itself.

    effect = x / m - b with x of m judged exemplars and base rate b; interval: Wilson's of x / m, minus b. p = min(1, C P(X >= x))
    with C the concepts that occur (Bonferroni), 1 for a unit without a concept. stable: x > `stable`.
    """
    shown, judged = counts.shown, counts.judged
    effect_wc = shown / np.maximum(judged, 1)[:, None] - judge.base_c
    concept = counts.chosen
    if concept is None:
        rank = shown + 0.25 * (1 + effect_wc) if judge.exclusive else np.where(shown > 0, effect_wc, -np.inf)
        concept = (
            np.where(shown.any(axis=1), rank.argmax(axis=1), NONE) if shown.shape[1] else np.full(len(shown), NONE)
        )
    known = concept >= 0
    rows, columns = np.arange(len(concept)), np.maximum(concept, 0)
    count = np.where(known, shown[rows, columns], 0) if shown.shape[1] else np.zeros(len(shown), np.int64)
    low, high = wilson_interval(count, judged)
    base = judge.base_c[columns] if shown.shape[1] else np.zeros(len(shown))
    occurring = int((judge.base_c > 0).sum())
    p = np.ones(len(concept))
    tails: dict[tuple[int, int], np.ndarray] = {}
    for w in np.flatnonzero(known & (judged > 0)):
        key = int(concept[w]), int(judged[w])
        if key not in tails:
            tails[key] = judge.tail(*key)
        p[w] = min(1.0, occurring * tails[key][count[w]])

    def of_named(x: np.ndarray) -> np.ndarray:
        return np.where(known & (judged > 0), x, np.nan).astype(np.float32)

    return Named(
        concept.astype(np.int16),
        count.astype(np.int16),
        known & (count > stable),
        of_named(count / np.maximum(judged, 1) - base),
        of_named(low - base),
        of_named(high - base),
        p,
    )


Draw = Callable[[int, int], np.ndarray]


def resampling(draws: int, seed: int) -> Draw:
    """(n, stream) -> float64 [draws, n]: how often each of n units is in a draw with replacement, over n; made once."""
    made: dict[tuple[int, int], np.ndarray] = {}

    def weights(n: int, stream: int) -> np.ndarray:
        if (n, stream) not in made:
            rng = np.random.default_rng([seed, n, stream])
            made[n, stream] = rng.multinomial(n, np.full(n, 1 / n), size=draws) / n
        return made[n, stream]

    return weights
