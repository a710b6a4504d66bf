"""Draws people below the head: torso and jointed limbs in random poses with clothes."""
# ruff: noqa: RUF005  (a tuple added to an array shifts it)

import numpy as np

from sbm_jax.demo.draw_base import Pen, Thing, article, named_colour, shade

POSES = ("standing", "walking", "running", "jumping", "sitting", "dancing")
CLOTHES = ("shirt", "dress", "coat")
LEGWEAR = ("long trousers", "shorts", "skirt")

# degrees from straight down, towards +x: left thigh, left shin, right thigh, right shin,
# left arm, left forearm, right arm, right forearm
_ANGLES = {
    "standing": (-6, -3, 6, 3, -14, -6, 14, 6),
    "walking": (-24, -30, 24, 12, 26, 45, -26, -8),
    "running": (-38, -85, 52, -8, 48, 120, -52, 25),
    "jumping": (-42, -60, 42, 60, -140, -155, 140, 155),
    "sitting": (66, -4, 84, 2, 22, 60, 10, 52),
    "dancing": (-12, -20, 40, -25, -110, -165, 75, 130),
}


def _down(degrees: float, length: float) -> np.ndarray:
    t = np.radians(degrees)
    return np.array([np.sin(t), np.cos(t)]) * length


def _skirt(
    pen: Pen, hip: np.ndarray, thighs: tuple[float, float], length: float, waist: float, hem: float, c: tuple
) -> None:
    """Cloth from the hip along the mean direction of the thighs (degrees), `hem` to either side there."""
    along = _down(thighs[0], 0.5) + _down(thighs[1], 0.5)
    along /= np.linalg.norm(along) + 1e-9
    side, end = np.array([along[1], -along[0]]), hip + along * length
    pen.poly([hip - side * waist, hip + side * waist, end + side * hem, end - side * hem], c)


