"""Procedural scenes with known content: background, one to four things, mask, labels and caption."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np

from sbm_jax.demo.draw_background import BACKGROUNDS, draw_background, draw_clutter, light
from sbm_jax.demo.draw_base import COLOUR_NAMES, Canvas, Pen, Thing, article
from sbm_jax.demo.draw_body import CLOTHES, LEGWEAR, POSES, draw_body
from sbm_jax.demo.draw_face import EXPRESSIONS, HAIR_NAMES, HAIR_STYLES, HATS, draw_face, skin_tone
from sbm_jax.demo.draw_food import FOOD_KINDS, draw_food
from sbm_jax.demo.draw_object import OBJECT_KINDS, draw_object
from sbm_jax.demo.draw_place import PLACES, draw_place
from sbm_jax.demo.draw_word import WORDS, draw_word
from sbm_jax.errors import UserError

CONCEPTS = ("face", "body", "place", "word", "food", "object")
SMALLEST_VISIBLE = 0.005  # fraction of pixels below which a thing does not count as present
SOLO_SHARE = 0.36  # scenes with a single concept
_STREAM = 0x5CE11E  # separates these random streams from others that use the same seed

_STARTS = (
    "",
    "",
    "",
    "a photo of",
    "a picture of",
    "an image of",
    "a drawing of",
    "a scene with",
    "a sketch of",
    "this is",
)
_JOINS = ("and", "next to", "with", "beside", "near")
_SIDES = ("on the left", "on the right", "at the top", "at the bottom")
_SIZES = ("small", "large")
_PLACE_PREPOSITIONS = ("in", "in front of")
_FACE_NOUNS = ("face", "face", "face", "head", "person with a face")
_BODY_NOUNS = ("body", "body", "figure", "body of a person")
_BOTH_NOUNS = ("person", "person with a body and a face")
_GLUE = (
    "a an the of on in empty view background sign word letters glasses beard bald head hair plate without with close up"
)

CONCEPT_PROMPTS: dict[str, tuple[str, ...]] = {
    "face": ("a face", "a photo of a face", "a picture of a smiling face", "a close up of a face with hair"),
    "body": ("a body", "a photo of a body", "a picture of a standing body", "a body of a person in a shirt"),
    "place": (
        "a photo of a street with houses",
        "a room with a window",
        "a landscape with mountains",
        "a view of a city with tall buildings",
    ),
    "word": ("a word", "a photo of a word", "a picture of letters", "a word on a sign"),
    "food": (
        "a photo of a pizza on a plate",
        "an apple",
        "a picture of a cake",
        "a photo of a burger",
        "an image of a banana",
        "a drawing of a bread",
    ),
    "object": (
        "a photo of a chair",
        "a car",
        "a picture of a clock",
        "a photo of a cup",
        "an image of a bottle",
        "a drawing of a plant",
    ),
}


def _vocabulary() -> tuple[str, ...]:
    phrases: list[str] = [
        *CONCEPTS,
        *COLOUR_NAMES,
        *CLOTHES,
        *LEGWEAR,
        *POSES,
        *EXPRESSIONS,
        *HAIR_NAMES,
        *HAIR_STYLES,
        *HATS,
    ]
    phrases += [*FOOD_KINDS, *OBJECT_KINDS, *WORDS, *_STARTS, *_JOINS, *_SIDES, *_SIZES, *_PLACE_PREPOSITIONS]
    phrases += [*_FACE_NOUNS, *_BODY_NOUNS, *_BOTH_NOUNS, _GLUE]
    phrases += [name for _, _, names in PLACES.values() for name in names]
    phrases += [phrase.replace("{}", "") for group in BACKGROUNDS.values() for phrase in group]
    phrases += [prompt for prompts in CONCEPT_PROMPTS.values() for prompt in prompts]
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


VOCABULARY: tuple[str, ...] = _vocabulary()


@dataclass(frozen=True)
class Scene:
    """One picture with its known content.

    image: uint8 [s, s, 3] RGB. mask: uint8 [s, s], 0 = background, i + 1 = CONCEPTS[i] visible there.
    labels: per concept the visible fraction of pixels (0 = absent).
    attributes: what was drawn, e.g. main, place, setting, food, object, word, pose, expression.
    """

    image: np.ndarray
    mask: np.ndarray
    caption: str
    labels: dict[str, float]
    attributes: dict[str, str | float]


def draw_scene(seed: int, index: int, size: int = 128) -> Scene:
    """Scene `index` of the series `seed` at `size` pixels; depends on these three numbers alone.

    Raises UserError if seed or index is negative or size is below 32.
    """
    if seed < 0 or index < 0 or size < 32:
        raise UserError(
            f"draw_scene needs seed >= 0, index >= 0 and size >= 32 pixels, got seed={seed},"
            f" index={index}, size={size}; choose values in that range"
        )
    rng = np.random.default_rng([_STREAM, seed, index])
    canvas = Canvas(2 * size)  # twice the size, reduced at the end: antialiasing
    wanted, solo = _choose_concepts(rng)
    things: list[Thing] = []
    attributes: dict[str, str | float] = {}
    if "place" in wanted:
        things.append(draw_place(canvas, rng, 1))
        backdrop = ""
    else:
        kind, backdrop = draw_background(canvas, rng)
        attributes["background"] = kind
    centres = _draw_things(canvas, rng, [c for c in wanted if c != "place"], solo, things)
    if things[0].concept == "place" and rng.random() < 0.08:
        draw_clutter(canvas, rng, int(rng.integers(1, 4)))

    instances = np.asarray(canvas.ids)[::2, ::2]
    shown = np.bincount(instances.ravel(), minlength=len(things) + 1)[1:] / instances.size
    table = np.zeros(len(things) + 1, dtype=np.uint8)
    for i, thing in enumerate(things):
        if shown[i] >= SMALLEST_VISIBLE:
            table[i + 1] = CONCEPTS.index(thing.concept) + 1
    mask = table[instances]
    counts = np.bincount(mask.ravel(), minlength=len(CONCEPTS) + 1)[1:] / mask.size
    visible = [(t, centres.get(i), float(shown[i])) for i, t in enumerate(things) if shown[i] >= SMALLEST_VISIBLE]
    for thing, _, _ in visible:
        for key, value in thing.attributes.items():
            attributes.setdefault(key, value)
    largest = max(visible, key=lambda v: v[2] * (0.25 if v[0].concept == "place" else 1.0))[0] if visible else None
    attributes["main"] = largest.concept if largest else "none"
    image = light(canvas.image.reduce(2), rng)
    labels = {c: float(counts[i]) for i, c in enumerate(CONCEPTS)}
    return Scene(image, mask, _caption(rng, visible, backdrop), labels, attributes)


def image_set(seed: int, indices: Iterable[int], size: int = 128, workers: int = 1) -> Iterator[Scene]:
    """Yield draw_scene(seed, i, size) for every i in order; workers > 1 uses spawned processes."""
    draw = partial(draw_scene, seed, size=size)
    if workers <= 1:
        yield from map(draw, indices)
        return
    with get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(draw, indices, chunksize=16)


def _choose_concepts(rng: np.random.Generator) -> tuple[list[str], bool]:
    """Concepts of a scene, the first one largest, and whether there is only one."""
    if rng.random() < SOLO_SHARE:
        return [CONCEPTS[int(rng.integers(len(CONCEPTS)))]], True
    wanted = ["place"] if rng.random() < 0.47 else []
    n = int(rng.choice((1, 2, 3), p=(0.28, 0.5, 0.22))) if wanted else int(rng.choice((2, 3, 4), p=(0.5, 0.38, 0.12)))
    # faces also come as heads of bodies, so they are asked for less often
    weights = np.array([0.135, 0.21, 0.215, 0.22, 0.22])
    others = [c for c in CONCEPTS if c != "place"]
    chosen = [others[i] for i in rng.choice(5, n, replace=False, p=weights)]
    if n < 4 and rng.random() < 0.2:  # a second one of the same kind
        chosen.append(chosen[-1])
    return wanted + chosen, False


def _draw_things(
    canvas: Canvas, rng: np.random.Generator, wanted: list[str], solo: bool, things: list[Thing]
) -> dict[int, tuple[float, float]]:
    """Draw the wanted things and append them to `things`; returns their centres in picture fractions."""
    centres: dict[int, tuple[float, float]] = {}
    taken: list[tuple[np.ndarray, float]] = []
    n = len(wanted)
    for order, concept in enumerate(wanted):
        if solo:
            radius = rng.uniform(0.27, 0.48)
        else:
            radius = rng.uniform(0.15, 0.34 if n < 3 else 0.27) * (1.15 if order == 0 else 0.9)
        if concept == "body":
            radius *= 1.3
        centre = _free_spot(rng, radius, taken, solo)
        taken.append((centre, radius))
        side = canvas.side
        angle = rng.normal(0, 0.18) if rng.random() < 0.8 else rng.uniform(-0.8, 0.8)
        flip = rng.random() < 0.5 and concept != "word"
        pen = Pen(canvas, len(things) + 1, (centre[0] * side, centre[1] * side), radius * side, angle, flip)
        centres[len(things)] = (float(centre[0]), float(centre[1]))
        if concept == "face":
            things.append(draw_face(pen, rng, skin_tone(rng), neck=rng.random() < 0.8))
        elif concept == "body":
            _draw_person(canvas, rng, pen, things, with_face=not solo and rng.random() < 0.42)
        else:
            things.append({"word": draw_word, "food": draw_food, "object": draw_object}[concept](pen, rng))
    return centres


def _draw_person(canvas: Canvas, rng: np.random.Generator, pen: Pen, things: list[Thing], with_face: bool) -> None:
    """A body and, if wanted, a face on its neck as a thing of its own."""
    skin = skin_tone(rng)
    head = "face" if with_face else ("none" if rng.random() < 0.6 else "tiny")
    body = draw_body(pen, rng, skin, head)
    neck = (float(body.attributes.pop("neck_x")), float(body.attributes.pop("neck_y")))
    things.append(body)
    if with_face:
        scale = float(rng.uniform(0.24, 0.34))
        centre = pen.place((neck[0], neck[1] - 0.05 - 0.8 * scale))
        face_pen = Pen(canvas, len(things) + 1, centre, pen.scale * scale, pen.angle + rng.normal(0, 0.12), pen.flip)
        face = draw_face(face_pen, rng, skin, neck=False)
        face.attributes["on_body"] = 1.0
        things.append(face)


def _free_spot(
    rng: np.random.Generator, radius: float, taken: list[tuple[np.ndarray, float]], solo: bool
) -> np.ndarray:
    """The one of a few random centres that overlaps least with what is there."""
    if solo:
        return 0.5 + rng.uniform(-1, 1, 2) * max(0.06, 0.46 - radius)
    margin = radius * 0.85
    spots = rng.uniform(margin, 1 - margin, (10, 2))
    cost = [sum(max(0.0, r + radius - float(np.hypot(*(s - c)))) for c, r in taken) for s in spots]
    return spots[int(np.argmin(cost))]


def _phrase(
    rng: np.random.Generator,
    thing: Thing,
    centre: tuple[float, float] | None,
    share: float,
    joined: bool,
    few: bool,
) -> str:
    """Noun phrase for one thing; a joined thing is a body whose face is named with it."""
    noun, chance = thing.noun, 0.5 if few else 0.2
    if thing.concept == "face":
        noun = _FACE_NOUNS[int(rng.integers(len(_FACE_NOUNS)))]
    elif thing.concept == "body":
        nouns = _BOTH_NOUNS if joined else _BODY_NOUNS
        noun = nouns[int(rng.integers(len(nouns)))]
    words = [w for w in thing.adjectives if rng.random() < chance + 0.1]
    if rng.random() < 0.2 and (share < 0.05 or share > 0.2):
        words.insert(0, _SIZES[int(share > 0.2)])
    details = [d for d in thing.details if rng.random() < chance][:2]
    if centre is not None and rng.random() < 0.2:
        dx, dy = centre[0] - 0.5, centre[1] - 0.5
        if max(abs(dx), abs(dy)) > 0.15:
            details.append(_SIDES[int(dx > 0)] if abs(dx) > abs(dy) else _SIDES[2 + int(dy > 0)])
    text = " ".join([*words, noun])
    if thing.concept == "word" and noun.startswith("word "):
        text = f"the {text}"
    elif noun not in ("letters", "grapes", "scissors"):
        text = article(text)
    return " ".join([text, *details])


def _caption(
    rng: np.random.Generator, visible: list[tuple[Thing, tuple[float, float] | None, float]], backdrop: str
) -> str:
    """A sentence that names everything visible."""
    place = next((t for t, _, _ in visible if t.concept == "place"), None)
    rest = [v for v in visible if v[0].concept != "place"]
    phrases, skip, few = [], False, len(rest) < 3
    for i, (thing, centre, share) in enumerate(rest):
        if skip:
            skip = False
            continue
        owns_face = thing.concept == "body" and i + 1 < len(rest) and rest[i + 1][0].attributes.get("on_body") == 1.0
        if owns_face and rng.random() < 0.5:
            phrases.append(_phrase(rng, thing, centre, share, True, few))
            skip = True
        else:
            phrases.append(_phrase(rng, thing, centre, share, False, few))
    if len(phrases) > 1:
        phrases = [phrases[i] for i in rng.permutation(len(phrases))]
    start = _STARTS[int(rng.integers(len(_STARTS)))]
    if not phrases:
        if place is None:
            return f"a photo of {backdrop}"
        lead = ("a photo of", "a picture of", "a view of", "", "an image of")[int(rng.integers(5))]
        body = article(f"empty {place.noun}" if rng.random() < 0.25 else place.noun)
        return f"{lead} {body}".strip()
    text = phrases[0]
    for phrase in phrases[1:]:
        text = f"{text} {_JOINS[int(rng.integers(len(_JOINS)))]} {phrase}"
    if place is not None:
        text = f"{text} {_PLACE_PREPOSITIONS[int(rng.random() < 0.15)]} {article(place.noun)}"
    elif backdrop and rng.random() < 0.5:
        text = f"{text} on {backdrop}"
    if start == "" and rest and len(phrases) == 1 and rest[0][2] > 0.25 and rng.random() < 0.4:
        start = "a close up of"
    return f"{start} {text}".strip()
