"""Draws everyday things of no other concept: vehicles, furniture, tools, vessels, plants, toys."""
# ruff: noqa: RUF005  (a tuple added to an array shifts it)

from collections.abc import Callable

import numpy as np

from sbm_jax.demo.draw_base import Pen, Thing, arc, jitter, named_colour, shade

Rng = np.random.Generator
STEEL, WOOD, DARK, GLASS = (170, 175, 182), (150, 100, 55), (35, 35, 40), (175, 215, 232)
LEAF = (60, 135, 60)


def _car(pen: Pen, rng: Rng, c: tuple) -> None:
    pen.poly([(-0.6, -0.05), (-0.38, -0.45), (0.3, -0.45), (0.6, -0.05)], c)
    pen.poly([(-0.48, -0.06), (-0.32, -0.36), (-0.04, -0.36), (-0.04, -0.06)], GLASS)
    pen.poly([(0.04, -0.06), (0.04, -0.36), (0.25, -0.36), (0.46, -0.06)], GLASS)
    pen.poly([(-1, 0.0), (-0.9, -0.08), (0.85, -0.08), (1, 0.08), (1, 0.36), (-1, 0.36)], c)
    pen.rect(-1, 0.26, 1, 0.36, shade(c, 0.6))
    pen.rect(0.9, 0.05, 1, 0.15, (255, 235, 150))
    for x in (-0.55, 0.55):
        pen.ellipse(x, 0.36, 0.24, 0.24, DARK)
        pen.ellipse(x, 0.36, 0.11, 0.11, STEEL)


def _chair(pen: Pen, rng: Rng, c: tuple) -> None:
    for x in (-0.45, 0.35):
        pen.rect(x + 0.08, 0.1, x + 0.18, 0.8, shade(c, 0.6))
    pen.rect(-0.5, -0.95, -0.36, 0.95, shade(c, 0.85))
    pen.rect(0.38, 0.1, 0.5, 0.95, shade(c, 0.85))
    pen.poly([(-0.5, -0.95), (-0.28, -0.9), (-0.28, 0.0), (-0.5, 0.05)], c)
    pen.poly([(-0.55, 0.08), (-0.3, -0.1), (0.62, -0.1), (0.55, 0.08)], shade(c, 1.2))
    pen.rect(-0.55, 0.08, 0.55, 0.2, c)


def _ball(pen: Pen, rng: Rng, c: tuple) -> None:
    pen.ellipse(0, 0, 0.85, 0.85, c)
    if rng.random() < 0.5:
        other = named_colour(rng)[1]
        pen.poly(np.concatenate([arc(0, 0, 0.85, 0.85, -90, 90), arc(0, 0, 0.35, 0.85, 90, -90)]), other)
        pen.poly(
            np.concatenate([arc(0, 0, 0.85, 0.85, 90, 270), arc(0, 0, 0.35, 0.85, 270, 90)]),
            shade(other, 1.6),
        )
    else:
        for path in (
            arc(-1, 0, 0.75, 0.85, -65, 65),
            arc(1, 0, 0.75, 0.85, 115, 245),
            [(0, -0.85), (0, 0.85)],
            [(-0.85, 0), (0.85, 0)],
        ):
            pen.line(path, 0.05, shade(c, 0.45))
    pen.ellipse(-0.3, -0.35, 0.2, 0.15, (255, 255, 255, 120))


def _hammer(pen: Pen, rng: Rng, c: tuple) -> None:
    pen.rect(-0.1, -0.5, 0.1, 0.98, c)
    pen.poly([(-0.6, -0.85), (0.35, -0.85), (0.75, -0.6), (0.35, -0.45), (-0.6, -0.45)], STEEL)
    pen.rect(-0.65, -0.9, -0.45, -0.4, shade(STEEL, 0.7))


