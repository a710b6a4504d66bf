"""Population receptive fields that a dataset brings: one Gaussian of the visual field per voxel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sbm_jax.brain.tables import floats
from sbm_jax.errors import UserError

COLUMNS = ("prf_x", "prf_y", "prf_sigma")  # of voxels.csv


@dataclass(frozen=True)
class Prf:
    """float64 [v], degrees of visual angle, NaN where a voxel has none: x to the right and y upwards from fixation, which is
    the middle of the picture; sigma, the standard deviation of the Gaussian.
    """

    x: np.ndarray
    y: np.ndarray
    sigma: np.ndarray


def known(x: np.ndarray, y: np.ndarray, sigma: np.ndarray) -> Prf:
    """The fields of those voxels that have all three numbers, finite, and sigma above 0."""
    there = np.isfinite(x) & np.isfinite(y) & np.isfinite(sigma) & (np.nan_to_num(sigma) > 0)
    return Prf(*(np.where(there, a, np.nan).astype(np.float64) for a in (x, y, sigma)))


def from_polar(angle: np.ndarray, eccentricity: np.ndarray, sigma: np.ndarray) -> Prf:
    """From polar angle (degrees, 0 to the right and 90 upwards; free at eccentricity 0) and eccentricity (degrees)."""
    turn = np.radians(np.where(eccentricity == 0, 0.0, angle))
    return known(eccentricity * np.cos(turn), eccentricity * np.sin(turn), sigma)


def from_table(path: Path | None, columns: dict[str, list[str]]) -> Prf | None:
    """From the columns prf_x, prf_y, prf_sigma of a table of voxels; None where there is none of them.

    Raises UserError where one of them is missing, or a cell is no number.
    """
    there = [name for name in COLUMNS if name in columns]
    if path is None or not there:
        return None
    if len(there) < len(COLUMNS):
        raise UserError(f"{path}: expected the columns {', '.join(COLUMNS)} together; found {', '.join(there)}")
    return known(*(floats(path, name, columns[name]) for name in COLUMNS))
