"""The words of an address, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sbm_jax.serve.answers import Refused


class Words:
    """Query parameters. Raises Refused for one that is missing or no number, and texts that are too long."""

    def __init__(self, values: Mapping[str, str]):
        self.values = values

    def has(self, key: str) -> bool:
        return self.values.get(key, "") != ""

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key, default)
        if value is None:
            raise Refused(400, f"the address lacks {key}=")
        if len(value) > 500:
            raise Refused(400, f"{key} is too long")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        text = self.text(key, None if default is None else str(default))
        if not (text.isascii() and text.isdigit() and len(text) < 12):
            raise Refused(400, f"{key} must be a whole number, not {text!r}")
        return int(text)

    def number(self, key: str, default: float) -> float:
        try:
            value = float(self.text(key, str(default)))
        except ValueError:
            raise Refused(400, f"{key} must be a number") from None
        if not math.isfinite(value):
            raise Refused(400, f"{key} must be a finite number")
        return value
