"""Recognising the layout of a dataset folder and opening it."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType

import numpy as np

from sbm_jax.brain.dataset import Dataset
from sbm_jax.brain.readers.options import ReadOptions
from sbm_jax.errors import UserError

# In the order in which a folder is tried: the surest marks first, the layouts that accept most last.
LAYOUTS = ("tables", "objects92", "nsd", "algonauts", "things", "bold5000", "glmsingle", "generic")


def reader(layout: str) -> ModuleType:
    """The module that reads a layout of LAYOUTS."""
    return importlib.import_module(f"sbm_jax.brain.readers.{layout}")


def recognise(root: Path) -> str | None:
    """The layout of a folder, or None."""
    return next((layout for layout in LAYOUTS if reader(layout).recognise(root)), None)


def open_dataset(path: Path | str, options: ReadOptions | None = None, layout: str = "auto") -> Dataset:
    """Recognise a dataset folder, read its tables and check them against its files; responses stay on disk.

    Args:
        path: the folder.
        options: choices of subjects, space, beta version, mask; by default those of the layout.
        layout: one of LAYOUTS where recognition is not wanted.

    Raises:
        UserError: no such folder, no known layout, or whatever the layout's reader finds wrong.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: folder not found; expected the folder of a dataset")
    if layout != "auto" and layout not in LAYOUTS:
        raise UserError(f"data.format is {layout!r}; expected auto or one of {', '.join(LAYOUTS)}")
    chosen = recognise(root) if layout == "auto" else layout
    if chosen is None:
        known = "\n".join(f"  {name}: {reader(name).LAYOUT}" for name in LAYOUTS)
        raise UserError(f"{root}: not a dataset folder that is known here. Expected one of\n{known}")
    options = options or ReadOptions()
    dataset = reader(chosen).read(root, options)
    return _held_out(dataset, options.hold_out) if options.hold_out else dataset


def _held_out(dataset: Dataset, share: float) -> Dataset:
    """The dataset with a random share of its images as the ones that score."""
    n = len(dataset.images.ids)
    if not 0 < share < 1:
        raise UserError(f"data.hold_out is {share}; expected a share between 0 and 1, such as 0.1")
    chosen = np.zeros(n, bool)
    chosen[np.random.default_rng([0x401D, n]).permutation(n)[: max(1, round(share * n))]] = True
    note = f"{int(chosen.sum())} of {n} images score (data.hold_out), drawn at random; the dataset's own shared images are not used"
    images = dataclasses.replace(dataset.images, shared=chosen)
    return dataclasses.replace(dataset, images=images, notes=(*dataset.notes, note))
