"""Wrong input: one message on stderr that names what is wrong and where, exit code 2, and nothing half-written."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# The shortest run that goes all the way: one layer, two cheap kinds of features.
QUICK = {
    "encode": {"modes": ["cls", "raw"]},
    "roi": {"modes": ["cls"]},
    "report": {"mode": "raw"},
    "align": {"shuffles": 1},
}


def refused(done: subprocess.CompletedProcess, *parts: str) -> None:
    """One error message that holds all parts, on stderr alone."""
    errors = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "Error: "))]
    assert len(errors) == 1, done.stderr
    message = done.stderr[done.stderr.index(errors[0]) :]
    for part in parts:
        assert str(part) in message, message
    assert done.stdout == ""


def finished(out: Path) -> set[str]:
    """Kinds of finished stores; each is checked against its manifest."""
    from sbm_jax.store.store import Store

    if not (out / "stores").exists():
        return set()
    folders = [p for p in (out / "stores").iterdir() if not p.name.endswith(".partial")]
    return {Store(p).name.rpartition("-")[0] for p in folders}


@pytest.fixture
def dataset(tiny, tmp_path) -> Path:
    """A lab's folder: the tables, pictures and responses of the tiny demo, which the test may damage."""
    return Path(shutil.copytree(tiny.store("dataset") / "data", tmp_path / "lab"))


@pytest.fixture
def lab(dataset, tmp_path, make_config) -> tuple:
    """Words that run on `dataset`."""
    config = make_config(tmp_path / "lab.yaml", data={"root": str(dataset)}, backbone={"layers": [1]}, **QUICK)
    return "--config", config, "--out", tmp_path / "run"


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


# --- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("data: {root: demo}\n", ["missing key backbone"]),
        ("data: {}\nbackbone: {path: demo}\n", ["missing key data.root"]),
        ("data: {root: demo}\nbackbone: {path: demo}\ntrain: {stepps: 3}\n", ["unknown key train.stepps", "train.steps"]),
        ("data: {root: demo}\nbackbone: {path: demo}\nstructure_voxels: 3\n", ["structure_voxels", "rsa.structure_voxels"]),
        ("data: {root: demo}\nbackbone: {path: demo}\ntrain: {steps: many}\n", ["train.steps", "'many'"]),
        ("data: {root: demo}\nbackbone: {path: demo}\ntrain: {k: 0}\n", ["train.k", "greater than or equal to 1"]),
        ("data: {root: demo}\nbackbone: {path: demo}\ntrain: 3\n", ["train", "3"]),
        ("data: {root: demo}\nbackbone: {path: demo}\nencode: {modes: [cls]}\n", ["roi.modes", "encode.modes"]),
        ("data: {root: demo}\nbackbone: {path: demo}\ntrain: {lr: .inf}\n", ["train.lr"]),
        ("data: {root: [\n", ["not valid YAML", "line"]),
        ("just words\n", ["expected sections", "found str"]),
        ("", ["expected sections"]),
    ],
)
def test_configuration(program, tmp_path, text, parts):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    refused(program("run", "--config", path, "--out", tmp_path / "run", code=2), path, *parts)
    assert not (tmp_path / "run").exists()


