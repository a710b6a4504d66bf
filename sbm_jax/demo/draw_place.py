"""Draws structured places that fill the picture: streets, rooms, corridors, landscapes, woods and cities."""
# ruff: noqa: RUF005  (a tuple added to an array shifts it)

from collections.abc import Callable

import numpy as np

from sbm_jax.demo.draw_base import Canvas, Pen, Thing, arc, jitter, named_colour, shade

Rng = np.random.Generator
SKIES = (
    ((110, 170, 230), (205, 228, 245)), ((70, 110, 190), (240, 190, 150)), ((150, 160, 172), (210, 214, 218)),
    ((25, 30, 65), (70, 70, 120)), ((235, 140, 90), (250, 215, 150)),
)  # fmt: skip
WALLS = ((225, 205, 170), (190, 95, 75), (235, 230, 220), (170, 190, 205), (215, 170, 110), (150, 160, 130))
GRASS, BARK, LEAF = (105, 155, 75), (95, 65, 40), (55, 115, 55)


def _bands(pen: Pen, y0: float, y1: float, top: tuple, bottom: tuple, n: int = 10) -> None:
    """Vertical gradient as n bands."""
    edges = np.linspace(y0, y1, n + 1)
    for i in range(n):
        t = i / (n - 1)
        pen.rect(
            -0.02,
            edges[i],
            1.02,
            edges[i + 1] + 0.01,
            tuple(int(a * (1 - t) + b * t) for a, b in zip(top, bottom, strict=True)),
        )


def _sky(pen: Pen, rng: Rng, horizon: float) -> None:
    top, low = SKIES[int(rng.choice(len(SKIES), p=(0.45, 0.15, 0.15, 0.1, 0.15)))]
    _bands(pen, 0, horizon, jitter(rng, top), jitter(rng, low))
    if rng.random() < 0.4:
        r = rng.uniform(0.035, 0.07)
        pen.ellipse(rng.uniform(0.1, 0.9), rng.uniform(0.06, 0.6) * horizon, r, r, (255, 240, 180))
    for _ in range(int(rng.integers(0, 4))):
        x, y, w = rng.uniform(0, 1), rng.uniform(0.05, 0.7) * horizon, rng.uniform(0.05, 0.1)
        for dx in (-0.8, 0, 0.8):
            pen.ellipse(x + dx * w, y + abs(dx) * 0.01, w, w * 0.4, (*shade(low, 1.5), 190))


def _house(pen: Pen, rng: Rng, x0: float, x1: float, base: float, height: float) -> None:
    wall = jitter(rng, WALLS[int(rng.integers(len(WALLS)))], 18)
    top, w = base - height, x1 - x0
    pen.rect(x0, top, x1, base, wall)
    roof = jitter(rng, ((150, 65, 50), (95, 80, 80), (80, 60, 50))[int(rng.integers(3))])
    if rng.random() < 0.75:
        pen.poly([(x0 - 0.08 * w, top), ((x0 + x1) / 2, top - 0.4 * w), (x1 + 0.08 * w, top)], roof)
    else:
        pen.rect(x0 - 0.03 * w, top - 0.04, x1 + 0.03 * w, top, roof)
    glass = (250, 225, 140) if rng.random() < 0.3 else (120, 155, 180)
    for y in np.arange(top + 0.05, base - 0.1, 0.12):
        for t in (0.15, 0.62):
            pen.rect(x0 + t * w, y, x0 + (t + 0.24) * w, y + 0.07, glass)
    pen.rect(x0 + 0.39 * w, base - 0.1, x0 + 0.59 * w, base, shade(roof, 0.7))


def _tree(pen: Pen, rng: Rng, x: float, base: float, h: float, pointed: bool, factor: float = 1.0) -> None:
    leaf = shade(jitter(rng, LEAF, 16), factor)
    pen.rect(x - 0.04 * h, base - 0.4 * h, x + 0.04 * h, base, shade(BARK, factor))
    if pointed:
        for t, w in ((0.2, 0.3), (0.45, 0.24), (0.7, 0.16)):
            pen.poly(
                [(x - w * h, base - t * h), (x + w * h, base - t * h), (x, base - (t + 0.38) * h)],
                shade(leaf, 1 - 0.12 * (t < 0.4)),
            )
    else:
        for dx, t, r in ((-0.16, 0.58, 0.2), (0.16, 0.58, 0.2), (0, 0.78, 0.22)):
            pen.ellipse(x + dx * h, base - t * h, r * h, r * h, shade(leaf, 1 - 0.12 * (dx < 0)))


