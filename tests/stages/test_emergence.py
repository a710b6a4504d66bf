"""Onset on planted curves, tuning in pictures of gratings, held-out variance against plain regressions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sbm_jax.stages.emergence_curves import curve, gallery, group_of, means, onset, permuted, resample, splits
from sbm_jax.stages.explain_names import Judged
from sbm_jax.stages.explain_tables import Units
from sbm_jax.stages.image_statistics import FREQUENCIES, N_ORIENTATIONS, columns, image_statistics
from sbm_jax.stages.tuning import FoldSums, standardised, tuning_of

# Onset ---------------------------------------------------------------------------------------------------------------


def units_of(rng: np.random.Generator, rate_w: np.ndarray, control: int, e: int = 20) -> Units:
    """Units whose exemplars show the one concept at a rate each; the last `control` are the random ones. Base rate .2."""
    counts = rng.binomial(e, rate_w)
    w, nothing = len(rate_w), np.zeros(len(rate_w), np.float32)
    said = Judged(
        ("face",),
        np.where(counts > 0, 0, -1),
        counts,
        counts > 10,
        (counts / e - 0.2).astype(np.float32),
        nothing,
        nothing,
        nothing,
        counts[:, None],
        np.full(w, e),
    )
    return Units(np.arange(w) * 3, said, np.array([0.2]), np.arange(w - control, w))


def simulated_curve(seed: int, rates: list[float], draws: int = 199, n: int = 40, control: int = 30) -> dict:
    rng = np.random.default_rng([11, seed])
    own, random = [], []
    for rate in rates:
        spread = rng.beta(8 * rate, 8 * (1 - rate), n)
        units = units_of(rng, np.concatenate([spread, rng.beta(1.6, 6.4, control)]), control)
        own.append(group_of(units, np.arange(n), [0]))
        random.append(group_of(units, units.control, [0]))
    (made,) = curve(own, random, draws, seed, 2)
    return made


def test_no_concept_no_onset():
    """At six layers alike the family-wise rate of false onsets is 5 % at most (simulated)."""
    found = [simulated_curve(seed, [0.2] * 6) for seed in range(300)]
    for key in ("onset", "onset_aligned"):
        assert np.mean([record[key]["layer"] is not None for record in found]) < 0.08  # .05 + 2.4 standard errors


def test_planted_onset_is_found_with_its_interval():
    found = [simulated_curve(seed, [0.2, 0.2, 0.2, 0.5, 0.6, 0.7])["onset"] for seed in range(40)]
    layers = [record["layer"] for record in found]
    assert np.mean([layer == 3 for layer in layers]) > 0.85
    assert all(record["low"] <= record["layer"] <= record["high"] for record in found)
    assert np.mean([record["low"] <= 3 <= record["high"] for record in found]) > 0.95
    assert all(record["found"] > 0.99 for record in found)


def test_gain_and_its_null_are_welchs():
    rng = np.random.default_rng(8)
    own, random = rng.random((9, 2)), rng.random((6, 2)) - 0.2
    found = permuted(own, random, 40, (3, 1))
    expected = stats.ttest_ind(own, random, equal_var=False)
    np.testing.assert_allclose(found.t, expected.statistic)
    pooled = np.concatenate([own, random])
    for draw, place in enumerate(splits(9, 6, 40, (3, 1))):
        assert len(set(place.tolist())) == 6
        rest = np.setdiff1d(np.arange(15), place)
        again = stats.ttest_ind(pooled[rest], pooled[place], equal_var=False)
        np.testing.assert_allclose(found.null[draw], again.statistic, atol=1e-9)
    own[3] = np.nan
    assert np.isfinite(permuted(own, random, 5, (3,)).t).all()
    alone = permuted(own[:1], random, 5, (3,))
    assert np.isnan(alone.t).all() and (alone.null == -np.inf).all()


def test_equal_values_are_no_gain():
    same = permuted(np.zeros((5, 1)), np.zeros((4, 1)), 99, (0,))
    assert same.t[0] == 0 and (same.null == 0).all()
    sure = permuted(np.ones((5, 1)), np.zeros((4, 1)), 99, (0,))
    assert sure.t[0] == np.inf and (sure.null < np.inf).mean() > 0.9
    assert onset([same, sure], np.tile([0.0, 1.0], (99, 1)))["layer"] == 1
    nobody = permuted(np.zeros((0, 1)), np.zeros((4, 1)), 30, (0,))
    record = onset([nobody, nobody], np.full((30, 2), np.nan))
    assert record["layer"] is None and record["found"] == 0 and np.isnan(record["p"]).all()


def test_curves_are_those_of_a_plain_loop():
    rng = np.random.default_rng(5)
    units = units_of(rng, rng.uniform(0.1, 0.9, 25), 8)
    group, counts = group_of(units, np.arange(17), [0]), units.judged.count
    weights = resample(17, 50, [0])
    measured, drawn = means(group), means(group, weights)
    assert measured["aligned"][0] == sum(counts[:17] > 10)
    assert measured["effect"][0] == pytest.approx(np.mean(counts[:17] / 20 - 0.2))
    copies = np.rint(weights[3] * 17).astype(int)
    again = np.repeat(counts[:17], copies)
    assert len(again) == 17 and drawn["effect"][3, 0] == pytest.approx(np.mean(again / 20 - 0.2))
    assert drawn["aligned"][3, 0] == sum(again > 10) and drawn["rate"][3, 0] == 1
    random = group_of(units, units.control, [0])
    (made,) = curve([group], [random], 60, 0, 2)
    assert made["gain"][0] == pytest.approx(measured["effect"][0] - np.mean(counts[17:] / 20 - 0.2))
    assert made["effect_low"][0] <= made["effect"][0] <= made["effect_high"][0]
    assert made["units"] == [17] and made["stable"] == [int(measured["aligned"][0])]
    (nobody,) = curve([group_of(units, np.arange(0), [0])], [random], 20, 0, 2)
    assert np.isnan(nobody["gain"][0]) and nobody["onset"]["layer"] is None


def test_galleries_show_the_units_with_most_exemplars():
    units = units_of(np.random.default_rng(6), np.linspace(0, 0.9, 30), 5)
    shown = gallery(units, np.arange(10, 25), 0, 3)
    counts = units.judged.count[10:25]
    assert [entry["count"] for entry in shown] == sorted(counts.tolist(), reverse=True)[:3]
    assert all(entry["unit"] == 3 * entry["row"] and 10 <= entry["row"] < 25 for entry in shown)


# Statistics of images ------------------------------------------------------------------------------------------------


def grating(angle: float, cycles: float, phase: float = 0.3, side: int = 64, contrast: float = 0.8) -> np.ndarray:
    """uint8 [s, s, 3]: a wave along `angle` (degrees, anticlockwise from the right)."""
    down, right = np.mgrid[:side, :side] / side
    along = right * np.cos(np.radians(angle)) - down * np.sin(np.radians(angle))
    grey = 0.5 + 0.5 * contrast * np.sin(2 * np.pi * cycles * along + phase)
    return np.repeat(np.rint(255 * grey)[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("cycles", FREQUENCIES)
@pytest.mark.parametrize("which", range(N_ORIENTATIONS))
def test_gratings_have_their_orientation_and_frequency(which, cycles):
    found = image_statistics(grating(180 * which / N_ORIENTATIONS, cycles)[None])[0]
    place = columns()
    orientation, frequency = found[place["orientation"]], found[place["frequency"]]
    assert orientation.argmax() == which and orientation.sum() == pytest.approx(1, abs=1e-5)
    assert frequency.argmax() == FREQUENCIES.index(cycles) and frequency.sum() == pytest.approx(1, abs=1e-5)
    assert orientation.max() > 0.5 and frequency.max() > 0.5


def test_contrast_luminance_and_colour():
    place = columns()
    strong, weak = image_statistics(np.stack([grating(30, 8), grating(30, 8, contrast=0.2)]))
    assert strong[place["contrast"]][0] == pytest.approx(0.4 / np.sqrt(2), rel=0.02)
    assert (strong[place["contrast"]] > weak[place["contrast"]]).all()
    np.testing.assert_allclose(strong[place["orientation"]], weak[place["orientation"]], atol=0.03)
    flat = np.zeros((3, 64, 64, 3), np.uint8)
    flat[0, ..., 0], flat[1, ..., 2], flat[2] = 255, 255, 128
    found = image_statistics(flat)
    red, blue, grey = found[:, place["colour"]]
    np.testing.assert_allclose(red, [1, 0, 0, 0.5, np.hypot(1, 0.5)], atol=1e-6)
    np.testing.assert_allclose(blue, [0, 0, 1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(grey, 0, atol=1e-6)
    assert found[2, 0] == pytest.approx(128 / 255) and found[2, 1] == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(found[2, place["orientation"]], 1 / N_ORIENTATIONS)


def test_energy_is_that_of_the_filtered_picture():
    """Parseval: the same filters applied in the picture plane, one orientation and frequency after the other."""
    from sbm_jax.stages.image_statistics import _filters

    side = 40
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    luma = (pixels / 255) @ np.array([0.2126, 0.7152, 0.0722])
    one = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(side) + 0.5) / side)
    window = np.outer(one, one)
    spectrum = np.fft.fft2((luma - (luma * window).sum() / window.sum()) * window)
    down, right = np.meshgrid(np.fft.fftfreq(side, 1 / side), np.fft.fftfreq(side, 1 / side), indexing="ij")
    radius, angle = np.hypot(down, right), np.arctan2(-down, right)
    energy = np.zeros((N_ORIENTATIONS, 3))
    for o in range(N_ORIENTATIONS):
        off = (angle - np.pi * o / 8 + np.pi / 2) % np.pi - np.pi / 2
        for f, centre in enumerate(FREQUENCIES):
            along = np.exp(-(np.log(np.maximum(radius, 1e-9) / centre) ** 2) / (2 * np.log(0.65) ** 2))
            along[side // 2], along[:, side // 2] = 0, 0  # the Nyquist frequency has two orientations at once
            gain = along * np.exp(-(off**2) / (2 * (np.pi / 8 / 1.2) ** 2))
            energy[o, f] = (np.abs(np.fft.ifft2(spectrum * gain)) ** 2).sum() * side**2
    found = image_statistics(pixels[None])[0]
    np.testing.assert_allclose(found[columns()["orientation"]], energy.sum(axis=1) / energy.sum(), rtol=2e-3)
    np.testing.assert_allclose(found[columns()["frequency"]], energy.sum(axis=0) / energy.sum(), rtol=2e-3)
    assert _filters(side)[1].shape == (side * (side // 2 + 1), N_ORIENTATIONS * 3)


# Tuning --------------------------------------------------------------------------------------------------------------


def plain_r_squared(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> float:
    """Ridge on each fold's complement, image by image."""
    error = spread = 0.0
    for f in np.unique(fold):
        train = fold != f
        penalty = 1e-3 * train.sum() * np.diag([0.0] + [1.0] * (x.shape[1] - 1))
        weights = np.linalg.solve(x[train].T @ x[train] + penalty, x[train].T @ y[train])
        error += ((y[~train] - x[~train] @ weights) ** 2).sum()
        spread += ((y[~train] - y[train].mean()) ** 2).sum()
    return 1 - error / spread


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_variance_explained_is_that_of_plain_regressions(seed):
    rng = np.random.default_rng(seed)
    n, p, u = 60, 4, 5
    x = standardised(rng.standard_normal((n, p)))
    y = np.maximum(x[:, 1:3] @ rng.standard_normal((2, u)) + rng.standard_normal((n, u)), 0).astype(np.float32)
    y[:, 0] = 0
    fold = rng.permutation(n) % 5
    sums = FoldSums.empty(5, p + 1, u)
    for start in range(0, n, 17):
        part = slice(start, start + 17)
        sums.add(x[part], y[part], fold[part])
    for chosen in ([1], [2, 4], [1, 2, 3, 4]):
        found = sums.r_squared(chosen)
        assert np.isnan(found[0])
        for unit in range(1, u):
            plain = plain_r_squared(x[:, [0, *chosen]], y[:, unit].astype(np.float64), fold)
            assert found[unit] == pytest.approx(plain, abs=1e-9)
    with np.errstate(invalid="ignore"):
        r = np.corrcoef(np.column_stack([x[:, 1:], y[:, 1:]]).T)[:p, p:]
    np.testing.assert_allclose(sums.correlations()[:, 1:], r, atol=1e-6)
    assert (sums.active == (y > 0).sum(axis=0)).all()