def test_configuration_file_is_missing_or_no_text(program, tmp_path):
    words = ("run", "--out", tmp_path / "run", "--config")
    refused(program(*words, tmp_path / "none.yaml", code=2), tmp_path / "none.yaml", "No such file")
    refused(program(*words, tmp_path, code=2), tmp_path, "is a directory")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    refused(program(*words, tmp_path / "binary.yaml", code=2), "binary.yaml", "not valid YAML")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--set", "train.stepps=3"], ["unknown key train.stepps", "train.steps"]),
        (["--set", "train.steps"], ["train.steps", "expected key=value"]),
        (["--set", "data.root.x=3"], ["root is a single value"]),
        (["--set", "train.steps=[1"], ["not valid YAML"]),
        (["--stages", "extract,trian"], ["no stage 'trian'", "train"]),
        (["--stages", "train..extract"], ["backwards"]),
        (["--set", "data.subjects=[subj09]"], ["subj09", "subj01, subj02"]),
        (["--set", "backbone.layers=[6]"], ["backbone.layers", "0..5"]),
        (["--set", "backbone.layers=[1,1]"], ["backbone.layers", "different"]),
        (["--set", "backbone.path=/nowhere/clip"], ["/nowhere/clip", "no such folder"]),
        (["--set", "backbone.path=nobody/nothing"], ["nobody/nothing", "hf download"]),
        (["--set", "data.root=/nowhere/data"], ["/nowhere/data", "folder not found"]),
    ],
)
def test_settings(tiny, program, tmp_path, words, parts):
    for dry in ([], ["--dry-run"]):
        done = program("run", *dry, "--config", tiny.config, *words, "--out", tmp_path / "run", code=2)
        refused(done, *parts)
    assert finished(tmp_path / "run") == set()


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["devices=64"], ["devices: 64 were asked for"]),
        (["data.demo.size=96"], ["size", "64", "96"]),
        (["train.batch=4096"], ["train.batch is 4096", "92 training images"]),
        (["train.k=300"], ["train.k is 300", "256 units"]),
        (["align.min_ncsnr=50"], ["align.min_ncsnr = 50", "highest ncsnr"]),
        (["roi.names=[V1, nowhere]"], ["roi.names", "nowhere"]),
        (["train.lr=1e30"], ["non-finite", "train.lr"]),
    ],
)
def test_settings_that_only_the_data_can_refuse(tiny, program, tmp_path, settings, parts):
    shutil.copytree(tiny.out, tmp_path / "run")
    before = finished(tmp_path / "run")
    count = len(list((tmp_path / "run" / "stores").glob("*-*")))
    words = [word for setting in settings for word in ("--set", setting)]
    # Something must be left to make, or no device is asked for.
    words += ["--set", "extract.shard_images=64"] if "devices=64" in settings else []
    done = program("run", "--config", tiny.config, *words, "--out", tmp_path / "run", code=2)
    refused(done, *parts)
    assert finished(tmp_path / "run") == before
    made = [p for p in (tmp_path / "run" / "stores").iterdir() if not p.name.endswith(".partial")]
    assert len(made) - count <= 3


# --- a lab's folder --------------------------------------------------------------------------------------------------


def test_an_ordinary_folder_gives_the_same_numbers(tiny, program, tmp_path, make_config):
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
    assert not (report / "maps").exists()
    assert "func1mm" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "missing"])
def test_pictures(dataset, lab, program, tmp_path, damage):
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
        (lambda x: np.where(np.arange(x.shape[1]) == 5, np.float16(np.inf), x), ["responses.npy", "infinite", "voxel 6"]),
        (lambda x: x[:-1], ["responses.npy", "expected 180 trials", "(179, 20484)"]),
        (lambda x: x[:, :-1], ["responses.npy", "20484 voxels", "(180, 20483)"]),
        (lambda x: x.astype(np.int16), ["responses.npy", "int16"]),
    ],
)
def test_responses(dataset, lab, program, tmp_path, change, parts):
    edit_responses(dataset / "subj01", change)
    refused(program("run", *lab, code=2), *parts)
    assert finished(tmp_path / "run") == set()


def test_responses_cut_short(dataset, lab, program, tmp_path):
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
def test_tables_that_do_not_match(dataset, lab, program, tmp_path, table, change, parts):
    edit_table(dataset / table, change)
    done = program("run", *lab, code=2)
    refused(done, *parts)
    assert "recovery" not in finished(tmp_path / "run") and "report" not in finished(tmp_path / "run")
    if not table.startswith("truth"):
        assert finished(tmp_path / "run") == set()


def test_dataset_json(dataset, lab, program):
    path = dataset / "dataset.json"
    for text, part in (("{", "not valid JSON"), ('{"format": "bids"}', "sbm-tables"), ("[]", "JSON object")):
        path.write_text(text)
        refused(program("run", *lab, code=2), path, part)
    path.unlink()
    refused(program("run", *lab, code=2), path, "not found")


# --- stores ----------------------------------------------------------------------------------------------------------


