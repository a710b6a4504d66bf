"""92 object photographs with human IT dissimilarities (Kriegeskorte et al. 2008, Neuron 60, 1126): RDMs instead of betas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sbm_jax.brain.dataset import Dataset, HumanRdms, Images
from sbm_jax.brain.readers.options import ReadOptions
from sbm_jax.errors import UserError
from sbm_jax.images.sources import MemoryImage

NAME = "objects92"
STIMULI, BRAINS, MODELS = "Kriegeskorte_Neuron2008_supplementalData.mat", "92_brainRDMs.mat", "92_modelRDMs.mat"
LAYOUT = f"{STIMULI} and {BRAINS}, optionally {MODELS} (rsatoolbox, demos/92imageData)"
N_IMAGES = 92


def recognise(root: Path) -> bool:
    """True for a folder with the photographs and the human RDMs."""
    return (root / STIMULI).is_file() and (root / BRAINS).is_file()


def read(root: Path, options: ReadOptions) -> Dataset:
    """Photographs [175, 175, 3], one RDM per person and session (hIT), and model RDMs where the file is there.

    Raises UserError for a missing, damaged or differently shaped file, and for options that say nothing here.
    """
    options.refuse(root, NAME, space=(), betas=(), mask=())
    stimuli = _load(root / STIMULI, "stimuli_92objs")
    if np.shape(stimuli) != (N_IMAGES,):
        raise UserError(f"{root / STIMULI}: expected {N_IMAGES} stimuli in stimuli_92objs, found {np.shape(stimuli)}")
    sources = tuple(MemoryImage(root / STIMULI, str(i + 1), _pixels(root, i, s.image)) for i, s in enumerate(stimuli))
    ids = tuple(f"{i + 1:02d}" for i in range(N_IMAGES))
    images = Images(ids, sources, tuple(str(s.category) for s in stimuli), {}, np.ones(N_IMAGES, bool))
    tables = tuple(p for p in (root / STIMULI, root / BRAINS, root / MODELS) if p.is_file())
    return Dataset(root, "92 objects", NAME, "hIT", (), images, (), tables, rdms=_rdms(root, options))


def _rdms(root: Path, options: ReadOptions) -> HumanRdms:
    by_subject: dict[str, list[np.ndarray]] = {}
    for item in np.atleast_1d(_load(root / BRAINS, "RDMs")).ravel():
        _region, person, _session = (part.strip() for part in str(item.name).split("|"))
        by_subject.setdefault(person, []).append(_condensed(root / BRAINS, item))
    picked = options.pick(root, {name: name for name in by_subject})
    models = {}
    if (root / MODELS).is_file():
        found = np.atleast_1d(_load(root / MODELS, "Models")).ravel()
        models = {str(item.name): _condensed(root / MODELS, item) for item in found}
    return HumanRdms("hIT", {name: np.stack(by_subject[name]) for name in picked}, models)


def _load(path: Path, key: str) -> Any:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, squeeze_me=True, struct_as_record=False, variable_names=[key])
    except (OSError, ValueError, TypeError, MatReadError, NotImplementedError) as error:
        raise UserError(f"{path}: not a readable MATLAB file ({error}); fetch it again") from None
    if key not in content:
        raise UserError(f"{path}: expected a variable {key!r}, which is not there")
    return content[key]


def _pixels(root: Path, i: int, image: np.ndarray) -> np.ndarray:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise UserError(f"{root / STIMULI}: stimulus {i + 1} is {image.dtype} {image.shape}, expected uint8 RGB")
    return image


def _condensed(path: Path, item: Any) -> np.ndarray:
    """float64 [pairs], the upper triangle row by row."""
    rdm = np.asarray(item.RDM, np.float64)
    if rdm.shape != (N_IMAGES, N_IMAGES) or not np.allclose(rdm, rdm.T, atol=1e-6):
        raise UserError(f"{path}: {item.name}: expected a symmetric {N_IMAGES} x {N_IMAGES} RDM, found {rdm.shape}")
    return rdm[np.triu_indices(N_IMAGES, 1)]
