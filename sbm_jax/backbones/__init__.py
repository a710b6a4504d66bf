"""Pretrained vision transformers in Flax NNX: loading, residual streams at named hooks, zero-shot features.

Public names are resolved on first use: describing a model folder must not start JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sbm_jax.axes import hook_name as hook_name
    from sbm_jax.backbones.clip import TextTower as TextTower
    from sbm_jax.backbones.clip import text_features as text_features
    from sbm_jax.backbones.loader import Backbone as Backbone
    from sbm_jax.backbones.loader import load_backbone as load_backbone
    from sbm_jax.backbones.spec import hook_names as hook_names
    from sbm_jax.backbones.vit import VisionTransformer as VisionTransformer
    from sbm_jax.backbones.vit import forward as forward
    from sbm_jax.backbones.vit import forward_from as forward_from
    from sbm_jax.backbones.vit import image_features as image_features

_HOME = {
    "Backbone": "loader",
    "TextTower": "clip",
    "VisionTransformer": "vit",
    "forward": "vit",
    "forward_from": "vit",
    "hook_name": "vit",
    "hook_names": "spec",
    "image_features": "vit",
    "load_backbone": "loader",
    "text_features": "clip",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"sbm_jax.backbones.{_HOME[name]}"), name)
