"""Stretching learned positions, and rotary ones: laws, beside the values of torch in test_families.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbm_jax.backbones.positions import resize_positions, resize_weights, rotations
from sbm_jax.backbones.spec import BlockSpec, VisionSpec

HOW = ("bicubic", "bicubic_antialias", "bilinear_antialias")
grids = st.integers(1, 40)


@given(grids, grids, st.sampled_from(HOW))
def test_weights_sum_to_one_and_are_symmetric(n_in, n_out, how):
    weights = resize_weights(n_in, n_out, how)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-9)


@given(grids, st.sampled_from(HOW))
def test_the_same_grid_is_left_as_it_is(n, how):
    np.testing.assert_allclose(resize_weights(n, n, how), np.eye(n), atol=1e-12)


@given(st.integers(8, 40), st.integers(0, 40), st.sampled_from(HOW[1:]))
def test_a_ramp_stays_a_ramp_when_it_grows(n_in, more, how):
    """True of the triangle and of Keys' kernel with a = -0.5, away from the edges; not of a = -0.75."""
    centres = (np.arange(n_in + more) + 0.5) * n_in / (n_in + more) - 0.5
    inside = (centres >= 2) & (centres <= n_in - 3)
    ramp = resize_weights(n_in, n_in + more, how) @ np.arange(n_in)
    np.testing.assert_allclose(ramp[inside], centres[inside], atol=1e-9)


def test_prefix_rows_are_kept_and_other_counts_refused(rng):
    positions = rng.standard_normal((1 + 16, 4)).astype(np.float32)
    out = resize_positions(positions, 1, 6, "bicubic")
    assert out.shape == (37, 4) and out.dtype == np.float32
    np.testing.assert_array_equal(out[0], positions[0])
    with pytest.raises(ValueError, match="15 patch positions are not a square grid"):
        resize_positions(positions[:16], 1, 6, "bicubic")


def test_rotations_are_those_of_centres():
    spec = VisionSpec(BlockSpec(16, 2, 32), 1, image_size=24, patch_size=8, rope_theta=100.0)
    cos, sin = rotations(spec)
    assert cos.shape == sin.shape == (9, 8)
    y, x = -2 / 3, 2 / 3  # the patch of row 0, column 2
    angles = 2 * np.pi * np.array([y, y / 10, x, x / 10] * 2)
    np.testing.assert_allclose(cos[2], np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(sin[2], np.sin(angles), atol=1e-6)
