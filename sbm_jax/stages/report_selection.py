"""What the page says of how units were selected and scored (`align.select`)."""

from __future__ import annotations

from typing import Any

from sbm_jax.config import AlignConfig
from sbm_jax.stages.image_sets import LEAST

_FOLDED = "the mean over {folds} folds of the images of what the unit selected outside of the fold scores in it"


def similarity_text(config: AlignConfig) -> str:
    """The paragraph on similarity in the methods of the page."""
    sign = "signed" if config.sign == "signed" else "its absolute value; held out with the sign of the selection"
    text = (
        "Pearson correlation over images between a unit's code and a voxel's response (cosine of mean-centred columns), "
        f"{sign}. A voxel's best unit is chosen over all layers on "
    )
    if config.select == "shared":
        return text + "the subject's unique images and scored on the shared ones."
    if config.select == "none":
        return (
            text
            + "all images of the subject. There is no held-out score: nothing was kept to score on (align.select: none)."
        )
    return text + (
        f"all images of the subject; its held-out score is cross-fitted, {_FOLDED.format(folds=config.folds)}. What is shuffled "
        "and held out is the same for the first permutation."
    )


def map_note(config: AlignConfig) -> str:
    """Beside the held-out map."""
    if config.select == "kfold":
        return _FOLDED.format(folds=config.folds)
    return "selected on unique images, scored on shared ones"


def chosen_on(config: AlignConfig) -> str:
    """On which images the units of the dictionary were chosen."""
    return "unique images" if config.select == "shared" else "all images of the subject"


def told_over(n_shared: int) -> str:
    """Over which images the concept of a unit is told (`image_sets.telling`)."""
    return "the shared images" if n_shared >= LEAST else "all images"


def warnings(config: AlignConfig, summary: dict[str, Any]) -> list[str]:
    """What a reader must know about scores that are not there, or not of images kept apart."""
    out = []
    if config.select == "none":
        out.append(
            "align.select is none: units are scored on the images that selected them, which favours them. There is no held-out "
            "score of the alignment on this page; use align.select: kfold to have one."
        )
    if summary["dataset"]["shared"] in (0, summary["dataset"]["images"]):
        out.append(
            "No images were kept apart for the autoencoders: they are measured on the images they were trained on."
        )
    return out
