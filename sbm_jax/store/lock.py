"""One run at a time in one folder, or one writer of a store: advisory locks that the kernel releases however a process ends."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from sbm_jax.errors import UserError
from sbm_jax.processes import is_first
from sbm_jax.progress import log
from sbm_jax.store.arrays import guarded


@contextmanager
def run_lock(out: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold `out` for this run, by the first of its processes; shared: beside others that share it and lock stores.

    Raises UserError when another run holds it or the folder cannot be written.
    """
    if not is_first():
        yield
        return
    with _opened(out / "lock") as handle:
        if not _taken(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB):
            raise UserError(
                f"another sbm-jax run (process {_holder(handle)}) is working in {out}. Wait for it, or choose another --out."
            )
        _sign(handle)
        yield


@contextmanager
def store_locks(out: Path, names: Sequence[str]) -> Iterator[None]:
    """Hold stores of `out` by name for writing, by the first of its processes; waits for whoever writes them now.

    Raises UserError when the folder cannot be written.
    """
    with ExitStack() as held:
        for name in (
            sorted(names) if is_first() else ()
        ):  # sorted: two that want the same names cannot wait for each other
            handle = held.enter_context(_opened(out / "locks" / name))
            if not _taken(handle, fcntl.LOCK_EX | fcntl.LOCK_NB):
                log(f"waiting for process {_holder(handle)}, which works on {name}")
                _taken(handle, fcntl.LOCK_EX)
            _sign(handle)
        yield


def _opened(path: Path) -> IO[str]:
    with guarded(f"making {path.parent}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+")


def _taken(handle: IO[str], how: int) -> bool:
    """False when somebody else holds it. Raises UserError where the file system has no locks."""
    try:
        fcntl.flock(handle, how)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise UserError(f"cannot lock {handle.name}: {error.strerror}. Choose a local folder.") from None
        return False
    return True


def _holder(handle: IO[str]) -> str:
    handle.seek(0)
    return handle.read().strip() or "unknown"


def _sign(handle: IO[str]) -> None:
    handle.truncate(0)
    handle.write(str(os.getpid()))
    handle.flush()
