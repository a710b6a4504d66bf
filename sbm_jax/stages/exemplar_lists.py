"""What the store of exemplars holds of one dictionary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sbm_jax.store.store import Store

VOXEL, ROI, USER, CONTROL = 1, 2, 4, 8  # who asked for a unit; a unit may have several reasons


@dataclass(frozen=True)
class Exemplars:
    """Wanted units of the autoencoder of one token kind at one hook.

    units: int32 [w], ascending. why: uint8 [w], a sum of VOXEL, ROI, USER, CONTROL. images: int32 [w, e], rows of the probe set,
    strongest first, -1 where fewer images drive the unit. scores: float32 [w, e], 0 there. heat: float16 [w, e, g, g], the code
    of every patch of that image; None for CLS units.
    """

    units: np.ndarray
    why: np.ndarray
    images: np.ndarray
    scores: np.ndarray
    heat: np.ndarray | None

    def place(self, unit: int) -> int | None:
        """Row of a unit, None where nobody asked for it."""
        at = int(np.searchsorted(self.units, unit))
        return at if at < len(self.units) and self.units[at] == unit else None


@dataclass(frozen=True)
class Firing:
    """Of all units of a dictionary, float32 [u] each, over the probe set: share of images on which any token fires, share of
    tokens that fire, mean code of those, largest code, and energy, the mean of z^2 |decoder row|^2 over tokens.
    """

    image_rate: np.ndarray
    token_rate: np.ndarray
    mean_active: np.ndarray
    largest: np.ndarray
    energy: np.ndarray


def read_exemplars(store: Store, kind: str, hook: str) -> Exemplars:
    name = f"{kind}/{hook}"
    units, why, images, scores = (store.read(f"{name}/{part}") for part in ("units", "why", "images", "scores"))
    return Exemplars(units, why, images, scores, store.read(f"{name}/heat") if kind == "patch" else None)


def read_firing(store: Store, kind: str, hook: str) -> Firing:
    return Firing(*(store.read(f"{kind}/{hook}/{part}") for part in Firing.__dataclass_fields__))
