"""Writes the Algonauts 2023 challenge folders as published, with few pictures and columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tests.brain import planted

FSAVERAGE = 163_842
MAPPINGS = {
    "prf-visualrois": {0: "Unknown", 1: "V1v", 2: "V1d", 3: "V2v", 4: "V2d", 5: "V3v", 6: "V3d", 7: "hV4"},
    "floc-faces": {0: "Unknown", 1: "OFA", 2: "FFA-1", 3: "FFA-2", 4: "mTL-faces", 5: "aTL-faces"},
    "streams": {
        0: "Unknown",
        1: "early",
        2: "midventral",
        3: "midlateral",
        4: "midparietal",
        5: "ventral",
        6: "lateral",
        7: "parietal",
    },
}


@dataclass(frozen=True)
class AlgonautsSubject:
    """What was written of a subject: NSD ids (from 0) and responses float32 [pictures, columns] per split, left before
    right; vertices by hemisphere; bool [columns] planted; labels [columns] by ROI; ceiling [columns].
    """

    train: np.ndarray
    test: np.ndarray
    x_train: np.ndarray
    x_test: np.ndarray
    vertices: tuple[np.ndarray, np.ndarray]
    planted: np.ndarray
    labels: dict[str, np.ndarray]
    ceiling: np.ndarray


@dataclass(frozen=True)
class WrittenAlgonauts:
    """A folder: what was planted by subject number, and the NSD ids (from 0) that all subjects see."""

    root: Path
    shared: np.ndarray
    subjects: dict[int, AlgonautsSubject] = field(default_factory=dict)


def write_algonauts(
    root: Path,
    subjects: tuple[int, ...] = (1, 2),
    n_shared: int = 24,
    n_unique: int = 36,
    n_test: int = 6,
    widths: tuple[int, int] = (30, 24),
    side: int = 16,
    test_fmri: bool = False,
    noise: float = 0.5,
    seed: int = 0,
) -> WrittenAlgonauts:
    """Every subject sees the shared pictures and some of its own for training, and `n_test` of its own in the test split."""
    rng = np.random.default_rng([21, seed])
    own = n_unique + n_test
    ids = rng.choice(73_000, n_shared + own * len(subjects), replace=False)
    pictures = planted.make_pictures(len(ids), side, seed)
    row = {int(number): i for i, number in enumerate(ids)}
    written = WrittenAlgonauts(root, np.sort(ids[:n_shared]))
    for k, number in enumerate(subjects):
        mine = ids[n_shared + own * k : n_shared + own * (k + 1)]
        train, test = np.sort(np.concatenate([ids[:n_shared], mine[n_test:]])), np.sort(mine[:n_test])
        width = sum(widths)
        planted_v = np.zeros(width, bool)
        planted_v[rng.choice(width, width // 3, replace=False)] = True
        latent = {n: pictures.latent_n[row[n]] for n in [*train.tolist(), *test.tolist()]}
        x = planted.plant(np.array(list(latent.values())), planted_v, seed + number, noise)
        x = (x - x.mean(axis=0)) / x.std(axis=0)
        first = rng.integers(0, FSAVERAGE - 2 * max(widths))
        vertices = tuple(np.sort(first + rng.choice(2 * max(widths), n, replace=False)) for n in widths)
        labels = {name: rng.integers(0, len(table) - 1, width) for name, table in MAPPINGS.items()}  # the last is empty
        subject = AlgonautsSubject(
            train,
            test,
            x[: len(train)].astype(np.float32),
            x[len(train) :].astype(np.float32),
            (vertices[0], vertices[1]),
            planted_v,
            labels,
            rng.uniform(0, 1, width),
        )
        images = {n: pictures.images[i] for n, i in row.items()}
        _write_subject(root / f"subj{number:02d}", subject, images, test_fmri)
        written.subjects[number] = subject
    return written


def _write_subject(folder: Path, subject: AlgonautsSubject, images: dict[int, np.ndarray], test_fmri: bool) -> None:
    left = len(subject.vertices[0])
    for split, word, ids, x in (
        ("training", "train", subject.train, subject.x_train),
        ("test", "test", subject.test, subject.x_test),
    ):
        pictures, fmri = (folder / f"{split}_split" / f"{split}_{what}" for what in ("images", "fmri"))
        pictures.mkdir(parents=True)
        for counter, number in enumerate(ids.tolist(), start=1):  # the counter is from 1, the NSD id from 0
            Image.fromarray(images[number]).save(pictures / f"{word}-{counter:04d}_nsd-{number:05d}.png")
        if split == "training" or test_fmri:
            fmri.mkdir()
            np.save(fmri / f"lh_{split}_fmri.npy", np.ascontiguousarray(x[:, :left]))
            np.save(fmri / f"rh_{split}_fmri.npy", np.ascontiguousarray(x[:, left:]))
    if test_fmri:
        ceiling = folder / "test_split/noise_ceiling"
        ceiling.mkdir()
        np.save(ceiling / "lh_noise_ceiling.npy", subject.ceiling[:left])
        np.save(ceiling / "rh_noise_ceiling.npy", subject.ceiling[left:])
    masks = folder / "roi_masks"
    masks.mkdir()
    for name, table in MAPPINGS.items():
        np.save(masks / f"mapping_{name}", np.array(table, dtype=object), allow_pickle=True)
    for hemi, vertices, part in (
        ("lh", subject.vertices[0], slice(left)),
        ("rh", subject.vertices[1], slice(left, None)),
    ):
        flags = np.zeros(FSAVERAGE)
        flags[vertices] = 1
        np.save(masks / f"{hemi}.all-vertices_fsaverage_space.npy", flags)
        for name, labels in subject.labels.items():
            whole = np.zeros(FSAVERAGE, dtype=np.int64)
            whole[vertices] = labels[part]
            np.save(masks / f"{hemi}.{name}_fsaverage_space.npy", whole)
            np.save(masks / f"{hemi}.{name}_challenge_space.npy", whole[vertices])
