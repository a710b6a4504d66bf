"""Image-text models: CLIP (Radford et al. 2021, arXiv:2103.00020) and SigLIP (Zhai et al. 2023, arXiv:2303.15343)."""

import jax
import jax.numpy as jnp
from flax import nnx

from sbm_jax.backbones.spec import ClipSpec, TextSpec
from sbm_jax.backbones.vit import Block, VisionTransformer, layer_norm, linear, unit
from sbm_jax.backbones.weights import PATCHES, SCALAR, TOKEN, TRANSPOSE, Rule, dense_rules, fused_attention_rules
from sbm_jax.backbones.weights import norm_rules as norm


class TextTower(nnx.Module):
    """Token ids -> transformer -> unit-norm projection of the state at the end-of-text token (SigLIP: the last)."""

    def __init__(self, spec: TextSpec, rngs: nnx.Rngs):
        block = spec.block
        self.spec = spec
        self.tokens = nnx.Param(jax.random.normal(rngs.params(), (spec.vocabulary, block.width)) * 0.02)
        self.positions = nnx.Param(jax.random.normal(rngs.params(), (spec.max_tokens, block.width)) * 0.01)
        self.blocks = nnx.List([Block(block, rngs) for _ in range(spec.n_layers)])
        self.post_norm = layer_norm(block, rngs)
        self.projection = linear(block.width, spec.projection, rngs, spec.projection_bias, block.dtype)

    def __call__(self, ids_bt: jax.Array) -> jax.Array:
        """int ids [b, t], t <= max_tokens -> unit-norm f32 [b, e]; in CLIP, tokens after the end have no effect."""
        if ids_bt.shape[1] > self.spec.max_tokens:
            raise ValueError(f"at most {self.spec.max_tokens} tokens, not {ids_bt.shape[1]}")
        x_btd = self.tokens[...][ids_bt] + self.positions[...][None, : ids_bt.shape[1]]
        for block in self.blocks:
            x_btd = block(x_btd, causal=self.spec.causal)
        return unit(self.projection(self.post_norm(self._pick(x_btd, ids_bt))))

    def _pick(self, x_btd: jax.Array, ids_bt: jax.Array) -> jax.Array:
        if not self.spec.causal:
            return x_btd[:, -1]
        # Configurations written before transformers 4.31 say 2 where the end token is the highest id.
        legacy = self.spec.end_token == 2
        end_b = jnp.argmax(ids_bt if legacy else ids_bt == self.spec.end_token, axis=-1)
        return x_btd[jnp.arange(ids_bt.shape[0]), end_b]


class Clip(nnx.Module):
    """Both towers, the log of the logit scale, and the logits' bias if there is one."""

    def __init__(self, spec: ClipSpec, rngs: nnx.Rngs):
        self.spec = spec
        self.vision = VisionTransformer(spec.vision, rngs)
        self.text = TextTower(spec.text, rngs)
        self.logit_scale = nnx.Param(jnp.asarray(spec.logit_scale, jnp.float32))
        self.logit_bias = nnx.Param(jnp.zeros((), jnp.float32)) if spec.logit_bias else None


def text_features(text: TextTower, ids_bt: jax.Array) -> jax.Array:
    """Unit-norm joint embedding [b, e] of token ids [b, t]; pure, jittable."""
    return text(ids_bt)


def _mlp(theirs: str, ours: str) -> list[Rule]:
    return [*dense_rules(f"{theirs}.fc1", f"{ours}.mlp_in"), *dense_rules(f"{theirs}.fc2", f"{ours}.mlp_out")]


def _tower(theirs: str, ours: str) -> list[Rule]:
    layer, block = f"{theirs}.encoder.layers.{{i}}", f"{ours}.blocks.{{i}}"
    return [
        Rule(f"{theirs}.embeddings.position_embedding.weight", f"{ours}.positions"),
        *norm(f"{layer}.layer_norm1", f"{block}.norm1"),
        *dense_rules(f"{layer}.self_attn.q_proj", f"{block}.attention.query"),
        *dense_rules(f"{layer}.self_attn.k_proj", f"{block}.attention.key"),
        *dense_rules(f"{layer}.self_attn.v_proj", f"{block}.attention.value"),
        *dense_rules(f"{layer}.self_attn.out_proj", f"{block}.attention.out"),
        *norm(f"{layer}.layer_norm2", f"{block}.norm2"),
        *_mlp(f"{layer}.mlp", block),
    ]


_BOTH_TOWERS = (
    *_tower("vision_model", "vision"),
    *norm("vision_model.post_layernorm", "vision.post_norm"),
    Rule("text_model.embeddings.token_embedding.weight", "text.tokens"),
    *_tower("text_model", "text"),
    *norm("text_model.final_layer_norm", "text.post_norm"),
)

CLIP_RULES: tuple[Rule, ...] = (
    *_BOTH_TOWERS,
    Rule("vision_model.embeddings.class_embedding", "vision.cls"),
    Rule("vision_model.embeddings.patch_embedding.weight", "vision.patches.kernel", PATCHES),
    *norm("vision_model.pre_layrnorm", "vision.pre_norm"),  # transformers' own spelling
    Rule("visual_projection.weight", "vision.projection.kernel", TRANSPOSE),
    Rule("text_projection.weight", "text.projection.kernel", TRANSPOSE),
    Rule("logit_scale", "logit_scale"),
)

# Saved by old transformers versions: the constants 0..n-1.
CLIP_IGNORED: tuple[str, ...] = (r"(vision|text)_model\.embeddings\.position_ids",)


def _siglip(patches: list[Rule]) -> tuple[Rule, ...]:
    head, ours = "vision_model.head", "vision.pooling"
    return (
        *_BOTH_TOWERS,
        *patches,
        Rule(f"{head}.probe", f"{ours}.probe", TOKEN),
        *fused_attention_rules(f"{head}.attention", f"{ours}.attention"),
        *norm(f"{head}.layernorm", f"{ours}.norm"),
        *_mlp(f"{head}.mlp", ours),
        *dense_rules("text_model.head", "text.projection"),
        Rule("logit_scale", "logit_scale", SCALAR),
        Rule("logit_bias", "logit_bias", SCALAR),
    )


_PATCHES = "vision_model.embeddings.patch_embedding"
SIGLIP_RULES = _siglip(
    [Rule(f"{_PATCHES}.weight", "vision.patches.kernel", PATCHES), Rule(f"{_PATCHES}.bias", "vision.patches.bias")]
)
# The checkpoints for any aspect ratio keep a dense layer over patches flattened row, column, channel.
SIGLIP2_RULES = _siglip(dense_rules(_PATCHES, "vision.patches"))
