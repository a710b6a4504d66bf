"""The stage on the tiny run: who is wanted, every list and rate beside float64 loops over the stimuli, folders as probe sets."""

from __future__ import annotations

import json
import shutil
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from sbm_jax.config import load_config
from sbm_jax.errors import UserError
from sbm_jax.stages import exemplars
from sbm_jax.stages.context import Context
from sbm_jax.stages.exemplar_lists import CONTROL, ROI, USER, VOXEL, Exemplars, read_exemplars, read_firing
from sbm_jax.stages.probe import probe_files
from sbm_jax.stages.report_exemplars import roi_exemplars
from sbm_jax.store.store import Store

HOOKS = ("block01.resid", "block05.resid")
KEYS = [(kind, hook) for kind in ("patch", "cls") for hook in HOOKS]
MODES = {"patch": ("patch_mean", "patch_max"), "cls": ("cls",)}
K, E = 4, 20
NO_PATCHES = ("exemplars.kinds=[cls]",)


@pytest.fixture
def copy(tiny, tmp_path):
    """`copy("exemplars.top=3")`: the tiny run without its exemplars and what follows, with other settings."""
    out = tmp_path / "run"
    later = shutil.ignore_patterns(*(f"{kind}-*" for kind in ("exemplars", "explain", "emergence", "match", "edit")))
    shutil.copytree(tiny.out, out, ignore=later)
    return lambda *settings: Context(load_config(tiny.config, settings), out)


@pytest.fixture(scope="module")
def store(tiny) -> Store:
    return Store(tiny.store("exemplars"))


@pytest.fixture(scope="module")
def codes(stores):
    """Codes of all tokens of all stimuli, float64 [n, t, u] by (kind, hook), from activations and weights alone."""
    members = stores.document("saes", "metrics.json")["members"]
    weights = {name: stores.array("saes", name).astype(np.float64) for name in ("w_enc", "b_enc", "mean", "scale")}
    out = {}
    for a, m in enumerate(members):
        x = stores.array("activations", f"{m['hook']}/{m['kind']}").astype(np.float64)
        x = weights["scale"][a] * (x.reshape(len(x), -1, x.shape[-1]) - weights["mean"][a])
        pre = x @ weights["w_enc"][a] + weights["b_enc"][a]
        kept = np.sort(pre, axis=-1)[..., -K][..., None]
        out[m["kind"], m["hook"]] = np.where(pre >= kept, np.maximum(pre, 0), 0)
    return out


@pytest.mark.parametrize(("kind", "hook"), KEYS)
def test_lists_beside_a_loop(store, codes, kind, hook):
    found, z = read_exemplars(store, kind, hook), codes[kind, hook]
    assert (found.heat is None) == (kind == "cls")
    for row, unit in enumerate(found.units):
        scores = z[:, :, unit].max(axis=1)
        images = found.images[row][found.images[row] >= 0]
        assert len(images) == min(E, int((scores > 0).sum()))
        assert len(set(images.tolist())) == len(images)
        assert (found.images[row][len(images) :] == -1).all() and (found.scores[row][len(images) :] == 0).all()
        # images whose scores are equal to rounding may change places
        assert np.abs(np.sort(scores)[::-1][: len(images)] - found.scores[row][: len(images)]).max(initial=0) < 1e-4
        assert np.abs(scores[images] - found.scores[row][: len(images)]).max(initial=0) < 1e-4
        if found.heat is not None:
            side = found.heat.shape[-1]
            heat = z[images, :, unit].reshape(-1, side, side)
            assert np.abs(found.heat[row][: len(images)] - heat).max(initial=0) < 1e-3 * max(1, np.abs(heat).max())


