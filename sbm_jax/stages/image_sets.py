"""Which of a subject's images select units and which score them (`align.select`), and which the autoencoders are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sbm_jax.config import AlignConfig
from sbm_jax.errors import UserError

LEAST = 3  # images of a set that selects or scores: r over two images is always 1, 0 or -1


@dataclass(frozen=True)
class ImageSets:
    """Over a subject's images: bool [n] `select` (they choose the dictionary) and `held_out` (they score it; None: no fixed
    set does), and int [n] `folds`, the fold of every image (None: not cross-fitted).
    """

    select: np.ndarray
    held_out: np.ndarray | None = None
    folds: np.ndarray | None = None


def image_sets(config: AlignConfig, name: str, shared_n: np.ndarray) -> ImageSets:
    """The sets of subject `name`, whose images are `shared_n` bool [n]. Raises UserError where a set or a fold is too small."""
    n, n_shared = len(shared_n), int(shared_n.sum())
    if config.select == "kfold":
        if n < LEAST * config.folds:
            most = n // LEAST
            remedy = f"Set align.folds to at most {most}" if most > 1 else "Leave the subject out (data.subjects)"
            raise UserError(
                f"{name} saw {n} images; align.select: kfold with align.folds = {config.folds} needs {LEAST} in every fold, "
                f"that is {LEAST * config.folds}. {remedy}."
            )
        return ImageSets(np.ones(n, bool), folds=deal(n, config.folds, config.seed))
    if config.select == "none":
        if n < LEAST:
            raise UserError(f"{name} saw {n} images; at least {LEAST} are needed to select units (data.subjects)")
        return ImageSets(np.ones(n, bool))
    if min(n_shared, n - n_shared) < LEAST:
        raise UserError(
            f"{name} saw {n_shared} shared and {n - n_shared} unique images; at least {LEAST} of each are needed to select "
            "units on one set and score them on the other (align.select: shared). Use every image for both in turn "
            "(align.select: kfold), check which images the dataset shares (the `shared` column of images.csv, or "
            "data.shared), or hold out a random share of them (data.hold_out: 0.1)."
        )
    return ImageSets(~shared_n, shared_n)


def fixed_sets(config: AlignConfig, shared_n: np.ndarray) -> ImageSets:
    """For what is not cross-fitted: unique images select and shared ones score where there are `LEAST` of each (and
    `align.select` is not `none`); else all select, and nothing scores.
    """
    if config.select == "none" or min(shared_n.sum(), (~shared_n).sum()) < LEAST:
        return ImageSets(np.ones(len(shared_n), bool))
    return ImageSets(~shared_n, shared_n)


def deal(n: int, folds: int, seed: int) -> np.ndarray:
    """The fold of each of n images, int [n]: a random order of the images dealt out, so that sizes differ by at most one."""
    fold_n = np.empty(n, np.int64)
    fold_n[np.random.default_rng([seed, n, 0, folds]).permutation(n)] = np.arange(n) % folds
    return fold_n


def telling(shared_n: np.ndarray) -> np.ndarray:
    """bool [n]: images over which the concept of a unit is told, the shared ones, or all where fewer than `LEAST` are."""
    return shared_n if shared_n.sum() >= LEAST else np.ones(len(shared_n), bool)


def autoencoder_sets(shared_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the image table that autoencoders are trained on, and those they are measured on: unique and shared images;
    all for both where no image is shared, or every one.
    """
    if not shared_n.any() or shared_n.all():
        return np.arange(len(shared_n)), np.arange(len(shared_n))
    return np.flatnonzero(~shared_n), np.flatnonzero(shared_n)
