"""Jobs as child processes of this one, some at a time, each as soon as what it reads is there."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence

from sbm_jax.progress import log
from sbm_jax.store.arrays import guarded
from sbm_jax.sweep.folder import ending, last_line, log_file, program
from sbm_jax.sweep.plan import Job, Sweep

_POLL_SECONDS = 0.1
_PATIENCE_SECONDS = 20.0  # for a child to end when it is asked to


def run_local(sweep: Sweep, at_once: int, options: Sequence[str] = ()) -> dict[str, str]:
    """Make what is missing; store -> how its job ended, of those that failed.

    A job starts when all stores that it needs are finished and nobody holds its locks, earlier stages first. What waits for
    a failed job is given up, the rest goes on. Children end with this function, whatever ends it (but a kill -9: then they
    finish their stores, and the next sweep's jobs wait for them).
    """
    waiting = sweep.missing()
    total, failed = len(waiting), dict[str, str]()
    done = set(sweep.jobs) - {job.store for job in waiting}
    lost: set[str] = set()  # failed, and given up for that
    running: dict[str, _Child] = {}
    try:
        while waiting or running:
            for job in list(waiting):
                if any(need in lost for need in job.needs):
                    waiting.remove(job)
                    lost.add(job.store)
                elif len(running) < at_once and done.issuperset(job.needs) and _free(job, running):
                    waiting.remove(job)
                    log(f"sweep: {total - len(waiting)}/{total} {job.store}")
                    running[job.store] = _Child(sweep, job, options)
            for store, child in list(running.items()):
                if (code := child.process.poll()) is None:
                    continue
                del running[store]
                seconds = f"{time.monotonic() - child.start:.1f} s"
                if code == 0 and sweep.finished(store):
                    log(f"sweep: {store} finished in {seconds}")
                    done.add(store)
                    continue
                failed[store] = ending(code)
                lost.add(store)
                log(f"sweep: {store} failed after {seconds} ({ending(code)}): {last_line(child.log)}")
            if running:
                time.sleep(_POLL_SECONDS)
    finally:
        for child in running.values():
            child.process.terminate()
        for child in running.values():
            child.end()
    return failed


def _free(job: Job, running: dict[str, _Child]) -> bool:
    return all(lock not in child.job.locks for child in running.values() for lock in job.locks)


class _Child:
    """A process that makes one store; what it says is added to the store's log."""

    def __init__(self, sweep: Sweep, job: Job, options: Sequence[str]):
        self.job, self.start = job, time.monotonic()
        self.log = log_file(sweep.folder, job.store)
        with guarded(f"writing {self.log}"):
            said = self.log.open("ab")
        with said:
            self.process = subprocess.Popen(
                program(sweep.folder, job.store, options),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    def end(self) -> None:
        try:
            self.process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
