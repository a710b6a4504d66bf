"""What a dataset folder holds and what of it will not be used: the facts behind `sbm-jax data check`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sbm_jax.brain.dataset import Dataset, Subject
from sbm_jax.brain.spaces import CiftiSpace, SurfaceSpace, VolumeSpace
from sbm_jax.errors import UserError
from sbm_jax.images.sources import open_image


def describe(dataset: Dataset) -> dict[str, Any]:
    """Everything that `data check` prints, as plain data for JSON."""
    images = dataset.images
    seen_by = np.zeros(len(images.ids), np.int64)
    for subject in dataset.subjects:
        seen_by[subject.seen()] += 1
    return {
        "root": str(dataset.root),
        "format": dataset.format,
        "name": dataset.name,
        "space": dataset.space,
        "images": {
            "total": len(images.ids),
            "shared": int(images.shared.sum()),
            "seen": int((seen_by > 0).sum()),
            "seen_by_all": int((seen_by == max(1, len(dataset.subjects))).sum()),
            "files": [str(path) for path in images.files()[:3]],
            "labels": list(images.labels),
        },
        "subjects": [describe_subject(subject, images.shared) for subject in dataset.subjects],
        "rdms": _describe_rdms(dataset),
        "notes": list(dataset.notes),
        "dropped": [str(item) for item in dataset.dropped],
    }


def _describe_rdms(dataset: Dataset) -> dict[str, Any] | None:
    if dataset.rdms is None:
        return None
    people = {name: len(sessions) for name, sessions in dataset.rdms.subjects.items()}
    return {"region": dataset.rdms.region, "sessions_of": people, "models": list(dataset.rdms.models)}


def describe_subject(subject: Subject, shared_n: np.ndarray) -> dict[str, Any]:
    """Trials, sessions, runs, images, repeats, columns, ROIs and what is dropped, of one subject."""
    seen, repeats = np.unique(subject.trial_image, return_counts=True)
    sessions = np.unique(subject.session)
    runs = {int(s): len(np.unique(subject.run[subject.session == s])) for s in sessions}
    return {
        "name": subject.name,
        "space": _place(subject),
        "columns": subject.n_voxels,
        "trials": subject.n_trials,
        "trial_dtype": f"{subject.responses.dtype}"
        + (f" / {subject.responses.divisor:g}" if subject.responses.divisor != 1 else ""),
        "averaged": subject.averaged,
        "sessions": sessions.tolist(),
        "sessions_missing": list(subject.sessions_missing),
        "runs_per_session": sorted(set(runs.values())),
        "trials_per_session": sorted({int((subject.session == s).sum()) for s in sessions}),
        "images": {"seen": len(seen), "shared": int(shared_n[seen].sum()), "unique": int((~shared_n[seen]).sum())},
        "repeats": {int(n): int((repeats == n).sum()) for n in np.unique(repeats)},
        "ncsnr": "shipped"
        if subject.ncsnr is not None
        else "estimated from repeats"
        if repeats.max() > 1
        else "unknown",
        "noise_ceiling_shipped": subject.noise_ceiling is not None,
        "rois": {name: int(mask.sum()) for name, mask in subject.rois.items()},
        "gigabytes": sum(path.stat().st_size for path in dict.fromkeys(subject.responses.files)) / 1e9,
        "dropped": [str(item) for item in subject.dropped],
    }


def _place(subject: Subject) -> str:
    space = subject.space
    match space:
        case VolumeSpace():
            return f"{space.name}, volume {' x '.join(map(str, space.shape))}"
        case SurfaceSpace():
            left, right = space.n_vertices
            return f"{space.name}, surfaces of {left:,} + {right:,} vertices"
        case CiftiSpace():
            return f"{space.name}, CIFTI grayordinates"
        case _:
            return f"{space.name}, places unknown"


def lines(record: dict[str, Any]) -> list[str]:
    """The description as text."""
    images = record["images"]
    out = [
        f"{record['root']}: {record['format']} dataset {record['name']!r}, space {record['space']}",
        f"images: {images['total']:,}, of which {images['seen']:,} were seen, {images['shared']:,} are shared (they score), "
        f"{images['seen_by_all']:,} were seen by every subject here",
        *(f"note: {note}" for note in record["notes"]),
        *(f"dropped: {item}" for item in record["dropped"]),
    ]
    if record["rdms"]:
        people = ", ".join(f"{name} ({n} sessions)" for name, n in record["rdms"]["sessions_of"].items())
        out.append(
            f"RDMs of {record['rdms']['region']}: {people}; of models: {', '.join(record['rdms']['models']) or 'none'}"
        )
    for subject in record["subjects"]:
        out += ["", *_subject_lines(subject)]
    return out


def _subject_lines(s: dict[str, Any]) -> list[str]:
    repeats = ", ".join(f"{count:,} x {n}" for n, count in s["repeats"].items())
    sizes = "/".join(map(str, s["trials_per_session"]))
    missing = f"; missing: {_ranges(s['sessions_missing'])}" if s["sessions_missing"] else ""
    full = {name: n for name, n in s["rois"].items() if n}
    empty = [name for name, n in s["rois"].items() if not n]
    out = [
        f"{s['name']}: {s['columns']:,} columns ({s['space']}), {s['trials']:,} trials as {s['trial_dtype']}, "
        f"{s['gigabytes']:.2f} GB",
        f"  sessions {_ranges(s['sessions'])} of {sizes} trials in {'/'.join(map(str, s['runs_per_session']))} runs{missing}",
        f"  images seen {s['images']['seen']:,}: {s['images']['shared']:,} shared, {s['images']['unique']:,} unique; "
        f"repeats (images x times): {repeats}",
        f"  ncsnr: {s['ncsnr']}"
        + ("; the dataset brings a noise ceiling" if s["noise_ceiling_shipped"] else "")
        + ("; responses are averages already" if s["averaged"] else ""),
        "  ROIs: " + (", ".join(f"{name} {n:,}" for name, n in full.items()) or "none"),
    ]
    if empty:
        out.append(f"  empty ROIs: {', '.join(empty)}")
    return out + [f"  dropped: {item}" for item in s["dropped"]]


def _ranges(numbers: list[int]) -> str:
    """1-3, 5, 7-9"""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][1] + 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def read_everything(dataset: Dataset, memory_bytes: int, advance: Callable[[str, int], None]) -> list[str]:
    """Decode every picture that was seen and read every response once; what is wrong, one line each.

    advance: told ("images" or the subject's name, how many) as they are done. Damaged files do not stop the reading.
    """
    faults = []
    for row in sorted({int(row) for subject in dataset.subjects for row in subject.seen()}):
        try:
            open_image(dataset.images.sources[row])
        except UserError as error:
            faults.append(str(error))
        advance("images", 1)
    for subject in dataset.subjects:
        try:
            for block in subject.responses.iter_trials(0, memory_bytes):
                advance(subject.name, len(block))
        except UserError as error:
            faults.append(str(error))
    return faults
