"""Colour maps: short anchor tables interpolated in Oklab, so that lightness rises (or falls) without a kink.

Oklab: B. Ottosson, "A perceptual color space for image processing" (2020).
"""

import colorsys
from collections.abc import Sequence

import numpy as np

# Sequential anchors follow the CC0 maps inferno, viridis and cividis, without inferno's blackest part:
# near-black patches would read as shadow on a shaded cortex. The diverging map is ours, with arms of equal
# lightness.
SEQUENTIAL = {
    "ember": ("#240c4f", "#5d126e", "#932667", "#c73e4c", "#ed6925", "#fca50a", "#f3dc4d", "#fcffa4"),
    "lagoon": ("#440154", "#443983", "#31688e", "#21918c", "#35b779", "#90d743", "#fde725"),
    "slate": ("#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838"),
}
# (lightness, chroma, hue in degrees) in Oklab's polar form
DIVERGING = {
    "blue-red": (
        (0.30, 0.100, 262.0),
        (0.48, 0.115, 252.0),
        (0.70, 0.090, 244.0),
        (0.95, 0.008, 80.0),
        (0.70, 0.110, 42.0),
        (0.48, 0.145, 32.0),
        (0.30, 0.100, 28.0),
    ),
}
PALETTES = (*SEQUENTIAL, *DIVERGING)
DEFAULT_PALETTE = {"sequential": "ember", "diverging": "blue-red"}

# Okabe and Ito's colours (Color Universal Design, 2008), yellow left out: too faint for a line on white.
CATEGORY_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#333333", "#8c6d31")

_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def parse_hex(colour: str) -> np.ndarray:
    """'#rrggbb' -> uint8 [3]. ValueError for anything else."""
    if len(colour) != 7 or colour[0] != "#":
        raise ValueError(f"expected a colour as '#rrggbb', got {colour!r}")
    return np.frombuffer(bytes.fromhex(colour[1:]), np.uint8)


def category_colours(count: int) -> tuple[str, ...]:
    """'#rrggbb' for that many categories: CATEGORY_COLOURS, or evenly spaced hues where these are too few."""
    if count <= len(CATEGORY_COLOURS):
        return CATEGORY_COLOURS[:count]
    hues = [colorsys.hsv_to_rgb(i / count, 0.65, 0.85) for i in range(count)]
    return tuple("#" + "".join(f"{round(255 * part):02x}" for part in rgb) for rgb in hues)


def _linear(rgb: np.ndarray) -> np.ndarray:
    """sRGB in 0..1 -> linear light (IEC 61966-2-1)."""
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _gamma(linear: np.ndarray) -> np.ndarray:
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def to_oklab(rgb: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] -> Oklab float64 [..., 3] (lightness 0..1, green-red, blue-yellow)."""
    return np.cbrt(_linear(np.asarray(rgb) / 255.0) @ _TO_LMS.T) @ _TO_LAB.T


def from_oklab(lab: np.ndarray) -> np.ndarray:
    """Oklab float [..., 3] -> uint8 [..., 3], clipped to sRGB."""
    lms = (lab @ np.linalg.inv(_TO_LAB).T) ** 3
    return np.round(_gamma(lms @ np.linalg.inv(_TO_LMS).T) * 255).astype(np.uint8)


def _anchors(name: str) -> np.ndarray:
    if name in SEQUENTIAL:
        return np.stack([to_oklab(parse_hex(colour)) for colour in SEQUENTIAL[name]])
    if name in DIVERGING:
        lch = np.array(DIVERGING[name])
        hue = np.deg2rad(lch[:, 2])
        return np.stack([lch[:, 0], lch[:, 1] * np.cos(hue), lch[:, 1] * np.sin(hue)], axis=1)
    raise ValueError(f"unknown palette {name!r}; there are: {', '.join(PALETTES)}")


def lookup_table(name: str, size: int = 256) -> np.ndarray:
    """uint8 [size, 3], lowest value first."""
    anchors = _anchors(name)
    # Anchors sit at equal arc length in Oklab (both arms alike), so equal steps of value look about equal.
    step = np.linalg.norm(np.diff(anchors, axis=0), axis=1)
    if name in DIVERGING:
        step = (step + step[::-1]) / 2
    at = np.concatenate([[0], np.cumsum(step)])
    x = np.linspace(0, at[-1], size)
    return from_oklab(np.stack([np.interp(x, at, anchors[:, i]) for i in range(3)], axis=1))


def colour_values(
    values: np.ndarray,
    kind: str,
    vmin: float,
    vmax: float,
    categories: Sequence[tuple[str, str]] = (),
    palette: str = "",
) -> np.ndarray:
    """float [v] -> uint8 [v, 3]; what NaN becomes is left to the caller (it is given the lowest colour).

    Raises ValueError for an unknown kind, or a category index outside `categories`.
    """
    if kind == "categorical":
        index = np.nan_to_num(values, nan=0).astype(np.int64)
        if len(index) and not (index.min() >= 0 and index.max() < len(categories)):
            raise ValueError(f"category index outside 0..{len(categories) - 1}")
        return np.stack([parse_hex(colour) for _, colour in categories])[index]
    if kind not in DEFAULT_PALETTE:
        raise ValueError(f"expected kind sequential, diverging or categorical, got {kind!r}")
    table = lookup_table(palette or DEFAULT_PALETTE[kind])
    span = (vmax - vmin) or 1.0
    unit = np.clip((np.nan_to_num(values, nan=vmin) - vmin) / span, 0, 1)
    return table[np.round(unit * (len(table) - 1)).astype(np.int64)]
