"""What is measured on held-out tokens: distributions over units, the front of a sweep, stability over its seeds."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.sae.front import fronts, pareto
from sbm_jax.sae.metrics import MAGNITUDE_BINS, RATE_BINS, held_out_metrics, log_histogram
from sbm_jax.sae.model import Norm, Params
from sbm_jax.sae.seeds import seed_stability
from sbm_jax.sae.stability import stability
from sbm_jax.sae.stack import Point, Stack
from sbm_jax.sae.trainer import Trained

EPS = float(np.finfo(np.float32).eps)
D, U, K, IMAGES, PATCHES = 12, 40, 4, 70, 3  # 70 images: a block of 64 and one of 6
POINT = Point("topk", K, 0.0, 1e-3, 0, 4)


class Arrays:
    """Activations in memory."""

    def __init__(self, **arrays: np.ndarray):
        self.arrays = {name.replace("__", "/"): x for name, x in arrays.items()}
        self.reads: list[str] = []

    def array(self, name):
        return self.arrays[name]

    def read(self, name, rows=None):
        self.reads.append(name)
        return self.arrays[name] if rows is None else self.arrays[name][rows]

    def parts(self, names, rows):
        yield slice(None), {name: self.read(name, rows) for name in names}


def random_members(stack: Stack, seed: int = 0) -> Trained:
    rng, a = np.random.default_rng(seed), len(stack.members)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    params = Params(draw(a, D, U), draw(a, U) - 1, draw(a, U, D), draw(a, D))
    nothing = np.zeros((a, U), np.float32)
    norm = Norm(draw(a, D), np.full(a, 0.7, np.float32))
    return Trained(norm, params, np.zeros((1, a)), np.zeros(1), nothing, nothing)


def test_distributions_over_units_are_those_of_the_codes(rng):
    """Rate, and mean code when active, of every unit against dense codes in float64; each array is read once a block."""
    stack = Stack(("block00.resid",), ("patch",), (POINT, replace(POINT, seed=1)))
    acts = Arrays(block00__resid=None)
    acts.arrays = {"block00.resid/patch": rng.normal(size=(IMAGES, PATCHES, D)).astype(np.float32)}
    trained = random_members(stack)
    records = held_out_metrics(acts, stack, np.arange(IMAGES), trained)
    assert len(acts.reads) == 2
    for a, record in enumerate(records):
        x = acts.arrays["block00.resid/patch"].reshape(-1, D).astype(np.float64)
        x = float(trained.norm.scale[a]) * (x - trained.norm.mean[a])
        pre = x @ trained.params.w_enc[a].astype(np.float64) + trained.params.b_enc[a]
        kept = pre >= -np.sort(-pre, axis=1)[:, K - 1 : K]
        z = np.where(kept & (pre > 0), pre, 0)
        fired = (z > 0).sum(axis=0)
        rate, magnitude = record["units"]["rate"], record["units"]["magnitude"]
        np.testing.assert_allclose(rate, fired / len(x), rtol=2 * EPS)
        np.testing.assert_allclose(magnitude, z.sum(axis=0) / np.maximum(fired, 1), rtol=IMAGES * PATCHES * EPS)
        assert (magnitude > 0).sum() == sum(record["magnitudes"]) == sum(record["rates"]) == (fired > 0).sum()
        assert record["dead"] == np.mean(fired == 0) and record["dense"] == np.mean(fired / len(x) > 0.01)
        # mass = rate x magnitude: what the mean sum of codes is made of
        assert record["l1"] == pytest.approx(float(np.sum(rate * magnitude)), rel=1e-5)


@pytest.mark.parametrize("edges", [RATE_BINS, MAGNITUDE_BINS])
def test_a_histogram_counts_every_positive_value_once(edges):
    inside = 10.0 ** ((edges[:-1] + edges[1:]) / 2)
    assert log_histogram(inside, edges) == [1] * (len(edges) - 1)
    beyond = np.array([10.0 ** (edges[0] - 3), 10.0 ** (edges[-1] + 3), 0.0])
    counts = log_histogram(beyond, edges)
    assert counts[0] == counts[-1] == 1 and sum(counts) == 2


# The front ------------------------------------------------------------------------------------------------------------

# Few values, so that ties are common.
PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(PAIRS)
def test_the_front_is_what_no_point_dominates(pairs):
    cost, error = np.array(pairs, float).T
    front = pareto(cost, error)
    for i, (c, e) in enumerate(pairs):
        dominated = any(a <= c and b <= e and (a, b) != (c, e) for a, b in pairs)
        assert front[i] == (not dominated)
    assert front.any()


@settings(max_examples=100, deadline=None)
@given(PAIRS, st.randoms(use_true_random=False))
def test_the_front_falls_and_does_not_depend_on_order_or_scale(pairs, random):
    cost, error = np.array(pairs, float).T
    front = pareto(cost, error)
    order = list(range(len(pairs)))
    random.shuffle(order)
    np.testing.assert_array_equal(pareto(cost[order], error[order]), front[order])
    np.testing.assert_array_equal(pareto(np.log1p(cost), 7 * error), front)
    np.testing.assert_array_equal(pareto(error, cost), front)
    ahead = sorted(set(zip(cost[front], error[front], strict=True)))
    assert all(a[1] > b[1] for a, b in itertools.pairwise(ahead)), "more units must buy less error"


def test_a_front_needs_numbers():
    with pytest.raises(ValueError, match="finite"):
        pareto(np.array([1.0, np.nan]), np.array([1.0, 2.0]))


def record(kind: str, objective: str, l0: float, error: float, seed: int = 0) -> dict:
    setting = {"objective": objective, "k": int(l0), "sparsity": 0.0, "lr": 1e-3, "seed": seed, "expansion": 4}
    return {"kind": kind, "hook": "h", **setting, "l0": l0, "normalised_mse": error, "explained_variance": 1 - error}


def test_fronts_are_per_tokens_and_per_objective():
    members = [
        record("patch", "topk", 4, 0.5),
        record("cls", "topk", 4, 0.1),
        record("patch", "topk", 8, 0.3),
        record("patch", "topk", 8, 0.4, seed=1),
        record("patch", "relu", 8, 0.35),
    ]
    (front,) = fronts(members)
    assert (front["kind"], front["hook"]) == ("patch", "h"), "one CLS autoencoder alone makes no front"
    found = [(p["objective"], p["seed"], p["pareto"], p["pareto_of_objective"]) for p in front["points"]]
    assert found == [
        ("topk", 0, True, True),
        ("topk", 0, True, True),
        ("topk", 1, False, False),
        ("relu", 0, False, True),
    ]
    assert fronts(members[:2]) == []


# Seeds ----------------------------------------------------------------------------------------------------------------


def test_stability_over_the_seeds_of_a_sweep_is_the_mean_over_pairs():
    points = tuple(Point("topk", k, 0.0, 1e-3, seed, 4) for k in (4, 8) for seed in (0, 1, 2))
    stack = Stack(("h0", "h1"), ("cls",), (*points, Point("topk", 16, 0.0, 1e-3, 0, 4)))
    params = random_members(stack).params
    alive = np.random.default_rng(1).random((len(stack.members), U)) > 0.3
    records = seed_stability(stack, params, alive)
    assert [(r["k"], r["hook"]) for r in records] == [(4, "h0"), (4, "h1"), (8, "h0"), (8, "h1")]
    mine = [a for a, m in enumerate(stack.members) if (m.hook, m.point.k) == ("h1", 8)]
    pairs = [
        stability(
            params.w_dec[a],
            params.w_dec[b],
            w_enc_a=params.w_enc[a],
            w_enc_b=params.w_enc[b],
            alive_a=alive[a],
            alive_b=alive[b],
        )
        for a, b in itertools.combinations(mine, 2)
    ]
    last = records[3]
    assert last["seeds"] == [0, 1, 2] and last["pairs"] == 3 and last["exact"]
    for key in ("mean_matched_cosine", "mean_max_cosine", "shared"):
        assert last[key] == pytest.approx(np.mean([getattr(p, key) for p in pairs]), rel=1e-12)


def test_equal_dictionaries_agree_and_a_dead_one_has_no_number():
    stack = Stack(("h0",), ("cls",), (POINT, replace(POINT, seed=1)))
    params = random_members(stack).params
    same = Params(*(np.stack([x[0], x[0][...]]) for x in params[:4]))
    alive = np.ones((2, U), bool)
    (found,) = seed_stability(stack, same, alive)
    assert found["mean_matched_cosine"] == pytest.approx(1, abs=D * EPS) and found["shared"] == 1
    alive[1] = False
    (dead,) = seed_stability(stack, same, alive)
    assert dead["mean_matched_cosine"] is None and dead["shared"] is None
