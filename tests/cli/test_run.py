"""`sbm-jax run` and its stages as a user calls them: found stores, plans, ranges, overrides, help, exit codes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

STAGES = (
    "betas",
    "extract",
    "train",
    "encode",
    "align",
    "assign",
    "sizes",
    "joint",
    "pooling",
    "rsa",
    "roi",
    "layers",
    "recovery",
    "exemplars",
    "explain",
    "emergence",
    "match",
    "edit",
    "stability",
    "report",
)
STORES = ("dataset", *STAGES)
KIND = {"extract": "activations", "train": "saes", "encode": "codes"}


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        p.relative_to(folder).as_posix(): (p.stat().st_mtime_ns, p.stat().st_size)
        for p in sorted((folder / "stores").rglob("*"))
    }


def _plan(text: str) -> list[tuple[str, str, str]]:
    """(stage, store, state) of every line of a dry run's table."""
    lines = text.splitlines()
    assert lines[0].split()[:3] == ["stage", "store", "state"]
    rows = [re.split(r" {2,}", line.strip()) for line in lines[1:] if not line.startswith(("to do", "assumed"))]
    return [(row[0], row[1], row[2]) for row in rows]


def test_output_names_what_was_made(tiny):
    lines = dict(line.split(maxsplit=1) for line in tiny.process.stdout.splitlines()[:3])
    assert lines == {
        "report": str(tiny.out / "report.html"),
        "summary": str(tiny.out / "summary.json"),
        "maps": str(tiny.store("report") / "maps"),
    }
    summary = json.loads((tiny.out / "summary.json").read_text())
    printed = tiny.process.stdout
    for subject, record in summary["subjects"].items():
        block = printed[printed.index(f"{subject}, {record['responsive']:,} responsive voxels") :]
        for mode, title in (("cls", "CLS SAE"), ("raw", "raw neurons")):
            cells = next(line for line in block.splitlines() if line.strip().startswith(title)).split()
            row = record["modes"][mode]
            assert [f"{row[key]:.3f}" for key in ("max", "mean", "structure", "held_out_mean")] == cells[-6:-2]
    pooled = summary["recovery"]["modes"]["raw"]["all"]["category"]
    found, null = 100 * pooled["found"], 100 * pooled["shuffled"]
    assert f"{found:.1f} % ({null:.1f} %) of {pooled['vertices']:,} vertices" in printed


def test_second_run_finds_every_store(tiny, program):
    before = _snapshot(tiny.out)
    start = time.monotonic()
    again = program("run", "--config", tiny.config, "--out", tiny.out)
    assert time.monotonic() - start < 6
    assert _snapshot(tiny.out) == before
    assert again.stdout == tiny.process.stdout
    found = [line.split(":")[0] for line in again.stderr.splitlines() if ": found " in line]
    assert list(dict.fromkeys(found)) == list(STORES) and len(found) == 26


@pytest.mark.parametrize("words", [("run",), ("run", "--dry-run"), ("align",), ("report",)])
def test_found_stores_need_no_jax(tiny, program, words):
    command = [
        sys.executable,
        "-X",
        "importtime",
        *program.command(*words, "--config", tiny.config, "--out", tiny.out)[1:],
    ]
    done = subprocess.run(command, env=program.environment, capture_output=True, text=True, timeout=60, check=True)
    imported = set(re.findall(r"\|\s+(\w+)\s*$", done.stderr, re.MULTILINE))
    assert "numpy" in imported
    assert not imported & {"jax", "jaxlib", "flax", "optax", "orbax", "transformers", "matplotlib", "scipy"}


def test_dry_run_creates_nothing(tiny, program, tmp_path):
    out = tmp_path / "new"
    rows = _plan(program("run", "--dry-run", "--config", tiny.config, "--out", out).stdout)
    assert list(tmp_path.iterdir()) == []
    assert list(dict.fromkeys(row[0] for row in rows)) == list(STORES)
    assert {row[2] for row in rows} == {"to make"}
    # It names the very stores that a run makes, and finds those of a finished one.
    assert {row[1] for row in rows} == {p.name for p in (tiny.out / "stores").iterdir()}
    before = _snapshot(tiny.out)
    text = program("run", "--dry-run", "--config", tiny.config, "--out", tiny.out).stdout
    assert {row[2] for row in _plan(text)} == {"found"}
    assert "to do: about - on disk, at most - of arrays in memory, -" in text
    assert _snapshot(tiny.out) == before


