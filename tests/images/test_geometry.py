"""The square geometry: by symmetry and against slices; stretch; and normalising."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sbm_jax.images import Geometry, load_square, normalise, square, stretch, to_square

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("height", "width"), [(40, 61), (61, 40)])
def test_the_centred_square_is_cropped(rng, height, width):
    array = noise(rng, height, width)
    margin = (61 - 40) // 2
    middle = array[margin : margin + 40] if height > width else array[:, margin : margin + 40]
    np.testing.assert_array_equal(square(40)(Image.fromarray(array)), middle)
    small = Image.fromarray(middle).resize((20, 20), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(square(20)(Image.fromarray(array)), small)


def test_the_shorthands_are_the_same_geometry(tmp_path: Path, rng):
    picture = Image.fromarray(noise(rng, 30, 50))
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_square(tmp_path / "a.png", 16), square(16)(picture))
    np.testing.assert_array_equal(to_square(picture, 16), square(16)(picture))


@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 40))
def test_every_picture_gets_the_side_and_an_even_one_stays_even(height, width, side):
    picture = Image.new("RGB", (width, height), (10, 128, 250))
    for geometry in (square(side), stretch(side)):
        got = geometry(picture)
        assert got.shape == (side, side, 3) and got.dtype == np.uint8
        assert (got == (10, 128, 250)).all()


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_turning_the_picture_turns_a_stretch(height, width, seed):
    array = noise(np.random.default_rng(seed), height, width)
    geometry = stretch(24, Image.Resampling.BILINEAR)
    turned = geometry(Image.fromarray(array.transpose(1, 0, 2))).transpose(1, 0, 2)
    # Pillow rounds to bytes after the horizontal pass and after the vertical one: at most 1 off in either order.
    np.testing.assert_allclose(turned.astype(int), geometry(Image.fromarray(array)).astype(int), atol=2)


def test_stretch_keeps_the_whole_picture_and_square_its_middle():
    array = np.zeros((30, 90, 3), np.uint8)
    array[:, 30:60] = 255
    assert (square(8)(Image.fromarray(array)) == 255).all()
    nearest = stretch(9, Image.Resampling.NEAREST)(Image.fromarray(array))
    np.testing.assert_array_equal(nearest[0, :, 0], [0] * 3 + [255] * 3 + [0] * 3)


def test_geometries_are_values():
    assert square(8) == square(8) and hash(square(8)) == hash(square(8))
    assert len({square(8), square(9), stretch(8), stretch(8, Image.Resampling.BOX)}) == 4
    assert [g.name for g in (square(8), stretch(8))] == ["square", "stretch"]


@pytest.mark.parametrize(("size", "before"), [(4, 0), (3, 1), (2, 1), (1, 2), (7, -1), (8, -2)])
def test_a_crop_of_a_small_picture_has_the_odd_black_pixel_before_it(size, before):
    line = np.arange(1, size + 1, dtype=np.uint8)
    got = Geometry("crop", 4, crop=True)(Image.fromarray(np.repeat(line[None, :, None], 3, 2).repeat(4, 0)))
    expected = [line[i] if 0 <= i < size else 0 for i in range(-before, 4 - before)]
    np.testing.assert_array_equal(got[0, :, 0], expected)


def test_normalise_takes_bytes_only():
    white = np.full((1, 1, 1, 3), 255, np.uint8)
    got = normalise(white, MEAN, STD)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[0, 0, 0], (1 - np.array(MEAN)) / np.array(STD), rtol=1e-6)
    with pytest.raises(ValueError, match="uint8"):
        normalise(white / 255.0, MEAN, STD)
