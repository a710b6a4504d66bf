"""Decoding image files: orientation, transparency, modes, several frames, and damaged or huge files."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sbm_jax.errors import UserError
from sbm_jax.images import MemoryImage, open_image


def noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def save(path: Path, array: np.ndarray, mode: str | None = None, **options: object) -> Path:
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def decoded(path: Path) -> np.ndarray:
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
@pytest.mark.parametrize(("orientation", "undo"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_exif_orientation_is_applied(tmp_path, rng, kind, orientation, undo):
    array = noise(rng, 16, 24)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{kind}", array, exif=exif, **({"lossless": True} if kind == "webp" else {}))
    np.testing.assert_array_equal(decoded(path), np.rot90(array, undo))


def test_transparency_lies_on_mid_grey(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[..., 0] = 255
    rgba[0, :, 3] = 255
    got = decoded(save(tmp_path / "a.png", rgba))
    assert got[0].tolist() == [[255, 0, 0]] * 2 and got[1].tolist() == [[128, 128, 128]] * 2
    keyed = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8))
    keyed.putpalette([10, 20, 30, 200, 100, 0])  # turns the greys into palette indices
    keyed.save(tmp_path / "p.png", transparency=0)
    assert decoded(tmp_path / "p.png")[0].tolist() == [[128, 128, 128], [200, 100, 0]]


def test_grey_and_deep_images_become_8_bit_rgb(tmp_path):
    grey = np.array([[0, 255], [100, 7]], np.uint8)
    rgb = np.repeat(grey[..., None], 3, 2)
    np.testing.assert_array_equal(decoded(save(tmp_path / "g.png", grey)), rgb)
    np.testing.assert_array_equal(decoded(save(tmp_path / "d.png", grey.astype(np.uint16) * 257)), rgb)
    np.testing.assert_array_equal(decoded(save(tmp_path / "d.tiff", grey.astype(np.uint16) * 257)), rgb)
    np.testing.assert_array_equal(decoded(save(tmp_path / "b.png", grey, "1"))[0, :, 0], [0, 255])
    path = save(tmp_path / "f.tiff", grey.astype(np.float32))
    with pytest.raises(UserError, match=r"f\.tiff: not a readable image .*save it as 8 or 16 bits"):
        open_image(path)


def test_deep_colour_keeps_its_upper_8_bits(tmp_path):
    """Pillow cannot write 16-bit RGB, so the file is put together here."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    line = b"\0" + struct.pack(">6H", 0x12FF, 0x3400, 0x5678, 0xFFFF, 0, 0x00FF)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(line)) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    assert decoded(tmp_path / "deep.png").tolist() == [[[0x12, 0x34, 0x56], [0xFF, 0, 0]]]


def test_palettes_and_cmyk_become_rgb(tmp_path, rng):
    few = np.array([[10, 20, 30], [200, 100, 0]], np.uint8)[rng.integers(0, 2, (6, 8))]
    Image.fromarray(few).quantize(2).save(tmp_path / "p.gif")
    np.testing.assert_array_equal(decoded(tmp_path / "p.gif"), few)
    ink = rng.integers(0, 256, (6, 8, 4), np.uint8)
    Image.frombytes("CMYK", (8, 6), ink.tobytes()).save(tmp_path / "c.tiff")
    white = (255 - ink[..., :3].astype(int)) * (255 - ink[..., 3:].astype(int)) / 255
    np.testing.assert_allclose(decoded(tmp_path / "c.tiff"), white, atol=1)  # Pillow's rounding, no colour profile
    Image.frombytes("CMYK", (8, 6), bytes(4 * 48)).save(tmp_path / "c.jpg")  # inverted as Adobe writes it
    assert (decoded(tmp_path / "c.jpg") == 255).all()


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_of_several_frames_the_first_is_taken(tmp_path, kind):
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    frames = [Image.new("RGB", (12, 9), colour) for colour in colours]
    frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:], lossless=True)
    with Image.open(tmp_path / f"a.{kind}") as written:
        assert written.n_frames == 3
    assert (decoded(tmp_path / f"a.{kind}") == colours[0]).all()


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "bmp", "tiff", "webp"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.6])
def test_truncated_files_are_named(tmp_path, rng, kind, kept):
    path = save(tmp_path / f"cut.{kind}", noise(rng, 64, 64))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(UserError, match=rf"cut\.{kind}: not a readable image"):
        open_image(path)


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.png: no such image file"):
        open_image(tmp_path / "gone.png")
    (tmp_path / "notes.png").write_text("not an image")
    with pytest.raises(UserError, match=r"notes\.png: not a readable image"):
        open_image(tmp_path / "notes.png")
    with pytest.raises(UserError, match="not a readable image"):
        open_image(tmp_path)


def test_flipped_bytes_never_escape_as_another_error(tmp_path, rng):
    for kind in ("png", "jpg", "gif", "webp", "avif"):
        data = bytearray(save(tmp_path / f"a.{kind}", noise(rng, 24, 24)).read_bytes())
        for i in range(0, len(data), max(1, len(data) // 60)):
            broken = bytearray(data)
            broken[i] ^= 0xFF
            path = tmp_path / f"b.{kind}"
            path.write_bytes(broken)
            try:
                assert open_image(path).mode == "RGB"
            except UserError as error:
                assert str(path) in str(error)


def test_huge_pictures_are_refused_not_decoded(tmp_path, monkeypatch):
    path = save(tmp_path / "big.png", np.zeros((30, 30, 3), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.warns(Image.DecompressionBombWarning):
        assert open_image(path).size == (30, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(UserError, match=r"big\.png: not a readable image"):
        open_image(path)


def test_pictures_that_came_inside_a_table(tmp_path, rng):
    source = MemoryImage(tmp_path / "stimuli.mat", "7", noise(rng, 5, 6))
    np.testing.assert_array_equal(np.asarray(open_image(source)), source.pixels)
    assert str(source) == "stimuli.mat[7]"
