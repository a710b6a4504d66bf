"""Which image NSD showed in which trial, from its experiment design (MATLAB, counts from 1) or its stimulus table (CSV)."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sbm_jax.brain.dataset import Dropped
from sbm_jax.errors import UserError

N_SESSIONS, N_TRIALS, N_RUNS, N_IMAGES, N_SHARED = 40, 750, 12, 73_000, 1000
N_PLAN = N_SESSIONS * N_TRIALS
# Sessions that were scanned, of the 40 planned (Allen et al. 2022, Nature Neuroscience 25).
SCANNED = {1: 40, 2: 40, 3: 32, 4: 30, 5: 40, 6: 32, 7: 40, 8: 30}
# Stimulus trials of odd and even runs (same paper, Methods): the table alone does not say where runs end.
RUN_TRIALS = (63, 62)


@dataclass(frozen=True)
class Design:
    """The plan of 40 sessions of 750 trials.

    images: int64 [30000] by subject number: the image of every planned trial, row of the image brick (from 0).
    run: int64 [40, 750], from 1 within the session. shared: int64 [1000], ascending, from 0. files: where it was read.
    """

    images: dict[int, np.ndarray]
    run: np.ndarray
    shared: np.ndarray
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    def trials(self, subject: int, sessions: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image (from 0), session and run (from 1) of the trials of some sessions, int64 [750 * sessions] each."""
        chosen = np.array(sessions, dtype=np.int64) - 1
        image = self.images[subject].reshape(N_SESSIONS, N_TRIALS)[chosen].ravel()
        return image, np.repeat(chosen + 1, N_TRIALS), self.run[chosen].ravel()

    def dropped(self, subject: int, sessions: tuple[int, ...], folder: Path) -> tuple[Dropped, ...]:
        """What of the plan is not in these sessions: sessions never scanned, sessions without files, trials, images."""
        absent = [s for s in range(1, N_SESSIONS + 1) if s not in sessions]
        never = [s for s in absent if s > SCANNED[subject]]
        gone = [s for s in absent if s <= SCANNED[subject]]
        lost = np.setdiff1d(self.images[subject], self.trials(subject, sessions)[0])
        found = (
            Dropped("sessions", len(never), f"planned but never scanned ({_spans(never)})"),
            Dropped("sessions", len(gone), f"no beta files in {folder} ({_spans(gone)})"),
            Dropped("trials", len(absent) * N_TRIALS, "planned in these sessions"),
            Dropped("images", len(lost), "shown in these sessions only"),
        )
        return tuple(d for d in found if d.count)


def read_design(folder: Path, subjects: tuple[int, ...]) -> Design:
    """The design out of nsd_expdesign.mat, nsd_stim_info_merged.csv or both, for some subjects (1 to 8).

    Raises UserError: neither is there; one is damaged, of other shapes or out of range; or the two disagree.
    """
    mat, table = folder / "nsd_expdesign.mat", folder / "nsd_stim_info_merged.csv"
    designs = [read(path, subjects) for path, read in ((mat, read_mat), (table, read_csv)) if path.is_file()]
    if not designs:
        raise UserError(
            f"{folder}: expected nsd_expdesign.mat or nsd_stim_info_merged.csv (which image was shown in which "
            "trial), found neither; copy them from nsddata/experiments/nsd"
        )
    if len(designs) == 2:
        _agree(*designs)
        one, two = designs
        return Design(one.images, one.run, one.shared, (*one.files, *two.files))
    return designs[0]


def read_mat(path: Path, subjects: tuple[int, ...] = ()) -> Design:
    """The design in nsd_expdesign.mat: everything in it counts from 1. Raises UserError as `read_design`."""
    content = _load_mat(path)
    order = _whole(path, content, "masterordering", (1, N_PLAN), 1, 10_000)[0]
    images = _whole(path, content, "subjectim", (8, 10_000), 1, N_IMAGES)
    shared = _shared_of(path, content)
    pattern = _whole(path, content, "stimpattern", (N_SESSIONS, N_RUNS, 75), 0, 1)
    per_run = pattern.sum(axis=2)
    wrong = np.flatnonzero(per_run.sum(axis=1) != N_TRIALS)
    if len(wrong):
        raise UserError(
            f"{path}: stimpattern has {per_run[wrong[0]].sum()} trials in session {wrong[0] + 1}, expected {N_TRIALS}"
        )
    run = np.stack([np.repeat(np.arange(1, N_RUNS + 1), counts) for counts in per_run])
    return Design({s: images[s - 1, order - 1] - 1 for s in subjects}, run, shared, (path,))


