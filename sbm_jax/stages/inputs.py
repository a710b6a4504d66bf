"""Reading what earlier stages wrote: codes of some images, responses of some voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sbm_jax.axes import SAE_MODES
from sbm_jax.brain.dataset import Subject
from sbm_jax.config import RoiConfig
from sbm_jax.errors import UserError
from sbm_jax.kernels.codes import SparseCodes
from sbm_jax.store.store import Store

Codes = SparseCodes | np.ndarray
_WIDTH = 256


def n_units(codes: Store, saes: Store, mode: str, hook: str) -> int:
    """Candidate units of one mode and layer."""
    if mode in SAE_MODES:
        return int(saes.array("b_enc").shape[1])
    return int(codes.array(f"{mode}/{hook}").shape[1])


def read_codes(codes: Store, mode: str, hook: str, rows: np.ndarray, units: int) -> Codes:
    """Codes of some images (rows of the image table) at one layer: SparseCodes or dense [n, u]."""
    return read_sparse(codes, mode, hook, rows, units) if mode in SAE_MODES else codes.read(f"{mode}/{hook}", rows)


def read_sparse(codes: Store, mode: str, hook: str, rows: np.ndarray, units: int) -> SparseCodes:
    """`read_codes` of a mode of an autoencoder."""
    name = f"{mode}/{hook}"
    widest = int(codes.read(f"{name}/active", rows).max(initial=1))
    values, indices = codes.read(f"{name}/values", rows), codes.read(f"{name}/units", rows)
    # Codes lie at the front of each row except for CLS codes, whose silent slots may be anywhere.
    # Widths are rounded up so that the layers of a run share few compiled programs.
    width = values.shape[1] if mode == "cls" else min(values.shape[1], -(-widest // _WIDTH) * _WIDTH)
    return SparseCodes(values[:, :width], indices[:, :width], units)


def dense_codes(codes: Codes) -> np.ndarray:
    """Codes as float32 [n, u]; for one layer and few images at a time."""
    return codes.to_dense(np.float32) if isinstance(codes, SparseCodes) else np.asarray(codes, np.float32)


@dataclass(frozen=True)
class Images:
    """One subject's images: rows of the image table, and which of them are shared (see `image_sets` for their use)."""

    rows: np.ndarray
    shared: np.ndarray


def subject_images(betas: Store) -> Images:
    return Images(betas.read("image_rows"), betas.read("shared").astype(bool))


def read_betas(betas: Store, voxels: np.ndarray | slice) -> np.ndarray:
    """Responses [n, v] of some voxels to all of the subject's images."""
    return np.ascontiguousarray(betas.read("betas", voxels).T, dtype=np.float32)


def responsive(betas: Store, min_ncsnr: float) -> np.ndarray:
    """bool [v]: usable voxels whose ncsnr is at least `min_ncsnr`; fixed before any alignment. All usable ones where the
    dataset lets no ncsnr be known (no repeats, none shipped).
    """
    ncsnr, usable = betas.read("ncsnr"), betas.read("usable").astype(bool)
    return usable if np.isnan(ncsnr).all() else usable & (np.nan_to_num(ncsnr) >= min_ncsnr)


_AREAS = ("V1", "V2", "V3", "hV4")
# What NSD's functional localisers select for; a dataset's concepts decide which of these apply.
ROI_CONCEPTS = {
    "floc-faces": "face",
    "floc-bodies": "body",
    "floc-places": "place",
    "floc-words": "word",
    "food": "food",
}


def chosen_rois(names: list[str], subjects: list[Subject], key: str = "roi.names") -> list[str]:
    """The ROIs to report: those named, or the early areas one by one and every other atlas pooled.

    Raises UserError for a named ROI that no subject has.
    """
    known = list(dict.fromkeys(name for subject in subjects for name in subject.rois))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"{key}: {unknown} not in the data, which have {', '.join(known) or 'no ROIs'}")
    if names:
        return names
    early = [name for area in _AREAS if (name := f"prf-visualrois/{area}") in known]
    return early + [name for name in known if "/" not in name and name != "prf-visualrois"]


ALL_RESPONSIVE = "all responsive"


def region_masks(
    config: RoiConfig, subjects: list[Subject], subject: Subject, inside_v: np.ndarray
) -> dict[str, np.ndarray]:
    """bool [v]: the voxels `inside_v` as `ALL_RESPONSIVE`, and those of every region to report that holds enough of them."""
    names = [name for name in chosen_rois(config.names, subjects) if name in subject.rois]
    masks = {name: subject.rois[name] & inside_v for name in names}
    return {ALL_RESPONSIVE: inside_v} | {name: mask for name, mask in masks.items() if mask.sum() >= config.min_voxels}


def short_roi(name: str) -> str:
    """`prf-visualrois/V1` as `V1`, `floc-faces` as `faces`."""
    return name.rsplit("/", 1)[-1].removeprefix("floc-")


def unit_columns(codes_nu: np.ndarray) -> np.ndarray:
    """Columns centred and scaled to unit norm, zero where constant; float32."""
    centred = codes_nu - codes_nu.mean(axis=0, dtype=np.float64).astype(np.float32)
    norm = np.linalg.norm(centred, axis=0)
    real = norm > 1e-6 * np.linalg.norm(codes_nu, axis=0)
    return np.where(real, centred / np.where(real, norm, 1), 0).astype(np.float32)


def relative_extents(labels: dict[str, np.ndarray]) -> tuple[list[str], np.ndarray]:
    """Concept names and [n, concepts]: each label divided by its mean over the images that have it.

    A place fills most of a picture and a word little of it; this puts them on one scale. Missing labels count as 0.
    """
    names = list(labels)
    columns = [np.nan_to_num(np.asarray(labels[name], np.float64)) for name in names]
    scaled = [x / x[x > 0].mean() if (x > 0).any() else x for x in columns]
    return names, np.stack(scaled, axis=1) if scaled else np.zeros((0, 0))


def unit_concepts(dense_nu: np.ndarray, extents_nc: np.ndarray) -> np.ndarray:
    """Concept index [u] with which each unit's code correlates best (signed) over these images; -1 for a constant unit."""
    columns = unit_columns(dense_nu)
    scores = columns.T @ unit_columns(extents_nc.astype(np.float32))
    return np.where(columns.any(axis=0), scores.argmax(axis=1), -1).astype(np.int32)