def _ridge(pen: Pen, rng: Rng, base: float, height: float, colour: tuple, snow: bool) -> None:
    xs = np.linspace(-0.1, 1.1, int(rng.integers(4, 7)) * 2 - 1)
    ys = base - height * np.where(
        np.arange(xs.size) % 2, rng.uniform(0.65, 1, xs.size), rng.uniform(0.05, 0.4, xs.size)
    )
    pen.poly([*zip(xs, ys, strict=True), (1.1, base + 0.02), (-0.1, base + 0.02)], colour)
    for i in range(1, xs.size - 1, 2):
        peak, right = np.array([xs[i], ys[i]]), np.array([xs[i + 1], ys[i + 1]])
        left = np.array([xs[i - 1], ys[i - 1]])
        pen.poly([peak, right, (xs[i] + 0.02, base)], (0, 0, 0, 50))
        if snow:
            a, b = peak * 0.68 + left * 0.32, peak * 0.68 + right * 0.32
            pen.poly([peak, b, (peak * 0.55 + b * 0.25 + a * 0.2 + (0, 0.01)), a], (245, 248, 252))


def _street(pen: Pen, rng: Rng) -> None:
    base = rng.uniform(0.58, 0.72)
    _sky(pen, rng, base)
    pen.rect(0, base - 0.01, 1, 1, jitter(rng, (165, 160, 155)))
    x = rng.uniform(-0.15, 0)
    while x < 1:
        w = rng.uniform(0.2, 0.34)
        _house(pen, rng, x, x + w, base, rng.uniform(0.2, 0.42))
        x += w + (rng.uniform(0.02, 0.1) if rng.random() < 0.5 else 0.0)
    road, top = jitter(rng, (80, 80, 85)), base + 0.07
    pen.rect(0, top, 1, 1, road)
    for x in np.arange(0.02, 1, 0.22):
        pen.rect(x, (top + 1) / 2, x + 0.12, (top + 1) / 2 + 0.025, (235, 230, 200))
    if rng.random() < 0.5:
        _tree(pen, rng, rng.uniform(0.1, 0.9), base + 0.05, rng.uniform(0.25, 0.4), False)


def _room(pen: Pen, rng: Rng) -> None:
    wall, floor = jitter(rng, WALLS[int(rng.integers(len(WALLS)))], 20), jitter(rng, (160, 115, 75), 25)
    base, side = rng.uniform(0.6, 0.75), rng.uniform(0.1, 0.25)
    top = rng.uniform(0.05, 0.14)
    pen.rect(0, 0, 1, 1, shade(wall, 1.3))
    pen.poly([(0, 0), (side, top), (side, base), (0, 1)], shade(wall, 0.8))
    pen.poly([(1, 0), (1 - side, top), (1 - side, base), (1, 1)], shade(wall, 0.7))
    pen.rect(side, top, 1 - side, base, wall)
    pen.poly([(side, base), (1 - side, base), (1.02, 1.02), (-0.02, 1.02)], floor)
    for t in np.linspace(0, 1, 9)[1:-1]:
        pen.line([(side + t * (1 - 2 * side), base), (t * 1.6 - 0.3, 1.02)], 0.006, shade(floor, 0.75))
    pen.line([(side, base), (1 - side, base)], 0.014, shade(wall, 0.6))
    x = rng.uniform(side + 0.05, 0.5)
    w, y, h = rng.uniform(0.16, 0.28), top + rng.uniform(0.06, 0.12), rng.uniform(0.18, 0.28)
    pen.rect(x - 0.015, y - 0.015, x + w + 0.015, y + h + 0.015, (245, 245, 240))
    pen.rect(x, y, x + w, y + h, jitter(rng, (165, 205, 235)))
    pen.rect(x, y + h * 0.7, x + w, y + h, (110, 160, 90))
    pen.line([(x + w / 2, y), (x + w / 2, y + h)], 0.014, (245, 245, 240))
    pen.line([(x, y + h / 2), (x + w, y + h / 2)], 0.014, (245, 245, 240))
    door = jitter(rng, (125, 80, 50), 20)
    x = rng.uniform(min(x + w + 0.06, 0.72), 0.78)
    pen.rect(x, base - 0.4, min(x + 0.17, 1 - side), base, door)
    pen.ellipse(x + 0.03, base - 0.2, 0.012, 0.012, (230, 200, 90))
    extra = rng.random()
    if extra < 0.35:
        pen.ellipse(0.5, (base + 1) / 2 + 0.03, 0.3, 0.08, named_colour(rng)[1])
    elif extra < 0.7:
        sofa = named_colour(rng)[1]
        x, y = rng.uniform(0.02, 0.5), base + 0.02
        pen.rect(x, y - 0.14, x + 0.36, y + 0.05, sofa)
        pen.rect(x + 0.03, y - 0.03, x + 0.33, y + 0.08, shade(sofa, 1.25))
        for t in (x - 0.02, x + 0.32):
            pen.rect(t, y - 0.07, t + 0.06, y + 0.1, shade(sofa, 0.8))


