"""A backbone's answers to pictures, and how far the answers of an edited backbone are from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sbm_jax.stages.readouts import Readout, unit

# Smaller divergences are rounding: float32 logits of size 100 are off by 1e-5, and the divergence goes with the square.
LEAST_KL = 1e-6


@dataclass(frozen=True)
class Answers:
    """An edited backbone against the original one, means over images. Without categories only the cosine is there.

    cosine: of the two embeddings. kl: KL(original || edited) of the softmax over categories, nats. agreement: share of
    images with the same first category. accuracy: share of labelled images whose first category is the label's.
    """

    cosine: float
    kl: float | None
    agreement: float | None
    accuracy: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Reference:
    """The original answers: embeddings [b, e]; labels int [b] with -1 for none, None where categories have no labels."""

    embeddings: np.ndarray
    readout: Readout | None = None
    labels: np.ndarray | None = None

    @property
    def accuracy(self) -> float | None:
        return None if self.readout is None else _accuracy(self.readout.logits(self.embeddings), self.labels)

    def compare(self, embeddings_be: np.ndarray) -> Answers:
        """How the answers of an edited backbone [b, e] to the same pictures differ."""
        cosine = float(np.mean(np.sum(unit(self.embeddings) * unit(embeddings_be), axis=1)))
        if self.readout is None:
            return Answers(cosine, None, None, None)
        a, b = self.readout.logits(self.embeddings), self.readout.logits(embeddings_be)
        log_p, log_q = _log_softmax(a), _log_softmax(b)
        kl = np.sum(np.exp(log_p) * (log_p - log_q), axis=1)
        agreement = float(np.mean(a.argmax(axis=1) == b.argmax(axis=1)))
        # The mean of rounded terms may fall below 0 by rounding, which a divergence cannot.
        return Answers(cosine, max(0.0, float(kl.mean())), agreement, _accuracy(b, self.labels))


def loss_recovered(sae: Answers, mean: Answers, identity: Answers) -> float | None:
    """1 - KL_sae / KL_mean: 1 when the answers are the original's, 0 when they are no better than those with the mean token
    put in everywhere. None without categories, and where the mean changes nothing (tokens that no later block reads): its
    KL is no more than LEAST_KL, or ten times that with nothing replaced, which is rounding.
    """
    if sae.kl is None or mean.kl is None or mean.kl <= max(LEAST_KL, 10 * (identity.kl or 0.0)):
        return None
    return 1 - sae.kl / mean.kl


def _accuracy(logits_bc: np.ndarray, labels_b: np.ndarray | None) -> float | None:
    if labels_b is None or not (labels_b >= 0).any():
        return None
    known = labels_b >= 0
    return float(np.mean(logits_bc[known].argmax(axis=1) == labels_b[known]))


def _log_softmax(logits_bc: np.ndarray) -> np.ndarray:
    shifted = logits_bc - logits_bc.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
