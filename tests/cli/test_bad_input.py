"""A lab's folder: it gives the demo's numbers, and what is wrong with it is named by file and row, with exit code 2."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def edit_table(path: Path, change) -> None:
    """Rewrite a CSV file: `change(rows)` gets a list of lists, header first."""
    with path.open(newline="") as handle:
        rows = list(csv.reader(handle))
    change(rows)
    with path.open("w", newline="") as handle:
        csv.writer(handle, lineterminator="\n").writerows(rows)


def edit_responses(folder: Path, change) -> None:
    x = np.load(folder / "responses.npy")
    x = change(x)
    np.save(folder / "responses.npy", x)


def test_an_ordinary_folder_gives_the_same_numbers(tiny, program, tmp_path, make_config, finished):
    """The demo's own tables through the general reader: every number of the summary is the demo's."""
    folder = shutil.copytree(tiny.store("dataset") / "data", tmp_path / "lab")
    config = make_config(tmp_path / "lab.yaml", data={"root": str(folder)})
    program("run", "--config", config, "--out", tmp_path / "run")
    ours, theirs = (json.loads((out / "summary.json").read_text()) for out in (tmp_path / "run", tiny.out))
    assert ours == theirs
    assert "dataset" not in finished(tmp_path / "run")


def test_a_folder_without_regions_labels_or_surface(dataset, lab, program, tmp_path):
    """The least that a lab has: pictures, trials and responses in a volume. No `shared` column, no truth."""
    shutil.rmtree(dataset / "truth")
    shutil.rmtree(dataset / "masks")
    head = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps({**head, "space": "func1mm", "concepts": []}))
    edit_table(dataset / "images.csv", lambda rows: rows.__setitem__(slice(None), [row[:2] for row in rows]))
    for subject in ("subj01", "subj02"):
        (dataset / subject / "voxels.csv").write_text("i,j,k\n" + "".join(f"{v},0,0\n" for v in range(600)))
        edit_responses(dataset / subject, lambda x: x[:, :600].astype(np.float32))
    done = program("run", *lab)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["recovery"] is None and "planted" not in done.stdout
    assert summary["dataset"]["shared"] == 24 and summary["subjects"]["subj01"]["voxels"] == 600
    assert summary["rsa"]["rois"] == {}
    report = next((tmp_path / "run" / "stores").glob("report-*"))
    assert {path.suffix for path in (report / "maps").iterdir()} == {".tsv"}
    assert "func1mm" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "missing"])
def test_pictures(dataset, lab, program, tmp_path, damage, refused, finished):
    rows = (dataset / "images.csv").read_text().splitlines()
    file = dataset / rows[41].split(",")[1]
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:900])
    elif damage == "missing":
        file.unlink()
    else:
        file.write_text("this is no picture" if damage == "text" else "")
    refused(program("run", *lab, code=2), file, "does not exist" if damage == "missing" else "not a readable image")
    assert finished(tmp_path / "run") == (set() if damage == "missing" else {"betas"})
    # Mended, the same command goes on.
    Image.fromarray(np.full((128, 128, 3), 90, np.uint8)).save(file)
    program("run", "--stages", "extract", *lab)
    assert finished(tmp_path / "run") >= {"activations"}


def test_voxels_without_data_are_left_out(dataset, lab, program, tmp_path):
    """Constant, all-missing and partly missing voxels; a missing trial of an image that has others does no harm."""
    image = (dataset / "subj01" / "trials.csv").read_text().splitlines()[1].split(",")[0]
    same = [line.split(",")[0] == image for line in (dataset / "subj01" / "trials.csv").read_text().splitlines()[1:]]

    def change(x):
        x = x.astype(np.float32)
        x[:, 3] = 1.25
        x[:, 7] = np.nan
        x[np.flatnonzero(same), 11] = np.nan  # every trial of one image
        x[np.flatnonzero(same)[0], 13] = np.nan  # one trial of three
        x[:, 17] = 0
        return x

    edit_responses(dataset / "subj01", change)
    done = program("run", *lab)
    assert "betas subj01: 4 of 20484 voxels are constant or lack data and are left out" in done.stderr
    assert "row 4 of voxels.csv" in done.stderr
    betas = next(p for p in (tmp_path / "run" / "stores").glob("betas-*") if "subj01" in (p / "spec.json").read_text())
    dropped = json.loads((betas / "dropped.json").read_text())
    assert dropped["voxels"] == [3, 7, 11, 17] and dropped["missing_trials"] == [180, 180, 3, 180]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["subjects"]["subj01"]["usable"] == 20_480 and summary["subjects"]["subj02"]["usable"] == 20_484
    assert "subj01: 4 of 20484 voxels" in (tmp_path / "run" / "report.html").read_text().replace(",", "")
    import zarr

    for align in (tmp_path / "run" / "stores").glob("align-*"):
        if json.loads((align / "spec.json").read_text())["inputs"]["betas"] == betas.name:
            units = np.asarray(zarr.open_array(align / "raw" / "voxel_units", mode="r")[...])
            values = np.asarray(zarr.open_array(align / "raw" / "voxel_values", mode="r")[...])
            assert np.flatnonzero((units == -1).any(axis=1)).tolist() == [3, 7, 11, 17]
            assert np.isnan(values[[3, 7, 11, 17]]).all() and np.isfinite(np.delete(values, [3, 7, 11, 17], 0)).all()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda x: np.full_like(x, np.nan), ["responses.npy", "not one of 20484 voxels"]),
        (lambda x: np.full_like(x, 2), ["responses.npy", "not one of 20484 voxels"]),
        (
            lambda x: np.where(np.arange(x.shape[1]) == 5, np.float16(np.inf), x),
            ["responses.npy", "infinite", "voxel 6"],
        ),
        (lambda x: x[:-1], ["responses.npy", "expected 180 trials", "(179, 20484)"]),
        (lambda x: x[:, :-1], ["responses.npy", "20484 voxels", "(180, 20483)"]),
        (lambda x: x.astype(np.int16), ["responses.npy", "int16"]),
    ],
)
def test_responses(dataset, lab, program, tmp_path, change, parts, refused, finished):
    edit_responses(dataset / "subj01", change)
    refused(program("run", *lab, code=2), *parts)
    assert finished(tmp_path / "run") == set()


def test_responses_cut_short(dataset, lab, program, tmp_path, refused, finished):
    path = dataset / "subj02" / "responses.npy"
    os.truncate(path, path.stat().st_size // 2)
    refused(program("run", *lab, code=2), path, "cut short")
    assert finished(tmp_path / "run") == set()


def _unknown_image(rows):
    rows[3][0] = "scene-99999"


def _no_shared_image(rows):
    for row in rows[1:]:
        row[2] = "0"


def _twice(rows):
    rows[5][0] = rows[4][0]


@pytest.mark.parametrize(
    ("table", "change", "parts"),
    [
        ("subj01/trials.csv", _unknown_image, ["trials.csv, row 3", "'scene-99999' is not in images.csv"]),
        ("subj01/trials.csv", lambda rows: rows.pop(), ["responses.npy", "expected 179 trials"]),
        ("subj01/trials.csv", lambda rows: rows[0].__setitem__(1, "when"), ["trials.csv", "missing session"]),
        ("subj01/trials.csv", lambda rows: rows[9].__setitem__(1, "x"), ["trials.csv, row 9", "'session'", "'x'"]),
        ("subj01/voxels.csv", lambda rows: rows.pop(), ["responses.npy", "20483 voxels"]),
        ("subj01/voxels.csv", lambda rows: rows[2].__setitem__(1, "99999"), ["voxels.csv, row 2", "99999"]),
        ("images.csv", lambda rows: rows.pop(2), ["trials.csv", "is not in images.csv"]),
        ("images.csv", _twice, ["images.csv", "is in rows 4 and 5"]),
        ("images.csv", lambda rows: rows[7].__setitem__(1, "../secret.png"), ["images.csv, row 7", "../secret.png"]),
        ("images.csv", _no_shared_image, ["subj01 saw 0 shared and 60 unique", "`shared` column"]),
        ("truth/subj01.csv", lambda rows: rows.pop(), ["truth/subj01.csv", "20483 rows"]),
    ],
)
def test_tables_that_do_not_match(dataset, lab, program, tmp_path, table, change, parts, refused, finished):
    edit_table(dataset / table, change)
    done = program("run", *lab, code=2)
    refused(done, *parts)
    assert "recovery" not in finished(tmp_path / "run") and "report" not in finished(tmp_path / "run")
    if not table.startswith("truth"):
        assert finished(tmp_path / "run") == set()


def test_dataset_json(dataset, lab, program, refused):
    path = dataset / "dataset.json"
    for text, part in (("{", "not valid JSON"), ('{"format": "bids"}', "sbm-tables"), ("[]", "JSON object")):
        path.write_text(text)
        refused(program("run", *lab, code=2), path, part)
    path.unlink()  # then it is a folder of arrays and tables like any other, and said to be one
    assert "generic dataset" in program("data", "check", dataset).stdout
