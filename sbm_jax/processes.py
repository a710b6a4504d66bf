"""Several processes that work on one run (jax.distributed): who this one is, and waiting for the others.

Training is spread over the devices of all processes. Every other stage is done by the first process on its own devices
while the rest wait. Without `join` there is one process, and nothing here needs JAX.
"""

from __future__ import annotations

from dataclasses import dataclass

from sbm_jax.errors import UserError


@dataclass
class _Place:
    rank: int = 0
    count: int = 1


_here = _Place()


def join(coordinator: str | None, count: int | None, rank: int | None) -> None:
    """Meet the other processes at `coordinator` (host:port of the first); all None: as Slurm, Open MPI or a TPU pod says.

    Must come before the first use of JAX's devices. Raises UserError when they do not meet.
    """
    import jax

    try:
        jax.distributed.initialize(coordinator, count, rank)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:300]
        raise UserError(
            f"the processes did not meet ({reason}). Start every process with the same --coordinator HOST:PORT (a free port "
            "of the first one's machine) and --processes, and its own --process; under Slurm --distributed alone does it."
        ) from None
    _here.rank, _here.count = jax.process_index(), jax.process_count()


def rank() -> int:
    """Which of them this one is, from 0."""
    return _here.rank


def is_first() -> bool:
    """True for the process that writes stores and speaks."""
    return _here.rank == 0


def wait(where: str) -> None:
    """Return when all processes have come to the same place."""
    if _here.count > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(where)
