"""kill -9 at ten moments of a run, each followed by a rerun: the bytes of an uninterrupted run."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from sbm_jax.plan import STAGES

pytestmark = pytest.mark.slow

# Six moments by what the run has just said, so that each long stage is hit in its middle; of such a run only the stages up to
# the last one named here are made. Two by the clock, of whole runs.
SAID = (
    "demo data:",
    "extract:",
    "train: 4 autoencoders",
    "train: 60 steps",
    "encode:",
    "align cls:",
)
CLOCK = ("1/4", "3/4")
UP_TO_ALIGN = ("dataset", "betas", "activations", "saes", "codes", "align")


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run: its files, and how long it took with everything compiled."""

    config: Path
    out: Path
    files: dict[str, str]
    seconds: float


def hashes(out: Path) -> dict[str, str]:
    """SHA-256 of every file under stores/, and of what lies at the top. Checkpoints carry time stamps and are left out."""
    files = [p for p in (out / "stores").rglob("*") if p.is_file()]
    files += [path for name in ("summary.json", "report.html") if (path := out / name).exists()]
    return {p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def reference(tmp_path_factory, program, make_config) -> Reference:
    folder = tmp_path_factory.mktemp("reference")
    config = make_config(
        folder / "kill.yaml",
        data={"root": "demo", "demo": {"n_shared": 24, "n_unique": 36, "n_extra": 60, "n_subjects": 1}},
        train={"steps": 60, "checkpoint_every": 9, "fidelity_images": 0},
        encode={"modes": ["cls", "patch_mean", "raw"]},
        align={"shuffles": 1},
        exemplars={"kinds": []},
    )
    program("run", "--config", config, "--out", folder / "first")
    start = time.monotonic()
    program("run", "--config", config, "--out", folder / "second")
    seconds = time.monotonic() - start
    files = hashes(folder / "first")
    assert files == hashes(folder / "second"), "two uninterrupted runs differ"
    shutil.rmtree(folder / "second")
    return Reference(config, folder / "first", files, seconds)


def killed(command: list[str], environment: dict[str, str], moment: str, seconds: float, rng: random.Random) -> str:
    """Start, kill -9 at the moment, and return what was said until then."""
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        os.set_blocking(process.stderr.fileno(), False)
        said, start, deadline = b"", time.monotonic(), None
        if moment in CLOCK:
            deadline = start + seconds * (int(moment[0]) + rng.uniform(0.15, 0.95)) / 4
        while process.poll() is None and time.monotonic() < (deadline or start + 100):
            said += process.stderr.read() or b""
            if deadline is None and moment.encode() in said:
                # Somewhere within what this stage does.
                deadline = time.monotonic() + rng.uniform(0.0, 0.6)
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        said += process.stderr.read() or b""
    return said.decode()


@pytest.mark.parametrize(("number", "moment"), list(enumerate(SAID + CLOCK)))
def test_killed_run_ends_with_the_same_bytes(reference, program, tmp_path, number, moment):
    out = tmp_path / "run"
    short = ("--stages", "dataset..align") if moment in SAID else ()
    words = ("run", "--config", reference.config, "--out", out, *short)
    # A cache of its own: a killed process may leave a torn entry, which JAX reports as a warning and compiles again.
    cache = shutil.copytree(program.environment["JAX_COMPILATION_CACHE_DIR"], tmp_path / "cache")
    environment = {**program.environment, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    said = killed(program.command(*words), environment, moment, reference.seconds, random.Random(number))
    assert "Traceback" not in said, said
    over = list((out / "stores").glob("align-*[!l]")) if short else (out / "summary.json").exists()
    assert not over, f"the run was over before it could be killed:\n{said}"
    program(*words, env=environment)
    found = hashes(out)
    expected = {name: x for name, x in reference.files.items() if not short or _kind(name) in UP_TO_ALIGN}
    differing = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    assert not differing, f"killed after {said.splitlines()[-1:]}: {differing[:20]}"


def _kind(name: str) -> str:
    """Of the store that a file belongs to."""
    return name.removeprefix("stores/").partition("/")[0].rpartition("-")[0]


def test_killed_again_and_again(reference, program, tmp_path):
    """Three kills of one run, later each time."""
    out = tmp_path / "run"
    words = ("run", "--config", reference.config, "--out", out)
    rng = random.Random(99)
    for moment in ("extract:", "train: 60 steps", "align cls:"):
        killed(program.command(*words), program.environment, moment, reference.seconds, rng)
    program(*words)
    assert hashes(out) == reference.files


def test_no_process_is_left_behind(reference, program, tmp_path):
    """Drawing runs in processes of its own; they end with their parent, or they would write into the next run's folder."""
    words = program.command("run", "--config", reference.config, "--out", tmp_path / "run")
    environment = {**program.environment, "SBM_JAX_TEST": str(tmp_path)}
    killed(words, environment, "demo data:", reference.seconds, random.Random(5))
    deadline = time.monotonic() + 20
    while (left := _processes_with(f"SBM_JAX_TEST={tmp_path}")) and time.monotonic() < deadline:
        time.sleep(0.2)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"{len(left)} processes outlive a killed run"


def _processes_with(variable: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("stage", ["exemplars", "edit"])
def test_killed_stages_that_say_what_units_mean(tiny, program, tmp_path, stage):
    """A finished run without its last stores, killed in the middle of `stage`, ends with the bytes of the whole run."""
    out = tmp_path / "run"
    late = STAGES[STAGES.index(stage) :]
    shutil.copytree(tiny.out / "stores", out / "stores", ignore=shutil.ignore_patterns(*(f"{x}-*" for x in late)))
    words = ("run", "--config", tiny.config, "--out", out)
    said = killed(program.command(*words), program.environment, f"{stage}:", 0, random.Random(7))
    assert not (out / "summary.json").exists(), f"the run was over before it could be killed:\n{said}"
    program(*words)
    assert hashes(out) == hashes(tiny.out)
