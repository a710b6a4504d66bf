"""Answers of an edited backbone beside the original's: definitions in plain NumPy, laws, known cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.stages.answers import LEAST_KL, Answers, Reference, loss_recovered
from sbm_jax.stages.fidelity import spread
from sbm_jax.stages.readouts import Readout, categories_of

N, E, C, SCALE = 30, 8, 5, 20.0


def case(seed: int = 0) -> tuple[np.ndarray, np.ndarray, Readout, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=(C, E))
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    readout = Readout(tuple("abcde"), SCALE * targets.T, np.zeros(C), cosine=True)
    return rng.normal(size=(N, E)), rng.normal(size=(N, E)), readout, rng.integers(-1, C, N)


def softmax(embeddings: np.ndarray, readout: Readout) -> np.ndarray:
    logits = embeddings / np.linalg.norm(embeddings, axis=1)[:, None] @ readout.weight_ec
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_definitions():
    before, after, readout, labels = case()
    found = Reference(before, readout, labels).compare(after)
    p, q = softmax(before, readout), softmax(after, readout)
    cosine = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(before, after, strict=True)]
    assert found.cosine == pytest.approx(np.mean(cosine), abs=1e-12)
    assert found.kl == pytest.approx(np.mean(np.sum(p * np.log(p / q), axis=1)), rel=1e-9)
    assert found.agreement == np.mean(p.argmax(axis=1) == q.argmax(axis=1))
    known = labels >= 0
    assert found.accuracy == np.mean(q.argmax(axis=1)[known] == labels[known])
    assert Reference(before, readout, labels).accuracy == np.mean(p.argmax(axis=1)[known] == labels[known])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 100))
def test_nothing_replaced_is_no_divergence_and_length_does_not_matter(seed, length):
    before, after, readout, labels = case(seed)
    reference = Reference(before, readout, labels)
    same = reference.compare(length * before)
    assert same.cosine == pytest.approx(1, abs=1e-12) and same.agreement == 1
    assert same.kl == pytest.approx(0, abs=1e-12) and same.accuracy == reference.accuracy
    other = reference.compare(after)
    assert other.kl is not None and other.kl > 0, "a divergence is positive where distributions differ"
    assert loss_recovered(same, other, same) == pytest.approx(1) and loss_recovered(other, other, same) == 0


def test_without_categories_or_labels():
    before, after, readout, _ = case()
    bare = Reference(before).compare(after)
    assert bare.kl is bare.agreement is bare.accuracy is None and -1 < bare.cosine < 1
    assert Reference(before).accuracy is None and loss_recovered(bare, bare, bare) is None
    unlabelled = Reference(before, readout, np.full(N, -1))
    assert unlabelled.accuracy is None and unlabelled.compare(after).kl is not None


def test_a_mean_token_that_changes_nothing_gives_no_ratio():
    def kl(value: float) -> Answers:
        return Answers(1.0, value, 1.0, None)

    assert loss_recovered(kl(0.0), kl(LEAST_KL), kl(0.0)) is None
    assert loss_recovered(kl(0.1), kl(0.4), kl(0.0)) == pytest.approx(0.75)
    assert loss_recovered(kl(0.8), kl(0.4), kl(0.0)) == pytest.approx(-1)
    # bf16: with nothing replaced the answers differ by rounding, and the mean's by no more
    assert loss_recovered(kl(1e-4), kl(2e-4), kl(1e-4)) is None


def test_the_category_of_an_image_is_its_greatest_relative_extent():
    """A word that is large for a word beats a place that is small for a place."""
    labels = {"word": np.array([0.1, 0.3, 0.0, np.nan]), "place": np.array([0.9, 0.3, 0.0, np.nan])}
    found = categories_of(("word", "place"), labels)
    assert found is not None and found.tolist() == [1, 0, -1, -1]
    assert categories_of(("face", "body"), labels) is None, "categories that are not the dataset's have no labels"


@pytest.mark.parametrize("count", [1, 7, 10, 99])
def test_images_are_taken_evenly(count):
    rows = np.arange(100, 140, 4)
    found = spread(rows, count)
    assert len(found) == min(count, len(rows)) == len(set(found.tolist())) and set(found) <= set(rows)
    if count < len(rows):
        assert np.ptp(np.diff(found)) <= 4 if count > 1 else found[0] == rows[0]