def read_csv(path: Path, subjects: tuple[int, ...]) -> Design:
    """The design in nsd_stim_info_merged.csv: nsdId counts from 0, the trials in its rep columns from 1, 0 is none.

    Raises UserError as `read_design`.
    """
    reps = [f"subject{s}_rep{k}" for s in subjects for k in range(3)]
    columns = _columns(path, ["nsdId", "shared1000", *reps])
    ids = _numbers(path, "nsdId", columns["nsdId"], N_IMAGES - 1)
    if len(np.unique(ids)) != len(ids):
        raise UserError(f"{path}: column nsdId has the same image in two rows; expected each once")
    shared = np.sort(ids[_numbers(path, "shared1000", columns["shared1000"], 1) == 1])
    if len(shared) != N_SHARED:
        raise UserError(f"{path}: expected {N_SHARED} images with shared1000, found {len(shared)}")
    images = {}
    for s in subjects:
        plan = np.full(N_PLAN, -1, dtype=np.int64)
        for k in range(3):
            trial = _numbers(path, f"subject{s}_rep{k}", columns[f"subject{s}_rep{k}"], N_PLAN)
            taken = trial[(trial > 0)] - 1
            if len(np.unique(taken)) != len(taken) or (plan[taken] >= 0).any():
                raise UserError(f"{path}: the columns subject{s}_rep0 to _rep2 give two images to one trial")
            plan[taken] = ids[trial > 0]
        if (plan < 0).any():
            raise UserError(
                f"{path}: no image has trial {np.argmin(plan >= 0) + 1} of subject {s} in its rep columns; expected "
                f"every trial from 1 to {N_PLAN} once"
            )
        images[s] = plan
    run = np.tile(np.repeat(np.arange(1, N_RUNS + 1), RUN_TRIALS * (N_RUNS // 2)), (N_SESSIONS, 1))
    note = f"{path.name} does not say where runs end: odd runs taken as 63 trials, even ones as 62, as published"
    return Design(images, run, shared, (path,), (note,))


def read_shared(path: Path) -> np.ndarray:
    """Shared images (from 0), int64, ascending, out of an nsd_expdesign.mat or a text file with one NSD id (from 0) per
    line, written 2950 or nsd-02950. Raises UserError for anything else.
    """
    if path.suffix == ".mat":
        return _shared_of(path, _load_mat(path))
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected image ids, one per line, but it cannot be read ({error})") from None
    ids = set()
    for row, line in enumerate(lines, start=1):
        match = re.fullmatch(r"(?:nsd-)?(\d{1,5})", line.strip())
        if line.strip() and (match is None or int(match[1]) >= N_IMAGES):
            raise UserError(f"{path}, line {row}: expected an NSD id from 0 to {N_IMAGES - 1}, found {line.strip()!r}")
        if match is not None:
            ids.add(int(match[1]))
    if not ids:
        raise UserError(f"{path}: expected image ids, one per line, found none")
    return np.array(sorted(ids), dtype=np.int64)


def _agree(mat: Design, table: Design) -> None:
    one, two = mat.files[0], table.files[0]
    for s, images in mat.images.items():
        wrong = np.flatnonzero(images != table.images[s])
        if len(wrong):
            t = wrong[0]
            raise UserError(
                f"{one} and {two.name} disagree in {len(wrong)} trials; first: trial {t + 1} of subject {s} shows image "
                f"{images[t]} (from 0) in the former, {table.images[s][t]} in the latter; get both anew"
            )
    if not np.array_equal(mat.shared, table.shared):
        first = np.setxor1d(mat.shared, table.shared)[0]
        raise UserError(f"{one} and {two.name} disagree on the shared images; first: image {first} (from 0)")


def _load_mat(path: Path) -> dict[str, Any]:
    import scipy.io  # heavy

    if not path.is_file():
        raise UserError(f"{path}: file not found; expected NSD's nsd_expdesign.mat")
    try:
        return scipy.io.loadmat(path)
    # scipy's parser fails in as many ways as a damaged file can be damaged
    except Exception as error:
        raise UserError(f"{path}: not a readable MATLAB file, or cut short ({error})") from None


def _shared_of(path: Path, content: dict[str, Any]) -> np.ndarray:
    return np.unique(_whole(path, content, "sharedix", (1, N_SHARED), 1, N_IMAGES)[0] - 1)


def _whole(path: Path, content: dict[str, Any], name: str, shape: tuple[int, ...], least: int, most: int) -> np.ndarray:
    found = content.get(name)
    if not isinstance(found, np.ndarray) or found.shape != shape or found.dtype.kind not in "iufb":
        what = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else "nothing of that name"
        raise UserError(f"{path}: expected {name} as numbers of shape {shape}, found {what}")
    values = found.astype(np.int64)
    if not ((values == found) & (values >= least) & (values <= most)).all():
        raise UserError(f"{path}: {name} needs whole numbers from {least} to {most}, found others")
    return values


def _columns(path: Path, names: list[str]) -> dict[str, list[str]]:
    """Some columns of a wide table, without keeping the others in memory."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle)
            header = next(reader, [])
            missing = [name for name in names if name not in header]
            if missing:
                raise UserError(f"{path}: expected the column {missing[0]!r}, found {', '.join(header) or 'nothing'}")
            places = [header.index(name) for name in names]
            rows = []
            for row in reader:
                if len(row) != len(header):
                    raise UserError(
                        f"{path}, line {reader.line_num}: expected {len(header)} cells as in the header, found {len(row)}"
                    )
                rows.append([row[p] for p in places])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: expected a CSV table in UTF-8, found something else ({error})") from None
    if len(rows) != N_IMAGES:
        raise UserError(f"{path}: expected {N_IMAGES} rows, one per image, found {len(rows)}; is it cut short?")
    return {name: list(cells) for name, cells in zip(names, zip(*rows, strict=True), strict=True)}


def _numbers(path: Path, name: str, cells: list[str], most: int) -> np.ndarray:
    """Cells as int64 from 0 to `most`; "1.0" is 1, True is 1."""
    flags = {"True": "1", "False": "0", "TRUE": "1", "FALSE": "0"}
    try:
        found = np.array([flags.get(cell, cell) for cell in cells]).astype(np.float64)
    except ValueError as error:
        raise UserError(f"{path}: column {name!r} needs whole numbers ({error})") from None
    wrong = ~((found >= 0) & (found <= most) & (found == np.floor(found)))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(
            f"{path}, row {row + 1}: column {name!r} needs whole numbers from 0 to {most}, found {cells[row]!r}"
        )
    return found.astype(np.int64)


def _spans(numbers: list[int]) -> str:
    """1, 2, 3, 7 as "1-3, 7"."""
    spans: list[list[int]] = []
    for n in numbers:
        if spans and spans[-1][1] == n - 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
