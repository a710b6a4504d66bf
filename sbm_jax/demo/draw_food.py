"""Draws food: fruits, vegetables, baked and cooked things, sometimes on a plate."""

from collections.abc import Callable

import numpy as np

from sbm_jax.demo.draw_base import COLOURS, Pen, Thing, arc, jitter, named_colour, shade

Rng = np.random.Generator
GREEN, CRUST, CREAM = (70, 150, 60), (205, 150, 80), (250, 240, 215)


def _apple(pen: Pen, rng: Rng) -> str:
    name, c = named_colour(rng, ("red", "red", "green", "yellow"))
    for s in (-1, 1):
        pen.ellipse(s * 0.3, 0.1, 0.55, 0.72, c, s * 0.12)
    pen.ellipse(-0.35, -0.12, 0.14, 0.26, (*shade(c, 1.7), 150), 0.3)
    pen.ellipse(0.0, -0.5, 0.22, 0.08, shade(c, 0.6))
    pen.line([(0, -0.48), (0.05, -0.75), (0.12, -0.92)], 0.08, (90, 60, 30))
    pen.ellipse(0.32, -0.78, 0.25, 0.1, GREEN, -0.4)
    return name


def _banana(pen: Pen, rng: Rng) -> str:
    c = jitter(rng, COLOURS["yellow"])
    outer, inner = arc(0, -0.45, 0.95, 1.05, 5, 175), arc(0, -0.55, 0.85, 0.6, 175, 5)
    pen.poly(np.concatenate([outer, inner]), c)
    pen.line(arc(0, -0.5, 0.9, 0.85, 15, 165), 0.05, shade(c, 0.8))
    pen.line([(0.93, -0.38), (0.95, -0.7)], 0.14, (110, 85, 30))
    pen.ellipse(-0.9, -0.45, 0.08, 0.1, (80, 60, 30))
    return "yellow"


def _orange(pen: Pen, rng: Rng) -> str:
    c = jitter(rng, COLOURS["orange"])
    pen.ellipse(0, 0, 0.85, 0.85, c)
    if rng.random() < 0.45:  # cut in half
        pen.ellipse(0, 0, 0.75, 0.75, CREAM)
        for t in np.arange(8) * np.pi / 4:
            wedge = [(0.06, 0), *(arc(0, 0, 0.66, 0.66, -18, 18, 5))]
            turn = np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]])
            pen.poly(np.asarray(wedge) @ turn, shade(c, 1.2))
    else:
        pen.ellipse(-0.3, -0.32, 0.25, 0.2, (*shade(c, 1.6), 140))
        pen.ellipse(0.05, -0.7, 0.12, 0.06, GREEN)
    return "orange"


def _pizza(pen: Pen, rng: Rng) -> str:
    pen.ellipse(0, 0, 0.95, 0.95, jitter(rng, (200, 140, 70)))
    pen.ellipse(0, 0, 0.82, 0.82, (205, 75, 40))
    pen.ellipse(0, 0, 0.77, 0.77, jitter(rng, (245, 205, 95)))
    for i in range(8):
        r = 0.52 if i % 2 else 0.3
        x, y = arc(0, 0, r, r, i * 45, i * 45, 1)[0] + rng.normal(0, 0.05, 2)
        pen.ellipse(x, y, 0.14, 0.14, (175, 45, 35))
    for x, y in rng.uniform(-0.5, 0.5, (7, 2)):
        pen.ellipse(x, y, 0.1, 0.045, GREEN if rng.random() < 0.6 else (40, 35, 35), rng.uniform(0, 3))
    for t in (0, 60, 120):
        pen.line([arc(0, 0, 0.9, 0.9, t, t, 1)[0], -arc(0, 0, 0.9, 0.9, t, t, 1)[0]], 0.025, (160, 100, 50))
    return ""


def _burger(pen: Pen, rng: Rng) -> str:
    bun = jitter(rng, (215, 150, 75))
    pen.poly(np.concatenate([arc(0, 0.35, 0.85, 0.5, 0, 180), [(-0.85, 0.3), (0.85, 0.3)]]), bun)
    pen.limb((-0.75, 0.28), (0.75, 0.28), 0.16, 0.16, (95, 55, 35))
    pen.poly([(-0.85, 0.06), (0.85, 0.06), (0.5, 0.3), (0.2, 0.12), (-0.3, 0.28), (-0.6, 0.12)], (250, 195, 55))
    pen.limb((-0.72, 0.02), (0.72, 0.02), 0.09, 0.09, (200, 50, 40))
    for x in np.linspace(-0.8, 0.8, 7):
        pen.ellipse(x, -0.07, 0.17, 0.09, (95, 170, 65))
    pen.poly(arc(0, -0.08, 0.88, 0.75, 180, 360), bun)
    for x, y in ((-0.4, -0.45), (0.0, -0.6), (0.4, -0.45), (-0.15, -0.35), (0.22, -0.3), (-0.6, -0.25)):
        pen.ellipse(x, y, 0.06, 0.035, CREAM, 0.4)
    return ""


