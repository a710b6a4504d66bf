"""Draws heads: hair, eyes, brows, nose, mouth, glasses, hats and beards, frontal and turned."""

import numpy as np

from sbm_jax.demo.draw_base import CIRCLE, Pen, Thing, arc, article, jitter, named_colour, shade

SKINS = (
    (255, 224, 196), (241, 194, 160), (224, 172, 125), (198, 134, 86), (160, 104, 66), (118, 74, 48),
    (84, 54, 38),
)  # fmt: skip
HAIR = {
    "black": (30, 26, 26),
    "brown": (92, 58, 34),
    "blond": (222, 184, 106),
    "red": (164, 72, 34),
    "gray": (168, 166, 164),
}
HAIR_NAMES = tuple(HAIR)
EXPRESSIONS = ("smiling", "sad", "surprised", "angry", "calm")
HAIR_STYLES = ("short", "long", "curly", "fringe", "bald", "parted")
HATS = ("hat", "cap")
IRIS = ((70, 45, 25), (60, 100, 150), (70, 110, 70), (40, 30, 25))
INK = (35, 25, 25)


def skin_tone(rng: np.random.Generator) -> tuple[int, int, int]:
    """A skin colour."""
    return jitter(rng, SKINS[int(rng.integers(len(SKINS)))], 8)


def draw_face(pen: Pen, rng: np.random.Generator, skin: tuple[int, int, int], neck: bool = True) -> Thing:
    """Draw a head that fills about [-0.8, 0.8] x [-1, 1]; returns its description."""
    expression = EXPRESSIONS[int(rng.choice(5, p=(0.35, 0.16, 0.16, 0.16, 0.17)))]
    style = HAIR_STYLES[int(rng.integers(len(HAIR_STYLES)))]
    hair_name = HAIR_NAMES[int(rng.integers(len(HAIR_NAMES)))]
    hair = jitter(rng, HAIR[hair_name], 12)
    yaw = 0.0 if rng.random() < 0.35 else float(rng.uniform(-1, 1))
    rx, ry, jaw = rng.uniform(0.56, 0.68), rng.uniform(0.76, 0.86), rng.uniform(0.05, 0.3)
    glasses, beard = rng.random() < 0.28, style != "long" and rng.random() < 0.22
    hat = HATS[int(rng.integers(2))] if rng.random() < 0.2 else ""
    turn = 0.26 * yaw
    shadow = shade(skin, 0.78)

    if style == "long":
        pen.poly(
            [
                (-rx * 1.2, -0.3),
                (rx * 1.2, -0.3),
                (rx * 1.3, 0.75),
                (rx * 0.7, 0.95),
                (-rx * 0.7, 0.95),
                (-rx * 1.3, 0.75),
            ],
            hair,
        )
    if style in ("long", "short", "fringe", "parted"):
        pen.ellipse(0, -0.2, rx * 1.17, ry * 0.92, shade(hair, 0.8))
    if style == "curly":
        for t in np.linspace(150, 390, 11):
            x, y = arc(0, -0.2, rx * 0.98, ry * 0.82, t, t, 1)[0]
            pen.ellipse(x, y, 0.24, 0.24, shade(hair, rng.uniform(0.8, 1.1)))
    if neck:
        pen.rect(-0.26 + turn * 0.3, 0.5, 0.26 + turn * 0.3, 1.04, shade(skin, 0.7))
    for side in (-1, 1):
        if side * yaw < 0.45:  # the ear on the far side of a turned head is hidden
            pen.ellipse(side * rx * 0.99 - turn * 0.2, 0.08, 0.11, 0.18, shadow)
    outline = CIRCLE * (rx, ry)
    outline[:, 0] *= 1 - jaw * np.clip(outline[:, 1] / ry, 0, 1) ** 2
    pen.poly(outline, skin)
    light = float(rng.choice((-1, 1)))
    pen.poly(outline * (0.62, 0.93) + (light * rx * 0.3, 0), (*shade(skin, 1.2), 70))
    _beard_and_mouth(pen, rng, expression, (rx, ry, jaw), turn, skin, shade(hair, 0.95) if beard else None)
    _nose(pen, turn, yaw, shadow)
    _eyes(pen, rng, expression, rx, turn, yaw, shade(hair, 0.7) if style != "bald" else shade(skin, 0.45), skin)
    if glasses:
        _glasses(pen, rng, rx, turn, yaw)
    _hair(pen, rng, style, hair, rx, ry, turn)
    details = []
    if hat:
        hat_name = _hat(pen, rng, hat, rx, ry)
        details.append(f"with {article(hat_name)} {hat}")
    if glasses:
        details.append("with glasses")
    if beard:
        details.append("with a beard")
    if not hat:
        details.append("with a bald head" if style == "bald" else f"with {_hair_words(style)}{hair_name} hair")
    attributes: dict[str, str | float] = {
        "expression": expression, "hair": "none" if style == "bald" else hair_name, "glasses": float(glasses),
        "yaw": yaw,
    }  # fmt: skip
    return Thing("face", "face", [expression], details, attributes)


