"""What a store is, as plain JSON, and the name that its hash gives it."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HASH_LENGTH = 16


def canonical_json(value: Any) -> str:
    """`value` as JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def pretty_json(value: Any) -> str:
    """`value` as indented JSON with sorted keys; NaN and infinities become null, as JSON has neither."""
    return json.dumps(_finite(value), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return _finite(value.item())
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def text_hash(text: str) -> str:
    """First 16 hexadecimal digits of SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


@dataclass(frozen=True)
class StoreSpec:
    """The identity of a store: its kind, the settings that made it, and the names of the stores it was made from.

    `version` is raised when the code of a stage changes the meaning of its output.
    """

    kind: str
    version: int
    settings: dict[str, Any]
    inputs: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "version": self.version,
            "settings": self.settings,
            "inputs": self.inputs,
        }

    @property
    def name(self) -> str:
        """`<kind>-<hash of the spec>`."""
        return f"{self.kind}-{text_hash(canonical_json(self.as_json()))}"

    def path(self, stores: Path) -> Path:
        return stores / self.name