def _corridor(pen: Pen, rng: Rng) -> None:
    wall, floor = jitter(rng, WALLS[int(rng.integers(len(WALLS)))], 20), jitter(rng, (130, 125, 120), 25)
    v = np.array([rng.uniform(0.38, 0.62), rng.uniform(0.38, 0.55)])
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], dtype=float)
    far = v + (corners - v) * rng.uniform(0.14, 0.24)
    for i, c in enumerate((shade(wall, 1.4), shade(wall, 0.75), floor, wall)):
        j = (i + 1) % 4
        pen.poly([corners[i], corners[j], far[j], far[i]], c)
    pen.poly(far, shade(wall, 0.55))
    mid = (far[2] + far[3]) / 2
    size = far[2, 1] - far[1, 1]
    pen.rect(mid[0] - 0.2 * size, mid[1] - 0.65 * size, mid[0] + 0.2 * size, mid[1], jitter(rng, (180, 190, 200)))
    door = jitter(rng, (120, 75, 45), 25)
    for near, back in ((corners[3], far[3]), (corners[2], far[2])):
        for t in (0.12, 0.48, 0.74):
            a, b = near * (1 - t) + back * t, near * (0.82 - t) + back * (t + 0.18)
            h = [(1 - t) * 0.62 + 0.1 * t, (0.82 - t) * 0.62 + 0.1 * (t + 0.18)]
            pen.poly([a, b, b - (0, h[1]), a - (0, h[0])], door)
    for t in (0.1, 0.45, 0.75):
        s = 1 - t
        p = np.array([0.5, 0]) * s + (far[0] + far[1]) / 2 * t
        pen.poly(
            [p + (-0.12 * s, 0), p + (0.12 * s, 0), p + (0.09 * s, 0.05 * s), p + (-0.09 * s, 0.05 * s)],
            (255, 252, 230),
        )
    for t in (0.2, 0.5, 0.72, 0.88):
        pen.line([corners[3] * (1 - t) + far[3] * t, corners[2] * (1 - t) + far[2] * t], 0.005, shade(floor, 0.75))


def _mountains(pen: Pen, rng: Rng) -> None:
    horizon = rng.uniform(0.55, 0.72)
    _sky(pen, rng, horizon)
    rock = jitter(rng, (115, 120, 140), 20)
    _ridge(pen, rng, horizon, rng.uniform(0.35, 0.5), shade(rock, 1.15), True)
    if rng.random() < 0.6:
        _ridge(pen, rng, horizon, rng.uniform(0.12, 0.22), shade(jitter(rng, (90, 120, 90)), 0.9), False)
    _bands(pen, horizon, 1.0, jitter(rng, GRASS), shade(GRASS, 0.7), 6)
    for _ in range(int(rng.integers(2, 8))):
        y = rng.uniform(horizon + 0.02, 0.95)
        _tree(pen, rng, rng.uniform(0, 1), y, 0.12 + 0.5 * (y - horizon), True)


