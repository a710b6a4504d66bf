"""One run at a time in one folder: an advisory lock that the kernel releases however the process ends."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sbm_jax.errors import UserError
from sbm_jax.processes import is_first
from sbm_jax.store.arrays import guarded


@contextmanager
def run_lock(out: Path) -> Iterator[None]:
    """Hold `out` for this run, by the first of its processes.

    Raises UserError when another run holds it or the folder cannot be written.
    """
    if not is_first():
        yield
        return
    with guarded(f"making {out}"):
        out.mkdir(parents=True, exist_ok=True)
        handle = (out / "lock").open("a+")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise UserError(f"cannot lock {out / 'lock'}: {error.strerror}. Choose a local folder.") from None
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise UserError(
                f"another sbm-jax run (process {holder}) is working in {out}. Wait for it, or choose another --out."
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield
