"""Damaged and missing stores, full and read-only disks, two runs at once: a clear message, exit code 2, nothing lost."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

import pytest

from sbm_jax.plan import STAGES

KIND = {"extract": "activations", "train": "saes", "encode": "codes"}


def _flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "maker", "array", "stage"),
    [
        ("activations", "extract", "block05.resid/patch", "train"),
        ("saes", "train", "w_enc", "encode"),
        ("codes", "encode", "raw/block01.resid", "align"),
        ("betas", "betas", "betas", "align"),
        ("align", "align", "patch_mean/held_out", "recovery"),
    ],
)
def test_corrupt_shard(tiny, program, tmp_path, kind, maker, array, stage, refused, finished):
    """One flipped byte: the stage that reads it names the array and what to do; doing that mends the run."""
    out = tmp_path / "run"
    shutil.copytree(tiny.out, out)
    reader = KIND.get(stage, stage)
    for path in (out / "stores").glob(f"{reader}-*"):
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
    program("run", "--stages", f"{maker},{stage}", "--config", tiny.config, "--out", out)
    for name in (kind, reader):
        assert _same_bytes(tiny, out, name)


def _same_bytes(tiny, out: Path, kind: str) -> bool:
    """Whether all stores of a kind are those of the tiny run, byte for byte."""
    files = [p.relative_to(out) for p in out.glob(f"stores/{kind}-*/**/*") if p.is_file()]
    twins = [p.relative_to(tiny.out) for p in tiny.out.glob(f"stores/{kind}-*/**/*") if p.is_file()]
    assert sorted(files) == sorted(twins) and files
    return all((out / name).read_bytes() == (tiny.out / name).read_bytes() for name in files)


def test_store_with_a_missing_or_short_file(tiny, program, tmp_path, refused):
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
        ("sizes", "codes", "sbm-jax encode"),
        ("joint", "codes", "sbm-jax encode"),
        ("rsa", "codes", "sbm-jax encode"),
        ("roi", "codes", "sbm-jax encode"),
        ("layers", "align", "sbm-jax align"),
        ("recovery", "layers", "sbm-jax layers"),
        ("report", "rsa", "sbm-jax rsa"),
    ],
)
def test_stage_without_its_inputs(tiny, program, tmp_path, stage, kind, command, refused, finished):
    out = tmp_path / "run"
    for name in ("dataset", "betas"):
        for path in tiny.out.glob(f"stores/{name}-*"):
            shutil.copytree(path, out / "stores" / path.name)
    before = finished(out)
    done = program(stage, "--config", tiny.config, "--out", out, code=2)
    refused(done, tiny.store(kind).name.rpartition("-")[0], "does not exist", command)
    assert finished(out) == before


def test_stage_before_the_demo_data(tiny, program, tmp_path, refused, finished):
    for stage in ("betas", "extract"):
        done = program(stage, "--config", tiny.config, "--out", tmp_path, code=2)
        refused(done, tiny.store("dataset").name, "sbm-jax data demo")
    assert finished(tmp_path) == set()


def test_unfinished_store(tiny, program, tmp_path, refused):
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


@pytest.mark.parametrize(
    ("size", "stage"),
    [(1_000_000, "dataset"), (600_000, "betas"), (400_000, "extract"), (500_000, "train"), (60_000, "encode"),
     (100_000, "align"), (2_000, "rsa"), (1_000_000, "report"), (60_000, "report")],
)  # fmt: skip
def test_full_disk(tiny, program, tmp_path, size, stage, refused, finished):
    """No file may grow beyond `size`, which the system reports like a full disk; then there is room and a rerun ends well."""
    out = tmp_path / "run"
    order, kind = [KIND.get(x, x) for x in STAGES], KIND.get(stage, stage)
    ready = set(order[: order.index(kind)])
    for path in (tiny.out / "stores").iterdir():
        if path.name.rpartition("-")[0] in ready:
            shutil.copytree(path, out / "stores" / path.name)
    words = ("data", "demo") if stage == "dataset" else (stage,)
    environment = {**program.environment, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    # Orbax writes checkpoints in threads that print what they raise before the main thread sees it.
    options = {"env": environment, "largest_file": size, "noisy": stage == "train"}
    done = program(*words, "--config", tiny.config, "--out", out, code=2, **options)
    refused(done, out, "disk is full")
    assert finished(out) == ready
    program(*words, "--config", tiny.config, "--out", out)
    assert finished(out) == {*ready, kind}
    assert _same_bytes(tiny, out, kind)


def test_too_little_space_is_said_before_anything_is_made(tiny, program, tmp_path, refused, finished):
    with small_disk(tmp_path / "disk", "8m") as disk:
        done = program("run", "--config", tiny.config, "--out", disk / "run", code=2)
        refused(done, "the run needs about", "free", "--out")
        assert finished(disk / "run") == set()


def test_disk_that_fills_up_meanwhile(tiny, program, tmp_path, refused, finished):
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


def test_read_only_folder(tiny, program, tmp_path, refused):
    refused(program("run", "--config", tiny.config, "--out", "/proc/nope/run", code=2), "/proc/nope/run")
    with small_disk(tmp_path / "disk", "1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        done = program("run", "--config", tiny.config, "--out", disk / "run", code=2)
        refused(done, disk / "run", "no permission", "--out")


def test_out_is_a_file(tiny, program, tmp_path, refused):
    (tmp_path / "file").write_text("mine")
    refused(program("run", "--config", tiny.config, "--out", tmp_path / "file", code=2), "file")
    refused(program("run", "--config", tiny.config, "--out", tmp_path / "file" / "run", code=2), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_two_runs_in_one_folder(tiny, program, tmp_path, refused):
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


def test_two_real_runs_in_one_folder(tiny, program, tmp_path, refused, finished):
    words = program.command("run", "--stages", "dataset", "--config", tiny.config, "--out", tmp_path / "run")
    with subprocess.Popen(words, env=program.environment, stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr.readline().startswith("demo data")
        done = program("run", "--config", tiny.config, "--out", tmp_path / "run", code=2)
        refused(done, f"process {first.pid}")
        first.communicate()
    assert first.returncode == 0 and finished(tmp_path / "run") == {"dataset"}
