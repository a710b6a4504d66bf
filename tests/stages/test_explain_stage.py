"""explain and emergence on the tiny run: what is in the stores, judged again by plain loops; judges that are refused."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from sbm_jax.config import load_config
from sbm_jax.errors import UserError
from sbm_jax.stages import emergence, explain, judges
from sbm_jax.stages.context import Context
from sbm_jax.stages.explain_names import judges_of, read_judged, unit_names
from sbm_jax.store.store import Store

HOOKS = ("block01.resid", "block05.resid")
KINDS = ("patch", "cls")


@pytest.fixture(scope="module")
def document(stores):
    return stores.document("explain", "explain.json")


def test_judges_of_the_demo(document):
    """It labels its images and has masks; no model was named."""
    assert set(document["judges"]) == {"labels", "masks"}
    assert document["judges"]["labels"]["kinds"] == ["patch", "cls"] and document["judges"]["masks"]["kinds"] == [
        "patch"
    ]
    assert document["left_out"] == {"clip": "explain.clip is not set"}
    assert document["judges"]["masks"]["concepts"] == ["face", "body", "place", "word", "food", "object"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hook", HOOKS)
def test_labels_are_counted(stores, document, kind, hook):
    names, extents = stores.extents()
    groups = np.where(extents.max(axis=1) > 0, extents.argmax(axis=1), -1)
    images = stores.array("exemplars", f"{kind}/{hook}/images")
    counts = stores.array("explain", f"labels/{kind}/{hook}/counts")
    concept, count, stable, effect = (
        stores.array("explain", f"labels/{kind}/{hook}/{key}") for key in ("concept", "count", "stable", "effect")
    )
    assert document["judges"]["labels"]["concepts"] == names
    for row, found in zip(images, counts, strict=True):
        np.testing.assert_array_equal(found, [(groups[row[row >= 0]] == c).sum() for c in range(len(names))])
    named = concept >= 0
    np.testing.assert_array_equal(count[named], counts.max(axis=1)[named])
    np.testing.assert_array_equal(stable, count > 10)
    base = np.array([np.mean(groups == c) for c in range(len(names))])
    share = count / np.maximum((images >= 0).sum(axis=1), 1)
    np.testing.assert_allclose(effect[named], (share - base[concept])[named], atol=1e-6)


def test_base_rates_of_masks_are_shares_of_patches(stores, document):
    """A patch of 16 x 16 of the 96 x 96 pixels that the backbone sees is of the class with most of its pixels."""
    grid = json.loads((stores.folder("exemplars") / "probe.json").read_text())["grid"]
    shares = np.zeros(7)
    for path in sorted((stores.data / "masks").glob("*.png")):
        pixels = np.asarray(Image.open(path).resize((96, 96), Image.Resampling.NEAREST))
        side = 96 // grid
        for row in range(grid):
            for column in range(grid):
                patch = pixels[row * side : (row + 1) * side, column * side : (column + 1) * side]
                counted = np.bincount(patch.ravel(), minlength=7)
                shares[np.argmax([*counted[1:], counted[0]])] += 1
    base = list(document["judges"]["masks"]["base_rate"].values())
    names = list(document["judges"]["masks"]["base_rate"])
    order = [document["judges"]["masks"]["concepts"].index(name) for name in names]
    np.testing.assert_allclose(base, (shares / shares.sum())[order], atol=1e-9)


def test_names_are_the_sure_concepts(stores):
    store = Store(stores.folder("explain"))
    assert judges_of(store, "cls") == ["labels"] and judges_of(store, "patch") == ["labels", "masks"]
    for judge, kind in (("labels", "cls"), ("masks", "patch")):
        names, judged = unit_names(store, judge, kind, HOOKS[1]), read_judged(store, judge, kind, HOOKS[1])
        assert len(names) == len(judged.concept) == len(stores.array("exemplars", f"{kind}/{HOOKS[1]}/units"))
        assert [name != "" for name in names] == ((judged.concept >= 0) & (judged.q <= 0.05)).tolist()
    with pytest.raises(ValueError, match="masks named no cls units"):
        unit_names(store, "masks", "cls", HOOKS[0])


def test_regions_and_controls(stores, document):
    """The ROI's units are those that the roi stage ranks first; the random ones those that were drawn."""
    units, why = (stores.array("exemplars", f"cls/{HOOKS[1]}/{key}") for key in ("units", "why"))
    concept, stable = (stores.array("explain", f"labels/cls/{HOOKS[1]}/{key}") for key in ("concept", "stable"))
    places = document["judges"]["labels"]["concepts"].index("place")
    record = document["rois"]["labels"]["cls"]["subj02"]["floc-places"]
    for ranking in ("mean", "contrast"):
        ranked = stores.array("roi", f"cls/subj02/floc-places/{ranking}_units")[1]
        rows = np.searchsorted(units, ranked)
        np.testing.assert_array_equal(units[rows], ranked)
        assert record[ranking]["units"][1] == len(ranked)
        assert record[ranking]["stable"][1] == stable[rows].sum()
        assert record[ranking]["aligned"][1] == (stable[rows] & (concept[rows] == places)).sum()
        assert record[ranking]["random"]["units"][1] == ((why & 8) > 0).sum()
    assert set(document["rois"]["masks"]) == {"patch_mean"}


