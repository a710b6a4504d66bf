"""The judge `labels`: what a person, or a dataset, says that images show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sbm_jax.brain.tables import floats, read_table
from sbm_jax.errors import UserError
from sbm_jax.stages.inputs import relative_extents
from sbm_jax.stages.judging import ImageJudge

ID, CATEGORY = "image_id", "category"


def dataset_labels(labels: Mapping[str, np.ndarray]) -> ImageJudge:
    """From the dataset's own label columns (visible fractions): an image shows its concept of greatest relative extent. Images
    with every cell empty are not judged.
    """
    names, extents = relative_extents(dict(labels))
    largest = extents.argmax(axis=1)
    shows = np.zeros(extents.shape, bool)
    shows[np.arange(len(shows)), largest] = extents.max(axis=1) > 0
    seen = np.any([np.isfinite(np.asarray(labels[name], np.float64)) for name in names], axis=0)
    about = "the dataset's labels: an image shows the concept of greatest relative extent"
    return ImageJudge("labels", about, tuple(names), shows, np.asarray(seen), exclusive=True)


def file_labels(path: Path, ids: Sequence[str]) -> ImageJudge:
    """From a CSV of two layouts: `image_id` and a column of numbers per concept (above 0: shows it; empty: it does not), one row
    per image; or `image_id,category`, a row per category that an image shows, an empty category for an image without any.

    Images without a row are not judged; rows of other images are ignored. An image may show several concepts.
    Raises UserError naming file and row for a repeated image, a cell that is not a number, a concept without a name, or a file
    that names none of the images.
    """
    table = read_table(path, (ID,))
    place = {image_id: row for row, image_id in enumerate(ids)}
    rows = np.array([place.get(image_id, -1) for image_id in table[ID]], np.int64)
    if not (rows >= 0).any():
        first = repr(table[ID][0]) if table[ID] else "no row"
        raise UserError(
            f"{path}: none of its {len(rows)} rows names an image of the probe set; expected ids such as {ids[0]!r}, found {first}"
        )
    columns = [name for name in table if name != ID]
    seen = np.zeros(len(ids), bool)
    seen[rows[rows >= 0]] = True
    if columns == [CATEGORY]:
        concepts, shows = _by_row(table[CATEGORY], rows, len(ids))
    else:
        concepts, shows = _by_column(path, table, columns, rows, len(ids))
    if not concepts:
        raise UserError(
            f"{path}: expected a column per concept beside {ID}, or the column {CATEGORY}; no concept found"
        )
    about = (
        f"labels of {path.name}: {int(seen.sum()):,} of {len(ids):,} probe images; an image may show several concepts"
    )
    return ImageJudge("labels", about, tuple(concepts), shows, seen, exclusive=False)


def _by_row(cells: list[str], rows: np.ndarray, n: int) -> tuple[list[str], np.ndarray]:
    names = [cell.strip() for cell in cells]
    concepts = sorted({name for name, row in zip(names, rows, strict=True) if name and row >= 0})
    column = {name: c for c, name in enumerate(concepts)}
    shows = np.zeros((n, len(concepts)), bool)
    for name, row in zip(names, rows, strict=True):
        if row >= 0 and name:
            shows[row, column[name]] = True
    return concepts, shows


def _by_column(
    path: Path, table: dict[str, list[str]], columns: list[str], rows: np.ndarray, n: int
) -> tuple[list[str], np.ndarray]:
    first: dict[str, int] = {}
    for number, image_id in enumerate(table[ID], start=1):
        if image_id in first:
            raise UserError(
                f"{path}, row {number}: the image {image_id!r} has a row already (row {first[image_id]}); one row per image, or "
                f"the columns {ID},{CATEGORY} for a row per category"
            )
        first[image_id] = number
    if "" in columns:
        raise UserError(f"{path}: column {list(table).index('') + 1} has no name; every concept needs one")
    shows = np.zeros((n, len(columns)), bool)
    for c, name in enumerate(columns):
        shows[rows[rows >= 0], c] = (np.nan_to_num(floats(path, name, table[name])) > 0)[rows >= 0]
    return columns, shows
