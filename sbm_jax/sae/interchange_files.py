"""Files of autoencoder checkpoints: safetensors, JSON, and a table of tensors that must all be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sbm_jax.errors import UserError
from sbm_jax.sae.interchange import single


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors (float16, bfloat16 and float64 as float32) and metadata of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: single(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return tensors, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a readable safetensors file (truncated?): {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}).") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, expected a JSON object.")
    return value


class Tensors:
    """The tensors of one checkpoint; every one must be asked for, so that nothing in the file is passed over."""

    def __init__(self, source: str, tensors: dict[str, np.ndarray]):
        self.source = source
        self._left = dict(tensors)
        self._names = sorted(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, ndim: int) -> np.ndarray:
        if name not in self._left:
            raise UserError(f"{self.source}: no tensor {name}; the file has {', '.join(self._names) or 'none'}.")
        value = self._left.pop(name)
        if value.ndim != ndim:
            raise UserError(f"{self.source}: tensor {name} has {value.ndim} axes {list(value.shape)}, expected {ndim}.")
        return value

    def finish(self) -> None:
        if self._left:
            raise UserError(
                f"{self.source}: tensors {', '.join(sorted(self._left))} have no place in this layout, "
                "so the codes would not be those of the library that wrote it."
            )
