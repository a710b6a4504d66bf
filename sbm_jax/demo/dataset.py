"""Writes the demonstration dataset: rendered scenes, simulated responses of several subjects, and the truth
behind them.
"""

import csv
import json
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np
from PIL import Image

from sbm_jax.brain.readers.tables import LABEL_PREFIX, VERSION
from sbm_jax.brain.readers.tables import NAME as FORMAT
from sbm_jax.brain.surfaces import HEMIS, N_VERTICES
from sbm_jax.demo.areas import ATLASES
from sbm_jax.demo.brain import (
    Latents,
    Smoothing,
    SubjectModel,
    build_subject,
    cortex_smoothing,
    noise_block,
    scene_latents,
    scene_measures,
)
from sbm_jax.demo.features import FEATURES, GRID, feature_maps
from sbm_jax.demo.scenes import CONCEPTS, draw_scene
from sbm_jax.errors import UserError

NAME = "procedural scenes, simulated brains"
SPACE = "fsaverage5"
_TRIALS_PER_BLOCK = 120  # one random stream per block: part of what the bytes depend on, so it never changes
_SCENES_PER_TASK = 16
_RUNS_PER_SESSION = 12  # as in NSD
_STREAM = 0xDA7A


@dataclass(frozen=True)
class Plan:
    """How many images of each kind and how they are shown; image numbers run through shared, unique (by
    subject), extra.
    """

    seed: int
    n_shared: int
    n_unique: int
    n_extra: int
    n_subjects: int
    size: int
    repeats: int
    n_sessions: int

    def __post_init__(self) -> None:
        least = {
            "n_shared": 0,
            "n_unique": 0,
            "n_extra": 0,
            "n_subjects": 1,
            "repeats": 1,
            "n_sessions": 1,
            "seed": 0,
        }
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise UserError(f"demo dataset: {name} must be at least {limit}, got {getattr(self, name)}")
        if self.size % 64 or self.size < 64:
            raise UserError(f"demo dataset: size must be a multiple of 64 pixels, got {self.size}")
        if self.n_shared + self.n_unique < 8:
            raise UserError(
                f"demo dataset: a subject needs at least 8 images, got {self.n_shared} shared + {self.n_unique} unique"
            )

    @property
    def n_seen(self) -> int:
        """Images that some subject sees."""
        return self.n_shared + self.n_subjects * self.n_unique

    @property
    def n_images(self) -> int:
        return self.n_seen + self.n_extra

    @property
    def n_trials(self) -> int:
        """Trials of one subject."""
        return (self.n_shared + self.n_unique) * self.repeats

    def seen_by(self, subject: int) -> np.ndarray:
        """Image numbers a subject sees, ascending."""
        first = self.n_shared + subject * self.n_unique
        return np.concatenate([np.arange(self.n_shared), np.arange(first, first + self.n_unique)])


@dataclass(frozen=True)
class _Picture:
    """What the writer needs of one rendered scene; maps_fc is float16 [features, cells]."""

    caption: str
    labels: dict[str, float]
    measures_c3: np.ndarray
    maps_fc: np.ndarray


