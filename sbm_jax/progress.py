"""Progress of long work on stderr: a Rich bar on a terminal, log lines with rate and time left elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sbm_jax import interrupt
from sbm_jax.processes import is_first

LINE_SECONDS = 10.0


def log(message: str) -> None:
    """One line on stderr, of the first process."""
    if is_first():
        print(message, file=sys.stderr, flush=True)


class Task:
    """Counts finished pieces of one piece of work."""

    def __init__(self, label: str, total: int, unit: str, done: int):
        self.label, self.total, self.unit, self.done = label, total, unit, done
        self._first, self._start, self._last_line = done, time.monotonic(), time.monotonic()

    def advance(self, count: int = 1) -> None:
        """`count` more pieces are finished. Raises KeyboardInterrupt where one was asked for and dropped."""
        interrupt.check()
        self.done += count
        now = time.monotonic()
        if now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            log(f"{self.label}: {self.line(now)}")

    def line(self, now: float) -> str:
        """`done/total unit, rate, time left`; the rate counts only what this process did."""
        elapsed = max(now - self._start, 1e-9)
        rate = (self.done - self._first) / elapsed
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate > 0 and self.done < self.total else ""
        return f"{self.done:,}/{self.total:,} {self.unit}, {rate:,.1f} {self.unit}/s{left}"


class _BarTask(Task):
    def __init__(self, label: str, total: int, unit: str, done: int, bar: object, bar_id: object):
        super().__init__(label, total, unit, done)
        self._bar, self._bar_id = bar, bar_id

    def advance(self, count: int = 1) -> None:
        interrupt.check()
        self.done += count
        self._bar.update(self._bar_id, completed=self.done, detail=self.line(time.monotonic()))  # type: ignore[attr-defined]


@contextmanager
def progress(label: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
    """Report work of `total` pieces, of which `done` were finished by an earlier process."""
    resumed = f", {done:,} already done" if done else ""
    start = time.monotonic()
    if sys.stderr.isatty() and is_first():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"))
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task: Task = _BarTask(label, total, unit, done, bar, bar.add_task(label, total=total, detail=""))
            yield task
    else:
        log(f"{label}: {total:,} {unit}{resumed}")
        task = Task(label, total, unit, done)
        yield task
    log(f"{label}: {task.done:,} {unit} in {time.monotonic() - start:.1f} s{resumed}")
