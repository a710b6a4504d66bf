"""Regions of interest as masks over columns: from label names, label numbers, and colour tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sbm_jax.errors import UserError

# hand-drawn order of NSD's labels; labels of other studies follow alphabetically
KNOWN_ORDER = (
    *("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"),
    *("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    *("EBA", "FBA-1", "FBA-2", "mTL-bodies"),
    *("OPA", "PPA", "RSC"),
    *("OWFA", "VWFA-1", "VWFA-2", "mfs-words", "mTL-words"),
)


def masks_from_names(atlases: dict[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """bool [v] by "ATLAS" and "ATLAS/LABEL" from the label's name in every column ("" where there is none)."""
    rois: dict[str, np.ndarray] = {}
    rank = {label: position for position, label in enumerate(KNOWN_ORDER)}
    for atlas, cells in atlases.items():
        labels = sorted(set(cells) - {""}, key=lambda label: (rank.get(label, len(rank)), label))
        numbers = {label: number for number, label in enumerate(labels, start=1)}
        label_v = np.array([numbers.get(cell, 0) for cell in cells], dtype=np.int64)
        rois |= masks_from_numbers(atlas, label_v, {number: label for label, number in numbers.items()})
    return rois


def masks_from_numbers(atlas: str, label_v: np.ndarray, names: dict[int, str]) -> dict[str, np.ndarray]:
    """bool [v] by `atlas` (any label) and "atlas/NAME" from label numbers [v]; below 1 means no label.

    A label without columns gives an empty mask; a number without a name is called by its number. NSD's V1v and V1d are
    also pooled as V1 (V2, V3 alike).
    """
    label_v = np.asarray(label_v)
    numbers = dict.fromkeys([n for n in names if n >= 1] + sorted(int(n) for n in np.unique(label_v) if n >= 1))
    rois = {atlas: label_v >= 1}
    for number in numbers:
        rois[f"{atlas}/{names.get(number, number)}"] = label_v == number
    if atlas == "prf-visualrois":
        for area in ("V1", "V2", "V3"):
            halves = [rois[f"{atlas}/{area}{side}"] for side in "vd" if f"{atlas}/{area}{side}" in rois]
            if halves and f"{atlas}/{area}" not in rois:
                rois[f"{atlas}/{area}"] = np.logical_or.reduce(halves)
    return rois


def read_colour_table(path: Path) -> dict[int, str]:
    """Names by number from a `.ctab` file of lines `number name [tab] [red green blue ...]`; number 0 (unknown) is left out.

    Raises UserError for a missing file or a line that does not begin with a number and a name.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: expected a colour table with lines such as `1 V1v`, but it cannot be read ({error})"
        ) from None
    names: dict[int, str] = {}
    for row, line in enumerate(lines, start=1):
        cells = line.split()
        if not cells or cells[0].startswith("#"):
            continue
        if len(cells) < 2 or not cells[0].lstrip("-").isdigit():
            raise UserError(f"{path}, line {row}: expected a number and a name, found {line!r}")
        if int(cells[0]) != 0:
            names[int(cells[0])] = cells[1]
    return names
