"""THINGS-fMRI's table of voxels: 211,000 rows of 222 columns, read in blocks into numbers and ROI flags."""

from __future__ import annotations

import csv
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sbm_jax.errors import UserError

_BLOCK = 4096
_NUMBERS = re.compile(r"voxel_id|subject_id|voxel_[xyz]|nc_.+|splithalf_.+|prf-(eccentricity|polarangle|rsquared|size)")
# areas drawn from the population receptive fields; all other plain names are localizers or their unions
_PRF = ("V1", "V2", "V3", "hV4", "VO1", "VO2", "LO1 (prf)", "LO2 (prf)", "TO1", "TO2", "V3b", "V3a")
_LOCALIZER = re.compile(r"[lr](EBA|FFA|OFA|STS|PPA|RSC|TOS|LOC)")


@dataclass(frozen=True)
class VoxelTable:
    """numbers: float64 [v] per column. flags: bool [v] per ROI column. ignored: columns that are neither."""

    numbers: dict[str, np.ndarray]
    flags: dict[str, np.ndarray]
    ignored: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.numbers["voxel_id"])

    def rois(self) -> dict[str, np.ndarray]:
        """ROIs by name: prf/V1 ..., localizer/lFFA and localizer/FFA (both sides) ..., glasser/V1 ..., IT; pooled without slash."""
        rois: dict[str, np.ndarray] = {}
        for column, flag in self.flags.items():
            # two of the published column names hold a line break
            name = column.replace("\n", "")
            if column in _PRF:
                _add(rois, "prf", name.removesuffix(" (prf)"), flag)
            elif _LOCALIZER.fullmatch(name):
                _add(rois, "localizer", name, flag)
                rois["localizer/" + name[1:]] = rois.get("localizer/" + name[1:], False) | flag
            elif name.startswith("glasser-"):
                _add(rois, "glasser", name.removeprefix("glasser-"), flag)
            else:
                rois[name] = flag
        return rois


def read_voxel_table(path: Path) -> VoxelTable:
    """Read `sub-0X_VoxelMetadata.csv`.

    Raises UserError: no such file, no column voxel_id, a row of another length, a cell that is not a number, no rows.
    """
    if not path.is_file():
        raise UserError(f"{path}: file not found; expected a table of voxels with the column voxel_id")
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            return _read(path, csv.reader(handle))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: expected a CSV table in UTF-8, found something else ({error})") from error


def _read(path: Path, lines) -> VoxelTable:
    header = [name.strip() for name in next(lines, [])]
    if header[:1] == [""]:
        header[0] = "index"  # pandas writes its row names under an empty header
    if "voxel_id" not in header:
        raise UserError(f"{path}: expected the column voxel_id; found {', '.join(header[:12]) or 'an empty file'}")
    if len(set(header)) < len(header):
        raise UserError(f"{path}: two columns have the same name")
    is_number = np.array([bool(_NUMBERS.fullmatch(name)) for name in header])
    others = np.flatnonzero(~is_number)
    is_flag = np.ones(len(others), dtype=bool)
    numbers, flags, done = [], [], 0
    while block := list(itertools.islice(lines, _BLOCK)):
        x = _block(path, [row for row in block if row], header, done)
        done += len(x)
        numbers.append(x[:, is_number])
        one = x[:, others] == 1
        is_flag &= (one | (x[:, others] == 0)).all(axis=0)
        flags.append(one)
    if not done:
        raise UserError(f"{path}: the table has no rows; expected one row per voxel")
    number, flag = np.concatenate(numbers), np.concatenate(flags)
    names = [header[i] for i in others]
    return VoxelTable(
        numbers={header[i]: np.ascontiguousarray(number[:, c]) for c, i in enumerate(np.flatnonzero(is_number))},
        flags={name: np.ascontiguousarray(flag[:, c]) for c, name in enumerate(names) if is_flag[c]},
        ignored=tuple(name for c, name in enumerate(names) if not is_flag[c] and name != "index"),
    )


def _block(path: Path, rows: list[list[str]], header: list[str], done: int) -> np.ndarray:
    """float64 [rows, columns]; empty cells are NaN."""
    for number, row in enumerate(rows, start=done + 1):
        if len(row) != len(header):
            raise UserError(f"{path}, row {number}: expected {len(header)} cells as in the header, found {len(row)}")
    try:
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(header))
    except ValueError:
        pass
    x = np.empty((len(rows), len(header)))
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            try:
                x[number, column] = float(cell or "nan")
            except ValueError:
                if _NUMBERS.fullmatch(header[column]):
                    raise UserError(
                        f"{path}, row {done + number + 1}: column {header[column]!r} needs numbers, found {cell!r}"
                    ) from None
                x[number, column] = np.nan
    return x


def _add(rois: dict[str, np.ndarray], atlas: str, label: str, flag: np.ndarray) -> None:
    rois[atlas] = rois.get(atlas, False) | flag
    rois[f"{atlas}/{label}"] = flag