def _flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "array", "stage", "follows"),
    [
        ("activations", "block05.resid/patch", "train", ("saes", "codes", "align", "rsa", "roi", "layers", "recovery", "report")),
        ("saes", "w_enc", "encode", ("codes", "align", "rsa", "roi", "layers", "recovery", "report")),
        ("codes", "raw/block01.resid", "align", ("align", "rsa", "layers", "recovery", "report")),
        ("betas", "betas", "align", ("align", "rsa", "layers", "recovery", "report")),
        ("align", "patch_mean/held_out", "recovery", ("recovery", "report")),
    ],
)
def test_corrupt_shard(tiny, program, tmp_path, kind, array, stage, follows):
    """One flipped byte: the stage that reads it names the file and what to do; doing that mends the run."""
    out = tmp_path / "run"
    shutil.copytree(tiny.out, out)
    for name in follows:
        for path in (out / "stores").glob(f"{name}-*"):
            shutil.rmtree(path)
    shutil.rmtree(out / "checkpoints")
    broken = out / "stores" / tiny.store(kind).name
    shard = max((p for p in (broken / array / "c").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    _flip_a_byte(shard)
    left = finished(out)
    done = program(stage, "--config", tiny.config, "--out", out, code=2)
    refused(done, broken / array, "corrupt", "Delete", "rerun")
    assert finished(out) == left
    shutil.rmtree(broken)
    program("run", "--config", tiny.config, "--out", out)
    assert (out / "summary.json").read_bytes() == (tiny.out / "summary.json").read_bytes()


def test_store_with_a_missing_or_short_file(tiny, program, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(tiny.out, out)
    shutil.rmtree(out / "stores" / tiny.store("layers").name)
    store = out / "stores" / tiny.store("align").name
    file = store / "index.json"
    text = file.read_text()
    file.write_text(text[:-5])
    refused(program("layers", "--config", tiny.config, "--out", out, code=2), store.name, "index.json", "Delete")
    file.unlink()
    refused(program("layers", "--config", tiny.config, "--out", out, code=2), store.name, "index.json is missing")
    file.write_text(text)
    program("layers", "--config", tiny.config, "--out", out)


@pytest.mark.parametrize(
    ("stage", "kind", "command"),
    [
        ("train", "activations", "sbm-jax extract"),
        ("encode", "activations", "sbm-jax extract"),
        ("align", "codes", "sbm-jax encode"),
        ("rsa", "codes", "sbm-jax encode"),
        ("roi", "codes", "sbm-jax encode"),
        ("layers", "align", "sbm-jax align"),
        ("recovery", "layers", "sbm-jax layers"),
        ("report", "rsa", "sbm-jax rsa"),
    ],
)
def test_stage_without_its_inputs(tiny, program, tmp_path, stage, kind, command):
    out = tmp_path / "run"
    for name in ("dataset", "betas"):
        for path in tiny.out.glob(f"stores/{name}-*"):
            shutil.copytree(path, out / "stores" / path.name)
    before = finished(out)
    done = program(stage, "--config", tiny.config, "--out", out, code=2)
    refused(done, tiny.store(kind).name.rpartition("-")[0], "does not exist", command)
    assert finished(out) == before


def test_stage_before_the_demo_data(tiny, program, tmp_path):
    for stage in ("betas", "extract"):
        done = program(stage, "--config", tiny.config, "--out", tmp_path, code=2)
        refused(done, tiny.store("dataset").name, "sbm-jax data demo")
    assert finished(tmp_path) == set()


def test_unfinished_store(tiny, program, tmp_path):
    shutil.copytree(tiny.out, tmp_path / "run")
    stores = tmp_path / "run" / "stores"
    shutil.rmtree(stores / tiny.store("align").name)
    codes = stores / tiny.store("codes").name
    (codes / "manifest.json").unlink()
    codes.rename(codes.with_name(codes.name + ".partial"))
    done = program("align", "--config", tiny.config, "--out", tmp_path / "run", code=2)
    refused(done, codes.name, "is unfinished", "sbm-jax encode")
    text = program("run", "--dry-run", "--config", tiny.config, "--out", tmp_path / "run").stdout
    assert next(line for line in text.splitlines() if line.startswith("encode")).split()[2:4] == ["to", "finish"]


# --- disks and other processes ---------------------------------------------------------------------------------------


def _limit(size: int):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize(
    ("size", "stage"),
    [(1_000_000, "dataset"), (600_000, "betas"), (400_000, "extract"), (500_000, "train"), (60_000, "encode"),
     (100_000, "align"), (2_000, "rsa"), (1_000_000, "report"), (60_000, "report")],
)  # fmt: skip
def test_full_disk(tiny, program, tmp_path, size, stage):
    """No file may grow beyond `size`, which the system reports like a full disk; then there is room and a rerun ends well."""
    out = tmp_path / "run"
    order = ["dataset", "betas", "activations", "saes", "codes", "align", "rsa", "roi", "layers", "recovery", "report"]
    kind = {"extract": "activations", "train": "saes", "encode": "codes"}.get(stage, stage)
    ready = set(order[: order.index(kind)])
    for path in (tiny.out / "stores").iterdir():
        if path.name.rpartition("-")[0] in ready:
            shutil.copytree(path, out / "stores" / path.name)
    words = ("data", "demo") if stage == "dataset" else (stage,)
    environment = {**program.environment, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = program(
        *words, "--config", tiny.config, "--out", out, code=2, env=environment, preexec_fn=_limit(size)
    )
    refused(done, out, "disk is full")
    assert finished(out) == ready
    program(*words, "--config", tiny.config, "--out", out)
    assert finished(out) == {*ready, kind}
    for path in (out / "stores").glob(f"{kind}-*"):
        for file in path.rglob("*"):
            if file.is_file():
                assert file.read_bytes() == (tiny.out / "stores" / path.name / file.relative_to(path)).read_bytes(), file


def test_too_little_space_is_said_before_anything_is_made(tiny, program, tmp_path):
    with small_disk(tmp_path / "disk", "8m") as disk:
        done = program("run", "--config", tiny.config, "--out", disk / "run", code=2)
        refused(done, "the run needs about", "free", "--out")
        assert finished(disk / "run") == set()


def test_disk_that_fills_up_meanwhile(tiny, program, tmp_path):
    """A real full disk: the plan (18.4 MB) fits, the last megabyte of what is written does not; then there is room."""
    with small_disk(tmp_path / "disk", "40m") as disk:
        (disk / "other").write_bytes(bytes((40 << 20) - 19_000_000))
        words = ("--stages", "dataset", "--config", tiny.config, "--out", disk / "run")
        refused(program("run", *words, code=2), disk / "run", "the disk is full")
        assert finished(disk / "run") == set()
        (disk / "other").unlink()
        program("run", *words)
        assert finished(disk / "run") == {"dataset"}


class small_disk:
    """A file system in memory of the given size; the test is skipped where mounting is not allowed."""

    def __init__(self, folder: Path, size: str):
        self.folder, self.size = folder, size

    def __enter__(self) -> Path:
        self.folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={self.size}", "tmpfs", str(self.folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small disk needs root")
        return self.folder

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=True)


def test_read_only_folder(tiny, program, tmp_path):
    refused(program("run", "--config", tiny.config, "--out", "/proc/nope/run", code=2), "/proc/nope/run")
    with small_disk(tmp_path / "disk", "1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        done = program("run", "--config", tiny.config, "--out", disk / "run", code=2)
        refused(done, disk / "run", "no permission", "--out")


def test_out_is_a_file(tiny, program, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(program("run", "--config", tiny.config, "--out", tmp_path / "file", code=2), "file")
    refused(program("run", "--config", tiny.config, "--out", tmp_path / "file" / "run", code=2), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_two_runs_in_one_folder(tiny, program, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    with (out / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        handle.write("4711")
        handle.flush()
        for words in (("run",), ("align",), ("data", "demo")):
            done = program(*words, "--config", tiny.config, "--out", out, code=2)
            refused(done, "another sbm-jax run (process 4711)", out, "--out")
        program("run", "--dry-run", "--config", tiny.config, "--out", out)  # a plan disturbs nobody
    assert sorted(p.name for p in out.iterdir()) == ["lock"]


def test_two_real_runs_in_one_folder(tiny, program, tmp_path):
    words = program.command("run", "--stages", "dataset", "--config", tiny.config, "--out", tmp_path / "run")
    with subprocess.Popen(words, env=program.environment, stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr.readline().startswith("demo data")
        done = program("run", "--config", tiny.config, "--out", tmp_path / "run", code=2)
        refused(done, f"process {first.pid}")
        first.communicate()
    assert first.returncode == 0 and finished(tmp_path / "run") == {"dataset"}
