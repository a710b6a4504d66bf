"""Starting JAX, only when something is to be computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Machine:
    """What the command line says about devices and about other processes of the same run."""

    cpu_devices: int | None = None
    distributed: bool = False
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


def start_jax(machine: Machine) -> None:
    """Settings that must come before the first use of JAX, and meeting the other processes."""
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from sbm_jax.mesh import enable_compilation_cache, force_cpu_devices, use_cpu_cores

    if machine.cpu_devices:
        force_cpu_devices(machine.cpu_devices)
    else:
        use_cpu_cores()
    enable_compilation_cache()
    if machine.distributed or machine.coordinator:
        from sbm_jax import processes

        processes.join(machine.coordinator, machine.processes, machine.process)


def start_if_needed(context: Any, chosen: tuple[str, ...], machine: Machine) -> None:
    """JAX takes seconds to start: leave it alone when every store is there (and nobody waits for this process)."""
    from sbm_jax.plan import steps

    if (
        machine.distributed
        or machine.coordinator
        or any(step.stage in chosen and not context.has(step.spec) for step in steps(context))
    ):
        start_jax(machine)
