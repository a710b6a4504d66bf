"""`sbm-jax sweep` from end to end: its stores are those of single runs, and no kill of anything changes a byte.

Through child processes, and through a real Slurm on this machine where it is installed (scripts/slurm.sh).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import zarr
from pyarrow import parquet

from sbm_jax.sweep.folder import write_folder
from sbm_jax.sweep.grid import make_runs, parse_grid
from sbm_jax.sweep.plan import plan_sweep, waves
from sbm_jax.sweep.slurm import Slurm, job_name, submit

ROOT = Path(__file__).parents[2]
GRID = ("--grid", "train.k=2,4")
# One layer, two cheap kinds of features, one subject; neither kind is of patches, so there is nothing to pool.
QUICK = {
    "data": {"root": "demo", "demo": {"n_shared": 24, "n_unique": 36, "n_extra": 60, "n_subjects": 1}},
    "backbone": {"layers": [1]},
    "train": {"steps": 12, "batch": 64, "expansion": 2, "k": 4, "checkpoint_every": 4, "fidelity_images": 0},
    "encode": {"modes": ["cls", "raw"]},
    "roi": {"top_units": 10, "exemplars": 5, "stable": 2, "modes": ["cls"]},
    "report": {"title": "tiny", "units_per_roi": 1, "images_per_unit": 3, "mode": "raw"},
    "align": {"k_voxel": 3, "k_unit": 3, "shuffles": 1},
    "exemplars": {"kinds": []},  # and with it the stages that say what units mean
}


@dataclass(frozen=True)
class Made:
    """A finished sweep: its configuration, its folder, what it said."""

    config: Path
    out: Path
    said: subprocess.CompletedProcess

    @property
    def folder(self) -> Path:
        (found,) = self.out.glob("sweep-*")
        return found


@pytest.fixture(scope="module")
def made(tmp_path_factory, program, make_config) -> Made:
    """The sweep that nothing disturbed, two jobs at a time."""
    folder = tmp_path_factory.mktemp("sweep")
    config = make_config(folder / "quick.yaml", **QUICK)
    said = program("sweep", config, *GRID, "--jobs", 2, "--out", folder / "out", timeout=400)
    return Made(config, folder / "out", said)


def hashes(out: Path) -> dict[str, str]:
    """SHA-256 of every file of every store."""
    files = [p for p in (out / "stores").rglob("*") if p.is_file()]
    return {p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def same(out: Path, reference: Path) -> None:
    found, expected = hashes(out), hashes(reference)
    differing = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    assert not differing, differing[:20]


def worker(out: Path, kind: str, seconds: float = 200) -> tuple[str, int]:
    """(store, process) of the first store of that kind that somebody is making."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for partial in (out / "stores").glob(f"{kind}-*.partial"):
            store = partial.name.removesuffix(".partial")
            return store, int((out / "locks" / store).read_text())
        time.sleep(0.005)
    raise AssertionError(f"nobody made a store of kind {kind} within {seconds} s")


def runs_of(plan_text: str) -> dict[str, str]:
    """k -> report store, from a dry run's table of runs."""
    lines = [line.split() for line in plan_text.splitlines()]
    start = next(i for i, line in enumerate(lines) if line[:1] == ["run"])
    return {line[1]: line[-1] for line in lines[start + 1 : start + 3]}