def _clock(pen: Pen, rng: Rng, c: tuple) -> None:
    pen.ellipse(0, 0, 0.95, 0.95, c)
    pen.ellipse(0, 0, 0.8, 0.8, (248, 246, 238))
    for t in range(0, 360, 30):
        pen.line([arc(0, 0, 0.62, 0.62, t, t, 1)[0], arc(0, 0, 0.74, 0.74, t, t, 1)[0]], 0.06, DARK)
    for length, width in ((0.42, 0.09), (0.6, 0.06)):
        t = rng.uniform(0, 360)
        pen.line([(0, 0), arc(0, 0, length, length, t, t, 1)[0]], width, DARK)
    pen.ellipse(0, 0, 0.07, 0.07, DARK)


def _cup(pen: Pen, rng: Rng, c: tuple) -> None:
    pen.ring(0.6, 0.05, 0.28, 0.32, 0.13, shade(c, 0.8))
    pen.poly([(-0.65, -0.55), (0.6, -0.55), (0.48, 0.7), (-0.53, 0.7)], c)
    pen.ellipse(-0.02, 0.7, 0.5, 0.12, c)
    pen.ellipse(-0.02, -0.55, 0.63, 0.17, shade(c, 1.4))
    pen.ellipse(-0.02, -0.53, 0.54, 0.12, (85, 50, 30))
    pen.poly([(-0.5, -0.35), (-0.35, -0.33), (-0.3, 0.6), (-0.42, 0.6)], (255, 255, 255, 90))


def _bottle(pen: Pen, rng: Rng, c: tuple) -> None:
    pen.poly(
        [
            (-0.13, -0.9),
            (0.13, -0.9),
            (0.14, -0.5),
            (0.36, -0.2),
            (0.36, 0.95),
            (-0.36, 0.95),
            (-0.36, -0.2),
            (-0.14, -0.5),
        ],
        c,
    )
    pen.rect(-0.16, -1.0, 0.16, -0.84, shade(c, 0.4))
    pen.rect(-0.36, 0.1, 0.36, 0.6, named_colour(rng, ("white", "yellow", "white"))[1])
    pen.rect(-0.27, -0.12, -0.18, 0.85, (255, 255, 255, 110))


def _box(pen: Pen, rng: Rng, c: tuple) -> None:
    pen.poly([(-0.8, -0.3), (-0.4, -0.7), (0.85, -0.7), (0.45, -0.3)], shade(c, 1.35))
    pen.poly([(0.45, -0.3), (0.85, -0.7), (0.85, 0.4), (0.45, 0.8)], shade(c, 0.65))
    pen.rect(-0.8, -0.3, 0.45, 0.8, c)
    tape = named_colour(rng)[1]
    pen.rect(-0.27, -0.3, -0.08, 0.8, tape)
    pen.poly([(-0.27, -0.3), (0.13, -0.7), (0.32, -0.7), (-0.08, -0.3)], shade(tape, 1.25))


def _tree(pen: Pen, rng: Rng, c: tuple) -> None:
    pen.poly([(-0.1, 0.0), (0.1, 0.0), (0.16, 1.0), (-0.16, 1.0)], (105, 70, 40))
    leaf = jitter(rng, LEAF, 22)
    if rng.random() < 0.4:
        for y, w in ((0.5, 0.7), (0.05, 0.55), (-0.4, 0.4)):
            pen.poly([(-w, y), (w, y), (0, y - 0.65)], shade(leaf, 1 - 0.15 * (y > 0)))
    else:
        for x, y, r in ((-0.35, -0.1, 0.4), (0.35, -0.1, 0.4), (0, -0.5, 0.45), (0, -0.15, 0.42)):
            pen.ellipse(x, y, r, r, shade(leaf, rng.uniform(0.85, 1.1)))


def _plant(pen: Pen, rng: Rng, c: tuple) -> None:
    for t in np.linspace(-65, 65, 7) + rng.normal(0, 5, 7):
        tip = arc(0, 0.25, 0.95, 1.15, t - 90, t - 90, 1)[0]
        side = np.array([np.cos(np.radians(t)), np.sin(np.radians(t))]) * 0.13
        middle = (tip + (0, 0.25)) / 2
        pen.poly([(0, 0.3), middle + side, tip, middle - side], jitter(rng, LEAF, 20))
    pen.poly([(-0.45, 0.25), (0.45, 0.25), (0.32, 0.98), (-0.32, 0.98)], c)
    pen.rect(-0.5, 0.2, 0.5, 0.36, shade(c, 0.8))