def _cake(pen: Pen, rng: Rng) -> str:
    name, icing = named_colour(rng, ("pink", "white", "brown", "purple", "yellow"))
    sponge = jitter(rng, (225, 180, 110))
    pen.rect(-0.8, -0.15, 0.8, 0.7, sponge)
    pen.ellipse(0, 0.7, 0.8, 0.18, sponge)
    pen.rect(-0.8, 0.22, 0.8, 0.36, CREAM)
    for x in np.linspace(-0.68, 0.68, 6):
        pen.limb((x, -0.1), (x, rng.uniform(0.02, 0.25)), 0.13, 0.1, icing)
    pen.ellipse(0, -0.18, 0.8, 0.2, shade(icing, 1.2))
    for x in np.linspace(-0.45, 0.45, int(rng.integers(1, 5))):
        pen.line([(x, -0.2), (x, -0.62)], 0.08, named_colour(rng)[1])
        pen.ellipse(x, -0.72, 0.06, 0.12, (255, 190, 60))
    return name


def _bread(pen: Pen, rng: Rng) -> str:
    c = jitter(rng, CRUST)
    if rng.random() < 0.5:  # slice
        pen.rect(-0.65, -0.4, 0.65, 0.8, shade(c, 0.75))
        pen.ellipse(0, -0.42, 0.8, 0.4, shade(c, 0.75))
        pen.rect(-0.56, -0.4, 0.56, 0.72, shade(c, 1.55))
        pen.ellipse(0, -0.4, 0.7, 0.31, shade(c, 1.55))
    else:  # loaf
        pen.limb((-0.6, 0.1), (0.6, 0.1), 0.42, 0.42, c)
        for x in (-0.5, -0.1, 0.3, 0.65):
            pen.limb((x - 0.08, 0.22), (x + 0.1, -0.2), 0.06, 0.06, shade(c, 1.45))
    return ""


def _egg(pen: Pen, rng: Rng) -> str:
    t = np.linspace(0, 2 * np.pi, 25)[:-1]
    radius = 0.78 + 0.1 * np.sin(3 * t + rng.uniform(0, 6)) + 0.07 * np.sin(5 * t + rng.uniform(0, 6))
    white = np.stack([radius * np.cos(t), radius * np.sin(t)], axis=1)
    pen.poly(white * 1.04, (225, 205, 170))
    pen.poly(white, (252, 250, 242))
    pen.ellipse(0.05, 0, 0.34, 0.34, jitter(rng, (250, 180, 35)))
    pen.ellipse(-0.06, -0.12, 0.1, 0.08, (255, 235, 170))
    return ""


def _ice_cream(pen: Pen, rng: Rng) -> str:
    name, scoop = named_colour(rng, ("pink", "white", "brown", "green", "yellow"))
    pen.poly([(-0.42, 0.0), (0.42, 0.0), (0.0, 1.0)], jitter(rng, (215, 160, 85)))
    for x in (-0.25, 0.0, 0.25):
        pen.line([(x, 0.02), (x * 0.2 + 0.1, 0.72)], 0.03, (165, 110, 50))
        pen.line([(x, 0.02), (x * 0.2 - 0.1, 0.72)], 0.03, (165, 110, 50))
    second = scoop if rng.random() < 0.5 else named_colour(rng, ("pink", "white", "brown", "green"))[1]
    pen.ellipse(0, -0.5, 0.42, 0.42, second)
    pen.ellipse(0, -0.1, 0.5, 0.38, scoop)
    pen.ellipse(-0.18, -0.25, 0.12, 0.09, (*shade(scoop, 1.6), 160))
    pen.ellipse(0.05, -0.92, 0.11, 0.11, (200, 30, 45))
    return name


def _carrot(pen: Pen, rng: Rng) -> str:
    c = jitter(rng, (240, 125, 35))
    for x in (-0.25, 0.0, 0.25):
        pen.line([(0, -0.4), (x, -0.98)], 0.13, jitter(rng, GREEN))
    pen.limb((0, -0.28), (0, 0.9), 0.28, 0.04, c)
    for y, w in ((-0.2, 0.2), (0.1, 0.14), (0.38, 0.1)):
        pen.line([(-w, y), (w * 0.2, y + 0.03)], 0.035, shade(c, 0.72))
    return "orange"


def _cheese(pen: Pen, rng: Rng) -> str:
    c = jitter(rng, (248, 205, 75))
    pen.poly([(-0.9, 0.0), (0.55, -0.55), (0.9, -0.05), (0.9, 0.0)], shade(c, 1.35))
    pen.rect(-0.9, 0.0, 0.9, 0.6, c)
    for x, y, r in ((-0.5, 0.25, 0.13), (0.1, 0.4, 0.1), (0.55, 0.2, 0.15), (-0.1, 0.12, 0.07)):
        pen.ellipse(x, y, r, r, shade(c, 0.75))
    return "yellow"