@pytest.mark.slow
def test_its_stores_are_those_of_a_single_run(made, program, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(made.out / "stores", out / "stores", ignore=shutil.ignore_patterns(*(f"{k}-*" for k in LATE)))
    program("run", "--config", made.config, "--set", "train.k=4", "--out", out)
    alone = hashes(out)
    assert len([name for name in alone if name.endswith("/manifest.json")]) == 14
    assert alone.items() <= hashes(made.out).items()


LATE = ("saes", "codes", "align", "assign", "sizes", "joint", "rsa", "roi", "layers", "recovery", "report")


@pytest.mark.slow
def test_table_and_page_hold_what_the_runs_found(made, program):
    plan = runs_of(program("sweep", made.config, *GRID, "--out", made.out, "--dry-run").stdout)
    rows = parquet.read_table(made.folder / "table.parquet").to_pylist()
    assert [(row["run"], row["train.k"], row["mode"]) for row in rows] == [
        (run, k, mode) for run, k in enumerate((2, 4)) for mode in ("cls", "raw")
    ]
    for row in rows:
        report = made.out / "stores" / plan[str(row["train.k"])]
        found = json.loads((report / "summary.json").read_text())
        assert row["held_out_mean"] == found["subjects"]["subj01"]["modes"][row["mode"]]["held_out_mean"]
        assert row["sae_l0"] == (found["saes"][0]["l0"] if row["mode"] == "cls" else None)
        assert (made.folder / row["page"]).resolve() == (report / "report.html").resolve()
    links: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: links.extend(
        v for k, v in attributes if k == "href" and tag == "a"
    )
    parser.feed((made.folder / "index.html").read_text())
    assert len(links) == 5 and all((made.folder / link).is_file() for link in links)
    assert made.said.stdout.split()[1::2] == [str(made.folder / name) for name in ("table.parquet", "index.html")]


@pytest.mark.slow
def test_a_second_call_makes_nothing(made, program):
    before = {p: p.stat().st_mtime_ns for p in (made.out / "stores").rglob("*")}
    done = program("sweep", made.config, *GRID, "--out", made.out)
    assert (done.stdout, done.stderr) == (made.said.stdout, "")
    assert {p: p.stat().st_mtime_ns for p in (made.out / "stores").rglob("*")} == before


@pytest.mark.slow
def test_kills_of_jobs_and_of_the_sweep_change_no_byte(made, program, tmp_path):
    out = tmp_path / "out"
    words = ("sweep", made.config, *GRID, "--out", out)
    # 1. the sweep dies while it trains; its job goes on, and the next sweep's job waits for it
    with subprocess.Popen(program.command(*words), env=program.environment, stderr=subprocess.DEVNULL) as sweep:
        store, pid = worker(out, "activations")
        sweep.kill()
    assert Path(f"/proc/{pid}").exists() or (out / "stores" / store).exists()
    # 2. a job of the first run dies: the second run is made, what needs the job is not
    with subprocess.Popen(
        program.command(*words), env=program.environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as sweep:
        store, pid = worker(out, "codes")
        os.kill(pid, signal.SIGKILL)
        said, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 1, errors
    (failure,) = [line for line in errors.splitlines() if line.startswith("failed ")]
    assert f"{store} (killed by SIGKILL)" in failure and f"{store}.log" in failure
    (lost,) = [line for line in errors.splitlines() if "not made for want of it" in line]
    assert lost.count(", ") == 8, "align, assign, sizes, joint, rsa, roi, layers, recovery and report of one run"
    (folder,) = out.glob("sweep-*")
    assert len({row["run"] for row in parquet.read_table(folder / "table.parquet").to_pylist()}) == 1
    assert "Not finished" in (folder / "index.html").read_text()
    assert "Traceback" not in errors and str(folder / "index.html") in said
    # 3. the same command makes the rest
    program(*words, timeout=300)
    same(out, made.out)
    assert (folder / "index.html").read_bytes() == (made.folder / "index.html").read_bytes()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "at least one --grid"),
        (("--grid", "train.kk=1"), "unknown key train.kk; the nearest is train.k"),
        (("--grid", "train.k=0,1"), "train.k"),
        (("--grid", "train.k=1", "--grid", "train.k=2"), "in the grid already"),
        (("--grid", "train.k="), "no value is given"),
        (("--grid", "data.subjects=nobody"), "nobody"),
        (("--grid", "train.k=1", "--sbatch", "-p gpu"), "belong to --launcher slurm"),
        (("--grid", "train.k=1", "--launcher", "slurm"), "there is no squeue on this machine"),
    ],
)
def test_a_bad_call_is_one_message_and_writes_nothing(program, make_config, tmp_path, words, part):
    config = make_config(tmp_path / "quick.yaml", **QUICK)
    done = program("sweep", config, *words, "--out", tmp_path / "out", code=2, env={**program.environment, "PATH": ""})
    assert part in done.stderr and done.stderr.lower().count("error: ") == 1
    if "slurm" not in words:
        assert not (tmp_path / "out").exists()


def test_sweep_processes_are_its_own_affair(program):
    done = program("--distributed", "sweep", "x.yaml", "--grid", "train.k=1", code=2)
    assert "a sweep starts its own processes" in done.stderr