def test_estimated_sizes_are_near_the_truth(tiny, program):
    """The plan is believed when the disk is checked: no large store takes twice its estimate, none a quarter."""
    text = program("run", "--dry-run", "--config", tiny.config, "--out", tiny.out).stdout
    unit = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
    for line in text.splitlines()[1:-2]:
        cells = re.split(r" {2,}", line.strip())
        value, name = cells[3].split()
        actual = sum(p.stat().st_size for p in (tiny.out / "stores" / cells[1]).rglob("*") if p.is_file())
        if actual > 2e6:
            assert 0.5 < float(value) * unit[name] / actual < 4, line


def test_dry_run_marks_what_was_not_asked_for(tiny, program, tmp_path):
    text = program("run", "--dry-run", "--stages", "extract..encode", "--config", tiny.config, "--out", tmp_path).stdout
    asked = {row[0] for row in _plan(text) if row[2] == "to make"}
    assert asked == {"extract", "train", "encode"}
    assert {row[2] for row in _plan(text) if row[0] not in asked} == {"to make (not asked for)"}


def test_overrides_rename_what_follows_and_nothing_else(tiny, program):
    meaning = {"exemplars", "explain", "emergence", "edit", "stability"}
    cases = {
        "rsa.structure_voxels=50": {"rsa", "stability", "report"},
        "sizes.draws=2": {"sizes", "report"},
        "report.title=other": {"report"},
        "roi.top_units=4": {"roi", *meaning, "report"},
        "joint.atoms=2": {"joint", "report"},
        "layers.bootstrap=20": {"layers", "report"},
        "roi.min_voxels=6": {"assign", "pooling", "rsa", "roi", "layers", *meaning, "report"},
        "pooling.positions=2": {"pooling", "report"},
        "align.seed=1": {"align", "assign", "pooling", "rsa", "layers", "recovery", *meaning, "report"},
        "exemplars.top=3": {"exemplars", "explain", "emergence", "edit", "report"},
        "explain.stable=1": {"explain", "emergence", "report"},
        "match.top=2": {"match", "report"},
        "edit.draws=1": {"edit", "report"},
        "stability.draws=1": {"stability", "report"},
        "encode.seed=1": set(STORES) - {"dataset", "betas", "extract", "train"},
        "train.seed=1": set(STORES) - {"dataset", "betas", "extract"},
        "extract.dtype=float32": set(STORES) - {"dataset", "betas"},
        "data.demo.seed=1": set(STORES),
        # These cannot change the numbers, so they rename nothing.
        "encode.batch=7": set(),
        "align.memory_mb=64": set(),
        "train.checkpoint_every=1": set(),
        "devices=1": set(),
        "extract.batch=5": set(),
        "exemplars.batch=3": set(),
    }
    for override, renamed in cases.items():
        done = program("run", "--dry-run", "--set", override, "--config", tiny.config, "--out", tiny.out)
        assert {row[0] for row in _plan(done.stdout) if row[2] != "found"} == renamed, override


def test_stages_one_by_one_end_like_a_run(tiny, program, make_config, tmp_path):
    """Each stage as its own command after `data demo`; the stores are those of a run, byte for byte where it matters."""
    config = make_config(
        tmp_path / "small.yaml", encode={"modes": ["raw", "cls"]}, roi={"modes": ["cls"]}, report={"mode": "raw"}
    )
    common = ("--config", config, "--out", tmp_path / "run")
    done = program("data", "demo", *common)
    assert Path(done.stdout.strip()) == next((tmp_path / "run" / "stores").glob("dataset-*")) / "data"
    for stage in STAGES:
        done = program(stage, *common)
        printed = done.stdout.split()
        if stage == "pooling":  # no patch codes are encoded
            assert not printed and "nothing for it to make" in done.stderr
            continue
        assert [Path(p).name.rpartition("-")[0] for p in printed] == [KIND.get(stage, stage)] * len(printed)
        assert printed and all((Path(p) / "manifest.json").is_file() for p in printed)
    plan = _plan(program("run", "--dry-run", *common).stdout)
    assert {row[2] for row in plan} == {"found"}
    assert (tmp_path / "run" / "report.html").exists() is False
    program("run", *common)
    assert (tmp_path / "run" / "report.html").is_file()
    # Stores that do not depend on the modes are those of the other run.
    for kind in ("dataset", "activations"):
        name = tiny.store(kind).name
        for file in (tiny.out / "stores" / name).rglob("*"):
            if file.is_file() and file.name != "config.yaml" and file.name != "manifest.json":
                twin = tmp_path / "run" / "stores" / name / file.relative_to(tiny.out / "stores" / name)
                assert twin.read_bytes() == file.read_bytes()