@pytest.mark.parametrize(("kind", "hook"), KEYS)
def test_firing_beside_a_loop(store, stores, codes, kind, hook):
    firing, z = read_firing(store, kind, hook), codes[kind, hook]
    a = [(m["kind"], m["hook"]) for m in stores.document("saes", "metrics.json")["members"]].index((kind, hook))
    length = (stores.array("saes", "w_dec")[a].astype(np.float64) ** 2).sum(axis=1)
    fired = z > 0
    # a kept code at the edge of the top k may change with rounding
    assert np.abs(firing.image_rate - fired.any(axis=1).mean(axis=0)).max() < 0.02
    assert np.abs(firing.token_rate - fired.mean(axis=(0, 1))).max() < 1e-3
    assert np.allclose(firing.largest, z.max(axis=(0, 1)), atol=1e-4)
    active = z.sum(axis=(0, 1)) / np.maximum(fired.sum(axis=(0, 1)), 1)
    assert np.allclose(firing.mean_active, active, atol=2e-3)
    assert np.allclose(firing.energy, (z**2).mean(axis=(0, 1)) * length, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("kind", MODES)
def test_who_is_wanted(store, stores, kind):
    """Best units of responsive voxels, ROI rankings, and controls that fire; nobody else."""
    n_units = stores.array("saes", "b_enc").shape[1]
    members = [(m["kind"], m["hook"]) for m in stores.document("saes", "metrics.json")["members"]]
    for layer, hook in enumerate(HOOKS):
        voxels, rois = set(), set()
        for subject in ("subj01", "subj02"):
            alive = stores.brain(subject).responsive
            for mode in MODES[kind]:
                best = stores.array("align", f"{mode}/voxel_units", subject)[alive, 0]
                voxels |= {int(unit) % n_units for unit in best if unit // n_units == layer}
            for name in stores.document("roi", "rois.json")[subject]["rois"]:
                for mode in set(MODES[kind]) & {"cls", "patch_mean"}:
                    for ranking in ("mean", "contrast"):
                        path = f"{mode}/{subject}/{name.replace('/', '.')}/{ranking}_units"
                        rois |= set(stores.array("roi", path)[layer].tolist())
        found = read_exemplars(store, kind, hook)
        by = {bit: set(found.units[(found.why & bit) > 0].tolist()) for bit in (VOXEL, ROI, USER, CONTROL)}
        assert by[VOXEL] == voxels and by[ROI] == rois and by[USER] == set()
        fires = set(np.flatnonzero(stores.array("saes", "rate")[members.index((kind, hook))]).tolist())
        assert by[CONTROL] <= fires and len(by[CONTROL]) == min(50, len(fires))
        assert set(found.units.tolist()) == voxels | rois | by[CONTROL]
        assert (np.diff(found.units) > 0).all()


def test_probe_document(store, stores):
    probe = store.json("probe.json")
    assert probe == {
        "kind": "stimuli",
        "folder": "",
        "images": len(probe["ids"]),
        "ids": stores.table("images.csv")["image_id"].tolist(),
        "grid": round(stores.array("activations", f"{HOOKS[0]}/patch").shape[1] ** 0.5),
        "score": "max",
    }


def test_a_folder_of_the_same_pictures_gives_the_same_lists(store, stores, copy, tmp_path):
    """Through the backbone again, in another order: subfolders, and files that are no pictures."""
    ids = stores.table("images.csv")["image_id"].tolist()
    sources = sorted((stores.data / "images").glob("*.png"))
    folder = tmp_path / "probe"
    for i, path in enumerate(sources):
        place = folder / ("b" if i % 3 else "a/c") / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    (folder / "notes.txt").write_text("no picture")
    ctx = copy(f"exemplars.probe={folder}", "exemplars.batch=10", "devices=1")
    found = exemplars.run(ctx)
    probe = found.json("probe.json")
    assert probe["kind"] == "folder" and probe["images"] == len(ids) and probe["ids"] == sorted(probe["ids"])
    assert [folder / name for name in probe["ids"]] == probe_files(str(folder))
    row = np.array([ids.index(Path(name).stem) for name in probe["ids"]])
    for kind, hook in KEYS:
        one, other = read_exemplars(store, kind, hook), read_exemplars(found, kind, hook)
        assert (one.units == other.units).all() and (one.why == other.why).all()
        assert np.abs(one.scores - other.scores).max() < 1e-4
        same = np.where(other.images >= 0, row[other.images], -1) == one.images
        assert same.mean() > 0.98  # where scores are equal the order is the folder's
        if one.heat is not None and other.heat is not None:
            assert np.abs(one.heat[same].astype(float) - other.heat[same]).max() < 5e-3
        rates, again = (astuple(read_firing(which, kind, hook)) for which in (store, found))
        assert all(np.allclose(x, y, rtol=1e-3, atol=1e-4) for x, y in zip(rates, again, strict=True))


def test_without_an_activation_store_the_stimuli_are_computed_once(store, copy):
    ctx = copy("extract.keep=false")
    shutil.rmtree(ctx.specs.activations.path(ctx.stores))
    found = exemplars.run(ctx)
    assert found.name == store.name and not ctx.has(ctx.specs.activations)
    for kind, hook in KEYS:
        one, other = read_exemplars(store, kind, hook), read_exemplars(found, kind, hook)
        assert (one.images == other.images).mean() > 0.98 and np.abs(one.scores - other.scores).max() < 1e-4


class Stop(Exception):
    """Stands for whatever ends a process."""


def numbers(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in ("config.yaml", "manifest.json")]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def test_killed_between_dictionaries_it_goes_on_to_the_same_bytes(copy, monkeypatch):
    whole = exemplars.run(copy())
    expected = numbers(whole.path)
    shutil.rmtree(whole.path)
    plain, calls = exemplars.search, []

    def search(probe, dictionaries, *others):
        if len(calls) == 2:
            raise Stop
        calls.append([d.hook for d in dictionaries])
        return plain(probe, dictionaries, *others)

    with monkeypatch.context() as patch:
        patch.setattr(exemplars, "search", search)
        patch.setattr(exemplars, "group", lambda every, *_: [[d] for d in every])
        with pytest.raises(Stop):
            exemplars.run(copy())
    assert not whole.path.exists()
    again = exemplars.run(copy())  # with the rest in one group
    assert numbers(again.path) == expected


def test_users_units(copy):
    ctx = copy("exemplars.units=[patch/block05.resid/3,cls/block01.resid/127]", "exemplars.random=0", "exemplars.top=2")
    found = exemplars.run(ctx)
    for kind, hook, unit in (("patch", HOOKS[1], 3), ("cls", HOOKS[0], 127)):
        lists = read_exemplars(found, kind, hook)
        place = lists.place(unit)
        assert place is not None and lists.why[place] & USER and lists.images.shape[1] == 2
        assert not (lists.why & CONTROL).any()


@pytest.mark.parametrize(
    "name",
    ["patch/block05.resid/256", "patch/block03.resid/1", "raw/block05.resid/1", "17", "patch/block05.resid/-1", "//"],
)
def test_unit_names_that_are_not_there(tiny, name):
    """Refused before anything runs."""
    with pytest.raises(UserError, match=r"exemplars.units: .* is no unit of this run.*KIND/HOOK/UNIT.*0\.\.255"):
        Context(load_config(tiny.config, (f"exemplars.units=['{name}']",)), tiny.out)


def test_probe_folders_that_cannot_be_used(copy, tmp_path):
    with pytest.raises(UserError, match=r"exemplars.probe: .*nowhere: there is no such folder"):
        copy(f"exemplars.probe={tmp_path / 'nowhere'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no picture lies below this folder"):
        copy(f"exemplars.probe={tmp_path / 'empty'}")
    (tmp_path / "empty" / "torn.jpg").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"torn.jpg: not a readable image"):
        exemplars.run(copy(f"exemplars.probe={tmp_path / 'empty'}"))


def test_the_name_of_the_store_follows_the_pictures(copy, tmp_path):
    """Sizes and times of the pictures are in it; batches and budgets are not."""
    folder = tmp_path / "probe"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"1")
    setting = f"exemplars.probe={folder}"
    name = copy(setting).specs.exemplars.name
    assert name == copy(setting, "exemplars.batch=7", "exemplars.memory_mb=99").specs.exemplars.name
    (folder / "a.png").write_bytes(b"22")
    changed = copy(setting).specs.exemplars.name
    (folder / "b.png").write_bytes(b"1")
    assert len({name, changed, copy(setting).specs.exemplars.name, copy().specs.exemplars.name}) == 4


