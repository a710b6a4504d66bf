"""Ctrl-C that is not lost: Python drops an interrupt that falls into a library's callback or a finaliser, so it is raised again."""

from __future__ import annotations

import signal
from types import FrameType

_asked = False


def watch() -> None:
    """Remember every SIGINT of this process, and raise KeyboardInterrupt for it as Python does."""
    signal.signal(signal.SIGINT, _remember)


def check() -> None:
    """Raise KeyboardInterrupt if one was asked for, here if it was dropped before."""
    if _asked:
        raise KeyboardInterrupt


def _remember(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = True
    raise KeyboardInterrupt
