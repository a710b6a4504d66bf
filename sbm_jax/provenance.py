"""What made a result: versions, devices, commit. Plain values without time stamps, so that equal work has equal bytes."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import sbm_jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy", "scipy", "nilearn", "pillow")


def provenance(devices: list[str]) -> dict[str, Any]:
    """Versions of this program and its libraries, the devices used, and the commit of a source checkout."""
    return {
        "sbm_jax": sbm_jax.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "devices": devices,
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }


def commit() -> str:
    """Commit of the checkout this package runs from, `+changes` when files differ, or `installed` for a wheel."""
    root = Path(sbm_jax.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return "installed"
    head = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return (head + ("+changes" if changed else "")) if head else "unknown"


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