# A real Slurm --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slurm(program):
    """A Slurm of two nodes on this machine; calls sbm-jax with it."""
    script, folder = ROOT / "scripts" / "slurm.sh", Path(tempfile.mkdtemp(prefix="sbm-slurm-"))
    done = subprocess.run([script, "start", folder], capture_output=True, text=True, timeout=120)
    if done.returncode == 3:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    yield {**program.environment, "SLURM_CONF": str(folder / "slurm.conf")}
    subprocess.run([script, "stop", folder], capture_output=True, timeout=120, check=True)
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.slurm
def test_slurm_makes_the_same_stores_and_a_killed_task_is_made_again(made, slurm, program, tmp_path):
    out = tmp_path / "out"
    words = ("sweep", made.config, *GRID, "--launcher", "slurm", "--sbatch=--comment=a b", "--out", out)
    with subprocess.Popen(
        program.command(*words), env=slurm, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as sweep:
        store, pid = worker(out, "codes")
        os.kill(pid, signal.SIGKILL)
        errors = sweep.communicate(timeout=400)[1]
    assert sweep.returncode == 1, errors
    assert f"failed  {store} (" in errors and errors.count("not made for want of it") == 1
    assert "Traceback" not in errors
    again = program(*words, env=slurm, timeout=300)
    arrays = [line.split()[1:3] for line in again.stderr.splitlines() if " as array " in line]
    assert arrays == [[f"{stage}:", "1"] for stage in AFTER_TRAINING], "only what is missing is submitted"
    same(out, made.out)
    (folder,) = out.glob("sweep-*")
    assert (folder / "index.html").read_bytes() == (made.folder / "index.html").read_bytes()


AFTER_TRAINING = ("encode", *LATE[2:])


@pytest.mark.slow
@pytest.mark.slurm
def test_cancelled_arrays_are_said_and_the_waiting_sweep_may_die(made, slurm, program, tmp_path):
    """The sweep dies; the same command waits for its arrays, which somebody cancels."""
    out = tmp_path / "out"
    shutil.copytree(made.out / "stores", out / "stores", ignore=shutil.ignore_patterns("report-*"))
    words = ("sweep", made.config, *GRID, "--launcher", "slurm", "--sbatch=--begin=now+1hour", "--out", out)
    submitted = program(*words, "--no-wait", env=slurm)
    assert "submitted" in submitted.stdout
    assert "in the queue already" in program(*words, "--no-wait", env=slurm, code=2).stderr
    with subprocess.Popen(program.command(*words), env=slurm, stderr=subprocess.PIPE, text=True) as sweep:
        until(lambda: "earlier call" in sweep.stderr.readline())
        sweep.kill()
    plan = plan_sweep(make_runs(made.config, (), parse_grid(GRID[1:])), out)
    subprocess.run(["scancel", f"--name={job_name(plan)}"], env=slurm, check=True)
    program(*words[:-3], "--out", out, env=slurm, timeout=200)
    same(out, made.out)


def until(reached: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.slurm
def test_two_nodes_train_one_autoencoder(made, slurm, tmp_path, monkeypatch):
    """srun starts a process on each node; JAX reads Slurm's variables, and the weights are those of one process."""
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "out"
    shutil.copytree(made.out / "stores", out / "stores", ignore=shutil.ignore_patterns(*(f"{k}-*" for k in LATE)))
    plan = plan_sweep(make_runs(made.config, (), parse_grid(GRID[1:])), out)
    write_folder(plan)
    job = waves(plan.jobs.values())["train"][1]
    (array,) = submit(plan, Slurm(nodes=2, program_options=("--cpu-devices", "1")), [job])
    queue = ["squeue", "--noheader", f"--name={job_name(plan)}"]
    until(lambda: not subprocess.run(queue, capture_output=True, text=True, check=True).stdout, 200)
    log = (plan.folder / "logs" / f"{job.store}.log").read_text()
    assert "over mesh {'sae': 1, 'units': 1, 'data': 2}" in log, f"array {array}: {log}"
    for name in ("w_enc", "w_dec", "b_enc"):
        one, two = (
            np.asarray(zarr.open_array(o / "stores" / job.store / name, mode="r")[...]) for o in (made.out, out)
        )
        np.testing.assert_allclose(two, one, atol=2e-5 * np.abs(one).max(), err_msg=name)
