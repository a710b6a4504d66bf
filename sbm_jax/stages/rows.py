"""One number of the table of stability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# over: image halves, subjects, seeds, or a variant in words; of: what is compared; where: subject, mode, region, layer; measure;
# value: mean over draws, pairs or layers, low and high the smallest and largest of them, sd their standard deviation; chance: what
# the measure is where nothing agrees; n: how many numbers or voxels; and where few numbers are spread, `values` by name.
Row = dict[str, Any]


def row(
    over: str, of: str, where: str, measure: str, values: np.ndarray, chance: np.ndarray | Sequence[float], n: int
) -> Row:
    """A row from values [any], of which NaN are left out; None where none is left."""
    known, null = (x[np.isfinite(x)] for x in (np.asarray(values, np.float64), np.asarray(chance, np.float64)))
    return {
        "over": over,
        "of": of,
        "where": where,
        "measure": measure,
        "value": known.mean() if known.size else None,
        "low": known.min() if known.size else None,
        "high": known.max() if known.size else None,
        "sd": known.std(ddof=1) if known.size > 1 else None,
        "chance": null.mean() if null.size else None,
        "n": n,
    }