def _hair_words(style: str) -> str:
    return f"{style} " if style in ("short", "long", "curly") else ""


def _columns(x: float, turn: float, yaw: float) -> float:
    """Horizontal place of a feature at x on a head turned by yaw (the far side is foreshortened)."""
    return turn + x * (1 - 0.32 * max(0.0, np.sign(x) * yaw) - 0.06 * abs(yaw))


def _eyes(
    pen: Pen,
    rng: np.random.Generator,
    expression: str,
    rx: float,
    turn: float,
    yaw: float,
    brow: tuple,
    skin: tuple,
) -> None:
    wide = {"surprised": 1.35, "angry": 0.75, "smiling": 0.9}.get(expression, 1.0)
    iris = IRIS[int(rng.integers(len(IRIS)))]
    look = rng.uniform(-0.04, 0.04) + 0.03 * yaw
    brow_tilt = {"angry": 0.1, "sad": -0.1}.get(expression, rng.uniform(-0.02, 0.02))
    brow_y = -0.33 - {"surprised": 0.1, "angry": -0.06}.get(expression, 0.0)
    weight = rng.uniform(0.045, 0.085)
    for side in (-1, 1):
        x = _columns(side * rx * 0.45, turn, yaw)
        w = 0.15 * (1 - 0.3 * max(0.0, side * yaw))
        pen.ellipse(x, -0.1, w * 1.25, 0.13, (*shade(skin, 0.6), 70))
        pen.ellipse(x, -0.1, w, 0.085 * wide, (250, 248, 244))
        pen.ellipse(x + look, -0.1, min(w, 0.078), 0.078 * min(wide, 1.1), iris)
        pen.ellipse(x + look, -0.1, 0.04, 0.042, (12, 10, 10))
        pen.ellipse(x + look + 0.025, -0.125, 0.018, 0.018, (255, 255, 255))
        pen.line(arc(x, -0.09, w * 1.08, 0.1 * wide, 190, 350, 8), 0.035, INK)
        inner, outer = x - side * w, x + side * w * 1.1
        pen.line([(inner, brow_y + brow_tilt), (x, brow_y - 0.03), (outer, brow_y - brow_tilt * 0.5)], weight, brow)


def _nose(pen: Pen, turn: float, yaw: float, shadow: tuple) -> None:
    tip = turn * 1.55
    side = 1 if yaw >= 0 else -1
    pen.line([(turn + side * 0.03, -0.05), (tip + side * 0.09, 0.2), (tip - side * 0.06, 0.24)], 0.035, shadow)
    pen.ellipse(tip, 0.21, 0.1, 0.055, (*shadow, 160))
    for s in (-1, 1):
        pen.ellipse(tip + 0.05 * s, 0.235, 0.022, 0.016, (60, 30, 25))