def test_emergence_of_the_tiny_run(stores):
    found = stores.document("emergence", "emergence.json")
    assert found["layers"] == ["1", "5"] and found["left_out"] == {}
    assert set(found["curves"]) == {"labels", "masks"} and set(found["curves"]["labels"]) == {"cls", "patch_mean"}
    faces = found["curves"]["labels"]["cls"]["face"]
    assert set(faces) == {"roi", "asked", "random"} and set(found["curves"]["labels"]["cls"]["object"]) == {
        "asked",
        "random",
    }
    both = {
        int(unit)
        for subject in ("subj01", "subj02")
        for unit in stores.array("roi", f"cls/{subject}/floc-faces/contrast_units")[1]
    }
    assert faces["roi"]["units"][1] == len(both) and len(faces["roi"]["onset"]["p"]) == 2
    statistics = stores.array("emergence", "image_statistics")
    assert statistics.shape == (len(stores.table("images.csv")["image_id"]), len(found["flow"]["statistics"]))
    for kind in KINDS:
        tuning = stores.array("emergence", f"{kind}/{HOOKS[0]}/tuning")
        assert tuning.shape == (stores.array("saes", "b_enc").shape[1], len(found["flow"]["groups"]))
        assert np.nanmax(tuning) <= 1
    active = (stores.codes("cls")[0] > 0).sum(axis=0)
    np.testing.assert_array_equal(stores.array("emergence", f"cls/{HOOKS[0]}/active"), active)


def test_the_page_shows_them(stores):
    page = (stores.folder("report") / "report.html").read_text()
    for title in (
        "Names by judge: labels",
        "Names by judge: masks",
        "Onset of concepts",
        "What codes follow, patch tokens",
    ):
        assert title in page
    summary = stores.document("report", "summary.json")
    assert summary["explain"]["rois"]["labels"]["cls"]["subj01"]["floc-faces"]["concept"] == "face"


# Other judges --------------------------------------------------------------------------------------------------------


@pytest.fixture
def again(tiny, tmp_path):
    """`again(settings)`: the context of the tiny run with other settings, in a folder whose stores are links to its own."""
    (tmp_path / "stores").mkdir()
    for folder in (tiny.out / "stores").iterdir():
        (tmp_path / "stores" / folder.name).symlink_to(folder)
    return lambda *settings: Context(load_config(tiny.config, settings), tmp_path)


def test_the_backbone_may_not_judge_itself(again):
    with pytest.raises(UserError, match=r"explain\.clip: demo is the backbone itself .* explain\.own_judge=true"):
        again("explain.clip=demo")
    assert "clip" in again("explain.clip=demo", "explain.own_judge=true").specs.explain.inputs


