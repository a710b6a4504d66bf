"""Sizes and options of the towers, and the names and shapes of their hooks. Plain data: imports neither JAX nor NumPy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from sbm_jax.axes import hook_name
from sbm_jax.errors import UserError

BLOCK_HOOKS = ("resid", "attn_out", "mlp_hidden")
DTYPES = ("float32", "bfloat16")

Resize = Literal["bicubic", "bicubic_antialias", "bilinear_antialias"]


@dataclass(frozen=True)
class BlockSpec:
    """One pre-norm transformer block: sizes, activation (a key of vit.ACTIVATIONS), and what is optional.

    gated: the MLP is out(activation(gate(x)) * in(x)). dtype: of kernels, biases and products; LayerNorm and
    softmax statistics and the residual stream are f32 always.
    """

    width: int
    heads: int
    mlp_width: int
    activation: str = "gelu"
    eps: float = 1e-6
    query_bias: bool = True
    key_bias: bool = True
    value_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    layer_scale: bool = False
    gated: bool = False
    dtype: str = "float32"


@dataclass(frozen=True)
class VisionSpec:
    """A vision tower: n_layers equal blocks over a square image cut into square patches (sizes in pixels).

    The tokens are CLS (if has_cls), then the registers, then the patches row by row. trained_size: the image
    size that the stored positions are for, if it is another than image_size; resize says how the family stretches
    them. rope_theta: base of rotary positions, None if positions are learned. pooled: the embedding comes from an
    attention-pooling head over all tokens (width = block.width) instead of a projection of CLS.
    """

    block: BlockSpec
    n_layers: int
    image_size: int
    patch_size: int
    pre_norm: bool = False  # a LayerNorm before the first block (CLIP)
    patch_bias: bool = True
    projection: int | None = None  # width of the joint embedding, if the model has one
    has_cls: bool = True
    registers: int = 0
    trained_size: int | None = None
    resize: Resize = "bicubic"
    rope_theta: float | None = None
    pooled: bool = False

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the first patch."""
        return int(self.has_cls) + self.registers

    @property
    def tokens(self) -> int:
        return self.prefix_tokens + self.grid**2

    @property
    def embedding_width(self) -> int | None:
        """Width of the hook `projection`, None if the model has no embedding of the whole image."""
        return self.block.width if self.pooled else self.projection

    @property
    def flops_of_block(self) -> float:
        """Multiply-adds times 2 of one block for one image."""
        t, d = self.tokens, self.block.width
        mlp = (3 if self.block.gated else 2) * d * self.block.mlp_width
        return 2 * t * (4 * d * d + mlp) + 4 * t * t * d

    def flops(self, layers: int) -> float:
        """Multiply-adds times 2 of the first `layers` blocks and the patch embedding for one image."""
        return layers * self.flops_of_block + 2 * self.grid**2 * 3 * self.patch_size**2 * self.block.width


@dataclass(frozen=True)
class TextSpec:
    """A text tower over at most max_tokens token ids.

    causal: tokens see those before them, and the state at end_token is projected (CLIP); otherwise all see all, and
    the state at the last position is (SigLIP).
    """

    block: BlockSpec
    n_layers: int
    vocabulary: int
    max_tokens: int
    end_token: int
    projection: int
    causal: bool = True
    projection_bias: bool = False


@dataclass(frozen=True)
class ClipSpec:
    """Both towers, the initial log of the logit scale (inverse temperature), and whether the logits have a bias."""

    vision: VisionSpec
    text: TextSpec
    logit_scale: float = 2.6592
    logit_bias: bool = False


ModelSpec = VisionSpec | ClipSpec


def hook_names(n_layers: int) -> tuple[str, ...]:
    """The residual streams of a tower, first block first."""
    return tuple(hook_name(i) for i in range(n_layers))


def parse_hook(spec: VisionSpec, hook: str, first: int = 0) -> tuple[int, str]:
    """(block, kind) of a hook; the block of `embed` is -1, that of `final_norm` and `projection` is n_layers.

    first: blocks before it do not run, so their hooks (and `embed`, if above 0) are unknown. Raises UserError that
    names the hooks there are.
    """
    match = re.fullmatch(rf"block(\d{{2,}})\.({'|'.join(BLOCK_HOOKS)})", hook)
    if match:
        block = int(match[1])
        if first <= block < spec.n_layers and hook == f"{hook_name(block).split('.')[0]}.{match[2]}":
            return block, match[2]
    elif hook == "embed" and first == 0:
        return -1, hook
    elif hook == "final_norm" or (hook == "projection" and spec.embedding_width):
        return spec.n_layers, hook
    known = ["embed"] if first == 0 else []
    if first < spec.n_layers:
        known.append(f"{hook_name(first)} ... {hook_name(spec.n_layers - 1)} (and .attn_out, .mlp_hidden)")
    known += ["final_norm", *(["projection"] if spec.embedding_width else [])]
    raise UserError(f"no hook {hook!r} here; the hooks are: {', '.join(known)}")


def hook_shape(spec: VisionSpec, hook: str) -> tuple[int | None, int]:
    """(tokens, width) of a hook's array per image; tokens is None for `projection`. Raises UserError if unknown."""
    _, kind = parse_hook(spec, hook)
    if kind == "projection":
        return None, spec.embedding_width or 0
    return spec.tokens, spec.block.mlp_width if kind == "mlp_hidden" else spec.block.width
