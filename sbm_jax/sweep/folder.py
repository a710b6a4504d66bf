"""The sweep's own folder: what a job must know to make one store, and what it said."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sbm_jax.config import dump_config, load_config
from sbm_jax.errors import UserError
from sbm_jax.plan import Step, steps
from sbm_jax.stages.context import Context
from sbm_jax.store.arrays import guarded
from sbm_jax.store.spec import pretty_json
from sbm_jax.store.store import replace_text
from sbm_jax.sweep.plan import Sweep, blocked

JOBS = "jobs.json"
_TAIL_BYTES = 4096


def write_folder(sweep: Sweep) -> None:
    """`runs/<number>.yaml`, `jobs.json` (store -> run and locks), an empty `logs/`: all that a job reads.

    Jobs may start hours later, so they read these, not the user's file, which may have changed.
    """
    with guarded(f"making {sweep.folder}"):
        for name in ("runs", "logs"):
            (sweep.folder / name).mkdir(parents=True, exist_ok=True)
    for run in sweep.runs:
        replace_text(_run_file(sweep.folder, run.number), dump_config(run.config))
    jobs = {job.store: {"stage": job.stage, "run": job.run, "locks": list(job.locks)} for job in sweep.jobs.values()}
    replace_text(sweep.folder / JOBS, pretty_json(jobs))


def _run_file(folder: Path, number: int) -> Path:
    return folder / "runs" / f"{number:04d}.yaml"


def open_job(folder: Path, store: str) -> tuple[Context, Step, list[str]]:
    """The context, the step that makes `store`, and the locks to hold meanwhile.

    Raises UserError for a folder that no sweep wrote, a store that it does not make, or data that have changed since.
    """
    try:
        job = json.loads((folder / JOBS).read_text(encoding="utf-8"))[store]
        config = load_config(_run_file(folder, job["run"]))
        locks = list(job["locks"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} is no sweep that makes {store} ({error}). Run `sbm-jax sweep` again; it writes {JOBS} there."
        ) from None
    context = Context(config, folder.parent)
    step = next((step for step in steps(context) if step.spec.name == store), None)
    if step is None:
        raise UserError(
            f"{store} is not what run {job['run']} of {folder} would make now: data, weights or this program have changed "
            "since the sweep was planned. Run `sbm-jax sweep` again; it plans anew and uses every store that still fits."
        )
    return context, step, locks


def program(folder: Path, store: str, options: Sequence[str] = ()) -> list[str]:
    """The command that makes one store. options: of the program, before the command, such as --cpu-devices 2."""
    return [sys.executable, "-m", "sbm_jax.cli.main", *options, "sweep-job", str(folder), store]


def log_file(folder: Path, store: str) -> Path:
    return folder / "logs" / f"{store}.log"


def last_line(path: Path) -> str:
    """The last line of a log that says something; empty where there is none."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            text = log.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def ending(code: int) -> str:
    """What an exit code of a child process means."""
    if code >= 0:
        return f"exit code {code}" if code else "ended without its store"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def failure_lines(sweep: Sweep, failed: Mapping[str, str]) -> list[str]:
    """What failed (store -> how), where it says why, and what could not be made for want of it."""
    lines = []
    waiting = blocked(sweep.jobs.values(), failed, sweep.finished)
    for store, how in failed.items():
        log = log_file(sweep.folder, store)
        lines.append(f"failed  {store} ({how}); {shlex.quote(str(log))}: {last_line(log) or 'empty'}")
        kept = [other for other, cause in waiting.items() if cause == store]
        if kept:
            lines.append(f"        not made for want of it: {', '.join(kept)}")
    return lines