def test_a_budget_that_is_too_small_is_refused(copy, monkeypatch):
    monkeypatch.setattr(exemplars, "list_bytes", lambda e, t: 10**6)
    with pytest.raises(UserError, match=r"exemplars.memory_mb to at least \d+, or lower exemplars.top"):
        exemplars.run(copy("exemplars.memory_mb=16"))
    partial = list(copy().stores.glob("exemplars-*"))
    assert all(path.name.endswith(".partial") for path in partial)
    assert json.loads((partial[0] / "spec.json").read_text())["kind"] == "exemplars"


def test_the_page_shows_these_lists(tiny, store, stores):
    """Captions of the strongest pictures, all labels counted; lit ones are not the plain pictures. Other kinds: the roi store's."""
    ctx = Context(load_config(tiny.config), tiny.out)
    names, extents = stores.extents()
    captions, cards = ctx.dataset.images.captions, [card for roi in roi_exemplars(ctx) for card in roi.units]
    plain = [
        card for roi in roi_exemplars(Context(load_config(tiny.config, NO_PATCHES), tiny.out)) for card in roi.units
    ]
    lists: dict[str, Exemplars] = {hook: read_exemplars(store, "patch", hook) for hook in HOOKS}
    by_mean: dict[str, np.ndarray] = dict(zip(HOOKS, stores.array("roi", "patch_mean/exemplars"), strict=True))
    assert len(cards) > 3
    for card, other in zip(cards, plain, strict=True):
        images = lists[card.layer].images[lists[card.layer].place(card.unit)]
        images = images[images >= 0]
        assert [thumb.alt for thumb in card.images] == [captions[i] for i in images[:3]]
        counts = np.bincount(np.where(extents[images].max(axis=1) > 0, extents[images].argmax(axis=1), len(names)))
        best = int(counts[: len(names)].argmax())
        assert card.purity_text == f"{counts[best]} of {len(images)} exemplars: {names[best]}"
        assert [thumb.alt for thumb in other.images] == [captions[i] for i in by_mean[card.layer][card.unit][:3]]
        assert not {thumb.data for thumb in card.images} & {thumb.data for thumb in other.images}
