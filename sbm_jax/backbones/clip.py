"""CLIP (Radford et al. 2021, arXiv:2103.00020): both towers, and Hugging Face's names for their parts."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sbm_jax.backbones.vit import ACTIVATIONS, Block, BlockSpec, VisionSpec, VisionTransformer, linear
from sbm_jax.backbones.weights import Rule
from sbm_jax.errors import UserError


@dataclass(frozen=True)
class TextSpec:
    """A text tower: causal blocks over at most max_tokens token ids."""

    block: BlockSpec
    n_layers: int
    vocabulary: int
    max_tokens: int
    end_token: int
    projection: int


@dataclass(frozen=True)
class ClipSpec:
    """Both towers and the initial log of the logit scale (inverse temperature)."""

    vision: VisionSpec
    text: TextSpec
    logit_scale: float = 2.6592


class TextTower(nnx.Module):
    """Token ids -> causal transformer -> unit-norm projection of the state at the end-of-text token."""

    def __init__(self, spec: TextSpec, rngs: nnx.Rngs):
        width = spec.block.width
        self.spec = spec
        self.tokens = nnx.Param(jax.random.normal(rngs.params(), (spec.vocabulary, width)) * 0.02)
        self.positions = nnx.Param(jax.random.normal(rngs.params(), (spec.max_tokens, width)) * 0.01)
        self.blocks = nnx.List([Block(spec.block, rngs) for _ in range(spec.n_layers)])
        self.post_norm = nnx.LayerNorm(width, epsilon=spec.block.eps, rngs=rngs)
        self.projection = linear(width, spec.projection, rngs, bias=False)

    def __call__(self, ids_bt: jax.Array) -> jax.Array:
        """int ids [b, t], t <= max_tokens -> unit-norm f32 [b, e]; tokens after the end have no effect."""
        if ids_bt.shape[1] > self.spec.max_tokens:
            raise ValueError(f"at most {self.spec.max_tokens} tokens, not {ids_bt.shape[1]}")
        x_btd = self.tokens[...][ids_bt] + self.positions[...][None, : ids_bt.shape[1]]
        for block in self.blocks:
            x_btd = block(x_btd, causal=True)
        # Configurations written before transformers 4.31 say 2 where the end token is the highest id.
        legacy = self.spec.end_token == 2
        end_b = jnp.argmax(ids_bt if legacy else ids_bt == self.spec.end_token, axis=-1)
        x_bd = self.post_norm(x_btd[jnp.arange(ids_bt.shape[0]), end_b])
        x_be = self.projection(x_bd)
        return x_be / jnp.linalg.norm(x_be, axis=-1, keepdims=True)


class Clip(nnx.Module):
    """Both towers and the log of the logit scale."""

    def __init__(self, spec: ClipSpec, rngs: nnx.Rngs):
        self.spec = spec
        self.vision = VisionTransformer(spec.vision, rngs)
        self.text = TextTower(spec.text, rngs)
        self.logit_scale = nnx.Param(jnp.asarray(spec.logit_scale, jnp.float32))


def text_features(text: TextTower, ids_bt: jax.Array) -> jax.Array:
    """Unit-norm joint embedding [b, e] of token ids [b, t]; pure, jittable."""
    return text(ids_bt)


def _block_spec(config: Any, where: str) -> BlockSpec:
    if config.hidden_act not in ACTIVATIONS:
        raise UserError(f"{where}: hidden_act {config.hidden_act!r} is not one of {', '.join(ACTIVATIONS)}")
    if config.hidden_size % config.num_attention_heads:
        raise UserError(
            f"{where}: hidden_size {config.hidden_size} is not a multiple of "
            f"num_attention_heads {config.num_attention_heads}"
        )
    return BlockSpec(
        width=config.hidden_size,
        heads=config.num_attention_heads,
        mlp_width=config.intermediate_size,
        activation=config.hidden_act,
        eps=config.layer_norm_eps,
    )


def clip_spec(config: dict[str, Any], path: Path) -> ClipSpec:
    """Sizes of both towers from a CLIPModel config.json (`path` is named in errors).

    Keys that old configurations leave out take transformers' defaults. Raises UserError for sizes that do not
    fit together or an unknown activation.
    """
    # Or it advises every user to install torch, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import CLIPConfig  # 1.5 s to import

    try:
        full: Any = CLIPConfig(**config)
    except Exception as error:  # huggingface_hub's validation raises its own family of types
        raise UserError(f"{path}: not a CLIP configuration: {error}") from error
    vision: Any = full.vision_config
    text: Any = full.text_config
    if vision.image_size % vision.patch_size or vision.num_channels != 3:
        raise UserError(
            f"{path}: expected an RGB image cut into whole patches; got image_size {vision.image_size}, "
            f"patch_size {vision.patch_size}, num_channels {vision.num_channels}"
        )
    return ClipSpec(
        vision=VisionSpec(
            block=_block_spec(vision, f"{path}: vision_config"),
            n_layers=vision.num_hidden_layers,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            pre_norm=True,
            patch_bias=False,
            projection=full.projection_dim,
        ),
        text=TextSpec(
            block=_block_spec(text, f"{path}: text_config"),
            n_layers=text.num_hidden_layers,
            vocabulary=text.vocab_size,
            max_tokens=text.max_position_embeddings,
            end_token=text.eos_token_id,
            projection=full.projection_dim,
        ),
        logit_scale=full.logit_scale_init_value,
    )


def _norm(theirs: str, ours: str) -> list[Rule]:
    return [Rule(f"{theirs}.weight", f"{ours}.scale"), Rule(f"{theirs}.bias", f"{ours}.bias")]


def _dense(theirs: str, ours: str) -> list[Rule]:
    return [Rule(f"{theirs}.weight", f"{ours}.kernel", "transpose"), Rule(f"{theirs}.bias", f"{ours}.bias")]


def _tower(theirs: str, ours: str) -> list[Rule]:
    layer, block = f"{theirs}.encoder.layers.{{i}}", f"{ours}.blocks.{{i}}"
    return [
        *_norm(f"{layer}.layer_norm1", f"{block}.norm1"),
        *_dense(f"{layer}.self_attn.q_proj", f"{block}.attention.query"),
        *_dense(f"{layer}.self_attn.k_proj", f"{block}.attention.key"),
        *_dense(f"{layer}.self_attn.v_proj", f"{block}.attention.value"),
        *_dense(f"{layer}.self_attn.out_proj", f"{block}.attention.out"),
        *_norm(f"{layer}.layer_norm2", f"{block}.norm2"),
        *_dense(f"{layer}.mlp.fc1", f"{block}.mlp_in"),
        *_dense(f"{layer}.mlp.fc2", f"{block}.mlp_out"),
    ]


CLIP_RULES: tuple[Rule, ...] = (
    Rule("vision_model.embeddings.class_embedding", "vision.cls"),
    Rule("vision_model.embeddings.patch_embedding.weight", "vision.patches.kernel", "patches"),
    Rule("vision_model.embeddings.position_embedding.weight", "vision.positions"),
    *_norm("vision_model.pre_layrnorm", "vision.pre_norm"),  # transformers' own spelling
    *_tower("vision_model", "vision"),
    *_norm("vision_model.post_layernorm", "vision.post_norm"),
    Rule("visual_projection.weight", "vision.projection.kernel", "transpose"),
    Rule("text_model.embeddings.token_embedding.weight", "text.tokens"),
    Rule("text_model.embeddings.position_embedding.weight", "text.positions"),
    *_tower("text_model", "text"),
    *_norm("text_model.final_layer_norm", "text.post_norm"),
    Rule("text_projection.weight", "text.projection.kernel", "transpose"),
    Rule("logit_scale", "logit_scale"),
)

# Saved by old transformers versions: the constants 0..n-1.
CLIP_IGNORED: tuple[str, ...] = (r"(vision|text)_model\.embeddings\.position_ids",)
