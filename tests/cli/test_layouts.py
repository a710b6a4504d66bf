"""`sbm-jax run` on every layout of brain data, with a random-weight vision transformer: the planted columns are found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sbm_jax.brain import open_dataset
from sbm_jax.brain.dataset import Subject
from sbm_jax.brain.readers.options import ReadOptions
from sbm_jax.store.store import Store
from tests.backbones.random_models import write_random
from tests.brain.layouts import algonauts, bold5000, generic, glmsingle, nsd, things

SETTINGS: dict[str, Any] = {
    "extract": {"batch": 32, "geometry": "square"},
    "train": {"steps": 30, "batch": 128, "expansion": 4, "k": 8, "checkpoint_every": 30, "fidelity_images": 0},
    "encode": {"modes": ["patch_mean", "raw"]},
    "align": {"k_voxel": 2, "k_unit": 2, "min_ncsnr": 0},
    "rsa": {"structure_voxels": 20},
    "roi": {"modes": ["patch_mean"], "exemplars": 4, "stable": 2, "top_units": 5, "min_voxels": 2},
    "report": {"units_per_roi": 1, "images_per_unit": 2},
    "exemplars": {"kinds": []},
}


@dataclass(frozen=True)
class Case:
    """write: makes the folder and returns what was planted. family: of the backbone. mask: bool [v] from subject and truth."""

    write: Callable[[Path], Any]
    family: str
    subject: str
    planted: Callable[[Any, Subject], np.ndarray]
    data: dict[str, Any] = field(default_factory=dict)


def at_places(made: Any, subject: Subject) -> np.ndarray:
    """Planted flags of the columns, by their places in the file."""
    index: np.ndarray = subject.space.index  # pyright: ignore[reportAttributeAccessIssue]
    planted = made.planted
    return planted[np.searchsorted(made.places, index)] if len(planted) == len(made.places) else planted[index]


def _nsd(root: Path) -> Any:
    plan = nsd.few_images(nsd.make_plan(), (1, 2), 120)
    return nsd.write_nsd(root, {1: (1, 2)}, plan=plan).subjects[1]


CASES = {
    "nsd": Case(_nsd, "clip", "subj01", lambda made, s: at_places(made, s) & ~at_missing(made, s)),
    "algonauts": Case(
        lambda root: algonauts.write_algonauts(root).subjects[1],
        "dinov2_with_registers",
        "subj01",
        lambda made, s: made.planted,
    ),
    "things": Case(
        lambda root: things.write_things(root).subjects["sub-01"],
        "vit_mae",
        "sub-01",
        lambda made, s: made.planted,
        {"stimuli": "{root}/images"},
    ),
    "bold5000": Case(
        lambda root: bold5000.write_bold5000(root, runs_of_session=(2, 2)).subjects["CSI1"], "vit", "CSI1", at_places
    ),
    "glmsingle": Case(
        lambda root: glmsingle.write_glmsingle(root).subjects["sub-01"],
        "siglip",
        "sub-01",
        lambda made, s: made.planted[s.space.index],
        {"hold_out": 0.3},
    ),
    "generic-volume": Case(
        lambda root: generic.write_generic(root, n_images=40).subjects["sub-01"], "dinov3_vit", "sub-01", at_places
    ),
    "generic-cifti": Case(
        lambda root: generic.write_generic(root, "cifti", n_images=40).subjects["sub-01"], "dinov2", "sub-01", at_places
    ),
}


def at_missing(made: Any, subject: Subject) -> np.ndarray:
    index: np.ndarray = subject.space.index  # pyright: ignore[reportAttributeAccessIssue]
    return made.missing[np.searchsorted(made.places, index)]


@pytest.mark.parametrize("name", CASES)
def test_the_planted_columns_are_found(name: str, tmp_path: Path, program):
    case = CASES[name]
    root = tmp_path / "data"
    made = case.write(root)
    backbone = write_random(tmp_path / "backbone", case.family)
    extra = {key: value.format(root=root) if isinstance(value, str) else value for key, value in case.data.items()}
    subjects = [] if name == "algonauts" else [case.subject]
    data = {"root": str(root), "subjects": subjects, **extra}
    config = {"data": data, "backbone": {"path": str(backbone), "layers": [1]}, **SETTINGS}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    arguments = ("--config", tmp_path / "run.yaml", "--out", tmp_path / "out")
    checked = program("data", "check", root, *(("--stimuli", extra["stimuli"]) if "stimuli" in extra else ()))
    assert case.subject in checked.stdout
    program("run", *arguments)

    options = ReadOptions(subjects=tuple(subjects), stimuli=Path(extra["stimuli"]) if "stimuli" in extra else None)
    subject = open_dataset(root, options).subject(case.subject)
    planted = case.planted(made, subject)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert case.subject in summary["subjects"]
    stores = tmp_path / "out" / "stores"
    betas = next(s for p in stores.glob("betas-*") if (s := Store(p)).spec["settings"]["subject"] == case.subject)
    align = next(s for p in stores.glob("align-*") if (s := Store(p)).spec["inputs"]["betas"] == betas.name)
    usable = betas.read("usable").astype(bool)
    assert (planted & usable).sum() >= 3 and (~planted & usable).sum() >= 3
    for mode in ("patch_mean", "raw"):
        score = align.read(f"{mode}/held_out")[:, 0]
        found, other = score[planted & usable], score[~planted & usable]
        assert np.median(found) > 0.6, (mode, np.sort(found))
        assert abs(np.mean(other)) < np.median(found) - 0.3, (mode, np.mean(other), np.median(found))
    maps = next(stores.glob("report-*")) / "maps"
    assert list(maps.iterdir()), "no maps were written"
    assert not list(stores.glob("trials-*")), "converted trials are deleted once they are averaged"
