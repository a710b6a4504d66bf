"""The vision transformer every family shares: patches, pre-norm blocks, residual stream at named hooks.

Blocks follow Dosovitskiy et al. 2021 (arXiv:2010.11929), layer scale Touvron et al. 2021 (arXiv:2103.17239).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from sbm_jax.axes import hook_name
from sbm_jax.errors import UserError

# Activations feed statistics, so products are full f32: the default on accelerators is TF32 or bf16.
PRECISION = jax.lax.Precision.HIGHEST

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


@dataclass(frozen=True)
class BlockSpec:
    """One pre-norm transformer block: sizes, activation (a key of ACTIVATIONS), and what is optional."""

    width: int
    heads: int
    mlp_width: int
    activation: str = "gelu"
    eps: float = 1e-6
    qkv_bias: bool = True
    layer_scale: bool = False


@dataclass(frozen=True)
class VisionSpec:
    """A vision tower: n_layers equal blocks over a square image cut into square patches (sizes in pixels)."""

    block: BlockSpec
    n_layers: int
    image_size: int
    patch_size: int
    pre_norm: bool = False  # a LayerNorm before the first block (CLIP)
    patch_bias: bool = True
    projection: int | None = None  # width of the joint embedding, if the model has one

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size


def linear(n_in: int, n_out: int, rngs: nnx.Rngs, bias: bool = True) -> nnx.Linear:
    """A dense layer whose product is full f32."""
    return nnx.Linear(n_in, n_out, use_bias=bias, precision=PRECISION, rngs=rngs)


class Attention(nnx.Module):
    """Multi-head self-attention: softmax(q k^T / sqrt(d_head)) v over tokens."""

    def __init__(self, spec: BlockSpec, rngs: nnx.Rngs):
        self.heads = spec.heads
        self.query = linear(spec.width, spec.width, rngs, spec.qkv_bias)
        self.key = linear(spec.width, spec.width, rngs, spec.qkv_bias)
        self.value = linear(spec.width, spec.width, rngs, spec.qkv_bias)
        self.out = linear(spec.width, spec.width, rngs)

    def __call__(self, x_btd: jax.Array, causal: bool = False) -> jax.Array:
        b, t, d = x_btd.shape
        head = d // self.heads
        q, k, v = (f(x_btd).reshape(b, t, self.heads, head) for f in (self.query, self.key, self.value))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q * head**-0.5, k, precision=PRECISION)
        if causal:
            scores = jnp.where(jnp.tril(jnp.ones((1, 1, t, t), bool)), scores, -jnp.inf)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), v, precision=PRECISION)
        return self.out(mixed.reshape(b, t, d))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); both branches scaled per channel if layer_scale."""

    def __init__(self, spec: BlockSpec, rngs: nnx.Rngs):
        self.activation = spec.activation
        self.norm1 = nnx.LayerNorm(spec.width, epsilon=spec.eps, rngs=rngs)
        self.attention = Attention(spec, rngs)
        self.norm2 = nnx.LayerNorm(spec.width, epsilon=spec.eps, rngs=rngs)
        self.mlp_in = linear(spec.width, spec.mlp_width, rngs)
        self.mlp_out = linear(spec.mlp_width, spec.width, rngs)
        self.scale1 = nnx.Param(jnp.ones(spec.width)) if spec.layer_scale else None
        self.scale2 = nnx.Param(jnp.ones(spec.width)) if spec.layer_scale else None

    def __call__(self, x_btd: jax.Array, causal: bool = False) -> jax.Array:
        mixed = self.attention(self.norm1(x_btd), causal)
        x_btd = x_btd + (mixed if self.scale1 is None else mixed * self.scale1[...][None, None])
        mlp = self.mlp_out(ACTIVATIONS[self.activation](self.mlp_in(self.norm2(x_btd))))
        return x_btd + (mlp if self.scale2 is None else mlp * self.scale2[...][None, None])


