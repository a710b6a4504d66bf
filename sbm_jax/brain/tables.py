"""Small CSV tables read as columns of text, with errors that name the file, the row and what was expected."""

import csv
import json
from pathlib import Path

import numpy as np

from sbm_jax.errors import UserError


def read_table(path: Path, required: tuple[str, ...]) -> dict[str, list[str]]:
    """Read a CSV file with a header row into {column: cells}, in file order.

    Raises UserError if the file is missing, is not UTF-8, lacks a required column, repeats a column or has a
    row of another length than the header.
    """
    if not path.is_file():
        raise UserError(f"{path}: file not found; expected a CSV table with the columns {', '.join(required)}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle)
            header = [name.strip() for name in next(reader, [])]
            rows = []
            for row in reader:
                if not row:
                    continue  # an empty line, as editors leave at the end
                if len(row) != len(header):
                    raise UserError(
                        f"{path}, line {reader.line_num}: expected {len(header)} cells as in the header, "
                        f"found {len(row)}"
                    )
                rows.append(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: expected a CSV table in UTF-8, found something else ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    missing = [name for name in required if name not in header]
    if missing:
        found = ", ".join(header) or "an empty file"
        raise UserError(
            f"{path}: expected the columns {', '.join(required)}; missing {', '.join(missing)}; found {found}"
        )
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise UserError(f"{path}: the header names the column {repeated[0]!r} twice; every column needs its own name")
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(header)
    return {name: list(cells) for name, cells in zip(header, columns, strict=True)}


def integers(path: Path, column: str, cells: list[str], least: int) -> np.ndarray:
    """Cells as int64, each at least `least`; "1.0" counts as 1. Raises UserError naming the first bad row."""
    values = np.zeros(len(cells), dtype=np.int64)
    for row, cell in enumerate(cells):
        try:
            number = float(cell)
        except ValueError:
            number = np.nan
        if not number == np.floor(number) or not least <= number < 2**53:
            raise UserError(
                f"{path}, row {row + 1}: column {column!r} needs whole numbers from {least} upwards, found {cell!r}"
            )
        values[row] = int(number)
    return values


def floats(path: Path, column: str, cells: list[str]) -> np.ndarray:
    """Cells as float64; an empty cell is NaN. Raises UserError naming the first bad row."""
    try:
        return np.array([cell or "nan" for cell in cells], dtype=np.float64)
    except ValueError:
        pass
    for row, cell in enumerate(cells):
        try:
            float(cell or "nan")
        except ValueError:
            raise UserError(f"{path}, row {row + 1}: column {column!r} needs numbers, found {cell!r}") from None
    raise AssertionError("unreachable: some cell is not a number")


def read_json(path: Path) -> dict:
    """A JSON object. Raises UserError if the file is missing, is not JSON or holds something else than an
    object.
    """
    if not path.is_file():
        raise UserError(f"{path}: file not found")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object {{...}}, found {type(content).__name__}")
    return content
