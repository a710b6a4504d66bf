"""Wrong settings: one message on stderr that names the key and what to do, exit code 2, and nothing half-written."""

from __future__ import annotations

import shutil

import pytest


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("data: {root: demo}\n", ["missing key backbone"]),
        ("data: {}\nbackbone: {path: demo}\n", ["missing key data.root"]),
        (
            "data: {root: demo}\nbackbone: {path: demo}\ntrain: {stepps: 3}\n",
            ["unknown key train.stepps", "train.steps"],
        ),
        (
            "data: {root: demo}\nbackbone: {path: demo}\nstructure_voxels: 3\n",
            ["structure_voxels", "rsa.structure_voxels"],
        ),
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
def test_configuration(program, tmp_path, text, parts, refused):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    refused(program("run", "--config", path, "--out", tmp_path / "run", code=2), path, *parts)
    assert not (tmp_path / "run").exists()


def test_configuration_file_is_missing_or_no_text(program, tmp_path, refused):
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
def test_settings(tiny, program, tmp_path, words, parts, refused, finished):
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
def test_settings_that_only_the_data_can_refuse(tiny, program, tmp_path, settings, parts, refused, finished):
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
