"""An interrupt that a library dropped is raised at the next piece of work."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, signal
from sbm_jax import interrupt
from sbm_jax.progress import progress
interrupt.watch()
done = 0
try:
    with progress("work", 3, "pieces") as task:
        for _ in range(3):
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                pass  # as Python does in a finaliser
            task.advance()
            done += 1
except KeyboardInterrupt:
    print("stopped after", done)
"""


def test_a_dropped_interrupt_is_raised_at_the_next_piece():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "stopped after 0", done.stderr
