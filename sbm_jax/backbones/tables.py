"""Checkpoint names of the image-only families, and which table, ignored names and prefix go with which model_type.

Names are those of transformers' releases on the hub, which its version 5 still writes, and of torchvision.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from flax import nnx

from sbm_jax.backbones.clip import CLIP_IGNORED, CLIP_RULES, SIGLIP2_RULES, SIGLIP_RULES, Clip
from sbm_jax.backbones.positions import resize_positions
from sbm_jax.backbones.spec import ClipSpec, ModelSpec, VisionSpec
from sbm_jax.backbones.vit import VisionTransformer
from sbm_jax.backbones.weights import BATCHED, PATCHES, TOKEN, Rule, Transform, dense_rules, fused_attention_rules
from sbm_jax.backbones.weights import norm_rules as norm


@dataclass(frozen=True)
class Table:
    """Rows, regular expressions of names left out on purpose, and of what may come before a name."""

    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()
    prefix: str = ""


def _patch_rules(theirs: str) -> list[Rule]:
    return [Rule(f"{theirs}.weight", "patches.kernel", PATCHES), Rule(f"{theirs}.bias", "patches.bias")]


def _hf_attention(layer: str, block: str) -> list[Rule]:
    inner = f"{layer}.attention.attention"
    return [
        *dense_rules(f"{inner}.query", f"{block}.attention.query"),
        *dense_rules(f"{inner}.key", f"{block}.attention.key"),
        *dense_rules(f"{inner}.value", f"{block}.attention.value"),
        *dense_rules(f"{layer}.attention.output.dense", f"{block}.attention.out"),
    ]


_CLS = Rule("embeddings.cls_token", "cls", TOKEN)
_POSITIONS = Rule("embeddings.position_embeddings", "positions", BATCHED)
_LAYER, _BLOCK = "encoder.layer.{i}", "blocks.{i}"

_VIT = (
    _CLS,
    _POSITIONS,
    *_patch_rules("embeddings.patch_embeddings.projection"),
    *norm(f"{_LAYER}.layernorm_before", f"{_BLOCK}.norm1"),
    *_hf_attention(_LAYER, _BLOCK),
    *norm(f"{_LAYER}.layernorm_after", f"{_BLOCK}.norm2"),
    *dense_rules(f"{_LAYER}.intermediate.dense", f"{_BLOCK}.mlp_in"),
    *dense_rules(f"{_LAYER}.output.dense", f"{_BLOCK}.mlp_out"),
    *norm("layernorm", "post_norm"),
)


def _dino(layer: str) -> list[Rule]:
    return [
        *norm(f"{layer}.norm1", f"{_BLOCK}.norm1"),
        *norm(f"{layer}.norm2", f"{_BLOCK}.norm2"),
        Rule(f"{layer}.layer_scale1.lambda1", f"{_BLOCK}.scale1"),
        Rule(f"{layer}.layer_scale2.lambda1", f"{_BLOCK}.scale2"),
    ]


_DINOV2 = (
    _CLS,
    _POSITIONS,
    Rule("embeddings.register_tokens", "registers", BATCHED),
    *_patch_rules("embeddings.patch_embeddings.projection"),
    *_dino(_LAYER),
    *_hf_attention(_LAYER, _BLOCK),
    *norm("layernorm", "post_norm"),
)
_DINOV2_PLAIN = (
    *_DINOV2,
    *dense_rules(f"{_LAYER}.mlp.fc1", f"{_BLOCK}.mlp_in"),
    *dense_rules(f"{_LAYER}.mlp.fc2", f"{_BLOCK}.mlp_out"),
)
_DINOV2_GATED = (
    *_DINOV2,
    *dense_rules(f"{_LAYER}.mlp.weights_in", f"{_BLOCK}.mlp_gate", (0, 2)),
    *dense_rules(f"{_LAYER}.mlp.weights_in", f"{_BLOCK}.mlp_in", (1, 2)),
    *dense_rules(f"{_LAYER}.mlp.weights_out", f"{_BLOCK}.mlp_out"),
)

_DINOV3 = (
    _CLS,
    Rule("embeddings.register_tokens", "registers", BATCHED),
    *_patch_rules("embeddings.patch_embeddings"),
    *_dino("layer.{i}"),
    *dense_rules("layer.{i}.attention.q_proj", f"{_BLOCK}.attention.query"),
    *dense_rules("layer.{i}.attention.k_proj", f"{_BLOCK}.attention.key"),
    *dense_rules("layer.{i}.attention.v_proj", f"{_BLOCK}.attention.value"),
    *dense_rules("layer.{i}.attention.o_proj", f"{_BLOCK}.attention.out"),
    *dense_rules("layer.{i}.mlp.gate_proj", f"{_BLOCK}.mlp_gate"),
    *dense_rules("layer.{i}.mlp.up_proj", f"{_BLOCK}.mlp_in"),
    *dense_rules("layer.{i}.mlp.down_proj", f"{_BLOCK}.mlp_out"),
    *norm("norm", "post_norm"),
)

_TV_LAYER = "encoder.layers.encoder_layer_{i}"
_TORCHVISION = (
    Rule("class_token", "cls", TOKEN),
    Rule("encoder.pos_embedding", "positions", BATCHED),
    *_patch_rules("conv_proj"),
    *norm(f"{_TV_LAYER}.ln_1", f"{_BLOCK}.norm1"),
    *fused_attention_rules(f"{_TV_LAYER}.self_attention", f"{_BLOCK}.attention"),
    *norm(f"{_TV_LAYER}.ln_2", f"{_BLOCK}.norm2"),
    *dense_rules(f"{_TV_LAYER}.mlp.0", f"{_BLOCK}.mlp_in"),
    *dense_rules(f"{_TV_LAYER}.mlp.3", f"{_BLOCK}.mlp_out"),
    *norm("encoder.ln", "post_norm"),
)

_HEADS = (r"classifier\..*", r"pooler\..*")  # class scores, and the tanh layer before them
_MASK = r"embeddings\.mask_token"  # for training with hidden patches

TABLES: dict[str, Table] = {
    "clip": Table(CLIP_RULES, CLIP_IGNORED),
    "siglip": Table(SIGLIP_RULES, CLIP_IGNORED),
    "siglip2": Table(SIGLIP2_RULES, CLIP_IGNORED),
    "vit": Table(_VIT, (*_HEADS, _MASK), r"vit\."),
    "vit_mae": Table(_VIT, (*_HEADS, r"decoder\..*"), r"vit\."),  # the decoder paints hidden patches
    "dinov2": Table(_DINOV2_PLAIN, (*_HEADS, _MASK), r"dinov2\."),
    "dinov2_with_registers": Table(_DINOV2_PLAIN, (*_HEADS, _MASK), r"dinov2_with_registers\."),
    # transformers keeps the rotary rates in the model; they follow from the configuration
    "dinov3_vit": Table(_DINOV3, (_MASK, r"rope_embeddings\.inv_freq"), r"(dinov3_vit|model)\."),
    "torchvision_vit": Table(_TORCHVISION, (r"heads\..*",)),
}


def table(family: str, spec: ModelSpec) -> Table:
    """The table of a family as this model needs it: gated or plain MLP, and positions stretched if sizes differ."""
    found = TABLES[family]
    vision = spec.vision if isinstance(spec, ClipSpec) else spec
    if family.startswith("dinov2") and vision.block.gated:
        found = replace(found, rules=_DINOV2_GATED)
    if vision.rope_theta is None and vision.trained_size not in (None, vision.image_size):
        found = replace(found, rules=tuple(_stretched(row, vision) for row in found.rules))
    return found


def _stretched(row: Rule, vision: VisionSpec) -> Rule:
    if row.module not in ("positions", "vision.positions"):
        return row
    prefix, trained = int(vision.has_cls), (vision.trained_size or 0) // vision.patch_size
    plain = row.transform

    def load(tensor: np.ndarray) -> np.ndarray:
        positions = plain.load(tensor)
        if len(positions) != prefix + trained**2:
            raise ValueError(
                f"{len(positions)} positions in the file; config.json's image_size has {prefix + trained**2}"
            )
        return resize_positions(positions, prefix, vision.grid, vision.resize)

    return replace(row, transform=Transform(plain.rank, load, plain.save))


def build(spec: ModelSpec) -> Callable[[], Clip | VisionTransformer]:
    """A function that makes the model of a specification, with fixed random weights."""
    if isinstance(spec, ClipSpec):
        return lambda: Clip(spec, nnx.Rngs(0))
    return lambda: VisionTransformer(spec, nnx.Rngs(0))
