"""Bytes that training takes on a device, as the compiler lays them out, and a refusal before anything is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sbm_jax.errors import UserError
from sbm_jax.mesh import device_memory

if TYPE_CHECKING:
    from sbm_jax.sae.start import Program
    from sbm_jax.sae.step import Step


@dataclass(frozen=True)
class Needed:
    """Bytes per device. state: parameters and Adam's moments of all groups. working: the largest step beside its state."""

    state: int
    working: int

    @property
    def total(self) -> int:
        return self.state + self.working

    def __str__(self) -> str:
        parts = f"{self.state / 1e9:.2f} of state, {self.working / 1e9:.2f} while a step runs"
        return f"{self.total / 1e9:.2f} GB per device ({parts})"


def needed(programs: list[Program], steps: list[Step]) -> Needed:
    """From the shapes and the compiled steps; groups take turns, their states are all there."""
    import jax

    state = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for program in programs
        for leaf in jax.tree.leaves(program.shapes)
    )
    return Needed(state, max(_beside_state(step) for step in steps))


def _beside_state(step: Step) -> int:
    """Scratch of the step and what it returns beyond the donated state; the batch of tokens is small."""
    analysis = step.jitted.memory_analysis()
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes


def check(need: Needed, devices: list[Any]) -> None:
    """Raise UserError, with what can be done, where a device has less."""
    found = device_memory(devices)
    if found is None or need.total <= found:
        return
    raise UserError(
        f"train: the step needs {need}; {devices[0].device_kind} has {found / 1e9:.2f} GB free. Lower train.batch or "
        "train.expansion, drop sweep points, train layers in several runs (backbone.layers), or split dictionaries over "
        "devices (train.split_units)."
    )
