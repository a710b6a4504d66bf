"""Judges: labels of many layouts, masks against plain loops, what follows for a unit's name, hostile files."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sbm_jax.errors import UserError
from sbm_jax.images.geometry import square
from sbm_jax.stages.exemplar_lists import Exemplars
from sbm_jax.stages.judge_labels import dataset_labels, file_labels
from sbm_jax.stages.judge_masks import NONE, MaskJudge, detection, patch_classes, read_classes, read_masks
from sbm_jax.stages.judging import Counts, ImageJudge, name_units
from sbm_jax.statistics import hypergeometric_tail

IDS = ("a", "b", "c", "d")
HOSTILE = '<script>alert("x")</script>, "../../etc" \u202e \U0001f600'


def lists(images_we, heat=None) -> Exemplars:
    images = np.asarray(images_we, np.int32)
    w = np.arange(len(images), dtype=np.int32)
    return Exemplars(w, np.ones(len(images), np.uint8), images, np.ones(images.shape, np.float32), heat)


# Names ---------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=40, deadline=None)
def test_names_are_those_of_a_plain_loop(seed, exclusive):
    rng = np.random.default_rng(seed)
    n, c, e, w, stable = 40, int(rng.integers(1, 5)), int(rng.integers(1, 9)), 7, int(rng.integers(0, 5))
    shows = rng.random((n, c)) < rng.uniform(0.05, 0.6, c)
    if exclusive:
        shows &= np.cumsum(shows, axis=1) == 1
    seen = rng.random(n) < 0.9
    seen[0] = True
    shows &= seen[:, None]
    images = np.stack([rng.permutation(n)[:e] for _ in range(w)])
    images[rng.random(images.shape) < 0.1] = -1
    judge = ImageJudge("labels", "", tuple("pqrs"[:c]), shows, seen, exclusive)
    found = name_units(judge, judge.count(lists(images)), stable)
    base = [shows[seen, k].mean() for k in range(c)]
    for u in range(w):
        mine = [row for row in images[u] if row >= 0 and seen[row]]
        counts = [sum(shows[row, k] for row in mine) for k in range(c)]
        if not any(counts):
            assert found.concept[u] == -1 and found.count[u] == 0 and not found.stable[u] and found.p[u] == 1
            assert np.isnan(found.effect[u])
            continue
        effects = [x / len(mine) - b for x, b in zip(counts, base, strict=True)]
        if exclusive:
            best = max(range(c), key=lambda k: (counts[k], effects[k]))
        else:
            best = max((k for k in range(c) if counts[k]), key=lambda k: effects[k])
        assert found.concept[u] == best
        assert found.count[u] == counts[best] and found.stable[u] == (counts[best] > stable)
        assert found.effect[u] == pytest.approx(effects[best], abs=1e-6)
        assert found.effect_low[u] <= found.effect[u] <= found.effect_high[u]
        tail = hypergeometric_tail(len(mine), int(shows[seen, best].sum()), int(seen.sum()))
        assert found.p[u] == pytest.approx(min(1, sum(b > 0 for b in base) * tail[counts[best]]))


def test_p_of_units_without_a_concept_of_their_own():
    """Exemplars drawn at random: p at most .05 in at most 5 % of units (simulated; counts make it less)."""
    rng = np.random.default_rng(0)
    shows = np.eye(6, dtype=bool)[rng.integers(0, 6, 600)]
    judge = ImageJudge("labels", "", tuple("abcdef"), shows, np.ones(600, bool), True)
    images = np.stack([rng.permutation(600)[:20] for _ in range(3000)])
    p = name_units(judge, judge.count(lists(images)), 10).p
    assert (p <= 0.05).mean() < 0.05
    planted = np.stack([rng.permutation(np.flatnonzero(shows[:, 2]))[:20] for _ in range(5)])
    sure = name_units(judge, judge.count(lists(planted)), 10)
    assert (sure.concept == 2).all() and sure.stable.all() and (sure.p < 1e-9).all()


def test_without_concepts_or_units_there_are_no_names():
    judge = ImageJudge("labels", "", ("x",), np.zeros((4, 1), bool), np.ones(4, bool), True)
    nobody = name_units(judge, Counts(np.zeros((0, 1), int), np.zeros(0, int)), 3)
    assert nobody.concept.shape == (0,) and nobody.p.shape == (0,)
    silent = name_units(judge, judge.count(lists([[-1, -1]])), 3)
    assert silent.concept.tolist() == [-1] and np.isnan(silent.effect_low).all()


# Labels --------------------------------------------------------------------------------------------------------------


def test_labels_by_column(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("image_id,dog,car\na,1,0\nb,,0.25\nz,1,1\nc,0,0\n")
    judge = file_labels(path, IDS)
    assert judge.concepts == ("dog", "car") and not judge.exclusive
    assert judge.shows.tolist() == [[True, False], [False, True], [False, False], [False, False]]
    assert judge.seen.tolist() == [True, True, True, False]
    np.testing.assert_allclose(judge.base_c, [1 / 3, 1 / 3])


def test_labels_by_row(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("image_id,category\na,dog\na,car\nb,\nz,cat\nd,dog\na,dog\n")
    judge = file_labels(path, IDS)
    assert judge.concepts == ("car", "dog")
    assert judge.shows.tolist() == [[True, True], [False, False], [False, False], [False, True]]
    assert judge.seen.tolist() == [True, True, False, True]


def test_hostile_names_stay_text(tmp_path):
    path = tmp_path / "labels.csv"
    quoted = '"' + HOSTILE.replace('"', '""') + '"'
    path.write_text(f"image_id,category\na,{quoted}\n", encoding="utf-8")
    assert file_labels(path, IDS).concepts == (HOSTILE,)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("image_id,dog\na,1\na,0\n", "row 2: the image 'a' has a row already"),
        ("image_id,dog\na,yes\n", "row 1: column 'dog' needs numbers, found 'yes'"),
        ("image_id,\na,1\n", "column 2 has no name"),
        ("image_id,dog\nz,1\n", "none of its 1 rows names an image"),
        ("image_id,dog\n", "no row"),
        ("image_id\na\n", "no concept found"),
        ("image_id,category\na,\n", "no concept found"),
        ("image,dog\na,1\n", "missing image_id"),
        ("image_id,dog\na\n", "line 2"),
        ("image_id,dog,dog\na,1,1\n", "twice"),
    ],
)
def test_labels_that_are_refused(tmp_path, text, what):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        file_labels(path, IDS)
    assert what in str(caught.value) and "labels.csv" in str(caught.value)


def test_labels_of_a_dataset():
    nan = np.nan
    judge = dataset_labels({"face": np.array([0.1, 0, nan, 0.02]), "place": np.array([0.8, 0, nan, 0.9])})
    # means where present: .06 and .85, so the first image shows a face although the place is larger
    assert judge.shows.tolist() == [[True, False], [False, False], [False, False], [False, True]]
    assert judge.seen.tolist() == [True, True, False, True] and judge.exclusive


# Masks ---------------------------------------------------------------------------------------------------------------


def plain_average_precision(scores: np.ndarray, present: np.ndarray) -> float:
    """Sum over thresholds of precision x gain in recall."""
    out, before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        picked = scores >= threshold
        recall = (picked & present).sum() / present.sum()
        out += (recall - before) * (picked & present).sum() / picked.sum()
        before = recall
    return out


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_f1_and_average_precision_are_the_plain_ones(seed):
    rng = np.random.default_rng(seed)
    w, t = 4, 23
    heat = np.round(np.maximum(rng.standard_normal((w, t)), 0), 1)  # many ties, as in sparse codes
    present = rng.random((w, t)) < 0.3
    lit = heat > 0.5
    found = detection(heat, lit, [present])
    for u in range(w):
        if not present[u].any():
            assert np.isnan(found["ap"][u, 0]) and np.isnan(found["f1"][u, 0])
            continue
        assert found["ap"][u, 0] == pytest.approx(plain_average_precision(heat[u], present[u]), abs=1e-6)
        both = (lit & present)[u].sum()
        precision, recall = both / max(lit[u].sum(), 1), both / present[u].sum()
        f1 = 2 * precision * recall / (precision + recall) if both else 0
        assert found["f1"][u, 0] == pytest.approx(f1, abs=1e-6)
        assert found["prevalence"][u, 0] == pytest.approx(present[u].mean(), abs=1e-6)


def test_a_unit_that_lights_up_a_region_is_named_after_it():
    rng = np.random.default_rng(1)
    classes = rng.choice([NONE, 0, 1], p=[0.5, 0.2, 0.3], size=(30, 16)).astype(np.int16)
    classes[29] = -2  # no mask
    images = np.array([[0, 1, 2, 3], [4, 5, 6, 29], [7, 8, -1, -1]])
    heat = np.zeros((3, 4, 4, 4), np.float16)
    for u, wanted in enumerate((0, 1, NONE)):
        for e, row in enumerate(images[u]):
            if row >= 0:
                at = classes[row].reshape(4, 4) == wanted
                heat[u, e] = np.where(at, rng.uniform(0.6, 1, (4, 4)), rng.uniform(0, 0.4, (4, 4)))
    judge = MaskJudge("masks", "", ("face", "place"), classes)
    counts = judge.count(lists(images, heat))
    assert counts.judged.tolist() == [4, 3, 2]
    assert counts.shown.tolist() == [[4, 0], [0, 3], [0, 0]]
    assert counts.chosen[:2].tolist() == [0, 1]
    assert counts.more["ap"][0, 0] == pytest.approx(1) and counts.more["f1"][1, 1] == pytest.approx(1)
    named = name_units(judge, counts, 2)
    assert named.stable.tolist() == [True, True, False] and named.count.tolist()[:2] == [4, 3]
    with pytest.raises(ValueError, match="no heat maps"):  # CLS units
        judge.count(lists(images))


def test_masks_are_read_as_the_pictures_are(tmp_path):
    """A wide picture is cropped to its middle; 16-bit indices; unlisted ones are no class; missing masks are not judged."""
    index = np.zeros((8, 12), np.uint16)
    index[:, :2] = 300  # outside of the middle square
    index[:4, 2:6] = 300
    index[4:, 6:10] = 7
    Image.fromarray(index).save(tmp_path / "a.png")
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / "b.png")
    judge = read_masks(tmp_path, {300: "face", 7: "word"}, ["a.png", "b.png", "c.png"], square(8), 2)
    assert judge.classes.tolist() == [[0, -1, -1, 1], [-1, -1, -1, -1], [-2, -2, -2, -2]]
    np.testing.assert_allclose(judge.base_c, [1 / 8, 1 / 8])
    assert read_masks(tmp_path, {1: "x"}, ["z.png"], square(8), 2) is None


def test_a_patch_is_of_the_class_with_most_pixels():
    columns = np.array([[0, 0, -1, -1], [1, -1, -1, 1], [1, 1, 2, -1], [2, 2, 2, -1]], np.int16)
    assert patch_classes(columns, 2, 3).tolist() == [0, -1, 1, 2]


def test_masks_that_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"a\.png: not a readable mask"):
        read_masks(tmp_path, {1: "x"}, ["a.png"], square(4), 2)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"one class index per pixel .* found mode RGB"):
        read_masks(tmp_path, {1: "x"}, ["a.png"], square(4), 2)


@pytest.mark.parametrize("rows", ["1,face\n1,place\n", "1,face\n2,face\n", "1, \n", "-1,face\n", "70000,face\n", ""])
def test_classes_that_are_refused(tmp_path, rows):
    path = tmp_path / "classes.csv"
    path.write_text("index,name\n" + rows)
    with pytest.raises(UserError, match=r"classes\.csv"):
        read_classes(path)


def test_classes(tmp_path):
    (tmp_path / "classes.csv").write_text('index,name\n3,face\n65535,"a, b"\n')
    assert read_classes(tmp_path / "classes.csv") == {3: "face", 65535: "a, b"}
