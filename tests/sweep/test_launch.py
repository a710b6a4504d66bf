"""Starting jobs: order, locks and failures of the local launcher, and what is handed to Slurm, without any real job."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sbm_jax.config import load_config
from sbm_jax.errors import UserError
from sbm_jax.plan import Step
from sbm_jax.store.lock import run_lock, store_locks
from sbm_jax.store.spec import StoreSpec
from sbm_jax.sweep import folder, local, slurm
from sbm_jax.sweep.folder import ending, failure_lines, last_line, write_folder
from sbm_jax.sweep.grid import Run
from sbm_jax.sweep.plan import Job, Sweep
from sbm_jax.sweep.slurm import Slurm, batch_script

# Stands in for a job: checks that its inputs are there, says when it starts and ends, and fails or dies when told to.
FAKE = """
import json, os, sys, time
folder, store = sys.argv[1:]
job = json.load(open(f"{folder}/fake.json"))[store]
out = os.path.dirname(folder)
say = lambda word: os.write(os.open(f"{out}/events", os.O_WRONLY | os.O_APPEND | os.O_CREAT), f"{word} {store}\\n".encode())
say("start")
for need in job["needs"]:
    assert os.path.exists(f"{out}/stores/{need}/manifest.json"), need
time.sleep(job["seconds"])
print("said", store, flush=True)
if job["end"] == "killed":
    os.kill(os.getpid(), 9)
if job["end"] != "forgets":
    if job["end"]:
        sys.exit(job["end"])
    os.makedirs(f"{out}/stores/{store}")
    open(f"{out}/stores/{store}/manifest.json", "w").close()