def _donut(pen: Pen, rng: Rng) -> str:
    name, icing = named_colour(rng, ("pink", "brown", "white", "purple"))
    pen.ring(0, 0, 0.6, 0.6, 0.6, (205, 145, 75))
    pen.ring(0, -0.02, 0.6, 0.6, 0.46, icing)
    for t in range(0, 360, 30):
        r = rng.uniform(0.5, 0.7)
        x, y = arc(0, 0, r, r, t, t, 1)[0]
        pen.ellipse(x, y, 0.07, 0.03, named_colour(rng)[1], rng.uniform(0, 3))
    return name


def _grapes(pen: Pen, rng: Rng) -> str:
    name, c = named_colour(rng, ("purple", "green"))
    pen.line([(0, -0.5), (0.05, -0.98)], 0.09, (100, 75, 35))
    pen.ellipse(0.3, -0.72, 0.28, 0.14, GREEN, -0.3)
    for row, n in enumerate((4, 4, 3, 2, 1)):
        for x in (np.arange(n) - (n - 1) / 2) * 0.36:
            x, y = x + rng.normal(0, 0.03), -0.42 + 0.3 * row
            pen.ellipse(x, y, 0.21, 0.21, shade(c, rng.uniform(0.8, 1.15)))
            pen.ellipse(x - 0.07, y - 0.07, 0.05, 0.05, shade(c, 1.6))
    return name


def _strawberry(pen: Pen, rng: Rng) -> str:
    c = jitter(rng, (215, 35, 50))
    pen.poly([(-0.62, -0.3), (-0.4, -0.62), (0.4, -0.62), (0.62, -0.3), (0.45, 0.3), (0.0, 0.92), (-0.45, 0.3)], c)
    pen.ellipse(0, -0.25, 0.62, 0.42, c)
    for x, y in (
        (-0.35, -0.2),
        (0, -0.25),
        (0.35, -0.2),
        (-0.18, 0.1),
        (0.18, 0.1),
        (0, 0.42),
        (-0.3, 0.3),
        (0.3, 0.3),
    ):
        pen.ellipse(x, y, 0.035, 0.055, (250, 220, 130))
    for x in (-0.4, -0.15, 0.15, 0.4):
        pen.poly([(x - 0.15, -0.68), (x + 0.15, -0.68), (x * 1.4, -0.38)], GREEN)
    pen.line([(0, -0.62), (0.04, -0.92)], 0.08, GREEN)
    return "red"


def _watermelon(pen: Pen, rng: Rng) -> str:
    for r, c in ((0.98, (45, 120, 55)), (0.88, (215, 235, 190)), (0.8, jitter(rng, (225, 60, 70)))):
        pen.poly(arc(0, -0.4, r, r, 0, 180, 20), c)
    for x, y in (
        (-0.45, -0.2),
        (-0.15, -0.1),
        (0.15, -0.1),
        (0.45, -0.2),
        (-0.25, 0.12),
        (0.1, 0.15),
        (0.32, 0.05),
    ):
        pen.ellipse(x, y, 0.035, 0.06, (35, 25, 25))
    return "red"


FOODS: dict[str, Callable[[Pen, Rng], str]] = {
    "apple": _apple, "banana": _banana, "orange": _orange, "pizza": _pizza, "burger": _burger, "cake": _cake,
    "bread": _bread, "fried egg": _egg, "ice cream": _ice_cream, "carrot": _carrot, "cheese": _cheese,
    "donut": _donut, "grapes": _grapes, "strawberry": _strawberry, "watermelon": _watermelon,
}  # fmt: skip
FOOD_KINDS = tuple(FOODS)
_PLATE = (
    "pizza",
    "burger",
    "cake",
    "fried egg",
    "bread",
    "cheese",
    "donut",
    "grapes",
    "strawberry",
    "carrot",
)


def draw_food(pen: Pen, rng: Rng) -> Thing:
    """Draw one food in about [-1, 1] x [-1, 1]; returns its description (kind, colour, plate)."""
    kind = FOOD_KINDS[int(rng.integers(len(FOOD_KINDS)))]
    plate = kind in _PLATE and rng.random() < 0.4
    if plate:
        rim = named_colour(rng, ("white", "white", "blue", "gray"))[1]
        pen.ellipse(0, 0.1, 1.12, 0.95, shade(rim, 0.85))
        pen.ellipse(0, 0.08, 1.06, 0.89, shade(rim, 1.3))
        pen.ellipse(0, 0.08, 0.8, 0.66, shade(rim, 1.1))
        pen = Pen(pen.canvas, pen.instance, pen.place((0.0, 0.0)), pen.scale * 0.72, pen.angle, pen.flip)
    colour = FOODS[kind](pen, rng)
    adjectives = [colour] if colour and colour != kind else []
    return Thing("food", kind, adjectives, ["on a plate"] if plate else [], {"food": kind, "food_colour": colour})
