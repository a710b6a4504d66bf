"""NSD's pictures by their id (from 0): rows of nsd_stimuli.hdf5, or image files named by the id."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from sbm_jax.brain.dataset import Images
from sbm_jax.brain.readers.nsd_design import N_IMAGES
from sbm_jax.errors import UserError
from sbm_jax.images.sources import BrickImage, ImageSource

BRICK = Path("nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5")
DATASET = "imgBrick"
_SUFFIXES = (".png", ".jpg", ".jpeg")


def image_id(number: int) -> str:
    """ "nsd-02950": the NSD id, from 0, as the Algonauts files are named."""
    return f"nsd-{number:05d}"


def image_table(numbers: np.ndarray, sources: tuple[ImageSource, ...], shared: np.ndarray) -> Images:
    """The image table of some NSD ids (ascending). shared: ids that score."""
    ids = tuple(image_id(int(n)) for n in numbers)
    return Images(ids, sources, ("",) * len(ids), {}, np.isin(numbers, shared))


def find_pictures(root: Path, stimuli: Path | None, numbers: np.ndarray) -> tuple[ImageSource, ...]:
    """Where the picture of every id is: the brick of the NSD tree, or the file or folder that data.stimuli names.

    Raises UserError: nothing there, a brick of another shape, a folder that lacks pictures or whose names count from 1.
    """
    place = stimuli or root / BRICK
    if place.is_dir():
        return _files(place, numbers)
    if not place.is_file():
        raise UserError(
            f"{place}: pictures not found; expected NSD's nsd_stimuli.hdf5 there, or set data.stimuli to it or to a folder "
            "of PNG files named by their NSD id (from 0), such as nsd-02950.png"
        )
    _check_brick(place)
    return tuple(BrickImage(place, DATASET, int(n)) for n in numbers)


def _check_brick(path: Path) -> None:
    """The row is the id only in the whole brick."""
    import h5py  # heavy

    try:
        with h5py.File(path, "r") as file:
            found = file.get(DATASET)
            shape, dtype = (found.shape, found.dtype) if isinstance(found, h5py.Dataset) else (None, None)
    except OSError as error:
        raise UserError(f"{path}: not a readable HDF5 file, or cut short ({error}); download it again") from None
    if shape is None or dtype != np.uint8 or len(shape) != 4 or shape[0] != N_IMAGES or shape[3] != 3:
        found_text = "nothing of that name" if shape is None else f"{dtype} {shape}"
        raise UserError(
            f"{path}: expected {DATASET} as uint8 [{N_IMAGES}, height, width, 3], one row per NSD id, found {found_text}"
        )


def _files(folder: Path, numbers: np.ndarray) -> tuple[ImageSource, ...]:
    found: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in _SUFFIXES:
            continue
        if re.search(r"nsd\d+$", file.stem):
            raise UserError(
                f"{file}: names such as shared0001_nsd02951 count NSD images from 1; expected the NSD id from 0, such as "
                "nsd-02950.png"
            )
        match = re.search(r"(?:^|nsd-)(\d+)$", file.stem)
        if match is None:
            continue
        if int(match[1]) in found:
            raise UserError(f"{folder}: {found[int(match[1])].name} and {file.name} are both NSD image {int(match[1])}")
        found[int(match[1])] = file
    missing = [int(n) for n in numbers if int(n) not in found]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of {len(numbers)} pictures are missing; the first is {image_id(missing[0])}.png "
            "(NSD id from 0)"
        )
    return tuple(found[int(n)] for n in numbers)