say("end")
"""


def spec(name: str) -> StoreSpec:
    return StoreSpec("store", 1, {"name": name}, {})


def job(name: str, *needs: str, locks: tuple[str, ...] = (), stage: str = "train") -> Job:
    step = Step(stage, spec(name), 0, 0)
    return Job(step, 0, tuple(spec(n).name for n in needs), (spec(name).name, *locks))


def plan(out: Path, *jobs: Job) -> Sweep:
    runs = [Run(0, {"train.k": 1}, load_config(None))]
    return Sweep(out, "sweep-x", runs, {j.store: j for j in jobs}, [tuple(j.store for j in jobs)])


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """`launched(sweep, at_once, name=(seconds, end))`: how the launcher ended, and its events (start or end, name)."""

    def launch(sweep: Sweep, at_once: int = 1, **behaviour) -> tuple[dict[str, str], list[tuple[str, str]]]:
        names = {j.store: j.step.spec.settings["name"] for j in sweep.jobs.values()}
        table = {
            store: dict(
                zip(("seconds", "end"), behaviour.get(name, (0.02, 0)), strict=True), needs=sweep.jobs[store].needs
            )
            for store, name in names.items()
        }
        write_folder(sweep)
        (sweep.folder / "fake.json").write_text(json.dumps(table))
        words = [sys.executable, "-I", "-S", "-c", FAKE]
        monkeypatch.setattr(local, "program", lambda place, store, options: [*words, str(place), store])
        failed = local.run_local(sweep, at_once)
        lines = (tmp_path / "events").read_text().splitlines() if (tmp_path / "events").exists() else []
        (tmp_path / "events").unlink(missing_ok=True)
        return {names[s]: how for s, how in failed.items()}, [(a, names[b]) for a, b in map(str.split, lines)]

    return launch


def started(events: list[tuple[str, str]]) -> list[str]:
    return [name for what, name in events if what == "start"]


def test_one_at_a_time_is_the_order_of_the_plan(tmp_path, launched):
    failed, events = launched(plan(tmp_path, job("a"), job("b"), job("c", "a"), job("d", "b", "c")))
    assert failed == {}
    assert events == [(what, name) for name in "abcd" for what in ("start", "end")]


def test_several_at_a_time_but_never_more_nor_before_their_inputs(tmp_path, launched):
    sweep = plan(tmp_path, job("a"), job("b"), job("c"), job("d", "a"), job("e", "a", "b", "c"))
    failed, events = launched(sweep, 2, a=(0.3, 0), b=(0.3, 0))
    assert failed == {} and sorted(started(events)) == list("abcde")
    going, most = 0, 0
    for what, _ in events:
        going += 1 if what == "start" else -1
        most = max(most, going)
    assert most == 2


def test_jobs_that_share_a_lock_are_never_together(tmp_path, launched):
    sweep = plan(tmp_path, *(job(name, locks=("trials",)) for name in "abc"))
    failed, events = launched(sweep, 3)
    assert failed == {}
    assert [what for what, _ in events] == ["start", "end"] * 3


@pytest.mark.parametrize(
    ("end", "how"), [(3, "exit code 3"), ("killed", "killed by SIGKILL"), ("forgets", "ended without its store")]
)
def test_a_failure_stops_only_what_depends_on_it(tmp_path, launched, end, how):
    sweep = plan(tmp_path, job("a"), job("b"), job("c", "a"), job("d", "b"), job("e", "c"), job("f", "d"))
    failed, events = launched(sweep, a=(0, end))
    assert failed == {"a": how}
    assert started(events) == ["a", "b", "d", "f"]
    first, second = failure_lines(sweep, {spec("a").name: how})
    log = sweep.folder / "logs" / f"{spec('a').name}.log"
    assert first == f"failed  {spec('a').name} ({how}); {log}: said {spec('a').name}"
    assert second.endswith(f": {spec('c').name}, {spec('e').name}")
    # the next call makes what is missing, and adds to the log
    failed, events = launched(sweep)
    assert failed == {} and started(events) == ["a", "c", "e"]
    assert log.read_text() == f"said {spec('a').name}\n" * 2
    assert launched(sweep) == ({}, [])


def test_stopping_ends_the_children(tmp_path, launched, monkeypatch):
    calls = []

    def interrupt(seconds: float, sleep=time.sleep) -> None:
        calls.append(seconds)
        if len(calls) == 1:
            raise KeyboardInterrupt
        sleep(seconds)

    started_children = []
    monkeypatch.setattr(local.time, "sleep", interrupt)
    start = local.subprocess.Popen
    monkeypatch.setattr(
        local.subprocess, "Popen", lambda *a, **k: started_children.append(start(*a, **k)) or started_children[-1]
    )
    with pytest.raises(KeyboardInterrupt):
        launched(plan(tmp_path, job("a"), job("b")), 2, a=(60, 0), b=(60, 0))
    assert [child.returncode for child in started_children] == [-signal.SIGTERM] * 2


def test_endings_and_last_lines(tmp_path):
    assert [ending(code) for code in (2, -9, -200, 0)] == [
        "exit code 2", "killed by SIGKILL", "killed by signal 200", "ended without its store",
    ]  # fmt: skip
    log = tmp_path / "log"
    assert last_line(log) == ""
    log.write_bytes(b"x" * 10_000 + b"\nthe \xff end \n\n  \n")
    assert last_line(log) == "the \ufffd end"


# Locks ---------------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from sbm_jax.store.lock import run_lock, store_locks
with run_lock(Path(sys.argv[1]), shared=True), store_locks(Path(sys.argv[1]), ["a", "b"]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that works in `tmp_path` beside others and holds the stores a and b."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_sweeps_share_a_folder_that_a_run_has_for_itself(tmp_path, holder):
    with run_lock(tmp_path, shared=True):
        pass
    with pytest.raises(UserError, match="another sbm-jax run"), run_lock(tmp_path):
        pass


def test_a_store_that_somebody_makes_is_waited_for_and_death_frees_it(tmp_path, holder, capfd, monkeypatch):
    with store_locks(tmp_path, ["c"]):
        pass
    assert "waiting" not in capfd.readouterr().err
    from sbm_jax.store import lock

    # the holder is killed once it is waited for
    monkeypatch.setattr(lock, "log", lambda text: (print(text, file=sys.stderr), holder.kill()))
    with store_locks(tmp_path, ["b", "a"]):
        assert holder.wait(5) == -signal.SIGKILL
    assert f"waiting for process {holder.pid}, which works on a" in capfd.readouterr().err


# Slurm, with programs of its names that do what a test says -------------------------------------------------------------


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
    """`fake_slurm(sbatch="...", ...)`: shell scripts by those names; `calls()` lists what they were called with."""
    place = tmp_path / "bin"
    place.mkdir()

    def write(**scripts: str) -> None:
        for name, text in scripts.items():
            path = place / name
            path.write_text(f'#!/bin/bash\nprintf "%s\\n" "{name} $*" >>{tmp_path}/calls\n{text}\n')
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm.time, "sleep", lambda seconds: None)
    return write, lambda: (tmp_path / "calls").read_text().splitlines()


def test_arrays_follow_each_other(tmp_path, fake_slurm):
    write, calls = fake_slurm
    write(sbatch=f'echo "$(wc -l <{tmp_path}/calls);cluster"')
    sweep = plan(tmp_path / "out%", job("a", stage="betas"), job("b"), job("c"), job("d", stage="align"))
    write_folder(sweep)
    options = Slurm(("--partition=gpu",), nodes=3, at_once=5)
    assert slurm.submit(sweep, options, list(sweep.jobs.values())) == ["1", "2", "3"]
    words = [call.split() for call in calls()]
    assert [w[-1].rpartition("/")[2] for w in words] == ["betas.sbatch", "train.sbatch", "align.sbatch"]
    assert ["--array=0-0%5" in words[0], "--array=0-1%5" in words[1]] == [True, True]
    assert [[w for w in call if "dependency" in w] for call in words] == [
        [], ["--dependency=afterany:1"], ["--dependency=afterany:2"],
    ]  # fmt: skip
    assert [next(w for w in call if "--nodes" in w) for call in words] == ["--nodes=1", "--nodes=3", "--nodes=1"]
    assert all(call[-2] == "--partition=gpu" for call in words), "the user's options come last"
    assert all(f"{tmp_path}/out%%/sweep-x/logs/slurm-%A_%a.log" in call[4] for call in words)
    assert "srun" in (sweep.folder / "train.sbatch").read_text()
    assert "srun" not in (sweep.folder / "align.sbatch").read_text()


def test_too_long_a_wave_is_several_arrays_and_the_next_waits_for_all(tmp_path, fake_slurm, monkeypatch):
    write, calls = fake_slurm
    write(sbatch=f"wc -l <{tmp_path}/calls")
    monkeypatch.setattr(slurm, "LONGEST_ARRAY", 2)
    sweep = plan(tmp_path, *(job(name) for name in "abc"), job("d", stage="align"))
    write_folder(sweep)
    slurm.submit(sweep, Slurm(), list(sweep.jobs.values()))
    assert [word for call in calls() for word in call.split() if word.startswith("--array")] == [
        "--array=0-1", "--array=0-0", "--array=0-0",
    ]  # fmt: skip
    assert "--dependency=afterany:1:2" in calls()[2]


def test_a_refusal_is_said_and_nothing_is_left_in_the_queue(tmp_path, fake_slurm):
    write, calls = fake_slurm
    write(
        sbatch=f'[ $(wc -l <{tmp_path}/calls) = 1 ] && echo 77 || {{ echo "no such partition" >&2; exit 1; }}',
        scancel="",
    )
    sweep = plan(tmp_path, job("a"), job("b", stage="align"))
    write_folder(sweep)
    with pytest.raises(UserError, match="sbatch failed: no such partition"):
        slurm.submit(sweep, Slurm(), list(sweep.jobs.values()))
    assert calls()[-1] == "scancel 77"


def test_without_slurm_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no squeue on this machine"):
        slurm.run_slurm(plan(tmp_path, job("a")), Slurm())


def test_earlier_arrays_are_waited_for_before_anything_is_submitted(tmp_path, fake_slurm):
    write, calls = fake_slurm
    sweep = plan(tmp_path, job("a"))
    write_folder(sweep)
    finished = tmp_path / "stores" / spec("a").name
    # twice running, then gone, and the store is there
    done = f"{{ mkdir -p {finished}; touch {finished}/manifest.json; }}"
    write(squeue=f"[ $(wc -l <{tmp_path}/calls) -lt 3 ] && echo RUNNING || {done}", sbatch="exit 1")
    assert slurm.run_slurm(sweep, Slurm()) == {}
    assert {call.split()[0] for call in calls()} == {"squeue"}


def test_a_controller_that_is_away_is_asked_again(tmp_path, fake_slurm, monkeypatch, capfd):
    write, calls = fake_slurm
    away = "echo 'Unable to contact slurm controller' >&2; exit 1"
    write(squeue=f"case $(wc -l <{tmp_path}/calls) in 1) echo PENDING ;; 2 | 3) {away} ;; *) ;; esac", sbatch="echo 1")
    sweep = plan(tmp_path, job("a"))
    write_folder(sweep)
    assert list(slurm.run_slurm(sweep, Slurm()) or ()) == [spec("a").name]
    assert capfd.readouterr().err.count("Unable to contact slurm controller; asking again") == 2
    # but not when nothing has been submitted yet
    write(squeue=away)
    with pytest.raises(UserError, match="squeue failed: Unable to contact"):
        slurm.run_slurm(sweep, Slurm())
    assert calls()[-1].startswith("squeue")


def test_failed_are_those_whose_inputs_were_there(tmp_path, fake_slurm):
    write, _ = fake_slurm
    write(sbatch="echo 1", squeue="")
    sweep = plan(tmp_path, job("a"), job("b", "a"))
    write_folder(sweep)
    assert slurm.run_slurm(sweep, Slurm()) == {spec("a").name: "its task ended without it"}
    assert slurm.run_slurm(sweep, Slurm(), wait=False) is None


def test_the_batch_script_quotes_what_it_is_given(tmp_path, monkeypatch):
    """Run by bash as Slurm would: nothing in a path is expanded, and the task's own store is made."""
    place = tmp_path / "a b'c\"$(touch oops)"
    (place / "logs").mkdir(parents=True)
    monkeypatch.setattr(folder.sys, "executable", "/bin/echo")
    text = batch_script(place, ["saes-0", "saes-1"], 1, ["--cpu-devices", "2"])
    assert text.startswith("#!/bin/bash\n")
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "1"}
    subprocess.run(["bash", "-c", text], env=environment, cwd=tmp_path, check=True)
    said = (place / "logs" / "saes-1.log").read_text()
    assert said == f"-m sbm_jax.cli.main --cpu-devices 2 sweep-job {place} saes-1\n"
    assert not (tmp_path / "oops").exists() and not list(place.glob("logs/saes-0*"))
    assert "--distributed sweep-job" in batch_script(place, ["saes-0"], 2)
