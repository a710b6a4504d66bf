"""Finding the response files of a subject by their BIDS-like names, and the table of trials that belongs to each."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sbm_jax.brain.readers.generic_tables import TABLE_SUFFIXES, TrialTable, label_number
from sbm_jax.errors import UserError

# the longer suffixes first: every CIFTI file also ends in .nii
SUFFIXES = {
    ".dtseries.nii": "cifti",
    ".dscalar.nii": "cifti",
    ".func.gii": "surface",
    ".nii.gz": "volume",
    ".nii": "volume",
}
TABLE_KINDS = ("trials", "events", "conditions")
_DEPTH = 3  # subject/session/func


@dataclass(frozen=True)
class ResponseFile:
    """A file of responses, or the pair of the left and the right surface.

    entities: the key-value pairs of its name but hemi. space: the entity, or "volume", "surface", "cifti".
    """

    paths: tuple[Path, ...]
    entities: dict[str, str]
    kind: str

    @property
    def space(self) -> str:
        return self.entities.get("space", self.kind)

    def number(self, key: str) -> int | None:
        """The number of its session ("ses") or run; None without one. Raises UserError for a label without number."""
        label = self.entities.get(key)
        if label is None:
            return None
        number = label_number(label)
        if number is None or number < 1:
            raise UserError(f"{self.paths[0]}: {key}-{label} has to end in a number from 1 upwards; rename the file")
        return number


def walk(folder: Path) -> list[Path]:
    """The files of a folder and of the folders in it, two deep at most, sorted."""
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        if len(Path(parent).relative_to(folder).parts) >= _DEPTH:
            folders.clear()
        found += [Path(parent, name) for name in files]
    return sorted(found)


def suffix_of(path: Path) -> str | None:
    """The suffix of a file of responses, whose name ends in `betas` before it; None for any other file."""
    suffix = next((s for s in SUFFIXES if path.name.endswith(s)), None)
    return suffix if suffix and re.search(r"(^|_)betas$", path.name.removesuffix(suffix)) else None


def entities_of(stem: str) -> dict[str, str]:
    """{"sub": "01", "ses": "02"} of "sub-01_ses-02_betas"."""
    return dict(part.split("-", 1) for part in stem.split("_") if "-" in part)


def find_responses(files: Sequence[Path]) -> list[ResponseFile]:
    """Files of responses, by session, run and name. Raises UserError for one hemisphere without the other."""
    single: list[ResponseFile] = []
    pairs: dict[tuple[Path, str], dict[str, Path]] = {}
    for path in files:
        suffix = suffix_of(path)
        if suffix is None:
            continue
        entities = entities_of(path.name.removesuffix(suffix))
        if SUFFIXES[suffix] != "surface":
            single.append(ResponseFile((path,), entities, SUFFIXES[suffix]))
            continue
        if entities.get("hemi") not in ("L", "R"):
            raise UserError(f"{path}: expected hemi-L or hemi-R in the name of a surface file")
        key = (path.parent, path.name.replace(f"hemi-{entities['hemi']}", "hemi-*"))
        pairs.setdefault(key, {})[entities["hemi"]] = path
    for (folder, name), pair in pairs.items():
        if len(pair) < 2:
            other = "R" if "L" in pair else "L"
            raise UserError(
                f"{folder / name.replace('hemi-*', f'hemi-{other}')}: file not found; the other hemisphere is there"
            )
        entities = entities_of(pair["L"].name.removesuffix(".func.gii"))
        del entities["hemi"]
        single.append(ResponseFile((pair["L"], pair["R"]), entities, "surface"))
    return sorted(single, key=lambda file: (file.number("ses") or 0, file.number("run") or 0, file.paths))


def choose_space(folder: Path, files: list[ResponseFile], wanted: str) -> list[ResponseFile]:
    """The files of one space: `wanted`, or the only one there is. Raises UserError for a choice to be made."""
    spaces = sorted({file.space for file in files})
    if not wanted and len(spaces) > 1:
        raise UserError(f"{folder}: responses in several spaces, {', '.join(spaces)}; set data.space to one of them")
    chosen = [file for file in files if file.space == (wanted or spaces[0])]
    if not chosen:
        raise UserError(f"{folder}: data.space is {wanted!r}; found {', '.join(spaces)}")
    kinds = sorted({file.kind for file in chosen})
    if len(kinds) > 1:
        raise UserError(f"{folder}: the space {chosen[0].space} is there as {' and '.join(kinds)}; keep one of them")
    return chosen


def find_trial_table(response: ResponseFile, files: Sequence[Path]) -> Path:
    """The table for a file of responses: of those in its folder or above whose name-value pairs it all has, the one with most.

    Raises UserError if there is none, or two are equally close.
    """
    fitting: list[tuple[int, Path]] = []
    for path in files:
        kind = path.stem.rsplit("_", 1)[-1]
        if path.suffix not in TABLE_SUFFIXES or kind not in TABLE_KINDS:
            continue
        entities = entities_of(path.stem)
        above = path.parent == response.paths[0].parent or path.parent in response.paths[0].parents
        if above and entities.items() <= response.entities.items():
            fitting.append((len(entities), path))
    best = [path for count, path in fitting if count == max(fitting)[0]]
    if not best:
        stem = "_".join(f"{k}-{v}" for k, v in response.entities.items() if k in ("sub", "ses", "run"))
        raise UserError(
            f"{response.paths[0]}: no table of its trials found; expected {stem}_trials.tsv beside it (or _events, "
            "_conditions, or .csv), one row per volume"
        )
    if len(best) > 1:
        raise UserError(f"{response.paths[0]}: {best[0].name} and {best[1].name} may both list its trials; keep one")
    return best[0]


def rows_of(response: ResponseFile, table: TrialTable, n_trials: int) -> np.ndarray:
    """Rows of a table that belong to a file: all, or those of its session and run. Raises UserError for another number."""
    rows = np.ones(len(table), dtype=bool)
    for column, key in ((table.session, "ses"), (table.run, "run")):
        number = response.number(key)
        if column is not None and number is not None:
            rows &= column == number
    if rows.sum() != n_trials:
        part = "" if rows.all() else " of its session and run"
        raise UserError(
            f"{table.path}: {int(rows.sum()):,} rows{part}, but {response.paths[0]} holds {n_trials:,} trials; the table "
            "needs one row per trial, in order (n/a for a blank one)"
        )
    return np.flatnonzero(rows)
