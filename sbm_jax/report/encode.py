"""Compact embedding of arrays and pictures in a page: quantised little-endian base64, each content once."""

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from sbm_jax.report.data import Thumb

MAP_LEVELS = 65535  # code 0 is NaN, 1..65535 are values
POSITION_LEVELS = 32767


class Blobs:
    """Base64 texts by number; equal bytes share a number."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._number: dict[bytes, int] = {}

    def add(self, data: bytes) -> int:
        if data not in self._number:
            self._number[data] = len(self.texts)
            self.texts.append(base64.b64encode(data).decode("ascii"))
        return self._number[data]

    def integers(self, values: np.ndarray, largest: int) -> dict[str, Any]:
        """Reference to integers 0..largest, in the narrowest of 1, 2 or 4 bytes. ValueError outside them."""
        values = np.asarray(values)
        if values.size and not 0 <= values.min() <= values.max() <= largest:
            raise ValueError(f"expected integers in 0..{largest}, got {values.min()}..{values.max()}")
        kind = next(k for k, top in (("u1", 2**8), ("u2", 2**16), ("u4", 2**32)) if largest < top)
        return {"blob": self.add(np.ascontiguousarray(values, f"<{kind}").tobytes()), "type": kind}

    def positions(self, coords_v3: np.ndarray) -> dict[str, Any]:
        """Reference to float [v, 3] as int16 about the centre of its box: value = centre + scale * code."""
        coords = np.asarray(coords_v3, np.float64)
        centre = (coords.min(0) + coords.max(0)) / 2
        scale = float(np.abs(coords - centre).max()) / POSITION_LEVELS or 1.0
        codes = np.round((coords - centre) / scale).astype("<i2")
        return {"blob": self.add(codes.tobytes()), "type": "i2", "scale": scale, "centre": centre.tolist()}

    def scalars(self, values_v: np.ndarray, *, whole: bool = False) -> dict[str, Any]:
        """Reference to float [v] as uint16: value = low + step * (code - 1), code 0 = NaN (infinities too).

        whole: the values are small non-negative integers (category indices) and stay exact.
        """
        values = np.asarray(values_v, np.float64)
        finite = np.isfinite(values)
        low = 0.0 if whole or not finite.any() else float(values[finite].min())
        high = low if not finite.any() else float(values[finite].max())
        step = 1.0 if whole else (high - low) / (MAP_LEVELS - 1) or 1.0
        codes = np.where(finite, np.round((np.where(finite, values, low) - low) / step) + 1, 0)
        return {"blob": self.add(codes.astype("<u2").tobytes()), "type": "u2", "low": low, "step": step}


def decode(reference: dict[str, Any], texts: Sequence[str]) -> np.ndarray:
    """What the page's script gets back from a reference: integers, positions [v, 3] or scalars, float64."""
    codes = np.frombuffer(base64.b64decode(texts[int(reference["blob"])]), f"<{reference['type']}")
    if "scale" in reference:
        return codes.reshape(-1, 3) * reference["scale"] + reference["centre"]
    if "step" in reference:
        return np.where(codes == 0, np.nan, reference["low"] + reference["step"] * (codes.astype(float) - 1))
    return codes.astype(np.float64)


def script_json(value: Any) -> Markup:
    """JSON that is safe inside a <script> element: ASCII without <, > and &; NaN is refused (ValueError)."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


def image_type(thumb: Thumb) -> str:
    """Media type from the first bytes. ValueError for anything but JPEG, PNG, GIF or WebP."""
    data = thumb.data
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "image/gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    raise ValueError(f"picture {thumb.alt!r}: expected JPEG, PNG, GIF or WebP bytes, got {data[:8]!r}...")