def _flower(pen: Pen, rng: Rng, c: tuple) -> None:
    pen.line([(0, -0.3), (0.05, 0.4), (0, 1.0)], 0.09, LEAF)
    pen.ellipse(0.25, 0.55, 0.26, 0.09, LEAF, -0.5)
    pen.ellipse(-0.22, 0.72, 0.24, 0.08, LEAF, 0.5)
    for t in range(0, 360, 60):
        x, y = arc(0, -0.42, 0.32, 0.32, t, t, 1)[0]
        pen.ellipse(x, y, 0.27, 0.17, c, np.radians(t))
    pen.ellipse(0, -0.42, 0.19, 0.19, (245, 200, 60) if c[0] < 230 or c[2] > 100 else (110, 70, 30))


def _lamp(pen: Pen, rng: Rng, c: tuple) -> None:
    pen.rect(-0.06, -0.2, 0.06, 0.85, shade(STEEL, 0.6))
    pen.ellipse(0, 0.88, 0.42, 0.11, shade(STEEL, 0.5))
    pen.poly([(-0.3, -0.95), (0.3, -0.95), (0.65, -0.15), (-0.65, -0.15)], c)
    pen.ellipse(0, -0.15, 0.65, 0.1, (255, 245, 200))


def _key(pen: Pen, rng: Rng, c: tuple) -> None:
    pen.ring(-0.55, 0, 0.3, 0.3, 0.17, c)
    pen.rect(-0.3, -0.08, 0.95, 0.08, c)
    for x in (0.55, 0.8):
        pen.rect(x, 0.05, x + 0.12, 0.36, c)


def _book(pen: Pen, rng: Rng, c: tuple) -> None:
    if rng.random() < 0.5:
        for s in (-1, 1):
            pen.poly([(0, -0.5), (s * 0.98, -0.65), (s * 0.98, 0.5), (0, 0.68)], c)
            pen.poly([(0, -0.42), (s * 0.9, -0.58), (s * 0.9, 0.42), (0, 0.58)], (245, 240, 225))
            for y in np.linspace(-0.3, 0.35, 5):
                pen.line([(s * 0.12, y), (s * 0.78, y - 0.12)], 0.035, (150, 150, 150))
        pen.line([(0, -0.45), (0, 0.62)], 0.04, shade(c, 0.5))
    else:
        pen.rect(-0.6, -0.85, 0.68, 0.85, (240, 235, 220))
        pen.rect(-0.68, -0.88, 0.6, 0.82, c)
        pen.rect(-0.68, -0.88, -0.52, 0.82, shade(c, 0.6))
        pen.rect(-0.3, -0.55, 0.4, -0.2, shade(c, 1.6))


def _umbrella(pen: Pen, rng: Rng, c: tuple) -> None:
    pen.line([(0, -0.9), (0, 0.75)], 0.08, DARK)
    pen.line(arc(0.13, 0.75, 0.13, 0.17, 180, 0, 8), 0.08, DARK)
    pen.poly(arc(0, 0.05, 0.98, 0.85, 180, 360, 20), c)
    pen.poly(np.concatenate([arc(0, 0.05, 0.35, 0.85, 180, 360)]), shade(c, 1.35))
    for x in (-0.65, 0, 0.65):
        pen.ellipse(x, 0.05, 0.32, 0.08, shade(c, 0.6))


def _table(pen: Pen, rng: Rng, c: tuple) -> None:
    for x in (-0.55, 0.5):
        pen.rect(x - 0.05, -0.3, x + 0.05, 0.5, shade(c, 0.55))
    for x in (-0.85, 0.8):
        pen.rect(x - 0.07, -0.15, x + 0.07, 0.85, shade(c, 0.75))
    pen.poly([(-0.98, -0.15), (-0.65, -0.5), (0.65, -0.5), (0.98, -0.15)], shade(c, 1.2))
    pen.rect(-0.98, -0.15, 0.98, -0.02, c)


