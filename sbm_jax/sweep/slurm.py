"""Jobs as arrays of Slurm: one array per stage, each after the one before, one task per store."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sbm_jax.errors import UserError
from sbm_jax.progress import log
from sbm_jax.store.spec import text_hash
from sbm_jax.store.store import replace_text
from sbm_jax.sweep.folder import program
from sbm_jax.sweep.plan import Job, Sweep, waves

LONGEST_ARRAY = 1000  # Slurm's own MaxArraySize is 1001
_FIRST_POLL, _LAST_POLL = 1.0, 30.0  # seconds
_SILENT_POLLS, _SILENT_SECONDS = 60, 10.0  # a controller may be away for ten minutes


@dataclass(frozen=True)
class Slurm:
    """How to submit. options: the user's own of sbatch, behind ours. nodes: of the training, which alone uses several.
    at_once: tasks of a stage that run at a time; None: as many as fit.
    """

    options: tuple[str, ...] = ()
    nodes: int = 1
    at_once: int | None = None
    program_options: tuple[str, ...] = ()


def run_slurm(sweep: Sweep, slurm: Slurm, wait: bool = True) -> dict[str, str] | None:
    """Submit what is missing and wait for it; store -> how its job ended, of those that failed. None: not waited for.

    Arrays of this sweep that an earlier call submitted are waited for first. Raises UserError where Slurm refuses.
    """
    name = job_name(sweep)
    if _queue(name):
        log(f"sweep: an earlier call's jobs are in the queue ({name})")
        if not wait:
            raise UserError(
                f"jobs of this sweep are in the queue already; see squeue --name={name}, or leave out --no-wait"
            )
        _wait(name, sweep)
    todo = sweep.missing()
    if todo:
        submit(sweep, slurm, todo)
        if not wait:
            return None
        log(f"sweep: waiting for {len(todo)} tasks; to give up: scancel --name={name}")
        _wait(name, sweep)
    left = {job.store for job in sweep.missing()}
    return {job.store: "its task ended without it" for job in sweep.missing() if left.isdisjoint(job.needs)}


def job_name(sweep: Sweep) -> str:
    """Of all arrays of this sweep in this folder: what finds them again after a kill."""
    return f"sbm-{text_hash(str(sweep.folder.resolve()))}"


def submit(sweep: Sweep, slurm: Slurm, jobs: Sequence[Job]) -> list[str]:
    """One array per stage (more where there are too many stores), each after all of the stage before; their numbers.

    Raises UserError, having cancelled what it submitted, when sbatch refuses.
    """
    before: list[str] = []
    every: list[str] = []
    for stage, wave in waves(jobs).items():
        mine = []
        for part, first in enumerate(range(0, len(wave), LONGEST_ARRAY)):
            stores = [job.store for job in wave[first : first + LONGEST_ARRAY]]
            nodes = slurm.nodes if stage == "train" else 1
            script = sweep.folder / f"{stage}{part or ''}.sbatch"
            replace_text(script, batch_script(sweep.folder, stores, nodes, slurm.program_options))
            words = [
                "sbatch",
                "--parsable",
                *_options(sweep, slurm, len(stores), nodes, before),
                *slurm.options,
                str(script),
            ]
            try:
                number = _slurm(words).strip().partition(";")[0]
            except UserError:
                if every:
                    _slurm(["scancel", *every])
                raise
            log(f"sweep: {stage}: {len(stores)} stores as array {number}")
            mine.append(number)
        before = mine
        every += mine
    return every


def _options(sweep: Sweep, slurm: Slurm, count: int, nodes: int, before: Sequence[str]) -> list[str]:
    most = f"%{slurm.at_once}" if slurm.at_once else ""
    logs = str((sweep.folder / "logs").resolve()).replace("%", "%%")
    words = [f"--job-name={job_name(sweep)}", f"--array=0-{count - 1}{most}", f"--output={logs}/slurm-%A_%a.log"]
    words += [f"--nodes={nodes}", "--ntasks-per-node=1"]
    return [*words, "--dependency=afterany:" + ":".join(before)] if before else words


def batch_script(folder: Path, stores: Sequence[str], nodes: int, options: Sequence[str] = ()) -> str:
    """The text that Slurm runs for every task: makes the store whose place in the list is the task's number.

    With several nodes one process runs on each (`--sbatch --ntasks-per-node=4` for more), and they meet as JAX reads
    Slurm's variables.
    """
    folder = folder.resolve()
    words = program(folder, "$store", [*options, "--distributed"] if nodes > 1 else options)
    command = " ".join('"$store"' if word == "$store" else shlex.quote(word) for word in words)
    return "\n".join(
        [
            "#!/bin/bash",
            "# One store per task. Written by sbm-jax sweep; Slurm keeps its own copy.",
            f"stores=({' '.join(map(shlex.quote, stores))})",
            "store=${stores[$SLURM_ARRAY_TASK_ID]}",
            f'exec >>{shlex.quote(str(folder / "logs"))}/"$store".log 2>&1',
            f"exec {'srun --kill-on-bad-exit=1 ' if nodes > 1 else ''}{command}",
            "",
        ]
    )


def _wait(name: str, sweep: Sweep) -> None:
    """Return when no job of that name is left in the queue."""
    poll, said = _FIRST_POLL, ""
    while states := _queue(name, _SILENT_POLLS):
        left = ", ".join(f"{count} {state.lower()}" for state, count in sorted(Counter(states).items()))
        done = f"sweep: {len(sweep.jobs) - len(sweep.missing())}/{len(sweep.jobs)} stores, tasks: {left}"
        if done != said:
            log(done)
            poll = _FIRST_POLL
        said = done
        time.sleep(poll)
        poll = min(_LAST_POLL, 1.3 * poll)
    # Listing the folder makes a client of a network disk look again for names that it remembers as missing.
    list((sweep.out / "stores").glob("*"))


def _queue(name: str, patience: int = 0) -> list[str]:
    """States of the tasks of that name. patience: how often to ask again, every ten seconds, when Slurm does not answer.

    Raises UserError when it still does not.
    """
    try:
        return _slurm(["squeue", "--noheader", "--array", "--all", f"--name={name}", "--format=%T"]).split()
    except UserError as error:
        if not patience:
            raise
        log(f"sweep: {error}; asking again")
    time.sleep(_SILENT_SECONDS)
    return _queue(name, patience - 1)


def _slurm(words: Sequence[str]) -> str:
    """Standard output of a Slurm command. Raises UserError with its own words when it fails or is not there."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise UserError(
            f"--launcher slurm: there is no {words[0]} on this machine. Start the sweep where Slurm is, or use --launcher local."
        ) from None
    if done.returncode:
        raise UserError(f"{words[0]} failed: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