def test_tuning_of_simulated_units_is_found_in_gratings():
    """Units that follow one orientation, one frequency or the contrast of gratings; one follows a category, one nothing."""
    rng = np.random.default_rng(2)
    n = 240
    which, cycles = rng.integers(0, N_ORIENTATIONS, n), rng.integers(0, 3, n)
    contrast, category = rng.uniform(0.2, 1, n), rng.integers(0, 3, n)
    pictures = np.stack(
        [
            grating(22.5 * o, FREQUENCIES[f], rng.uniform(0, 6), 48, c)
            for o, f, c in zip(which, cycles, contrast, strict=True)
        ]
    )
    statistics = image_statistics(pictures)
    y = np.stack([which == 3, cycles == 2, contrast, category == 1, np.zeros(n)], axis=1).astype(np.float32)
    y += 0.2 * rng.standard_normal(y.shape).astype(np.float32)
    x = standardised(np.column_stack([statistics, np.eye(3)[category]]))
    groups = {name: list(range(1 + c.start, 1 + c.stop)) for name, c in columns().items()}
    groups["category"] = list(range(1 + statistics.shape[1], x.shape[1]))
    sums = FoldSums.empty(5, x.shape[1], 5)
    sums.add(x, y, rng.permutation(n) % 5)
    low = ["luminance", "contrast", "orientation", "frequency", "colour"]
    tuning = tuning_of(sums, groups, {"low-level": low})
    order = [*groups, "low-level"]
    for unit, group in enumerate(["orientation", "frequency", "contrast", "category"]):
        alone = dict(zip(order, tuning.alone[unit], strict=True))
        unique = dict(zip(order, tuning.unique[unit], strict=True))
        others = [alone[name] for name in groups if name != group]
        assert alone[group] > 0.4 and alone[group] > max(others) + 0.2, (group, alone)
        assert unique[group] > 0.2 and unique[group] == max(unique[name] for name in groups)
        if group != "category":
            assert alone["low-level"] > 0.4
    assert (tuning.alone[4] < 0.05).all() and (np.abs(tuning.unique[4]) < 0.15).all()
    assert tuning.preferred[0, order.index("orientation")] == 3
    assert tuning.preferred[1, order.index("frequency")] == 2


def test_constant_features_are_no_trouble():
    x = standardised(np.column_stack([np.full(20, 3.0), np.arange(20.0)]))
    assert (x[:, 0] == 1).all() and (x[:, 1] == 0).all() and x[:, 2].std() == pytest.approx(1)
