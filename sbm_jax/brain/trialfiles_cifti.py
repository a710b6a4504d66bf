"""CIFTI-2 files of trials x grayordinates."""

from __future__ import annotations

from pathlib import Path

from sbm_jax.brain.trialfiles_flat import FlatTrials, load_header, nifti_numbers
from sbm_jax.errors import UserError


class CiftiTrials(FlatTrials):
    """A `.dtseries.nii` or `.dscalar.nii` [T, G]; in the file the trials of a grayordinate follow one another.

    axis: nibabel's BrainModelAxis of the G grayordinates.

    Raises UserError: not CIFTI-2, no brain models along the second axis, not real numbers, no trials, cut short.
    """

    def __init__(self, path: Path):
        what = "a CIFTI-2 file [trials, grayordinates] (.dtseries.nii or .dscalar.nii)"
        from nibabel.cifti2.cifti2 import Cifti2HeaderError, Cifti2Image
        from nibabel.cifti2.cifti2_axes import BrainModelAxis

        if path.name.endswith(".nii.gz"):
            raise UserError(f"{path}: expected {what}, found a gzipped one, which cannot be read in parts; gunzip it")
        image = load_header(path, what)
        if not isinstance(image, Cifti2Image) or len(image.shape) != 2:
            raise UserError(f"{path}: expected {what}, found a {type(image).__name__} of shape {image.shape}")
        try:
            self.axis = image.header.get_axis(1)
        except (Cifti2HeaderError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: expected {what}; its XML header is damaged ({error})") from error
        n_trials, n_places = (int(s) for s in image.shape)
        if not isinstance(self.axis, BrainModelAxis) or len(self.axis) != n_places:
            raise UserError(
                f"{path}: expected {what}, found {type(self.axis).__name__} of length {len(self.axis)} along the "
                f"second axis of {image.shape}"
            )
        offset = int(image.dataobj.offset)  # pyright: ignore[reportAttributeAccessIssue]
        super().__init__(path, (n_trials, n_places), nifti_numbers(image), offset, by_place=True)
