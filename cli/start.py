"""Starting JAX, only when something is to be computed."""

from __future__ import annotations

from typing import Any


def start_jax(cpu_devices: int | None) -> None:
    """Settings that must come before the first use of JAX."""
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from sbm_jax.mesh import enable_compilation_cache, force_cpu_devices, use_cpu_cores

    if cpu_devices:
        force_cpu_devices(cpu_devices)
    else:
        use_cpu_cores()
    enable_compilation_cache()


def start_if_needed(context: Any, chosen: tuple[str, ...], cpu_devices: int | None) -> None:
    """JAX takes seconds to start: leave it alone when every store is there."""
    from sbm_jax.plan import steps

    if any(step.stage in chosen and not context.has(step.spec) for step in steps(context)):
        start_jax(cpu_devices)