def test_zero_shot_and_labels_of_a_file(again, tiny, tmp_path, stores):
    """Hostile names come through as text; the model's groups follow what is drawn."""
    hostile = "<img src=x onerror=alert(1)>"
    table = stores.table("images.csv")
    path = tmp_path / "labels.csv"
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["image_id", "category"])
        writer.writerows(
            [i, hostile if face != "0" else ""] for i, face in zip(table["image_id"], table["label:face"], strict=True)
        )
    ctx = again("explain.clip=demo", "explain.own_judge=true", f"explain.labels={path}", "emergence.bootstrap=20")
    store = explain.run(ctx)
    document = store.json("explain.json")
    assert document["judges"]["labels"]["concepts"] == [hostile] and document["left_out"] == {}
    assert document["judges"]["clip"]["concepts"] == ["face", "body", "place", "word", "food", "object"]
    faces = table["label:face"].astype(float) > 0
    np.testing.assert_array_equal(store.read("labels/shows")[:, 0], faces)
    shown = store.read("clip/shows")
    assert (shown.sum(axis=1) == 1).all()
    # what covers more than half of the picture, places aside, is mostly what the model says
    extents = np.stack([table[f"label:{c}"].astype(float) for c in ("face", "body", "word", "food", "object")], axis=1)
    clear = extents.max(axis=1) > 0.25
    right = shown[:, [0, 1, 3, 4, 5]][clear, extents[clear].argmax(axis=1)]
    assert clear.sum() > 10 and right.mean() > 0.7
    made = emergence.run(ctx).json("emergence.json")
    assert set(made["curves"]["labels"]["cls"]) == {hostile} and made["flow"]["categories"] == [hostile]


def test_without_any_judge(again, monkeypatch):
    """No labels, no masks, no model: it is said why, nothing has a name, and low-level tuning is there all the same."""
    ctx = again("explain.seed=5", "emergence.bootstrap=20")
    ctx.dataset.images.labels.clear()
    monkeypatch.setattr(judges, "mask_folder", lambda *_: None)
    document = explain.run(ctx).json("explain.json")
    assert document["judges"] == {} and set(document["left_out"]) == {"labels", "clip", "masks"}
    found = emergence.run(ctx).json("emergence.json")
    assert found["curves"] == {} and "category" not in found["flow"]["groups"]
    assert len(found["flow"]["kinds"]["patch"]["alone"]["colour"]) == 2


def test_settings_that_name_nothing(again, tmp_path):
    for key in ("labels", "masks", "prompts", "clip"):
        more = ("explain.clip=demo", "explain.own_judge=true") if key == "prompts" else ()
        with pytest.raises(UserError, match="nowhere"):
            again(*more, f"explain.{key}={tmp_path / 'nowhere'}")
    with pytest.raises(UserError, match=r"no judge knows 'ghost'; known are face, body"):
        emergence.run(again("emergence.concepts=[ghost]"))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("faces: [a face]\n", "at least two groups"),
        ("faces: a face\nplaces: [a place]\n", "expected a list of prompts under 'faces'"),
        ("faces: []\nplaces: [a place]\n", "expected a list of prompts under 'faces'"),
        ("1: [a face]\nplaces: [a place]\n", "found 1; put it in quotes"),
        ("- a\n- b\n", "found list"),
        ("faces: [a\n", "not valid YAML"),
    ],
)
def test_prompts_that_are_refused(again, tmp_path, text, what):
    path = tmp_path / "prompts.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        again("explain.clip=demo", "explain.own_judge=true", f"explain.prompts={path}")
    assert what in str(caught.value) and "prompts.yaml" in str(caught.value)


def test_the_shipped_prompts_are_six_groups_of_nine():
    from sbm_jax.stages.judge_sources import read_prompts

    shipped = read_prompts(load_config(None, ("explain.clip=elsewhere",)))
    assert list(shipped) == ["faces", "bodies", "places", "words", "food", "objects"]
    assert all(len(set(texts)) == 9 for texts in shipped.values())


def test_names_change_with_what_judges_know(again, tmp_path):
    """Equal content has one name wherever it lies; other content another."""
    (tmp_path / "a").mkdir()
    for name, text in (("labels.csv", "image_id,x\nscene-00001,1\n"), ("other.csv", "image_id,x\nscene-00001,0\n")):
        (tmp_path / name).write_text(text)
    (tmp_path / "a" / "labels.csv").write_text((tmp_path / "labels.csv").read_text())
    names = [
        again(f"explain.labels={tmp_path / name}").specs.explain.name
        for name in ("labels.csv", "a/labels.csv", "other.csv")
    ]
    assert names[0] == names[1] != names[2]
