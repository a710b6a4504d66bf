"""Pretrained vision transformers in Flax NNX: loading, residual streams at named hooks, zero-shot features."""

from sbm_jax.backbones.clip import TextTower, text_features
from sbm_jax.backbones.loader import Backbone, load_backbone
from sbm_jax.backbones.vit import (
    VisionTransformer,
    forward,
    forward_from,
    hook_name,
    hook_names,
    image_features,
)

__all__ = [
    "Backbone",
    "TextTower",
    "VisionTransformer",
    "forward",
    "forward_from",
    "hook_name",
    "hook_names",
    "image_features",
    "load_backbone",
    "text_features",
]
