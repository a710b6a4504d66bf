"""Draws words and letter strings with Pillow's built-in typeface, free-standing or on signs."""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sbm_jax.demo.draw_base import Pen, Thing, article, named_colour, shade

WORDS = (
    "stop", "open", "exit", "hotel", "taxi", "bus", "milk", "love", "home", "work", "time", "water", "fire",
    "music",
    "sale", "shop", "bank", "park", "school", "night", "day", "summer", "winter", "hello", "thanks", "yes",
    "no", "go",
    "north", "south", "left", "right", "push", "pull", "free", "happy", "game", "news", "moon", "star",
)  # fmt: skip
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIGNS = ("none", "none", "none", "board", "board", "round", "post")
_FONT_SIZE = 56


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=_FONT_SIZE)


def _glyphs(text: str, weight: int) -> Image.Image:
    """Coverage map (mode L, uint8) of the text, cropped to its ink."""
    left, top, right, bottom = _font().getbbox(text, stroke_width=weight)
    sheet = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
    ImageDraw.Draw(sheet).text((2 - left, 2 - top), text, fill=255, font=_font(), stroke_width=weight, stroke_fill=255)
    return sheet


def draw_word(pen: Pen, rng: np.random.Generator) -> Thing:
    """Draw a word about 2 local units wide, turned by the pen; its mask: the sign or the thick strokes."""
    real = rng.random() < 0.72
    spelled = WORDS[int(rng.integers(len(WORDS)))] if real else "".join(
        LETTERS[i] for i in rng.integers(0, 26, int(rng.integers(3, 7)))
    )  # fmt: skip
    text = (spelled.lower(), spelled.upper(), spelled.capitalize())[int(rng.integers(3))]
    weight = int(rng.integers(0, 4))
    glyphs = _glyphs(text, weight)
    aspect = glyphs.width / glyphs.height
    # short words must not become taller than wide things are: at most 0.75 of the width
    width = 2.0 if aspect > 1.35 else 1.5 * aspect
    height = width / aspect
    height *= rng.uniform(0.85, 1.25)
    sign = SIGNS[int(rng.integers(len(SIGNS)))]
    board_name, board = named_colour(rng)
    ink_name, ink = named_colour(rng)
    while sum(abs(a - b) for a, b in zip(ink, board, strict=True)) < 210:
        ink_name, ink = named_colour(rng)
    w, h = width / 2 + 0.15, height / 2 + 0.13
    if sign == "post":
        pen.rect(-0.07, 0, 0.07, h + 0.9, (110, 110, 112))
    if sign in ("board", "post"):
        pen.rect(-w - 0.05, -h - 0.05, w + 0.05, h + 0.05, shade(board, 0.55))
        pen.rect(-w, -h, w, h, board)
    elif sign == "round":
        pen.ellipse(0, 0, w * 1.2, h * 1.55, shade(board, 0.55))
        pen.ellipse(0, 0, w * 1.15, h * 1.46, board)
    _stamp(pen, glyphs, (width, height), ink, shade(board, 1.0) if sign == "none" else None)
    colour = board_name if sign != "none" else ink_name
    details = [f"on {article(board_name)} sign"] if sign != "none" else []
    attributes: dict[str, str | float] = {
        "word": spelled,
        "real_word": float(real),
        "word_sign": sign,
        "word_colour": colour,
    }
    noun = f"word {spelled}" if real else ("word", "letters")[int(rng.integers(2))]
    return Thing("word", noun, [ink_name], details, attributes)


def _stamp(pen: Pen, glyphs: Image.Image, extent: tuple[float, float], ink: tuple, halo: tuple | None) -> None:
    """Paste the glyphs around the pen's centre; without a sign a halo sets them off any background."""
    pixels = (max(3, round(extent[0] * pen.scale)), max(3, round(extent[1] * pen.scale)))
    margin = max(2, round(0.05 * pen.scale))
    stencil = Image.new("L", (pixels[0] + 2 * margin, pixels[1] + 2 * margin))
    stencil.paste(glyphs.resize(pixels, Image.Resampling.BILINEAR), (margin, margin))
    turned = stencil.rotate(-np.degrees(pen.angle), Image.Resampling.BILINEAR, expand=True)
    corner = (round(pen.centre[0] - turned.width / 2), round(pen.centre[1] - turned.height / 2))
    thick = turned.reduce(2).point([0] * 9 + [255] * 247).resize(turned.size)
    if halo is not None:
        pen.canvas.image.paste(halo, corner, thick)
    pen.canvas.image.paste(ink, corner, turned)
    pen.canvas.ids.paste(pen.instance, corner, thick)
