"""Decoding and the one geometry: against transformers' CLIP processor, by symmetry, and on damaged files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

from sbm_jax.errors import UserError
from sbm_jax.images import load_square, normalise, to_square

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize(("source", "side"), [(425, 224), (96, 96), (37, 96)])
def test_square_images_agree_with_transformers(tmp_path, rng, source, side):
    path = save(tmp_path / "a.png", noise(rng, source, source))
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    plain = processor(Image.open(path), do_rescale=False, do_normalize=False)["pixel_values"][0]
    ours = load_square(path, side)
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, np.asarray(plain).transpose(1, 2, 0))
    pixels = np.asarray(processor(Image.open(path), image_mean=MEAN, image_std=STD)["pixel_values"][0])
    np.testing.assert_allclose(normalise(ours[None], MEAN, STD)[0], pixels.transpose(1, 2, 0), atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(40, 61), (61, 40)])
def test_the_centred_square_is_cropped(tmp_path, rng, height, width):
    array = noise(rng, height, width)
    path = save(tmp_path / "a.png", array)
    margin = (61 - 40) // 2
    square = array[margin : margin + 40] if height > width else array[:, margin : margin + 40]
    np.testing.assert_array_equal(load_square(path, 40), square)
    np.testing.assert_array_equal(load_square(path, 20), to_square(Image.fromarray(square), 20))


@pytest.mark.parametrize(("orientation", "undo"), [(3, 2), (6, -1), (8, 1)])
def test_exif_orientation_is_applied(tmp_path, rng, orientation, undo):
    array = noise(rng, 16, 16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", array, exif=exif)
    np.testing.assert_array_equal(load_square(path, 16), np.rot90(array, undo))


def test_transparency_lies_on_mid_grey(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[..., 0] = 255
    rgba[0, :, 3] = 255
    got = load_square(save(tmp_path / "a.png", rgba), 2)
    assert got[0].tolist() == [[255, 0, 0]] * 2 and got[1].tolist() == [[128, 128, 128]] * 2
    keyed = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8))
    keyed.putpalette([10, 20, 30, 200, 100, 0])  # turns the greys into palette indices
    keyed.save(tmp_path / "p.png", transparency=0)
    got = load_square(tmp_path / "p.png", 2)
    assert got[0].tolist() == [[128, 128, 128], [200, 100, 0]]


def test_grey_and_deep_images_become_8_bit_rgb(tmp_path):
    grey = np.array([[0, 255], [100, 7]], np.uint8)
    np.testing.assert_array_equal(load_square(save(tmp_path / "g.png", grey), 2), np.repeat(grey[..., None], 3, 2))
    deep = grey.astype(np.uint16) * 257
    np.testing.assert_array_equal(load_square(save(tmp_path / "d.png", deep), 2), np.repeat(grey[..., None], 3, 2))
    path = save(tmp_path / "f.tiff", grey.astype(np.float32))
    with pytest.raises(UserError, match=r"f\.tiff: not a readable image .*save it as 8 or 16 bits"):
        load_square(path, 2)


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "bmp", "tiff", "webp"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.6])
def test_truncated_files_are_named(tmp_path, rng, kind, kept):
    path = save(tmp_path / f"cut.{kind}", noise(rng, 64, 64))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(UserError, match=rf"cut\.{kind}: not a readable image"):
        load_square(path, 32)


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.png: no such image file"):
        load_square(tmp_path / "gone.png", 8)
    (tmp_path / "notes.png").write_text("not an image")
    with pytest.raises(UserError, match=r"notes\.png: not a readable image"):
        load_square(tmp_path / "notes.png", 8)
    with pytest.raises(UserError, match="not a readable image"):
        load_square(tmp_path, 8)


def test_flipped_bytes_never_escape_as_another_error(tmp_path, rng):
    for kind in ("png", "jpg", "gif", "webp"):
        data = bytearray(save(tmp_path / f"a.{kind}", noise(rng, 24, 24)).read_bytes())
        for i in range(0, len(data), max(1, len(data) // 60)):
            broken = bytearray(data)
            broken[i] ^= 0xFF
            path = tmp_path / f"b.{kind}"
            path.write_bytes(broken)
            try:
                assert load_square(path, 8).shape == (8, 8, 3)
            except UserError as error:
                assert str(path) in str(error)


def test_huge_pictures_are_refused_not_decoded(tmp_path, monkeypatch):
    path = save(tmp_path / "big.png", np.zeros((30, 30, 3), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    assert load_square(path, 8).shape == (8, 8, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(UserError, match=r"big\.png: not a readable image"):
        load_square(path, 8)


def test_normalise_takes_bytes_only():
    white = np.full((1, 1, 1, 3), 255, np.uint8)
    got = normalise(white, MEAN, STD)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[0, 0, 0], (1 - np.array(MEAN)) / np.array(STD), rtol=1e-6)
    with pytest.raises(ValueError, match="uint8"):
        normalise(white / 255.0, MEAN, STD)
