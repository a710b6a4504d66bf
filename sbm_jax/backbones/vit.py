"""The vision transformer every family shares: patches, pre-norm blocks, activations at named hooks.

Blocks follow Dosovitskiy et al. 2021 (arXiv:2010.11929), layer scale Touvron et al. 2021 (arXiv:2103.17239).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from sbm_jax.axes import hook_name
from sbm_jax.backbones.positions import rotations
from sbm_jax.backbones.spec import BlockSpec, VisionSpec, parse_hook

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    # By erf, not erfc as in jax.nn: the same to f32 rounding of x, and several times faster on a CPU.
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5)),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}

Rotation = tuple[jax.Array, jax.Array]


def precision(dtype: str) -> jax.lax.Precision | None:
    """Activations feed statistics, so f32 products are full f32: the default on accelerators is TF32 or bf16."""
    return jax.lax.Precision.HIGHEST if dtype == "float32" else None


def linear(n_in: int, n_out: int, rngs: nnx.Rngs, bias: bool = True, dtype: str = "float32") -> nnx.Linear:
    """A dense layer with parameters, product and result in dtype."""
    kind = jnp.dtype(dtype)
    return nnx.Linear(n_in, n_out, use_bias=bias, dtype=kind, param_dtype=kind, precision=precision(dtype), rngs=rngs)


def layer_norm(spec: BlockSpec, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with f32 parameters and statistics, whatever the dtype of products."""
    return nnx.LayerNorm(spec.width, epsilon=spec.eps, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)


