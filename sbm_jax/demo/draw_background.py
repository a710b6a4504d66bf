"""Backgrounds without a place (plain, stripes, noise, clutter ...) and the lighting of the whole picture."""

import numpy as np
from PIL import Image, ImageFilter

from sbm_jax.demo.draw_base import Canvas, jitter, named_colour, shade

Rng = np.random.Generator
# kind -> ways to say it after "on"
BACKGROUNDS = {
    "plain": ("a plain background", "a {} background"),
    "gradient": ("a smooth background", "a {} background"),
    "stripes": ("a striped background", "{} stripes"),
    "checks": ("a checkered background",),
    "dots": ("a dotted background", "a background with {} dots"),
    "noise": ("a noisy background", "a textured background"),
    "clutter": ("a cluttered background", "a background with many shapes"),
}
_SHARE = (0.2, 0.18, 0.16, 0.08, 0.08, 0.16, 0.14)


def draw_background(canvas: Canvas, rng: Rng) -> tuple[str, str]:
    """Fill the canvas with a background that is no place; returns its kind and its phrase."""
    kind = list(BACKGROUNDS)[int(rng.choice(len(BACKGROUNDS), p=_SHARE))]
    name, colour = named_colour(rng)
    colour = shade(colour, rng.uniform(0.7, 1.6))
    other_name, other = named_colour(rng)
    other = jitter(rng, other, 20)
    if rng.random() < 0.5:  # low contrast
        other = tuple(int(0.7 * a + 0.3 * b) for a, b in zip(colour, other, strict=True))
    side = canvas.side
    if kind in ("gradient", "stripes"):
        _waves(canvas, rng, kind, colour, other)
    elif kind == "noise":
        cells = int(2 ** rng.integers(2, 7))
        field = rng.random((cells, cells, 1 if rng.random() < 0.5 else 3), dtype=np.float32)
        low, high = np.array(colour, np.float32), np.array(other, np.float32)
        pixels = (low + (high - low) * field).astype(np.uint8)
        canvas.image.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))
    else:
        canvas.image.paste(colour, (0, 0, side, side))
        pen, n = canvas.page(0), int(rng.integers(4, 9))
        if kind == "checks":
            for i in range(n):
                for j in range(i % 2, n, 2):
                    pen.rect(i / n, j / n, (i + 1) / n, (j + 1) / n, other)
        elif kind == "dots":
            r = rng.uniform(0.2, 0.4) / n
            for i in range(n):
                for j in range(n):
                    pen.ellipse((i + 0.5) / n, (j + 0.5) / n, r, r, other)
    if kind == "clutter":
        draw_clutter(canvas, rng, int(rng.integers(10, 30)))
    elif rng.random() < 0.2:
        draw_clutter(canvas, rng, int(rng.integers(2, 7)))
    phrases = BACKGROUNDS[kind]
    phrase = phrases[int(rng.integers(len(phrases)))]
    if kind in ("stripes", "dots"):
        name = other_name
    if "{}" not in phrase:
        return kind, phrase
    article = "an" if phrase.startswith("a {}") and name[0] in "aeiou" else "a"
    return kind, phrase.format(name).replace("a ", f"{article} ", 1) if phrase.startswith("a ") else phrase.format(name)


def _waves(canvas: Canvas, rng: Rng, kind: str, colour: tuple, other: tuple) -> None:
    """A linear gradient or a grating (sine or square) in a random direction."""
    n = 64 if kind == "gradient" else 128
    t, angle = np.linspace(-1, 1, n, dtype=np.float32), rng.uniform(0, np.pi)
    along = t[None, :] * np.float32(np.cos(angle)) + t[:, None] * np.float32(np.sin(angle))
    if kind == "gradient":
        mix = along * 0.4 + 0.5
    else:
        mix = 0.5 + 0.5 * np.sin(along * np.float32(rng.uniform(6, 40)))
        if rng.random() < 0.6:
            mix = np.clip(mix * 8 - 3.5, 0, 1)
    low, high = np.array(colour, np.float32), np.array(other, np.float32)
    pixels = np.clip(low + (high - low) * mix[..., None], 0, 255).astype(np.uint8)
    canvas.image.paste(Image.fromarray(pixels).resize((canvas.side, canvas.side), Image.Resampling.BILINEAR))


def draw_clutter(canvas: Canvas, rng: Rng, n: int) -> None:
    """n random shapes that belong to no concept."""
    pen = canvas.page(0)
    for shape, (x, y), r, t in zip(
        rng.integers(0, 4, n),
        rng.random((n, 2)),
        rng.uniform(0.02, 0.12, n),
        rng.uniform(0, 3, n),
        strict=True,
    ):
        c = named_colour(rng)[1]
        if shape == 0:
            pen.ellipse(x, y, r, r * rng.uniform(0.4, 1), c, t)
        elif shape == 1:
            corners = np.stack([np.cos(t + np.arange(3) * 2.1), np.sin(t + np.arange(3) * 2.1)], axis=1)
            pen.poly(corners * r + (x, y), c)
        elif shape == 2:
            corners = np.stack([np.cos(t + np.arange(4) * np.pi / 2), np.sin(t + np.arange(4) * np.pi / 2)], axis=1)
            pen.poly(corners * r + (x, y), c)
        else:
            pen.line([(x, y), (x + np.cos(t) * 3 * r, y + np.sin(t) * 3 * r)], rng.uniform(0.008, 0.025), c)


def light(image: Image.Image, rng: Rng) -> np.ndarray:
    """Blur, colour cast, shading gradient, contrast, brightness and pixel noise; returns uint8 [s, s, 3]."""
    if rng.random() < 0.15:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 0.9)))
    pixels = np.asarray(image, dtype=np.float32)
    side = pixels.shape[0]
    contrast, bright = np.float32(rng.uniform(0.7, 1.1)), np.float32(rng.uniform(-22, 18))
    gain = (contrast * rng.uniform(0.93, 1.07, 3)).astype(np.float32)
    angle, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.28)
    t = np.linspace(-depth, depth, side, dtype=np.float32)
    shading = 1 + (t[None, :] * np.float32(np.cos(angle)) + t[:, None] * np.float32(np.sin(angle)))
    pixels = (pixels - 128) * gain + np.float32(128 + bright)
    pixels *= shading[..., None]
    noise = rng.integers(-128, 128, (side, side, 1 if rng.random() < 0.5 else 3), dtype=np.int8)
    pixels += noise * np.float32(rng.uniform(0.0, 0.09))
    return np.clip(pixels, 0, 255).astype(np.uint8)
