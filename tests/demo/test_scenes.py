"""The scene generator: repeatable, balanced scenes whose mask, labels and caption agree."""

import multiprocessing

import numpy as np
import pytest

from sbm_jax.demo.draw_object import OBJECT_KINDS
from sbm_jax.demo.draw_place import PLACE_KINDS
from sbm_jax.demo.scenes import (
    CONCEPT_PROMPTS,
    CONCEPTS,
    SMALLEST_VISIBLE,
    VOCABULARY,
    Scene,
    draw_scene,
    image_set,
)
from sbm_jax.errors import UserError


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return list(image_set(11, range(800), size=64))


def same(a: Scene, b: Scene) -> bool:
    arrays = np.array_equal(a.image, b.image) and np.array_equal(a.mask, b.mask)
    return arrays and (a.caption, a.labels, a.attributes) == (b.caption, b.labels, b.attributes)


def test_scene_depends_on_its_numbers_alone(scenes: list[Scene]) -> None:
    np.random.default_rng(0).random(5)
    assert all(same(draw_scene(11, i, 64), scenes[i]) for i in (799, 3, 0))
    assert not np.array_equal(draw_scene(12, 3, 64).image, scenes[3].image)


def test_shapes_and_types(scenes: list[Scene]) -> None:
    scene = draw_scene(0, 0)
    assert scene.image.shape == (128, 128, 3) and scene.image.dtype == np.uint8
    assert scene.mask.shape == (128, 128) and scene.mask.dtype == np.uint8
    assert tuple(scene.labels) == CONCEPTS
    assert all(type(v) in (str, float) for s in scenes for v in s.attributes.values())


def test_labels_are_the_mask_fractions(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.mask.max() <= len(CONCEPTS)
        for i, concept in enumerate(CONCEPTS):
            share = scene.labels[concept]
            assert share == pytest.approx(np.mean(scene.mask == i + 1), abs=1e-12)
            assert share == 0 or share >= SMALLEST_VISIBLE


def test_mask_lies_on_what_is_drawn() -> None:
    """Without a place, masked pixels differ from a plain background far more than unmasked ones."""
    found = 0
    for scene in image_set(2, range(150), 64):
        if scene.attributes.get("background") != "plain" or not 0.1 < np.mean(scene.mask > 0) < 0.6:
            continue
        image = scene.image.astype(float)
        middle = np.median(image[scene.mask == 0], axis=0)
        distance = np.abs(image - middle).sum(axis=2)
        assert distance[scene.mask > 0].mean() > 1.5 * distance[scene.mask == 0].mean()
        found += 1
    assert found > 5


def test_captions_name_what_is_visible(scenes: list[Scene]) -> None:
    signs = {
        "face": {"face", "head"},
        "body": {"body", "figure", "person"},
        "word": {"word", "letters"},
    }
    for scene in scenes:
        words = set(scene.caption.split())
        for concept, nouns in signs.items():
            if scene.labels[concept]:
                # one noun may stand for a body with its face
                assert words & (nouns | {"person"}), scene.caption
        if scene.labels["place"]:
            assert words & set(PLACE_KINDS) | words & {
                "road", "landscape", "mountain", "farm"
            }, scene.caption  # fmt: skip
        if not scene.labels["word"]:
            assert not words & signs["word"], scene.caption
        if not scene.labels["object"]:
            assert not words & set(OBJECT_KINDS), scene.caption


def test_vocabulary_is_closed_and_small(scenes: list[Scene]) -> None:
    assert len(VOCABULARY) < 400 and len(set(VOCABULARY)) == len(VOCABULARY)
    known = set(VOCABULARY)
    for scene in scenes:
        assert scene.caption == scene.caption.lower().strip() and "  " not in scene.caption
        assert set(scene.caption.split()) <= known
    assert set(CONCEPT_PROMPTS) == set(CONCEPTS)
    assert all({w for p in prompts for w in p.split()} <= known for prompts in CONCEPT_PROMPTS.values())


def test_concepts_are_balanced(scenes: list[Scene]) -> None:
    present = np.array([[s.labels[c] > 0 for c in CONCEPTS] for s in scenes])
    assert np.all(present.mean(axis=0) > 0.28) and np.all(present.mean(axis=0) < 0.44)
    assert 0.29 < np.mean(present.sum(axis=1) == 1) < 0.42
    assert present.sum(axis=1).min() >= 1 and present.sum(axis=1).max() >= 4


def test_scenes_vary(scenes: list[Scene]) -> None:
    assert len({s.image.tobytes() for s in scenes}) == len(scenes)
    assert len({s.caption for s in scenes}) > 0.9 * len(scenes)
    assert {s.attributes["place"] for s in scenes if s.labels["place"]} == set(PLACE_KINDS)
    brightness = np.array([s.image.mean() for s in scenes])
    assert brightness.std() > 15
    centre = [np.argwhere(s.mask == 5).mean(axis=0) for s in scenes if s.labels["food"]]
    assert np.std(centre, axis=0).min() > 5


def test_size_changes_resolution_not_content() -> None:
    for i in range(8):
        small, large = draw_scene(4, i, 64), draw_scene(4, i, 128)
        agree = np.mean(small.mask == large.mask[::2, ::2])
        assert agree > 0.9, i


def test_image_set_in_workers_gives_the_same_scenes() -> None:
    indices = [5, 2, 9]
    parallel = list(image_set(3, indices, 48, workers=2))
    assert all(same(a, draw_scene(3, i, 48)) for a, i in zip(parallel, indices, strict=True))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("seed", "index", "size"), [(-1, 0, 64), (0, -1, 64), (0, 0, 16)])
def test_wrong_numbers_are_named(seed: int, index: int, size: int) -> None:
    with pytest.raises(UserError, match=f"seed={seed}, index={index}, size={size}"):
        draw_scene(seed, index, size)