def _lake(pen: Pen, rng: Rng) -> None:
    horizon = rng.uniform(0.4, 0.55)
    _sky(pen, rng, horizon)
    _ridge(pen, rng, horizon, rng.uniform(0.12, 0.3), jitter(rng, (95, 125, 105), 20), False)
    water = jitter(rng, (60, 120, 165), 20)
    _bands(pen, horizon, 1.0, shade(water, 1.3), shade(water, 0.8), 6)
    for _ in range(16):
        x, y = rng.uniform(0, 1), rng.uniform(horizon + 0.02, 0.98)
        pen.line([(x, y), (x + rng.uniform(0.04, 0.16), y)], 0.007, shade(water, 1.5))
    for x in np.arange(0, 1, 0.09):
        if rng.random() < 0.6:
            _tree(pen, rng, x, horizon + 0.01, rng.uniform(0.08, 0.16), True, 0.9)
    pen.poly(
        [
            (-0.02, 1.02),
            (-0.02, 0.86),
            (rng.uniform(0.25, 0.7), 0.9),
            (1.02, rng.uniform(0.93, 1.0)),
            (1.02, 1.02),
        ],
        shade(GRASS, 0.8),
    )


def _beach(pen: Pen, rng: Rng) -> None:
    horizon = rng.uniform(0.35, 0.5)
    _sky(pen, rng, horizon)
    shore = rng.uniform(horizon + 0.12, 0.72)
    sea = jitter(rng, (45, 130, 175), 20)
    _bands(pen, horizon, shore + 0.08, shade(sea, 0.8), shade(sea, 1.3), 6)
    xs = np.linspace(0, 1, 12)
    edge = shore + 0.025 * np.sin(xs * rng.uniform(5, 12) + rng.uniform(0, 6)) + 0.06 * (xs - 0.5)
    sand = jitter(rng, (228, 205, 150))
    pen.poly([*zip(xs, edge - 0.02, strict=True), (1, 1), (0, 1)], (245, 250, 250))
    pen.poly([*zip(xs, edge, strict=True), (1, 1), (0, 1)], sand)
    x = float(rng.choice((rng.uniform(0.08, 0.25), rng.uniform(0.75, 0.92))))
    crown = np.array([x + rng.uniform(-0.08, 0.08), shore - 0.3])
    pen.line([(x, shore + 0.18), (x + 0.02, shore - 0.05), crown], 0.028, BARK)
    for t in (150, 185, 215, 325, 355, 30):
        tip = arc(crown[0], crown[1], 0.17, 0.13, t, t, 1)[0]
        pen.poly(
            [crown, (crown + tip) / 2 + (0, -0.035), tip + (0, 0.03), (crown + tip) / 2 + (0, 0.015)],
            jitter(rng, LEAF),
        )
    for _ in range(5):
        x, y = rng.uniform(0, 0.9), rng.uniform(horizon + 0.02, shore - 0.04)
        pen.line([(x, y), (x + 0.1, y)], 0.007, shade(sea, 1.6))


def _forest(pen: Pen, rng: Rng) -> None:
    horizon = rng.uniform(0.5, 0.68)
    _sky(pen, rng, horizon)
    pointed = rng.random() < 0.5
    pen.rect(0, horizon - 0.02, 1, 1, jitter(rng, (85, 110, 60)))
    x = rng.uniform(0.35, 0.65)
    path = jitter(rng, (175, 145, 105))
    for row, (y, h, n) in enumerate(((horizon + 0.02, 0.4, 9), (horizon + 0.12, 0.55, 5), (0.92, 0.8, 3))):
        if row == 1:
            pen.poly([(x - 0.03, horizon), (x + 0.03, horizon), (x + 0.28, 1.02), (x - 0.28, 1.02)], path)
        for t in np.linspace(0, 1, n) + rng.normal(0, 0.04, n):
            if row == 0 or abs(t - x) > 0.16:
                _tree(pen, rng, t, y, h * rng.uniform(0.8, 1.15), pointed, 1.15 - 0.2 * row)


