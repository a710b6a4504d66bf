"""Pictures whose patches are lit by how much they drive a unit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.report.colormaps import to_oklab
from sbm_jax.report.thumbs import lit

YELLOW = (255, 212, 0)


def grey(value: int = 180) -> np.ndarray:
    return np.full((64, 64, 3), value, np.uint8)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 4, 6]))
def test_lightness_is_linear_in_the_value(seed, g):
    """In the middle of every patch, away from outlines."""
    heat = np.random.default_rng(seed).random((g, g)) * 7
    heat[0, 0] = 0
    out = to_oklab(lit(grey(), heat))[..., 0]
    middle = ((np.arange(g) + 0.5) * 96 / g).astype(int)
    expected = to_oklab(grey())[0, 0, 0] * (0.6 + 0.4 * heat / heat.max())
    assert np.abs(out[np.ix_(middle, middle)] - expected).max() < 0.005


def test_outline_around_patches_of_at_least_half_of_the_largest():
    """Two neighbours share one outline; a patch of less than half has none; edges of the picture are outlined too."""
    heat = np.zeros((4, 4), np.float16)
    heat[0, 0], heat[0, 1], heat[2, 3], heat[3, 0] = 4, 2, 1.9, 4
    yellow = (lit(grey(), heat) == YELLOW).all(axis=2)
    assert yellow[:24, :48].any() and yellow[72:, :24].any()
    assert not yellow[48:72, 72:].any() and not yellow[24:72].any()
    assert not yellow[5:19, 20:28].any()  # between the neighbours
    assert yellow[:2, :48].all() and yellow[:24, 46:48].all() and yellow[94:, :24].all()


@pytest.mark.parametrize("heat", [np.zeros((3, 3)), np.zeros((1, 1), np.float16)])
def test_a_silent_unit_leaves_the_picture(heat):
    assert (lit(grey(), heat) == 180).all()


def test_rows_of_the_map_go_down():
    heat = np.zeros((8, 8))
    heat[7, 2] = 1
    light = np.argwhere((lit(grey(), heat) == YELLOW).all(axis=2))
    assert light[:, 0].min() == 84 and light[:, 1].min() == 24 and light[:, 1].max() == 35
