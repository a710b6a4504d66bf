"""Tables that say which picture every trial showed: CSV or TSV, whatever the layout calls its columns."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sbm_jax.brain.tables import integers, read_table
from sbm_jax.errors import UserError

# the first of these that a table has names the picture of the trial
IMAGE_COLUMNS = ("image_id", "stimulus", "image_filename", "stim_file")
# trials without a picture, in any case; BIDS writes n/a
BLANKS = ("", "n/a", "nan", "blank")
TABLE_SUFFIXES = (".tsv", ".csv")


@dataclass(frozen=True)
class TrialTable:
    """One row per trial.

    images: name of the picture, "" for a blank trial. session, run: int64 [rows], None where the table has no such column.
    """

    path: Path
    images: tuple[str, ...]
    session: np.ndarray | None
    run: np.ndarray | None

    def __len__(self) -> int:
        return len(self.images)


def read_columns(path: Path, required: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """{column: cells} of a .csv or a .tsv file. Raises UserError as `read_table` does."""
    if path.suffix != ".tsv":
        return read_table(path, required)
    if not path.is_file():
        raise UserError(f"{path}: file not found; expected a table separated by tabs")
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            rows = [row for row in csv.reader(handle, delimiter="\t", quoting=csv.QUOTE_NONE) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path}: expected a table in UTF-8 separated by tabs, found something else ({error})"
        ) from error
    header = [name.strip() for name in rows[0]] if rows else []
    missing = [name for name in required if name not in header]
    if missing:
        found = ", ".join(header) or "an empty file"
        raise UserError(f"{path}: missing column {', '.join(missing)}; found {found}")
    if len(set(header)) < len(header):
        raise UserError(f"{path}: two columns have the same name; found {', '.join(header)}")
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(header):
            raise UserError(f"{path}, row {number}: expected {len(header)} cells as in the header, found {len(row)}")
    return {name: [row[column].strip() for row in rows[1:]] for column, name in enumerate(header)}


def read_trials(path: Path) -> TrialTable:
    """Read a table of trials.

    Raises UserError if none of IMAGE_COLUMNS is there, or a session or run is not a number (or a label that ends in one).
    """
    columns = read_columns(path)
    name = next((column for column in IMAGE_COLUMNS if column in columns), None)
    if name is None:
        found = ", ".join(columns) or "an empty file"
        raise UserError(
            f"{path}: expected a column {' or '.join(IMAGE_COLUMNS)} that names the picture of every trial; found {found}"
        )
    return TrialTable(
        path=path,
        images=tuple("" if cell.lower() in BLANKS else cell for cell in columns[name]),
        session=_numbers(path, "session", columns.get("session")),
        run=_numbers(path, "run", columns.get("run")),
    )


def label_number(label: str) -> int | None:
    """The number that ends a label of a session or run: 3 for "3", "03" and "things03"; None without one."""
    found = re.search(r"\d+$", label)
    return int(found.group()) if found else None


def find_table(folder: Path, stems: tuple[str, ...]) -> Path | None:
    """The first of `stem`.tsv, `stem`.csv that a folder holds, or None."""
    candidates = (folder / f"{stem}{suffix}" for stem in stems for suffix in TABLE_SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def _numbers(path: Path, column: str, cells: list[str] | None) -> np.ndarray | None:
    if cells is None:
        return None
    if all(re.fullmatch(r"[A-Za-z-]+\d+", cell) for cell in cells):
        cells = [str(label_number(cell)) for cell in cells]
    return integers(path, column, cells, 1)