def attend(q_bqd: jax.Array, k_bkd: jax.Array, v_bkd: jax.Array, heads: int, causal: bool, rope: Rotation | None):
    """softmax(q k^T / sqrt(d_head)) v, [b, q, d]; products in the inputs' dtype, softmax in f32."""
    exact = precision(q_bqd.dtype.name)
    b, _, d = q_bqd.shape
    # Heads before tokens: XLA's CPU products of the other order are 3 times slower.
    q, k, v = (x.reshape(b, -1, heads, d // heads).transpose(0, 2, 1, 3) for x in (q_bqd, k_bkd, v_bkd))
    if rope is not None:
        q, k = rotate(q, rope), rotate(k, rope)
    q = q * (d // heads) ** -0.5
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, precision=exact, preferred_element_type=jnp.float32)
    if causal:
        scores = jnp.where(jnp.tril(jnp.ones((1, 1, *scores.shape[2:]), bool)), scores, -jnp.inf)
    # softmax with its division after the product: t x d_head quotients per head instead of t x t.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    summed = jnp.einsum(
        "bhqk,bhkd->bhqd", weights.astype(v.dtype), v, precision=exact, preferred_element_type=jnp.float32
    )
    mixed = (summed / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)
    return mixed.transpose(0, 2, 1, 3).reshape(b, -1, d)


def rotate(x_bhtd: jax.Array, rope: Rotation) -> jax.Array:
    """Rotary positions on the last tokens, as many as rope has (the patches); the tokens before them are left."""
    cos, sin = (r[None, None] for r in rope)
    prefix = x_bhtd.shape[2] - cos.shape[2]
    x = x_bhtd[:, :, prefix:].astype(jnp.float32)
    left, right = jnp.split(x, 2, axis=-1)
    turned = x * cos + jnp.concatenate([-right, left], axis=-1) * sin
    return jnp.concatenate([x_bhtd[:, :, :prefix], turned.astype(x_bhtd.dtype)], axis=2)


class Attention(nnx.Module):
    """Multi-head attention with its four projections."""

    def __init__(self, spec: BlockSpec, rngs: nnx.Rngs):
        self.heads = spec.heads
        self.query = linear(spec.width, spec.width, rngs, spec.query_bias, spec.dtype)
        self.key = linear(spec.width, spec.width, rngs, spec.key_bias, spec.dtype)
        self.value = linear(spec.width, spec.width, rngs, spec.value_bias, spec.dtype)
        self.out = linear(spec.width, spec.width, rngs, spec.out_bias, spec.dtype)

    def __call__(
        self,
        queries_bqd: jax.Array,
        others_bkd: jax.Array | None = None,
        causal: bool = False,
        rope: Rotation | None = None,
    ) -> jax.Array:
        """[b, q, d] attending to others [b, k, d], or to itself if None."""
        others = queries_bqd if others_bkd is None else others_bkd
        q, k, v = self.query(queries_bqd), self.key(others), self.value(others)
        return self.out(attend(q, k, v, self.heads, causal, rope))


class Mlp(nnx.Module):
    """Names of the two (or, gated, three) dense layers that a block and the pooling head have alike."""

    def __init__(self, spec: BlockSpec, rngs: nnx.Rngs):
        self.activation = spec.activation
        self.mlp_in = linear(spec.width, spec.mlp_width, rngs, spec.mlp_bias, spec.dtype)
        self.mlp_gate = linear(spec.width, spec.mlp_width, rngs, spec.mlp_bias, spec.dtype) if spec.gated else None
        self.mlp_out = linear(spec.mlp_width, spec.width, rngs, spec.mlp_bias, spec.dtype)

    def hidden(self, x_btd: jax.Array) -> jax.Array:
        """Activations between the layers [b, t, mlp_width]."""
        inner = self.mlp_in(x_btd)
        gate = inner if self.mlp_gate is None else self.mlp_gate(x_btd)
        active = ACTIVATIONS[self.activation](gate.astype(jnp.float32)).astype(inner.dtype)
        return active if self.mlp_gate is None else active * inner


class Block(Mlp):
    """x + attention(norm(x)), then x + mlp(norm(x)); both branches scaled per channel if layer_scale."""

    def __init__(self, spec: BlockSpec, rngs: nnx.Rngs):
        self.norm1 = layer_norm(spec, rngs)
        self.attention = Attention(spec, rngs)
        self.norm2 = layer_norm(spec, rngs)
        super().__init__(spec, rngs)
        self.scale1 = nnx.Param(jnp.ones(spec.width)) if spec.layer_scale else None
        self.scale2 = nnx.Param(jnp.ones(spec.width)) if spec.layer_scale else None

    def __call__(
        self,
        x_btd: jax.Array,
        causal: bool = False,
        rope: Rotation | None = None,
        kept: dict[str, jax.Array] | None = None,
    ) -> jax.Array:
        """The stream after the block; kept, if given, receives `attn_out`, `mlp_hidden` and `resid`."""
        mixed = self.attention(self.norm1(x_btd), causal=causal, rope=rope)
        x_btd = x_btd + (mixed if self.scale1 is None else mixed * self.scale1[...][None, None])
        hidden = self.hidden(self.norm2(x_btd))
        mlp = self.mlp_out(hidden)
        x_btd = x_btd + (mlp if self.scale2 is None else mlp * self.scale2[...][None, None])
        if kept is not None:
            kept.update(attn_out=mixed, mlp_hidden=hidden, resid=x_btd)
        return x_btd


class PoolingHead(Mlp):
    """SigLIP's embedding of an image: a learned query attends to all tokens, then a residual MLP (arXiv:2303.15343)."""

    def __init__(self, spec: BlockSpec, rngs: nnx.Rngs):
        self.probe = nnx.Param(jax.random.normal(rngs.params(), (spec.width,)) * spec.width**-0.5)
        self.attention = Attention(spec, rngs)
        self.norm = layer_norm(spec, rngs)
        super().__init__(spec, rngs)

    def __call__(self, x_btd: jax.Array) -> jax.Array:
        """Normalised tokens [b, t, d] -> [b, d]."""
        b, _, d = x_btd.shape
        x_bqd = self.attention(jnp.broadcast_to(self.probe[...], (b, 1, d)), x_btd).astype(jnp.float32)
        return (x_bqd + self.mlp_out(self.hidden(self.norm(x_bqd))))[:, 0]


def initial_positions(grid: int, width: int, prefix: int = 1, temperature: float = 100.0) -> jax.Array:
    """Positions to start from [prefix + grid^2, width]: zero for CLS, sines and cosines of row and column.

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
    return jnp.concatenate([jnp.zeros((prefix, width)), patches])


class VisionTransformer(nnx.Module):
    """Square image -> CLS, register and row-major patch tokens -> blocks -> (optionally) an embedding of the image."""

    def __init__(self, spec: VisionSpec, rngs: nnx.Rngs):
        block, patch = spec.block, spec.patch_size
        self.spec = spec
        self.patches = linear(patch * patch * 3, block.width, rngs, spec.patch_bias, block.dtype)
        self.cls = _tokens(spec.has_cls, (block.width,), rngs)
        self.registers = _tokens(spec.registers, (spec.registers, block.width), rngs)
        learned = spec.rope_theta is None
        self.positions = nnx.Param(initial_positions(spec.grid, block.width, int(spec.has_cls))) if learned else None
        self.pre_norm = layer_norm(block, rngs) if spec.pre_norm else None
        self.blocks = nnx.List([Block(block, rngs) for _ in range(spec.n_layers)])
        self.post_norm = layer_norm(block, rngs)
        self.projection = (
            linear(block.width, spec.projection, rngs, bias=False, dtype=block.dtype) if spec.projection else None
        )
        self.pooling = PoolingHead(block, rngs) if spec.pooled else None

    def embed(self, pixels_bhwc: jax.Array) -> jax.Array:
        """Normalised f32 pixels [b, side, side, 3] -> residual stream before block 0, f32 [b, t, d]."""
        side, g, p = self.spec.image_size, self.spec.grid, self.spec.patch_size
        b, d = pixels_bhwc.shape[0], self.spec.block.width
        if pixels_bhwc.shape[1:] != (side, side, 3):
            raise ValueError(f"pixels must be [b, {side}, {side}, 3], not {list(pixels_bhwc.shape)}")
        cut = pixels_bhwc.reshape(b, g, p, g, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, g * g, p * p * 3)
        x_btd = self.patches(cut).astype(jnp.float32)
        if self.cls is not None:
            x_btd = jnp.concatenate([jnp.broadcast_to(self.cls[...], (b, 1, d)), x_btd], axis=1)
        if self.positions is not None:
            x_btd = x_btd + self.positions[...][None]
        if self.registers is not None:  # after the positions: registers have none
            registers = jnp.broadcast_to(self.registers[...], (b, self.spec.registers, d))
            n = int(self.spec.has_cls)
            x_btd = jnp.concatenate([x_btd[:, :n], registers, x_btd[:, n:]], axis=1)
        return x_btd if self.pre_norm is None else self.pre_norm(x_btd)

    def embedding(self, resid_btd: jax.Array) -> jax.Array:
        """Residual stream after the last block -> embedding of the image [b, e], not normalised (hook `projection`)."""
        if self.pooling is not None:
            return self.pooling(self.post_norm(resid_btd))
        if self.projection is None:
            raise ValueError("this model has no joint image-text embedding")
        return self.projection(self.post_norm(resid_btd[:, 0]))

    def project(self, resid_btd: jax.Array) -> jax.Array:
        """Residual stream after the last block -> unit-norm joint embedding f32 [b, e]."""
        return unit(self.embedding(resid_btd))


def _tokens(wanted: int, shape: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Param | None:
    return nnx.Param(jax.random.normal(rngs.params(), shape) * shape[-1] ** -0.5) if wanted else None


def unit(x_be: jax.Array) -> jax.Array:
    """Rows of norm 1, f32."""
    x_be = x_be.astype(jnp.float32)
    return x_be / jnp.linalg.norm(x_be, axis=-1, keepdims=True)


def _run(model: VisionTransformer, x_btd: jax.Array, first: int, hooks: tuple[str, ...]) -> dict[str, jax.Array]:
    spec = model.spec
    wanted = {hook: parse_hook(spec, hook, first) for hook in hooks}
    rope = None
    if spec.rope_theta is not None:
        cos, sin = rotations(spec)
        rope = jnp.asarray(cos), jnp.asarray(sin)
    out = {"embed": x_btd}
    for i in range(first, min(max((block for block, _ in wanted.values()), default=-1), spec.n_layers - 1) + 1):
        parts: dict[str, jax.Array] = {}
        x_btd = model.blocks[i](x_btd, rope=rope, kept=parts)
        out |= {hook: parts[kind] for hook, (block, kind) in wanted.items() if block == i}
    if "final_norm" in wanted:
        out["final_norm"] = model.post_norm(x_btd)
    if "projection" in wanted:
        out["projection"] = model.embedding(x_btd)
    return {hook: out[hook] for hook in hooks}


def forward(model: VisionTransformer, pixels_bhwc: jax.Array, hooks: tuple[str, ...]) -> dict[str, jax.Array]:
    """Activations at the hooks asked for; pure, jittable with static hooks.

    pixels_bhwc: f32 [b, side, side, 3], normalised with the backbone's mean and std. hooks: `block{i:02d}.resid`, the
    residual stream after block i (0-based); `block{i:02d}.attn_out`, the attention branch before layer scale;
    `block{i:02d}.mlp_hidden`, after the activation; `embed`, the stream before block 0; `final_norm`, all tokens after
    the last norm; `projection`, the embedding of the image (CLIP, SigLIP), not normalised. Returns [b, t, d] per hook
    ([b, e] for `projection`), f32 but for attn_out, mlp_hidden and CLIP's projection, which are in the products' dtype;
    tokens are CLS, registers, then grid * grid patches row-major. Blocks after the last hook are not run, and jit drops
    what no hook needs. Raises UserError for an unknown hook.
    """
    return _run(model, model.embed(pixels_bhwc), 0, hooks)


def forward_from(
    model: VisionTransformer, resid_btd: jax.Array, block: int, hooks: tuple[str, ...]
) -> dict[str, jax.Array]:
    """As forward, but from a given residual stream [b, t, d] after `block` (for interventions).

    block -1 starts from model.embed(pixels), which is then the hook `embed`. With rotary positions all tokens must be
    there. Raises UserError for a hook that does not lie after `block`.
    """
    if model.spec.rope_theta is not None and resid_btd.shape[1] != model.spec.tokens:
        raise ValueError(f"rotary positions need all {model.spec.tokens} tokens, not {resid_btd.shape[1]}")
    return _run(model, resid_btd, block + 1, hooks)


def image_features(model: VisionTransformer, pixels_bhwc: jax.Array) -> jax.Array:
    """Unit-norm joint embedding [b, e] of normalised f32 pixels [b, side, side, 3]; pure, jittable."""
    last = hook_name(model.spec.n_layers - 1)
    return model.project(forward(model, pixels_bhwc, (last,))[last])
