"""One step of a plan: a store to be made, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from sbm_jax.store.spec import StoreSpec


@dataclass(frozen=True)
class Machine:
    """Assumed rates: floating-point operations per second in the products, bytes per second to and from disk."""

    name: str
    flops: float
    disk: float


# Assumptions, not measurements: float32 products at half of the data sheet's 67 TFLOP/s, one local NVMe disk.
H100 = Machine("one H100", 33e12, 1.5e9)


@dataclass(frozen=True)
class Step:
    """One store to be made: by which stage, how large, at what cost. `argument` is the subject of per-subject stages.

    bytes: on disk while it is made. flops: floating-point operations. memory: bytes of arrays on host and devices together,
    without the interpreter and libraries. reads: bytes read from disk beside its own.
    """

    stage: str
    spec: StoreSpec
    bytes: float
    flops: float
    argument: str | None = None
    memory: float = 0
    reads: float = 0

    def seconds(self, machine: Machine) -> float:
        """Work and disk traffic one after the other, at the machine's rates: an upper bound where they overlap."""
        return self.flops / machine.flops + (self.bytes + self.reads) / machine.disk
