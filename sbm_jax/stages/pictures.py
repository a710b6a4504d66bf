"""How the pictures of a run become a backbone's square input."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sbm_jax.backbones.folder import read_preprocessor
from sbm_jax.images.geometry import Geometry, square, stretch
from sbm_jax.images.processor import processor
from sbm_jax.stages.context import Context

if TYPE_CHECKING:
    from sbm_jax.backbones import Backbone


def geometry_of(ctx: Context, backbone: Backbone) -> Geometry:
    """The geometry that `extract.geometry` names. Raises UserError where the model's own is asked for and unknown."""
    return _named(ctx.config.extract.geometry, backbone.folder, backbone.family, backbone.image_size)


def seen_geometry(ctx: Context) -> Geometry:
    """The same without loading the backbone."""
    backbone = ctx.facts.backbone
    return _named(ctx.config.extract.geometry, Path(backbone.path), backbone.family, backbone.image_size)


def _named(name: str, folder: Path, family: str, side: int) -> Geometry:
    if name == "processor":
        return processor(read_preprocessor(folder, family), side, family)
    return square(side) if name == "square" else stretch(side)
