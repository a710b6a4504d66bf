"""What edits did to a model's answers, image by image and as means with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sbm_jax.stages.profile_draws import draw_weights
from sbm_jax.stages.readouts import Readout, unit

Interval = list[float | None]


@dataclass(frozen=True)
class Outcomes:
    """Answers in every case [e, n], case 0 being the un-edited one.

    cosine: between edited and un-edited embedding. answer: the first category, -1 without any. margin: logit of the image's own
    category less the highest other one, NaN without a label; float64.
    """

    cosine: np.ndarray
    answer: np.ndarray
    margin: np.ndarray

    @staticmethod
    def of(embeddings_end: np.ndarray, readout: Readout | None, labels_n: np.ndarray | None) -> Outcomes:
        """From embeddings [e, n, width], the un-edited first."""
        e, n = embeddings_end.shape[:2]
        units = np.stack([unit(x) for x in embeddings_end])
        cosine = np.einsum("end,nd->en", units, units[0])
        answer, margin = np.full((e, n), -1), np.full((e, n), np.nan)
        if readout is not None:
            logits = np.stack([readout.logits(x) for x in embeddings_end])
            answer = logits.argmax(axis=2)
            if labels_n is not None and logits.shape[2] > 1:
                known = np.flatnonzero(labels_n >= 0)
                own = logits[:, known, labels_n[known]]
                others = logits.copy()
                others[:, known, labels_n[known]] = -np.inf
                margin[:, known] = own - others[:, known].max(axis=2)
        return Outcomes(cosine, answer, margin)


@dataclass(frozen=True)
class Effects:
    """Means over images of what changed against case 0, with percentile bootstrap intervals over the images (paired).

    labels: category of each image [n], -1 for none; None: categories have no labels. concept: index of the category that the
    units stand for; None: it is none of the categories.
    """

    outcomes: Outcomes
    labels: np.ndarray | None
    concept: int | None
    draws: int
    seed: int

    def change(self, e: int | list[int], quantity: str, chosen_n: np.ndarray) -> Interval:
        """[mean, low, high] over the chosen images; of a list of cases their mean. Null where there is no image."""
        return self._interval(self._difference(e, quantity)[chosen_n])

    def against(self, e: int, controls: list[int], quantity: str, chosen_n: np.ndarray) -> Interval:
        """The change in case e less the mean change of the controls."""
        return self._interval((self._difference(e, quantity) - self._difference(controls, quantity))[chosen_n])

    def describe(self, e: int | list[int]) -> dict[str, Any]:
        """on, off: accuracy and margin over images of the concept and of the other ones; claimed: of images of other concepts,
        the share that is answered with the concept. distance: 1 - cosine of the embeddings, over all images.
        """
        out: dict[str, Any] = {"distance": self.change(e, "distance", np.ones(self.outcomes.cosine.shape[1], bool))}
        for part, chosen in self.parts().items():
            out[part] = {name: self.change(e, name, chosen) for name in ("accuracy", "margin")}
            if part == "off":
                out[part]["claimed"] = self.change(e, "claimed", chosen)
        return out

    def parts(self) -> dict[str, np.ndarray]:
        """Images of the concept (`on`) and of other concepts (`off`); nothing without labels."""
        if self.labels is None or self.concept is None:
            return {}
        return {"on": self.labels == self.concept, "off": (self.labels >= 0) & (self.labels != self.concept)}

    def _difference(self, e: int | list[int], quantity: str) -> np.ndarray:
        cases, found = ([e] if isinstance(e, int) else e), self.outcomes
        if quantity == "distance":
            return 1 - found.cosine[cases].mean(axis=0)
        if quantity == "margin":
            values = found.margin
        else:
            wanted = self.labels if quantity == "accuracy" else self.concept
            values = (found.answer == wanted).astype(np.float64)
        return values[cases].mean(axis=0) - values[0]

    def _interval(self, values: np.ndarray) -> Interval:
        if not len(values):
            return [None, None, None]
        mean = float(values.mean())
        if not self.draws:
            return [mean, None, None]
        weights = draw_weights(len(values), self.draws, self.seed).astype(np.float64)
        low, high = np.quantile(weights @ values / weights.sum(axis=1), [0.025, 0.975])
        return [mean, float(low), float(high)]
