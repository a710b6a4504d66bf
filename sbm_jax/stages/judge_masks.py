"""The judge `masks`: which labelled region of its exemplars a unit lights up, patch by patch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from sbm_jax.brain.tables import integers, read_table
from sbm_jax.errors import UserError
from sbm_jax.images.batches import available_cores
from sbm_jax.images.geometry import Geometry
from sbm_jax.progress import progress
from sbm_jax.stages.exemplar_lists import Exemplars
from sbm_jax.stages.judging import NONE, Counts
from sbm_jax.statistics import binomial_tail

CLASSES = "classes.csv"
_UNITS = 128  # at a time: their heat maps are sorted in memory
_UNJUDGED = -2  # of an image: there is no mask


@dataclass(frozen=True)
class MaskJudge:
    """classes: int16 [n, t], the class with most pixels in every patch of a probe image; NONE: no listed class has most;
    _UNJUDGED: the image has no mask.
    """

    name: str
    about: str
    concepts: tuple[str, ...]
    classes: np.ndarray
    exclusive: bool = True
    by_patch: bool = True

    @property
    def base_c(self) -> np.ndarray:
        """Share of all patches that are of each class."""
        return self._rates

    @cached_property
    def _rates(self) -> np.ndarray:
        known = self.classes[self.classes[:, 0] != _UNJUDGED]
        return np.bincount(known.ravel() + 1, minlength=len(self.concepts) + 1)[1:] / max(known.size, 1)

    def count(self, exemplars: Exemplars) -> Counts:
        """An exemplar shows the class that most of its lit patches are of: those with at least half of the code of its strongest
        patch. The unit's concept is the class of greatest F1 over all its exemplars.

        more: f1, ap, prevalence, float32 [w, c]: of lit patches as a detector of the class, over the patches
        of all exemplars; ap is the average precision of the code itself, prevalence what a code without meaning would have.
        Raises ValueError without heat maps.
        """
        if exemplars.heat is None:
            raise ValueError("masks judge by patches; these units have no heat maps")
        parts = [
            self._block(exemplars.images[start : start + _UNITS], exemplars.heat[start : start + _UNITS])
            for start in range(0, len(exemplars.units), _UNITS)
        ]
        if not parts:
            empty = np.zeros((0, len(self.concepts)))
            return Counts(empty.astype(np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), scores(*[empty] * 5))
        shown, judged = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
        more = {key: np.concatenate([part[2][key] for part in parts]) for key in parts[0][2]}
        best = np.nan_to_num(more["f1"])
        return Counts(shown, judged, np.where(best.max(axis=1) > 0, best.argmax(axis=1), NONE), more)

    def tail(self, concept: int, judged: int) -> np.ndarray:
        """As if the lit region of every exemplar fell on a patch of the probe set at random: binomial."""
        return binomial_tail(judged, float(self.base_c[concept]))

    def _block(
        self, images_we: np.ndarray, heat_weg: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        w, e = images_we.shape
        classes_wet = np.where(images_we[..., None] >= 0, self.classes[images_we], _UNJUDGED)
        heat_wet = heat_weg.reshape(w, e, -1).astype(np.float32)
        seen_we = classes_wet[..., 0] != _UNJUDGED
        most = heat_wet.max(axis=2, keepdims=True)
        lit = (heat_wet >= most / 2) & (most > 0) & seen_we[..., None]
        each = np.stack([(lit & (classes_wet == c)).sum(axis=2) for c in range(NONE, len(self.concepts))], axis=2)
        each[..., 0] -= 1  # of equally many patches of a class and of none the class counts
        winner = np.where(lit.any(axis=2), each.argmax(axis=2) - 1, NONE)
        shown = np.stack([(winner == c).sum(axis=1) for c in range(len(self.concepts))], axis=1)
        heat = np.where(seen_we[..., None], heat_wet, -np.inf).reshape(w, -1)
        of_class = [(classes_wet == c).reshape(w, -1) for c in range(len(self.concepts))]
        return shown, seen_we.sum(axis=1), detection(heat, lit.reshape(w, -1), of_class)


def detection(heat_wt: np.ndarray, lit_wt: np.ndarray, of_class_c: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """`scores` of every unit and class. heat: float [w, t], -inf where nothing is known; lit, of_class: bool [w, t].

    ap = sum over distinct thresholds of precision x gain in recall, so that equal heat counts as one threshold.
    """
    order = np.argsort(-heat_wt, axis=1, kind="stable")
    ranked = np.take_along_axis(heat_wt, order, axis=1)
    last = np.ones(ranked.shape, bool)
    last[:, :-1] = ranked[:, 1:] != ranked[:, :-1]
    above = np.arange(1, heat_wt.shape[1] + 1)
    known = np.isfinite(heat_wt).sum(axis=1)
    columns = []
    for present in of_class_c:
        hits = np.cumsum(np.take_along_axis(present, order, axis=1), axis=1)
        reached = np.maximum.accumulate(np.where(last, hits, 0), axis=1)
        gained = np.diff(reached, axis=1, prepend=0)
        ap = (gained * (hits / above)).sum(axis=1)
        columns.append([ap, (lit_wt & present).sum(axis=1), present.sum(axis=1)])
    ap, both, positive = (np.stack([column[i] for column in columns], axis=1) for i in range(3))
    return scores(ap, both, positive, lit_wt.sum(axis=1)[:, None], known[:, None])


def scores(
    gained: np.ndarray, both: np.ndarray, positive: np.ndarray, lit: np.ndarray, known: np.ndarray
) -> dict[str, np.ndarray]:
    """F1 = 2 both / (lit + positive), which is the harmonic mean of precision both / lit and recall both / positive; ap = gained /
    positive; prevalence = positive / known. NaN where the class is on no patch. float32.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {
            "f1": 2 * both / (lit + positive),
            "ap": gained / positive,
            "prevalence": positive / known,
        }
    return {key: np.where(positive > 0, x, np.nan).astype(np.float32) for key, x in found.items()}


