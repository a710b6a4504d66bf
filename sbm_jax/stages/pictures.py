"""How the pictures of a run become a backbone's square input."""

from __future__ import annotations

from sbm_jax.backbones import Backbone
from sbm_jax.backbones.folder import read_preprocessor
from sbm_jax.images.geometry import Geometry, square, stretch
from sbm_jax.images.processor import processor
from sbm_jax.stages.context import Context


def geometry_of(ctx: Context, backbone: Backbone) -> Geometry:
    """The geometry that `extract.geometry` names. Raises UserError where the model's own is asked for and unknown."""
    name, side = ctx.config.extract.geometry, backbone.image_size
    if name == "processor":
        return processor(read_preprocessor(backbone.folder, backbone.family), side, backbone.family)
    return square(side) if name == "square" else stretch(side)
