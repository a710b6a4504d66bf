"""`align.select`: runs without shared images, without any held-out score, and what both say of themselves."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from scipy import stats

from sbm_jax.config import load_config
from sbm_jax.plan import steps
from sbm_jax.stages.context import Context

FOLDS = 4
KFOLD = ("--set", "align.select=kfold", "--set", f"align.folds={FOLDS}")


def share(folder: Path, flag: str) -> None:
    """Call every image shared, or none."""
    path = folder / "images.csv"
    with path.open(newline="") as handle:
        head, *rows = list(csv.reader(handle))
    column = head.index("shared")
    for row in rows:
        row[column] = flag
    with path.open("w", newline="") as handle:
        csv.writer(handle, lineterminator="\n").writerows([head, *rows])


def array(folder: Path, name: str) -> np.ndarray:
    return np.asarray(zarr.open_array(folder / name, mode="r")[...])


def standard(x: np.ndarray) -> np.ndarray:
    """Columns centred, of unit norm, 0 where constant; float64."""
    x = x.astype(np.float64)
    centred = x - x.mean(axis=0)
    norm = np.linalg.norm(centred, axis=0)
    real = norm > 1e-9 * np.linalg.norm(x, axis=0)
    return np.where(real, centred / np.where(real, norm, 1), 0)


@pytest.fixture
def folded(dataset, lab, program, tmp_path):
    """A run on a folder without shared images, cross-fitted: its folder, log, and subj01's align and betas stores."""
    share(dataset, "0")
    done = program("run", *lab, *KFOLD)
    stores = tmp_path / "run" / "stores"
    betas = next(p for p in stores.glob("betas-*") if "subj01" in (p / "spec.json").read_text())
    align = next(p for p in stores.glob("align-*") if betas.name in (p / "spec.json").read_text())
    return tmp_path / "run", done, align, betas


def test_without_shared_images(folded, program, lab, refused):
    """Every number of the raw mode's cross-fit from codes and betas in float64, down to the structure score."""
    out, done, align, betas = folded
    codes = array(next(out.glob("stores/codes-*")), "raw/block01.resid")[array(betas, "image_rows")]
    y, alive = array(betas, "betas").T, array(betas, "usable").astype(bool) & (array(betas, "ncsnr") >= 0.2)
    folds = array(align, "folds")
    assert sorted(np.bincount(folds)) == [15] * FOLDS and not array(betas, "shared").any()
    units, inside = array(align, "raw/fold_units"), []
    for f in range(FOLDS):
        test, train = folds == f, folds != f
        outside = standard(codes[train]).T @ standard(y[train])
        chosen = outside[units[f], np.arange(y.shape[1])]
        np.testing.assert_allclose(chosen, outside.max(axis=0), atol=1e-5)
        inside.append((standard(codes[test])[:, units[f]] * standard(y[test])).sum(axis=0))
    np.testing.assert_allclose(array(align, "raw/fold_held_out"), inside, atol=3e-6)
    held_out = array(align, "raw/held_out")[:, 0]
    np.testing.assert_allclose(held_out, np.mean(inside, axis=0), atol=3e-6)
    np.testing.assert_allclose(array(align, "raw/layer_held_out")[0], held_out, atol=3e-6)
    everything = standard(codes).T @ standard(y)
    np.testing.assert_allclose(array(align, "raw/voxel_values")[:, 0], everything.max(axis=0), atol=3e-6)

    summary = json.loads((out / "summary.json").read_text())
    row = summary["subjects"]["subj01"]["modes"]["raw"]
    assert row["held_out_mean"] == pytest.approx(held_out[alive].mean(dtype=np.float64), rel=1e-5)
    best = array(align, "raw/voxel_units")[:, 0]
    assert row["fold_agreement"] == pytest.approx(np.mean((units == best)[:, alive]))
    counts = 3  # repeats of every image
    ceiling = np.sqrt(1 / (1 + 1 / (counts * array(betas, "ncsnr")[alive] ** 2)))
    assert row["held_out_of_ceiling"] == pytest.approx(np.mean(held_out[alive] / ceiling), rel=1e-5)
    assert 0 < abs(row["shuffled_held_out_mean"]) < 0.02
    voxels = np.sort(np.random.default_rng([0, alive.sum()]).permutation(np.flatnonzero(alive))[:100])
    pairs, scores = np.triu_indices(100, 1), []
    for f in range(FOLDS):
        unit, brain = (np.corrcoef(x[folds == f].T)[pairs] for x in (codes[:, units[f, voxels]], y[:, voxels]))
        scores.append(stats.spearmanr(unit, brain)[0])
    assert row["structure_held_out"] == pytest.approx(
        np.mean(scores), abs=2e-3
    )  # float32 breaks ties of one unit's voxels

    assert summary["dataset"]["shared"] == 0 and summary["rsa"]["n_images"] == 0
    assert all(member["tokens"] for member in summary["saes"])
    page = (out / "report.html").read_text()
    assert "No images were kept apart for the autoencoders" in page and "same unit" in page and "cross-fitted" in page
    assert "nan" not in done.stdout
    # The finished betas do not let another setting through.
    before = {p.name for p in (out / "stores").iterdir()}
    refused(program("run", *lab, code=2), "subj01 saw 0 shared and 60 unique", "align.select: kfold")
    refused(program("run", *lab, *KFOLD, "--set", "align.folds=21", code=2), "align.folds = 21", "at most 20")
    assert {p.name for p in (out / "stores").iterdir() if not p.name.endswith(".partial")} == before