def draw_body(pen: Pen, rng: np.random.Generator, skin: tuple[int, int, int], head: str) -> Thing:
    """Draw a figure in about [-0.6, 0.6] x [-0.7, 1]; `head`: none, tiny or face."""
    pose = POSES[int(rng.integers(len(POSES)))]
    angles = np.asarray(_ANGLES[pose], dtype=float) + rng.normal(0, 9, 8)
    if rng.random() < 0.2:
        angles[4:] = rng.uniform(-170, 170, 4)
    garment = CLOTHES[int(rng.choice(3, p=(0.6, 0.22, 0.18)))]
    legwear = LEGWEAR[int(rng.choice(3, p=(0.6, 0.28, 0.12)))]
    top_name, top = named_colour(rng)
    leg_name, cloth = named_colour(rng)
    long_sleeves = garment == "coat" or rng.random() < 0.4
    width = rng.uniform(0.8, 1.2)
    lean = _down(180 - rng.normal(0, 5), 0.6)
    hip = np.array([0.0, 0.02])
    neck = hip + lean
    shoulder, pelvis, arm, leg = 0.21 * width, 0.13 * width, 0.075 * width, 0.105 * width
    left, right = neck + (-shoulder, 0.06), neck + (shoulder, 0.06)

    def draw_arm(start: np.ndarray, a: float, b: float, factor: float) -> None:
        elbow = start + _down(a, 0.31)
        hand = elbow + _down(b, 0.29)
        sleeve = shade(top, factor)
        pen.limb(elbow, hand, arm * 0.82, arm * 0.6, sleeve if long_sleeves else shade(skin, factor))
        pen.limb(start, elbow, arm, arm * 0.85, sleeve if long_sleeves else shade(skin, factor))
        if not long_sleeves:
            pen.limb(start, start + _down(a, 0.16), arm * 1.15, arm * 1.12, sleeve)
        x, y = hand + _down(b, 0.03)
        pen.ellipse(x, y, arm * 0.8, arm * 0.8, shade(skin, factor))

    def draw_leg(start: np.ndarray, a: float, b: float, factor: float) -> None:
        knee = start + _down(a, 0.44)
        foot = knee + _down(b, 0.43)
        bare = garment == "dress" or legwear != "long trousers"
        colour = shade(skin if bare else cloth, factor)
        pen.limb(knee, foot, leg * 0.78, leg * 0.5, colour)
        pen.limb(start, knee, leg * 1.08, leg * 0.8, colour)
        if garment != "dress" and legwear == "shorts":
            pen.limb(start, start + _down(a, 0.26), leg * 1.2, leg * 1.15, shade(cloth, factor))
        pen.ellipse(foot[0] + 0.05, foot[1] + 0.03, 0.12, 0.055, shoe)

    shoe = named_colour(rng, ("black", "brown", "white", "red"))[1]
    draw_arm(left, angles[4], angles[5], 0.8)
    draw_leg(hip + (-pelvis * 0.6, 0), angles[0], angles[1], 0.82)
    draw_leg(hip + (pelvis * 0.6, 0), angles[2], angles[3], 1.0)
    pen.limb(neck + (0, -0.07), neck + (0, 0.05), 0.065, 0.075, shade(skin, 0.85))
    torso = [left + (-0.03, -0.03), neck + (-0.08, -0.02), neck + (0.08, -0.02), right + (0.03, -0.03)]
    torso += [
        hip + (pelvis * 1.15, -0.2),
        hip + (pelvis * 1.3, 0.06),
        hip + (-pelvis * 1.3, 0.06),
        hip + (-pelvis * 1.15, -0.2),
    ]
    if garment != "dress" and legwear == "skirt":
        _skirt(pen, hip, (angles[0], angles[2]), 0.5, pelvis * 1.2, 0.24, cloth)
    elif garment != "dress":
        pen.ellipse(hip[0], hip[1] + 0.03, pelvis * 1.32, 0.12, cloth)
    pen.poly(torso, top)
    if garment == "dress":
        _skirt(pen, hip + (0, -0.1), (angles[0], angles[2]), 0.68, pelvis * 1.15, 0.31, top)
    elif garment == "coat":
        pen.poly([torso[4], torso[7], hip + (-pelvis * 1.7, 0.32), hip + (pelvis * 1.7, 0.32)], top)
        pen.line([neck, hip + (0, 0.3)], 0.025, shade(top, 0.5))
    _decorate(pen, rng, torso, neck, hip, top, pelvis)
    pen.poly(
        [torso[3], torso[4], torso[5], torso[5] - (0.07, 0), torso[4] - (0.08, 0), torso[3] - (0.14, 0)],
        (0, 0, 0, 45),
    )
    draw_arm(right, angles[6], angles[7], 1.0)
    if head == "tiny":
        top_of = neck + _down(180, 0.2)
        pen.ellipse(top_of[0], top_of[1], 0.095, 0.12, skin)
        pen.poly(np.array([(-0.1, 0), (-0.08, -0.12), (0.08, -0.12), (0.1, 0)]) + top_of + (0, -0.02), (50, 35, 28))
    details = [f"in {article(top_name)} {garment}"]
    if garment == "shirt":
        details.append(f"with {leg_name} {legwear}" if legwear != "skirt" else f"with {article(leg_name)} skirt")
    if head == "none":
        details.append("without a head")
    attributes: dict[str, str | float] = {
        "pose": pose,
        "garment": garment,
        "garment_colour": top_name,
        "head": head,
    }
    thing = Thing("body", "body", [pose], details, attributes)
    thing.attributes["neck_x"], thing.attributes["neck_y"] = float(neck[0]), float(neck[1])
    return thing


def _decorate(
    pen: Pen,
    rng: np.random.Generator,
    torso: list,
    neck: np.ndarray,
    hip: np.ndarray,
    top: tuple,
    pelvis: float,
) -> None:
    """Stripes, a belt or a collar on the torso."""
    kind = rng.random()
    if kind < 0.25:
        other = named_colour(rng)[1]
        for t in np.linspace(0.2, 0.85, 4):
            a, b = torso[0] * (1 - t) + torso[7] * t, torso[3] * (1 - t) + torso[5] * t
            pen.line([a * 0.85 + b * 0.15, b * 0.85 + a * 0.15], 0.045, other)
    elif kind < 0.5:
        pen.line([hip + (-pelvis * 1.2, 0.02), hip + (pelvis * 1.2, 0.02)], 0.05, shade(top, 0.4))
    elif kind < 0.75:
        pen.poly([neck + (-0.09, -0.02), neck + (0.09, -0.02), neck + (0, 0.12)], shade(top, 1.5))
