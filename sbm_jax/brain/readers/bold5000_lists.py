"""Which picture BOLD5000 showed in which session and run: CSI1_imgnames.txt, and the lists per run where they are there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sbm_jax.errors import UserError

RUN_LENGTH = 37  # trials of every run (BOLD5000 release 2)


@dataclass(frozen=True)
class Sessions:
    """images: name of the picture of every trial that has a response. session, run: int64 [t], 1-based. absent: trials listed
    for sessions whose files are not there. files: the lists."""

    images: tuple[str, ...]
    session: np.ndarray
    run: np.ndarray
    absent: int
    files: tuple[Path, ...]


def read_order(
    name: str, root: Path, files: list[Path], trials: dict[int, int] | None, total: int | None = None
) -> Sessions:
    """The trials of a subject in order.

    Args:
        name: CSI1 to CSI4.
        root: the folder of the dataset, in which Stimuli_Presentation_Lists is looked for.
        files: of the dataset, among them NAME_imgnames.txt.
        trials: trials of every session that is there, by its number; None if no file tells.
        total: trials of the responses, where `trials` is None.

    Raises:
        UserError: no list of names; names that are not the trials; sessions that cannot be told apart.
    """
    names_file = next((path for path in files if path.name == f"{name}_imgnames.txt"), None)
    lists = _session_lists(name, root)
    if names_file is None and not lists:
        raise UserError(
            f"{name}_imgnames.txt not found among the files of the dataset; it lists one image per trial (release 2, or "
            "BOLD5000_Stimuli/Stimuli_Presentation_Lists)"
        )
    listed = [image for session in lists for _, images in session for image in images]
    images = _lines(names_file) if names_file else listed
    source = names_file or lists[0][0][0]
    lengths = {number: sum(len(i) for _, i in session) for number, session in enumerate(lists, start=1)}
    if lists and len(listed) != len(images):
        raise UserError(f"{source}: {len(images):,} names, but the lists of runs beside it hold {len(listed):,}")
    if trials is None:
        if not lists:
            raise UserError(
                f"{source}: it does not say where sessions begin, and responses are standardised within a session; put the "
                f"folder Stimuli_Presentation_Lists/{name} or the session files (*_ses-01.nii.gz ...) into the dataset"
            )
        trials = lengths
    lengths = lengths or _without_lists(source, trials, len(images))
    starts = dict(zip(lengths, np.cumsum([0, *lengths.values()]), strict=False))
    rows, session = [], []
    for number, n in trials.items():
        if lengths.get(number) != n:
            raise UserError(
                f"{source}: {lengths.get(number, 0):,} names for session {number}, but its responses hold {n:,} trials"
            )
        rows.append(np.arange(starts[number], starts[number] + n))
        session.append(np.full(n, number))
    if total is not None and sum(trials.values()) != total:
        raise UserError(f"{source}: {sum(trials.values()):,} names, but the ROI arrays of {name} hold {total:,} trials")
    chosen = np.concatenate(rows)
    return Sessions(
        images=tuple(images[row] for row in chosen),
        session=np.concatenate(session),
        run=np.concatenate([np.arange(len(r)) // RUN_LENGTH + 1 for r in rows]),
        absent=len(images) - len(chosen),
        files=tuple(dict.fromkeys([source, *(path for session_ in lists for path, _ in session_)])),
    )


def _without_lists(source: Path, trials: dict[int, int], n_names: int) -> dict[int, int]:
    """Names per session from the sessions that are there, which tells where each begins only if none before it is missing."""
    total = sum(trials.values())
    if list(trials) != list(range(1, len(trials) + 1)):
        raise UserError(
            f"{source}: the sessions {', '.join(map(str, trials))} are there; which names belong to them is only known if none "
            "before them is missing, or with the folder Stimuli_Presentation_Lists"
        )
    if total > n_names:
        raise UserError(
            f"{source}: {n_names:,} names, but the sessions on disk hold {total:,} trials; one name per trial is needed"
        )
    return trials


def _session_lists(name: str, root: Path) -> list[list[tuple[Path, list[str]]]]:
    """The lists of runs of every session, sessions and runs by name."""
    patterns = (f"{above}Stimuli_Presentation_Lists/{name}" for above in ("", "*/", "*/*/"))
    folder = next((path for pattern in patterns for path in sorted(root.glob(pattern))), None)
    if folder is None:
        return []
    sessions = sorted(path for path in folder.iterdir() if path.is_dir())
    found = [[(path, _lines(path)) for path in sorted(session.glob("*.txt"))] for session in sessions]
    return [runs for runs in found if runs]


def _lines(path: Path) -> list[str]:
    """Names of images, one per line; `rep_` marks a repeated image in the lists of runs."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected names of images, one per line, but it cannot be read ({error})") from None
    names = [line.strip().removeprefix("rep_") for line in lines if line.strip()]
    if not names:
        raise UserError(f"{path}: expected names of images, one per line; found none")
    return names