def read_masks(
    folder: Path, names: Mapping[int, str], files: Sequence[str], geometry: Geometry, grid: int
) -> MaskJudge | None:
    """The masks of all images of the probe set, one pass, each decoded once. None where the folder has none of them.

    folder: of pictures with a class index per pixel. names: of the indices that are classes; others are no class. files: of the
    probe images' masks, paths in the folder. geometry: of the pictures, so that masks see the same crop.
    Raises UserError naming a file that is not such a mask.
    """
    nearest = replace(geometry, resample=Image.Resampling.NEAREST)
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    rows = [row for row, name in enumerate(files) if name in there]
    if not rows:
        return None
    column = np.full(1 << 16, NONE, np.int16)
    column[list(names)] = np.arange(len(names))
    classes = np.full((len(files), grid * grid), _UNJUDGED, np.int16)

    def fill(row: int) -> None:
        classes[row] = patch_classes(column[read_mask(folder / files[row], nearest)], grid, len(names))

    with progress("explain: masks", len(rows), "masks") as task, ThreadPoolExecutor(available_cores()) as pool:
        for _ in pool.map(fill, rows):
            task.advance()
    about = (
        f"segmentation masks of {len(rows):,} of {len(files):,} probe images: what most lit patches of an exemplar show; "
        "the base rate is the share of patches"
    )
    return MaskJudge("masks", about, tuple(names.values()), classes)


def read_mask(path: Path, geometry: Geometry) -> np.ndarray:
    """Class indices uint16 [side, side]. Raises UserError for a file that is no picture of whole numbers from 0 to 65,535."""
    try:
        with Image.open(path) as opened:
            mode, values = opened.mode, np.asarray(opened)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable mask ({error}); replace it or take it away") from error
    if mode not in ("1", "L", "P", "I", "I;16") or (values.size and int(values.max()) >= 1 << 16):
        raise UserError(f"{path}: expected one class index per pixel (grey or palette PNG), found mode {mode}")
    index = values.astype(np.uint16)
    # As the red and green of a picture, which is what a geometry takes.
    colours = np.stack([index & 255, index >> 8, np.zeros_like(index)], axis=2).astype(np.uint8)
    seen = geometry(Image.fromarray(colours)).astype(np.uint16)
    return seen[..., 0] | (seen[..., 1] << 8)


def patch_classes(columns_ss: np.ndarray, grid: int, count: int) -> np.ndarray:
    """int16 [grid * grid]: the class with most pixels in each patch, row by row; NONE where no class has most (of equally many the
    class counts, and the first of several).
    """
    side = len(columns_ss) // grid
    patches = (
        columns_ss[: side * grid, : side * grid].reshape(grid, side, grid, side).swapaxes(1, 2).reshape(grid * grid, -1)
    )
    width = count + 1
    filed = np.where(patches < 0, count, patches) + np.arange(grid * grid)[:, None] * width  # none goes last
    best = np.bincount(filed.ravel(), minlength=grid * grid * width).reshape(-1, width).argmax(axis=1)
    return np.where(best == count, NONE, best).astype(np.int16)


def read_classes(path: Path) -> dict[int, str]:
    """Index -> name from a CSV with the columns index and name. Raises UserError for repeated indices or names, or one without a
    name.
    """
    table = read_table(path, ("index", "name"))
    found: dict[int, str] = {}
    for row, (index, name) in enumerate(
        zip(integers(path, "index", table["index"], 0), table["name"], strict=True), start=1
    ):
        if not name.strip() or int(index) in found or name.strip() in found.values() or index >= 1 << 16:
            raise UserError(
                f"{path}, row {row}: expected a new index below 65,536 with a new name, found {int(index)} and {name!r}"
            )
        found[int(index)] = name.strip()
    if not found:
        raise UserError(f"{path}: no class listed")
    return found