def _bicycle(pen: Pen, rng: Rng, c: tuple) -> None:
    for x in (-0.55, 0.55):
        pen.ring(x, 0.3, 0.38, 0.38, 0.09, DARK)
        pen.ellipse(x, 0.3, 0.07, 0.07, STEEL)
    for path in (
        [(-0.55, 0.3), (-0.25, -0.25), (0.4, -0.25), (0.0, 0.3), (-0.55, 0.3)],
        [(-0.3, -0.4), (0.0, 0.3)],
        [(0.55, 0.3), (0.36, -0.5)],
    ):
        pen.line(path, 0.1, c)
    pen.limb((-0.42, -0.44), (-0.2, -0.42), 0.08, 0.05, DARK)
    pen.line([(0.22, -0.55), (0.36, -0.5), (0.52, -0.58)], 0.09, DARK)


def _phone(pen: Pen, rng: Rng, c: tuple) -> None:
    pen.rect(-0.5, -0.95, 0.5, 0.95, c)
    pen.rect(-0.42, -0.75, 0.42, 0.68, jitter(rng, (120, 180, 225), 40))
    pen.ellipse(0, 0.82, 0.08, 0.08, shade(STEEL, 1.2))
    for x in (-0.27, 0, 0.27):
        for y in (-0.5, -0.2, 0.1):
            pen.rect(x - 0.09, y - 0.09, x + 0.09, y + 0.09, named_colour(rng)[1])


def _scissors(pen: Pen, rng: Rng, c: tuple) -> None:
    for s in (-1, 1):
        pen.poly(
            [(s * 0.35, -0.98), (s * 0.22, -0.9), (-s * 0.1, 0.15), (-s * 0.2, 0.08)],
            shade(STEEL, 1.0 + 0.2 * s),
        )
        pen.line([(0, 0.05), (-s * 0.28, 0.4)], 0.12, c)
        pen.ring(-s * 0.36, 0.64, 0.22, 0.28, 0.13, c)
    pen.ellipse(0, 0.02, 0.06, 0.06, DARK)


def _guitar(pen: Pen, rng: Rng, c: tuple) -> None:
    pen.rect(-0.08, -0.95, 0.08, 0.2, WOOD)
    pen.rect(-0.14, -1.0, 0.14, -0.8, DARK)
    pen.ellipse(0, 0.15, 0.38, 0.32, c)
    pen.ellipse(0, 0.58, 0.52, 0.42, c)
    pen.ellipse(0, 0.32, 0.15, 0.15, DARK)
    pen.rect(-0.2, 0.65, 0.2, 0.72, DARK)
    for x in (-0.04, 0.04):
        pen.line([(x, -0.9), (x, 0.68)], 0.015, (235, 235, 225))


OBJECTS: dict[str, Callable[[Pen, Rng, tuple], None]] = {
    "car": _car, "chair": _chair, "ball": _ball, "hammer": _hammer, "clock": _clock, "cup": _cup,
    "bottle": _bottle,
    "box": _box, "tree": _tree, "plant": _plant, "flower": _flower, "lamp": _lamp, "key": _key, "book": _book,
    "umbrella": _umbrella, "table": _table, "bicycle": _bicycle, "phone": _phone, "scissors": _scissors,
    "guitar": _guitar,
}  # fmt: skip
OBJECT_KINDS = tuple(OBJECTS)


def draw_object(pen: Pen, rng: Rng) -> Thing:
    """Draw one everyday thing in about [-1, 1] x [-1, 1]; returns its description (kind, colour)."""
    kind = OBJECT_KINDS[int(rng.integers(len(OBJECT_KINDS)))]
    colour, value = named_colour(rng)
    OBJECTS[kind](pen, rng, value)
    colour = "green" if kind == "tree" else colour
    return Thing("object", kind, [colour], [], {"object": kind, "object_colour": colour})