def initial_positions(grid: int, width: int, temperature: float = 100.0) -> jax.Array:
    """Positions to start from [1 + grid^2, width]: zero for CLS, sines and cosines of row and column.

    As Beyer et al. 2022 (arXiv:2205.01580) but for a lower temperature, made for grids of about 8 x 8. Small
    random positions may leave the tokens a bag of patches for long (seen in one run, not compared).
    """
    waves = -(-width // 4)
    rates = temperature ** (-jnp.arange(waves) / waves)
    angles = jnp.arange(grid)[:, None] * rates[None]
    along = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
    rows = jnp.repeat(along[:, None], grid, axis=1)
    columns = jnp.repeat(along[None], grid, axis=0)
    patches = jnp.concatenate([rows, columns], axis=2).reshape(grid**2, -1)[:, :width]
    return jnp.concatenate([jnp.zeros((1, width)), patches])


class VisionTransformer(nnx.Module):
    """Square image -> CLS token and row-major patch tokens -> blocks -> (optionally) a projected CLS."""

    def __init__(self, spec: VisionSpec, rngs: nnx.Rngs):
        width, patch = spec.block.width, spec.patch_size
        self.spec = spec
        self.patches = linear(patch * patch * 3, width, rngs, spec.patch_bias)
        self.cls = nnx.Param(jax.random.normal(rngs.params(), (width,)) * width**-0.5)
        self.positions = nnx.Param(initial_positions(spec.grid, width))
        self.pre_norm = nnx.LayerNorm(width, epsilon=spec.block.eps, rngs=rngs) if spec.pre_norm else None
        self.blocks = nnx.List([Block(spec.block, rngs) for _ in range(spec.n_layers)])
        self.post_norm = nnx.LayerNorm(width, epsilon=spec.block.eps, rngs=rngs)
        self.projection = linear(width, spec.projection, rngs, bias=False) if spec.projection else None

    def embed(self, pixels_bhwc: jax.Array) -> jax.Array:
        """Normalised f32 pixels [b, side, side, 3] -> residual stream before block 0 [b, 1 + grid^2, d]."""
        side, g, p = self.spec.image_size, self.spec.grid, self.spec.patch_size
        b = pixels_bhwc.shape[0]
        if pixels_bhwc.shape[1:] != (side, side, 3):
            raise ValueError(f"pixels must be [b, {side}, {side}, 3], not {list(pixels_bhwc.shape)}")
        cut = pixels_bhwc.reshape(b, g, p, g, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, g * g, p * p * 3)
        cls_btd = jnp.broadcast_to(self.cls[...], (b, 1, self.spec.block.width))
        x_btd = jnp.concatenate([cls_btd, self.patches(cut)], axis=1) + self.positions[...][None]
        return x_btd if self.pre_norm is None else self.pre_norm(x_btd)

    def project(self, resid_btd: jax.Array) -> jax.Array:
        """Residual stream after the last block -> unit-norm joint embedding of the CLS token [b, e]."""
        if self.projection is None:
            raise ValueError("this model has no joint image-text embedding")
        x_be = self.projection(self.post_norm(resid_btd[:, 0]))
        return x_be / jnp.linalg.norm(x_be, axis=-1, keepdims=True)


def hook_names(n_layers: int) -> tuple[str, ...]:
    """All hooks of a tower, first block first."""
    return tuple(hook_name(i) for i in range(n_layers))


def _hook_blocks(hooks: tuple[str, ...], first: int, n_layers: int) -> dict[int, str]:
    """Hook names by block index. Raises UserError for a hook outside first..n_layers-1."""
    found = {}
    for name in hooks:
        match = re.fullmatch(r"block(\d{2,})\.resid", name)
        if not match or not first <= int(match[1]) < n_layers or hook_name(int(match[1])) != name:
            known = f"{hook_name(first)} ... {hook_name(n_layers - 1)}" if first < n_layers else "none"
            raise UserError(f"no hook {name!r} here; the hooks are: {known}")
        found[int(match[1])] = name
    return found


def _run_blocks(model: VisionTransformer, x_btd: jax.Array, first: int, hooks: tuple[str, ...]) -> dict[str, jax.Array]:
    wanted = _hook_blocks(hooks, first, model.spec.n_layers)
    kept = {}
    for i in range(first, max(wanted, default=-1) + 1):
        x_btd = model.blocks[i](x_btd)
        if i in wanted:
            kept[wanted[i]] = x_btd
    return {name: kept[name] for name in hooks}


def forward(model: VisionTransformer, pixels_bhwc: jax.Array, hooks: tuple[str, ...]) -> dict[str, jax.Array]:
    """Residual streams at the hooks asked for; pure, jittable with static hooks.

    pixels_bhwc: f32 [b, side, side, 3], normalised with the backbone's mean and std. hooks: names
    "block{i:02d}.resid", the residual stream after block i (0-based). Returns f32 [b, t, d] per hook, token 0
    the CLS token, then grid * grid patches row-major. Blocks after the last hook are not run.
    Raises UserError for an unknown hook.
    """
    return _run_blocks(model, model.embed(pixels_bhwc), 0, hooks)


def forward_from(
    model: VisionTransformer, resid_btd: jax.Array, block: int, hooks: tuple[str, ...]
) -> dict[str, jax.Array]:
    """As forward, but from a given residual stream [b, t, d] after `block` (for interventions).

    block -1 starts from model.embed(pixels). Raises UserError for a hook that does not lie after `block`.
    """
    return _run_blocks(model, resid_btd, block + 1, hooks)


def image_features(model: VisionTransformer, pixels_bhwc: jax.Array) -> jax.Array:
    """Unit-norm joint embedding [b, e] of normalised f32 pixels [b, side, side, 3]; pure, jittable."""
    last = hook_name(model.spec.n_layers - 1)
    return model.project(forward(model, pixels_bhwc, (last,))[last])