def _beard_and_mouth(
    pen: Pen,
    rng: np.random.Generator,
    expression: str,
    shape: tuple,
    turn: float,
    skin: tuple,
    beard: tuple | None,
) -> None:
    rx, ry, jaw = shape
    x, y, w = turn * 1.15, 0.46, rng.uniform(0.2, 0.27)
    if beard is not None:
        low = arc(0, 0, rx, ry * 1.03, 8, 172, 18)
        low[:, 0] *= 1 - jaw * np.clip(low[:, 1] / ry, 0, 1) ** 2
        pen.poly(np.concatenate([low, [(-rx * 0.6 + x * 0.5, 0.32), (x, 0.29), (rx * 0.6 + x * 0.5, 0.32)]]), beard)
    lips = (178, 62, 66) if rng.random() < 0.5 else shade(skin, 0.62)
    if expression == "smiling":
        if rng.random() < 0.6:
            pen.poly(arc(x, y - 0.05, w * 1.1, 0.2, 0, 180, 12), shade(lips, 0.75))
            pen.poly(arc(x, y - 0.04, w * 0.92, 0.09, 0, 180, 10), (250, 248, 240))
        else:
            pen.line(arc(x, y - 0.1, w * 1.2, 0.19, 15, 165, 10), 0.06, lips)
        for s in (-1, 1):
            pen.ellipse(turn + s * rx * 0.58, 0.24, 0.13, 0.09, (225, 80, 70, 50))
    elif expression == "sad":
        pen.line(arc(x, y + 0.16, w, 0.15, 200, 340, 10), 0.06, lips)
    elif expression == "surprised":
        pen.ellipse(x, y + 0.03, w * 0.55, 0.16, lips)
        pen.ellipse(x, y + 0.03, w * 0.38, 0.11, (60, 15, 20))
    elif expression == "angry":
        pen.poly([(x - w, y + 0.1), (x - w * 0.6, y - 0.02), (x + w * 0.6, y - 0.02), (x + w, y + 0.1)], lips)
        pen.rect(x - w * 0.6, y + 0.015, x + w * 0.6, y + 0.07, (245, 240, 232))
    else:
        pen.ellipse(x, y + 0.02, w, 0.055, lips)
        pen.line([(x - w, y + 0.02), (x, y + 0.03), (x + w, y + 0.02)], 0.02, shade(lips, 0.5))


def _glasses(pen: Pen, rng: np.random.Generator, rx: float, turn: float, yaw: float) -> None:
    frame = named_colour(rng, ("black", "black", "red", "blue", "brown"))[1]
    xs = [_columns(s * rx * 0.45, turn, yaw) for s in (-1, 1)]
    sun = rng.random() < 0.2
    for s, x in zip((-1, 1), xs, strict=True):
        w = 0.215 * (1 - 0.25 * max(0.0, s * yaw))
        pen.ellipse(x, -0.08, w, 0.18, (20, 20, 28) if sun else (235, 245, 255, 50))
        pen.ring(x, -0.08, w, 0.18, 0.05, frame)
        pen.line([(x + s * w, -0.1), (s * rx * 0.97, -0.12)], 0.045, frame)
    pen.line([(xs[0] + 0.18, -0.1), (turn, -0.13), (xs[1] - 0.18, -0.1)], 0.045, frame)


def _hair(pen: Pen, rng: np.random.Generator, style: str, hair: tuple, rx: float, ry: float, turn: float) -> None:
    if style == "bald":
        return
    top = arc(0, -0.1, rx * 1.12, ry * 1.06, 178, 362, 20)
    if style == "fringe":
        inner = [(rx * 0.95, -0.34), (turn, -0.42), (-rx * 0.95, -0.34)]
    elif style == "parted":
        part = turn + float(rng.choice((-1, 1))) * rx * 0.35
        inner = [
            (rx * 0.98, -0.15),
            (rx * 0.7, -0.42),
            (part, -0.76),
            (-rx * 0.7, -0.42),
            (-rx * 0.98, -0.15),
        ]
    else:
        inner = [
            (rx * 0.98, -0.1),
            (rx * 0.82, -0.45),
            (turn + 0.1, -0.58),
            (-rx * 0.82, -0.45),
            (-rx * 0.98, -0.1),
        ]
    pen.poly(np.concatenate([top, inner]), hair)
    pen.line(arc(0, -0.1, rx * 0.85, ry * 0.9, 220, 285, 8), 0.04, shade(hair, 1.2))


def _hat(pen: Pen, rng: np.random.Generator, kind: str, rx: float, ry: float) -> str:
    name, colour = named_colour(rng)
    if kind == "hat":
        pen.poly([(-rx * 0.9, -0.5), (-rx * 0.75, -1.05), (rx * 0.75, -1.05), (rx * 0.9, -0.5)], colour)
        pen.rect(-rx * 0.88, -0.68, rx * 0.88, -0.53, shade(colour, 0.55))
        pen.ellipse(0, -0.5, rx * 1.5, 0.11, shade(colour, 0.88))
    else:
        pen.poly(arc(0, -0.42, rx * 1.1, ry * 0.72, 180, 360, 18), colour)
        side = float(rng.choice((-1, 1)))
        pen.poly(
            [
                (-side * rx * 0.3, -0.46),
                (side * rx * 1.55, -0.4),
                (side * rx * 1.5, -0.32),
                (-side * rx * 0.3, -0.36),
            ],
            shade(colour, 0.7),
        )
    return name