def write_demo_dataset(
    root: Path,
    *,
    seed: int = 0,
    n_shared: int = 240,
    n_unique: int = 600,
    n_extra: int = 1600,
    n_subjects: int = 2,
    size: int = 128,
    repeats: int = 3,
    n_sessions: int = 3,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the demo's `sbm-tables` folder (docs/formats.md) plus `truth/` and `masks/`.

    The bytes depend on the arguments other than `workers` and `progress`. Not atomic: write into a temporary
    folder and rename.

    Args:
        root: folder to fill; made if absent, must be empty.
        seed: decides everything random.
        n_shared, n_unique: images seen by all subjects, and by each alone. n_extra: images that nobody saw.
        n_subjects: subj01, subj02, ...
        size: pixels per side, a multiple of 64.
        repeats: trials per image and subject, in random order over all sessions.
        n_sessions: sessions of (nearly) equal length.
        workers: processes that draw (spawned), and threads that simulate.
        progress: called with (pieces done, pieces in all); a piece is a picture or a block of trials.

    Raises:
        UserError: a number is out of range or the folder holds something already.
    """
    plan = Plan(seed, n_shared, n_unique, n_extra, n_subjects, size, repeats, n_sessions)
    if root.exists() and any(root.iterdir()):
        raise UserError(f"{root}: expected an empty or new folder for the demo dataset; it holds files already")
    for folder in ("images", "masks", "truth"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    blocks = _trial_blocks(plan.n_trials)
    count = _Counter(plan.n_images + plan.n_subjects * len(blocks), progress)

    pictures = []
    for picture in _render(plan, root, workers):
        pictures.append(picture)
        count.add()
    maps_nfc = np.stack([p.maps_fc for p in pictures])
    means_nf = maps_nfc.astype(np.float32).mean(axis=2)
    measures_nc3 = np.stack([p.measures_c3 for p in pictures])
    latents = scene_latents(measures_nc3, means_nf, np.arange(plan.n_seen))
    _write_images(root, plan, pictures)
    _write_latents(root / "truth" / "latents.csv", latents)

    smoothing = cortex_smoothing()
    for subject in range(plan.n_subjects):
        seen = plan.seen_by(subject)
        model = build_subject(seed, subject, latents, maps_nfc[seen], seen, smoothing)
        _write_subject(root, plan, subject, model, smoothing, blocks, workers, count)
    head = {"format": FORMAT, "version": VERSION, "name": NAME, "space": SPACE, "concepts": list(CONCEPTS)}
    (root / "dataset.json").write_text(json.dumps(head, indent=1) + "\n", encoding="utf-8")


class _Counter:
    def __init__(self, total: int, report: Callable[[int, int], None] | None):
        self.done, self.total, self.report = 0, total, report

    def add(self) -> None:
        self.done += 1
        if self.report is not None:
            self.report(self.done, self.total)


def image_id(number: int) -> str:
    """Id of the image with that number, e.g. scene-00042."""
    return f"scene-{number:05d}"


def _render(plan: Plan, root: Path, workers: int) -> Iterable[_Picture]:
    """Draw, save and measure every picture, in order."""
    draw = partial(_render_some, plan.seed, plan.size, root)
    starts = range(0, plan.n_images, _SCENES_PER_TASK)
    tasks = [range(a, min(a + _SCENES_PER_TASK, plan.n_images)) for a in starts]
    if workers <= 1:
        for task in tasks:
            yield from draw(task)
        return
    # spawned, since forking a process that runs JAX's threads can hang
    with ProcessPoolExecutor(
        min(workers, len(tasks)), mp_context=get_context("spawn"), initializer=_end_with_parent
    ) as pool:
        for pictures in pool.map(draw, tasks):
            yield from pictures


def _end_with_parent() -> None:
    """Make this process end when the one that started it is killed; a pool's workers would wait for ever."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _render_some(seed: int, size: int, root: Path, numbers: range) -> list[_Picture]:
    pictures = []
    for number in numbers:
        scene = draw_scene(seed, number, size)
        Image.fromarray(scene.image).save(root / "images" / f"{image_id(number)}.png", compress_level=1)
        Image.fromarray(scene.mask).save(root / "masks" / f"{image_id(number)}.png", compress_level=1)
        maps = feature_maps(scene.image).astype(np.float16).reshape(len(FEATURES), GRID * GRID)
        pictures.append(_Picture(scene.caption, scene.labels, scene_measures(scene), maps))
    return pictures


def _trial_blocks(n_trials: int) -> list[slice]:
    edges = [*range(0, n_trials, _TRIALS_PER_BLOCK), n_trials]
    return [slice(a, b) for a, b in pairwise(edges)]


def _write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _write_images(root: Path, plan: Plan, pictures: list[_Picture]) -> None:
    header = ["image_id", "file", "shared", "caption", *(LABEL_PREFIX + concept for concept in CONCEPTS)]
    rows = (
        [
            image_id(number),
            f"images/{image_id(number)}.png",
            int(number < plan.n_shared),
            picture.caption,
            *(f"{picture.labels[concept]:.6g}" for concept in CONCEPTS),
        ]
        for number, picture in enumerate(pictures)
    )
    _write_csv(root / "images.csv", header, rows)


def _write_latents(path: Path, latents: Latents) -> None:
    rows = ([image_id(n), *(f"{x:.6g}" for x in row)] for n, row in enumerate(latents.values.tolist()))
    _write_csv(path, ["image_id", *latents.names], rows)


def _write_subject(
    root: Path,
    plan: Plan,
    subject: int,
    model: SubjectModel,
    smoothing: Smoothing,
    blocks: list[slice],
    workers: int,
    count: _Counter,
) -> None:
    name = f"subj{subject + 1:02d}"
    folder = root / name
    folder.mkdir()
    rng = np.random.default_rng([_STREAM, plan.seed, subject])
    seen = plan.seen_by(subject)
    shown = rng.permutation(np.repeat(np.arange(len(seen)), plan.repeats))
    session, run = _sessions_and_runs(plan)
    rows = zip([image_id(n) for n in seen[shown].tolist()], session + 1, run + 1, strict=True)
    _write_csv(folder / "trials.csv", ["image_id", "session", "run"], rows)
    places = [(hemi, vertex) for hemi in HEMIS for vertex in range(N_VERTICES)]
    labels = [[label for hemi in model.areas for label in hemi.atlas_labels(atlas)] for atlas in ATLASES]
    _write_csv(
        folder / "voxels.csv",
        ["hemi", "vertex", *ATLASES],
        ([*p, *c] for p, *c in zip(places, *labels, strict=True)),
    )
    _write_truth(root / "truth" / f"{name}.csv", places, model)

    # sessions differ in mean and scale, as scanners and attention do; z-scoring within session takes this out
    fields = smoothing.draw(rng, 2 * plan.n_sessions).T
    shift_sv = (0.4 * fields[: plan.n_sessions] * model.noise_sd).astype(np.float32)
    scale_sv = np.exp(0.1 * fields[plan.n_sessions :])

    def simulate(number: int) -> np.ndarray:
        trials = blocks[number]
        block_rng = np.random.default_rng([_STREAM, plan.seed, subject, number])
        values = noise_block(block_rng, trials.stop - trials.start, smoothing)
        values *= model.noise_sd.astype(np.float32)
        values[:, model.responsive] += model.signal_nr[shown[trials]]
        values += model.baseline.astype(np.float32)
        values *= scale_sv[session[trials]]
        values += shift_sv[session[trials]]
        return values.astype("<f2")

    shape = (plan.n_trials, len(places))
    # written, not memory-mapped: on a full disk a write is an error, a touched page is the end of the process
    with (folder / "responses.npy").open("wb") as handle, ThreadPoolExecutor(max(workers, 1)) as pool:
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(handle, header)
        for values in pool.map(simulate, range(len(blocks))):
            handle.write(values.data)
            count.add()


def _sessions_and_runs(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Session and run of every trial, from 0: consecutive pieces of equal length, one trial more or less."""
    session = np.arange(plan.n_trials) * plan.n_sessions // plan.n_trials
    run = np.zeros(plan.n_trials, dtype=np.int64)
    for s in range(plan.n_sessions):
        rows = np.flatnonzero(session == s)
        run[rows] = np.arange(len(rows)) * _RUNS_PER_SESSION // max(len(rows), 1)
    return session, run


def _write_truth(path: Path, places: list[tuple[str, int]], model: SubjectModel) -> None:
    header = ["hemi", "vertex", "latent", "weight", "ncsnr", "concept", "rf_x", "rf_y", "rf_size"]
    numbers = [
        ["" if np.isnan(x) else f"{x:.6g}" for x in column.tolist()]
        for column in (model.rf_x, model.rf_y, model.rf_size)
    ]
    weight, ncsnr = ([f"{x:.6g}" for x in column.tolist()] for column in (model.weight, model.ncsnr))
    cells = zip(places, model.latent, weight, ncsnr, model.concept, *numbers, strict=True)
    _write_csv(path, header, ([*place, *rest] for place, *rest in cells))
