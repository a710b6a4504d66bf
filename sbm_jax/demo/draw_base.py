"""Shared drawing tools: a canvas that keeps picture and instance map in step, a pen in local units."""
# ruff: noqa: RUF005  (a tuple added to an array shifts it)

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (205, 40, 40),
    "green": (50, 150, 65),
    "blue": (45, 85, 195),
    "yellow": (238, 205, 55),
    "orange": (238, 135, 40),
    "purple": (130, 65, 165),
    "pink": (240, 145, 175),
    "brown": (125, 80, 45),
    "black": (32, 32, 36),
    "white": (240, 240, 236),
    "gray": (135, 135, 138),
    "cyan": (60, 185, 205),
}
COLOUR_NAMES = tuple(COLOURS)

_TURN = np.linspace(0.0, 2 * np.pi, 33)[:-1]
CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)


@dataclass
class Thing:
    """One drawn thing: its concept, the words for it and its attributes."""

    concept: str
    noun: str
    adjectives: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    attributes: dict[str, str | float] = field(default_factory=dict)


class Canvas:
    """A square RGB picture of `side` pixels and a uint8 map of instance numbers (0 = background)."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.image = Image.new("RGB", (side, side))
        self.ids = Image.new("L", (side, side))
        # mode "RGBA" on an RGB image makes Pillow blend colours that carry an alpha
        self.draw = ImageDraw.Draw(self.image, "RGBA")
        self.draw_ids = ImageDraw.Draw(self.ids)

    def page(self, instance: int) -> "Pen":
        """Pen whose local square [0, 1] x [0, 1] is the whole canvas (y downwards)."""
        return Pen(self, instance, (0.0, 0.0), float(self.side))


class Pen:
    """Draws filled shapes of one instance in local coordinates (y downwards).

    A local point p lands at centre + scale * R(angle) @ (flip * p_x, p_y) in canvas pixels.
    """

    def __init__(
        self,
        canvas: Canvas,
        instance: int,
        centre: tuple[float, float],
        scale: float,
        angle: float = 0.0,
        flip: bool = False,
    ) -> None:
        self.canvas, self.instance, self.scale, self.angle, self.flip = canvas, instance, scale, angle, flip
        self.centre = np.asarray(centre, dtype=float)
        c, s = np.cos(angle) * scale, np.sin(angle) * scale
        sign = -1.0 if flip else 1.0
        self.matrix = np.array([[c * sign, s * sign], [-s, c]])

    def place(self, xy: tuple[float, float]) -> tuple[float, float]:
        """Canvas pixel of one local point."""
        x, y = np.asarray(xy, dtype=float) @ self.matrix + self.centre
        return float(x), float(y)

    def poly(self, points: ArrayLike | list, colour: tuple[int, ...]) -> None:
        """Filled polygon; `points` is [n, 2]; `colour` is RGB or RGBA (0..255)."""
        flat = (np.asarray(points, dtype=float) @ self.matrix + self.centre).ravel().tolist()
        self.canvas.draw.polygon(flat, fill=colour)
        if len(colour) == 3:  # translucent shading never changes what is seen there
            self.canvas.draw_ids.polygon(flat, fill=self.instance)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: tuple, tilt: float = 0.0) -> None:
        """Filled ellipse around (x, y), turned by `tilt` radians."""
        points = CIRCLE * (rx, ry)
        if tilt:
            c, s = np.cos(tilt), np.sin(tilt)
            points = points @ np.array([[c, s], [-s, c]])
        self.poly(points + (x, y), colour)

    def rect(self, x0: float, y0: float, x1: float, y1: float, colour: tuple) -> None:
        """Filled rectangle with corners (x0, y0) and (x1, y1)."""
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)

    def line(self, points: ArrayLike | list, width: float, colour: tuple) -> None:
        """Open stroke of local `width` through [n, 2] points, at least one canvas pixel wide."""
        flat = (np.asarray(points, dtype=float) @ self.matrix + self.centre).ravel().tolist()
        pixels = max(1, round(width * self.scale))
        joint = "curve" if len(flat) > 4 and pixels > 2 else None
        self.canvas.draw.line(flat, fill=colour, width=pixels, joint=joint)
        if len(colour) == 3:
            self.canvas.draw_ids.line(flat, fill=self.instance, width=pixels, joint=joint)

    def ring(self, x: float, y: float, rx: float, ry: float, width: float, colour: tuple) -> None:
        """Outline of an ellipse."""
        points = CIRCLE * (rx, ry) + (x, y)
        self.line(np.concatenate([points, points[:2]]), width, colour)

    def limb(self, a: ArrayLike, b: ArrayLike, wa: float, wb: float, colour: tuple) -> None:
        """Tapered capsule from a (radius wa) to b (radius wb)."""
        a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
        along = (b - a) / (np.linalg.norm(b - a) + 1e-9)
        side = np.array([-along[1], along[0]])
        self.poly([a + side * wa, b + side * wb, b - side * wb, a - side * wa], colour)
        self.ellipse(a[0], a[1], wa, wa, colour)
        self.ellipse(b[0], b[1], wb, wb, colour)


def shade(colour: tuple, factor: float) -> Colour:
    """Colour times `factor` (above 1 it moves towards white by factor - 1)."""
    if factor <= 1:
        return tuple(int(c * factor) for c in colour)  # type: ignore[return-value]
    return tuple(int(c + (255 - c) * min(1.0, factor - 1)) for c in colour)  # type: ignore[return-value]


def jitter(rng: np.random.Generator, colour: tuple, spread: int = 14) -> Colour:
    """Colour with a uniform change of up to `spread` per channel."""
    steps = rng.integers(-spread, spread + 1, 3)
    return tuple(int(min(255, max(0, c + d))) for c, d in zip(colour, steps, strict=True))  # type: ignore[return-value]


def article(phrase: str) -> str:
    """The phrase with a or an in front."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def named_colour(rng: np.random.Generator, names: tuple[str, ...] = COLOUR_NAMES) -> tuple[str, Colour]:
    """A colour name and a jittered RGB value for it."""
    name = names[int(rng.integers(len(names)))]
    return name, jitter(rng, COLOURS[name])


def arc(x: float, y: float, rx: float, ry: float, start: float, stop: float, n: int = 14) -> np.ndarray:
    """[n, 2] points on an ellipse from angle `start` to `stop` (degrees, clockwise as y points down)."""
    t = np.radians(np.linspace(start, stop, n))
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], axis=1)
