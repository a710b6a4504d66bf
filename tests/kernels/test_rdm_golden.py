"""RDMs, comparisons, noise ceilings and bootstrap draws against numbers of rsatoolbox 0.3.2 (golden/make_rsatoolbox.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sbm_jax.kernels import rdm, rdm_compare
from sbm_jax.kernels.rdm.api import crossnobis
from sbm_jax.kernels.rdm_compare import bootstrap as boot
from sbm_jax.kernels.rdm_compare.api import METHODS, upper_triangle
from sbm_jax.kernels.rdm_compare.bootstrap import bootstrap, evaluate
from sbm_jax.kernels.rdm_compare.ceiling import noise_ceiling
from sbm_jax.kernels.rdm_compare.whitened import WHITENED

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "rsatoolbox.json").read_text())
MODELS, BRAINS = np.array(GOLDEN["models"]), np.array(GOLDEN["brains"])
every_method = pytest.mark.parametrize("method", METHODS + WHITENED)


def test_the_golden_numbers_are_of_every_method():
    assert set(GOLDEN["all"]) == set(METHODS + WHITENED)


@pytest.mark.parametrize(("implementation", "bound"), [("reference", 1e-12), ("xla", 2e-6)])
def test_rdms(implementation, bound):
    x, precision, want = np.array(GOLDEN["patterns"]), np.array(GOLDEN["precision"]), GOLDEN["rdms"]
    got = {
        "crossnobis": crossnobis(x, implementation=implementation),
        "crossnobis_precision": crossnobis(x, precision, implementation=implementation),
        "correlation": rdm(x[0], "correlation", implementation=implementation),
        "euclidean": rdm(x[0], "euclidean", implementation=implementation),
    }
    assert set(got) == set(want)
    for name, square in got.items():
        np.testing.assert_allclose(upper_triangle(square), want[name], atol=bound, rtol=0, err_msg=name)


@every_method
def test_scores_and_ceilings(method):
    want = GOLDEN["all"][method]
    scores = [np.mean([rdm_compare(model, brain, method) for brain in BRAINS]) for model in MODELS]
    np.testing.assert_allclose(scores, want["scores"], atol=1e-6)
    np.testing.assert_allclose(noise_ceiling(BRAINS, method), want["ceiling"], atol=1e-12)
    found = evaluate(MODELS, BRAINS[None], method)
    np.testing.assert_allclose(found.scores_rm[0], want["scores"], atol=1e-12)
    np.testing.assert_allclose([found.lower_r[0], found.upper_r[0]], want["ceiling"], atol=1e-12)


@every_method
def test_missing_pairs(method):
    a, b = MODELS[1].copy(), BRAINS[0].copy()
    a[GOLDEN["missing"]], b[GOLDEN["missing"]] = np.nan, np.nan
    assert rdm_compare(a, b, method) == pytest.approx(GOLDEN["compare_with_missing"][method], abs=1e-6)


@every_method
def test_bootstrap_draws(method, monkeypatch):
    """Draws with the images and subjects that rsatoolbox drew."""
    n, s = 9, len(BRAINS)
    drawn = [
        (np.bincount(draw["images"], minlength=n), np.bincount(draw["subjects"], minlength=s))
        for draw in GOLDEN["draws"]
    ]
    drawn.append((np.ones(n, np.int64), np.bincount(np.zeros(s, int), minlength=s)))
    wanted = [draw["found"] for draw in GOLDEN["draws"]] + [GOLDEN["one_subject_alone"]]
    assert any(weights.max() > 1 for weights, _ in drawn)
    monkeypatch.setattr(boot, "draw_weights", lambda n, s, seed, draw, **_: drawn[draw])
    found = bootstrap(MODELS, BRAINS[None], method, draws=len(drawn))
    for draw, want in enumerate(wanted):
        np.testing.assert_allclose(found.scores_brm[draw, 0], want[method]["scores"], atol=1e-12)
        got = [found.lower_br[draw, 0], found.upper_br[draw, 0]]
        np.testing.assert_allclose(got, want[method]["ceiling"], atol=1e-12)