def test_range_of_stages(tiny, program, tmp_path):
    program("run", "--stages", "dataset,betas", "--config", tiny.config, "--out", tmp_path)
    kinds = sorted(p.name.rpartition("-")[0] for p in (tmp_path / "stores").iterdir())
    assert kinds == ["betas", "betas", "dataset"]


def test_help_is_quick_and_every_command_has_it(program):
    start = time.monotonic()
    text = program("--help").stdout
    assert time.monotonic() - start < 1.5  # 0.5 s on a machine at rest
    for name in ("run", "data", "demo", *STAGES):
        assert re.search(rf"^  {name} +\w", text, re.MULTILINE), f"{name} has no line of help"
    for words in (("run",), ("data", "demo"), ("demo", "zero-shot"), *((stage,) for stage in STAGES)):
        text = program(*words, "--help").stdout
        assert text.startswith(f"Usage: sbm-jax {' '.join(words)} ")
        options = re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, re.MULTILINE)
        assert "--help" in options and (
            words == ("demo", "zero-shot") or {"--config", "--set", "--out"} <= set(options)
        )


def test_version(program):
    from sbm_jax import __version__

    assert program("--version").stdout.split() == ["sbm-jax,", "version", __version__]


def test_the_embedded_default_needs_no_configuration(program, tmp_path):
    rows = _plan(program("run", "--dry-run", "--out", tmp_path / "run").stdout)
    assert list(dict.fromkeys(row[0] for row in rows)) == list(STORES)


def test_interrupt_is_130_and_keeps_what_is_finished(tiny, program, tmp_path):
    lines = []
    with subprocess.Popen(
        program.command("run", "--config", tiny.config, "--out", tmp_path / "run"),
        env=program.environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stderr:  # wait for a moment at which something is finished and more is to come
            lines.append(line)
            if line.startswith("betas subj02: 20,484 voxels in"):
                process.send_signal(signal.SIGINT)
    assert process.returncode == 130, "".join(lines)
    assert lines[-1].startswith("stopped;") and "Traceback" not in "".join(lines)
    finished = {p.name for p in (tmp_path / "run" / "stores").iterdir() if not p.name.endswith(".partial")}
    assert finished >= {tiny.store("dataset").name, tiny.store("betas").name}


def test_commands_are_documented(program):
    """The README names every command."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    text = program("--help").stdout
    names = re.findall(r"^  ([\w-]+) +\w", text[text.index("Commands:") :], re.MULTILINE)
    assert len(names) == 29
    missing = [name for name in names if not re.search(rf"\b{name}\b", readme)]
    assert not missing
    for line in re.findall(r"^\s*(?:\$ )?sbm-jax (.+)$", readme, re.MULTILINE):
        words = [word for word in line.split() if not word.startswith("-")]
        assert any(word in (*names, "--help") for word in (*words, line)), f"README shows an unknown command: {line}"


def test_configuration_of_a_run_can_be_used_again(tiny, program):
    """The config.yaml beside a store, given to --config, names the same stores."""
    again = tiny.store("report") / "config.yaml"
    assert yaml.safe_load(again.read_text())["roi"]["top_units"] == 10
    rows = _plan(program("run", "--dry-run", "--config", again, "--out", tiny.out).stdout)
    assert {row[2] for row in rows} == {"found"}