def test_without_held_out_scores(tiny, dataset, lab, program, tmp_path):
    """`none`, where every image is shared: no place has a number that looks held out."""
    share(dataset, "1")
    done = program("run", *lab, "--set", "align.select=none")
    out = tmp_path / "run"
    for align in out.glob("stores/align-*"):
        for name in ("held_out", "layer_held_out", "shuffled_held_out"):
            assert np.isnan(array(align, f"raw/{name}")).all()
        assert np.isfinite(array(align, "raw/voxel_values")).all()
        assert not (align / "folds").exists()
    summary = json.loads((out / "summary.json").read_text())

    def numbers(value, path=""):
        if isinstance(value, dict):
            return {k: v for key, part in value.items() for k, v in numbers(part, f"{path}/{key}").items()}
        if isinstance(value, list):
            return {k: v for i, part in enumerate(value) for k, v in numbers(part, f"{path}/{i}").items()}
        return {path: value}

    scores = {
        k: v for part in ("subjects", "layers", "recovery", "assign") for k, v in numbers(summary[part], part).items()
    }
    held_out = {key: value for key, value in scores.items() if "held_out" in key or "depth" in key.split("/")[-1]}
    assert len(held_out) > 20 and set(held_out.values()) == {None}
    assert summary["subjects"]["subj01"]["modes"]["raw"]["mean"] > 0.2
    assert summary["recovery"]["modes"]["raw"]["all"]["silent"] == {}
    report = next(out.glob("stores/report-*"))
    maps = {path.name for path in (report / "maps").iterdir()}
    assert any("insample" in name for name in maps) and not any("heldout" in name or "depth" in name for name in maps)
    page = (out / "report.html").read_text()
    assert "align.select is none" in page and "Held-out similarity" not in page and "held-out score" in page
    assert not any(word in done.stdout for word in ("nan", "None"))


def test_names_of_stores(tiny, program, tmp_path):
    """The default has the names it always had; the number of folds matters to the cross-fit alone."""

    def names(*settings: str) -> dict[str, str]:
        words = [word for setting in settings for word in ("--set", setting)]
        done = program("run", "--dry-run", "--config", tiny.config, "--out", tmp_path / "dry", *words)
        lines = [line.split() for line in done.stdout.splitlines()]
        return {line[0]: line[1] for line in lines if len(line) > 2 and "-" in line[1]}

    usual = names()
    assert usual["align"] in {p.name for p in (tiny.out / "stores").iterdir()}
    assert names("align.folds=7") == usual == names("align.select=shared")
    none, four, five = (
        names("align.select=none"),
        names("align.select=kfold", "align.folds=4"),
        names("align.select=kfold"),
    )
    assert names("align.select=none", "align.folds=7") == none
    assert len({x["align"] for x in (usual, none, four, five)}) == 4
    assert len({x["report"] for x in (usual, none, four, five)}) == 4
    for kind in ("betas", "train", "encode"):
        assert len({x[kind] for x in (usual, none, four, five)}) == 1
    assert usual["roi"] == four["roi"] != none["roi"]


def test_the_dry_run_counts_the_searches_of_the_folds(tiny, tmp_path):
    """36 unique and 24 shared images, 2 permutations of a quarter of the voxels; each of 4 folds searches three quarters of
    all images, for the voxels and one permutation.
    """
    work = {}
    for select in ("shared", "none", "kfold"):
        config = load_config(tiny.config, [f"align.select={select}", "align.folds=4"])
        work[select] = [step.flops for step in steps(Context(config, tmp_path)) if step.stage == "align"]
    images = {"shared": 36 * 1.5, "none": 60 * 1.5, "kfold": 60 * 1.5 + 4 * 45 * 1.25}
    for select, flops in work.items():
        np.testing.assert_allclose(flops, np.array(work["shared"]) * images[select] / images["shared"])
