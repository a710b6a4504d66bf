"""What the server says: JSON with NaN as null, binary pieces, and refusals that tell what to do."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sbm_jax.errors import UserError


class Refused(Exception):
    """An answer other than 200: a sentence for the reader, and the command that mends it, where there is one."""

    def __init__(self, status: int, message: str, command: str = ""):
        super().__init__(message)
        self.status, self.message, self.command = status, message, command

    @property
    def body(self) -> dict[str, str]:
        return {"error": self.message, "command": self.command}


def refusal(error: UserError) -> Refused:
    """What stands in the way of an answer and can be mended by the user."""
    return Refused(409, str(error))


def plain(value: Any) -> Any:
    """The value as JSON can hold it: arrays as lists, NaN and infinities as None, floats with seven digits."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        number = float(value)
        return float(f"{number:.7g}") if math.isfinite(number) else None
    return value


def json_bytes(value: Any) -> bytes:
    """UTF-8 JSON; lone surrogates of file names that are no valid UTF-8 are escaped."""
    text = json.dumps(plain(value), allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace")


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """A table for spreadsheets. Texts that a spreadsheet would take for a formula get an apostrophe in front."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\r\n")  # so that either is quoted inside of a cell
    writer.writerow(header)
    for row in rows:
        writer.writerow([_cell(plain(value)) for value in row])
    return stream.getvalue().encode("utf-8", "backslashreplace")


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