def _city(pen: Pen, rng: Rng) -> None:
    base = rng.uniform(0.72, 0.86)
    _sky(pen, rng, base)
    for depth in range(2):
        x = rng.uniform(-0.1, 0)
        while x < 1:
            w, h = rng.uniform(0.12, 0.22), rng.uniform(0.3, 0.68) * (1.1 - 0.4 * depth)
            c = shade(
                jitter(
                    rng,
                    ((110, 120, 140), (150, 140, 130), (90, 95, 110), (165, 150, 150))[int(rng.integers(4))],
                ),
                1.15 - 0.3 * depth,
            )
            pen.rect(x, base - h, x + w, base, c)
            lit = (250, 225, 140) if rng.random() < 0.5 else shade(c, 1.5)
            for y in np.arange(base - h + 0.03, base - 0.05, 0.075):
                pen.rect(x + 0.02, y, x + w - 0.02, y + 0.035, lit if rng.random() < 0.8 else shade(c, 0.6))
            for t in (0.36, 0.68):
                pen.line([(x + t * w, base - h), (x + t * w, base)], 0.014, c)
            x += w + (rng.uniform(0, 0.12) if depth else 0)
    pen.rect(0, base, 1, 1, jitter(rng, (85, 85, 92)))
    pen.rect(0, base, 1, base + 0.03, (170, 168, 165))


def _field(pen: Pen, rng: Rng) -> None:
    horizon = rng.uniform(0.42, 0.6)
    _sky(pen, rng, horizon)
    crop = jitter(rng, ((190, 175, 80), (120, 165, 75), (150, 120, 75))[int(rng.integers(3))])
    xs = np.linspace(0, 1, 10)
    hill = horizon - 0.06 * (1 + np.sin(xs * rng.uniform(3, 7) + rng.uniform(0, 6)))
    pen.poly([*zip(xs, hill, strict=True), (1, 1), (0, 1)], shade(GRASS, 0.85))
    pen.rect(0, horizon, 1, 1, crop)
    vx = rng.uniform(0.2, 0.8)
    for t in np.linspace(-1.2, 2.2, 14):
        pen.poly(
            [
                (vx + (t - vx) * 0.1, horizon),
                (vx + (t + 0.1 - vx) * 0.1, horizon),
                (t + 0.12, 1.02),
                (t, 1.02),
            ],
            shade(crop, 0.78),
        )
    x = rng.uniform(0.05, 0.7)
    _house(pen, rng, x, x + 0.22, horizon + 0.04, 0.14)
    for _ in range(int(rng.integers(1, 4))):
        _tree(pen, rng, rng.uniform(0, 1), horizon + 0.05, rng.uniform(0.18, 0.32), False)
    if rng.random() < 0.5:
        for x in np.arange(0.03, 1, 0.12):
            pen.rect(x, 0.8, x + 0.022, 0.95, (200, 180, 150))
        for y in (0.83, 0.89):
            pen.rect(0, y, 1, y + 0.018, (190, 170, 140))


# kind -> (drawing, indoor or outdoor, ways to say it)
PLACES: dict[str, tuple[Callable[[Pen, Rng], None], str, tuple[str, ...]]] = {
    "street": (_street, "outdoor", ("street with houses", "street", "road with houses")),
    "room": (_room, "indoor", (
        "room with a window", "room with a door and a window", "room", "room with a floor and walls",
    )),
    "corridor": (_corridor, "indoor", ("corridor", "long corridor with doors", "corridor with lights")),
    "mountains": (_mountains, "outdoor", (
        "landscape with mountains", "mountain landscape with trees", "landscape with snow mountains",
    )),
    "lake": (_lake, "outdoor", (
        "landscape with a lake", "lake with hills and trees", "landscape with water",
    )),
    "beach": (_beach, "outdoor", ("beach", "beach by the sea", "beach with a palm")),
    "forest": (_forest, "outdoor", ("forest", "forest with a path", "landscape with many trees")),
    "city": (_city, "outdoor", ("city with tall buildings", "city", "city street with buildings")),
    "field": (_field, "outdoor", (
        "field with a house", "farm with a field", "landscape with a field and trees",
    )),
}  # fmt: skip
PLACE_KINDS = tuple(PLACES)


def draw_place(canvas: Canvas, rng: Rng, instance: int) -> Thing:
    """Fill the canvas with one structured place; returns its description (kind, indoor or outdoor)."""
    kind = PLACE_KINDS[int(rng.integers(len(PLACE_KINDS)))]
    paint, setting, names = PLACES[kind]
    if rng.random() < 0.5:
        pen = canvas.page(instance)
    else:  # the mirrored place
        pen = Pen(canvas, instance, (float(canvas.side), 0.0), float(canvas.side), flip=True)
    paint(pen, rng)
    canvas.ids.paste(instance, (0, 0, canvas.side, canvas.side))
    return Thing("place", names[int(rng.integers(len(names)))], [], [], {"place": kind, "setting": setting})
