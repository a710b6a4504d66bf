"""File names of BOLD5000, with the irregularities of the release, and its ROI masks."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from sbm_jax.brain.readers.generic_masks import flat_volume

# release 2 spells TYPEB also TYBEB
_HEAD = r"(?P<subject>CSI\d+)_GLMbetas-(?P<version>TY[PB]E[A-D])[A-Z-]*"
SESSION_FILE = re.compile(_HEAD + r"_ses-(?P<session>\d+)\.nii(\.gz)?")
ROI_FILE = re.compile(_HEAD + r"_allses_(?P<roi>[LR]H\w+)\.npy")
_MASK_FILE = re.compile(r"sub-(?P<subject>CSI\d+)_mask-(?P<side>[LR]H)(?P<area>\w+)\.nii(\.gz)?")
# sub-CSI2 and sub-CSI3 on OpenNeuro
_AREAS = {"LO": "LOC", "RRSC": "RSC"}


def version(match: re.Match[str]) -> str:
    """TYPEA to TYPED."""
    return "TYPE" + match["version"][-1]


def mask_rois(name: str, files: list[Path], shape: tuple[int, int, int]) -> tuple[dict[str, np.ndarray], list[Path]]:
    """ROIs bool [X * Y * Z] of sub-CSI1_mask-LHPPA.nii.gz and the like, and the files; PPA pools PPA/LH and PPA/RH.

    Raises UserError for a mask of another grid.
    """
    rois: dict[str, np.ndarray] = {}
    used = []
    for path in files:
        match = _MASK_FILE.fullmatch(path.name)
        if match is None or match["subject"] != name:
            continue
        area = _AREAS.get(match["area"], match["area"])
        where = flat_volume(path, shape, "this ROI mask") > 0
        rois[area] = rois.get(area, False) | where
        rois[f"{area}/{match['side']}"] = where
        used.append(path)
    return rois, used
