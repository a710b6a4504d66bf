"""extract: images to activations at the chosen hooks, CLS and patch tokens apart; register tokens are not kept."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sbm_jax.backbones import Backbone, forward, load_backbone
from sbm_jax.backbones.folder import read_preprocessor
from sbm_jax.errors import UserError
from sbm_jax.images.batches import square_batches
from sbm_jax.images.geometry import Geometry, square, stretch
from sbm_jax.images.processor import processor
from sbm_jax.mesh import make_mesh
from sbm_jax.progress import progress
from sbm_jax.sae.stream import array_name
from sbm_jax.stages.context import Context
from sbm_jax.store.buffer import ShardBuffer
from sbm_jax.store.store import Store


def run(ctx: Context) -> Store:
    """Write the activation store: per hook `cls` [n, d] (if the backbone has it) and `patch` [n, t, d] for every image.

    Raises UserError for an unreadable image, or activations that are not finite in the store's dtype.
    """
    facts, dtype = ctx.facts, ctx.config.extract.dtype
    sources = ctx.dataset.images.sources
    backbone = load_backbone(facts.backbone.path, facts.backbone.image_size, ctx.config.backbone.dtype)
    writer = ctx.writer(ctx.specs.activations)
    shard = min(ctx.config.extract.shard_images, len(sources))
    for hook in facts.hooks:
        width = facts.backbone.hook_shape(hook)[1]
        options = {"shard_rows": shard, "compress": False}
        if facts.backbone.has_cls:
            writer.create(array_name(hook, "cls"), (len(sources), width), dtype, dimensions=("n", "d"), **options)
        patches = (len(sources), facts.backbone.n_patches, width)
        writer.create(array_name(hook, "patch"), patches, dtype, dimensions=("n", "t", "d"), **options)
    start = writer.cursor * shard
    mesh = make_mesh({"data": len(ctx.devices)}, ctx.devices)
    batch = -(-ctx.config.extract.batch // mesh.size) * mesh.size
    compute = activations_function(backbone, facts.hooks, dtype, mesh)
    pictures = square_batches(sources[start:], _geometry(ctx, backbone), batch)
    buffer = ShardBuffer(writer, shard, len(sources), start, resumable=True)
    with progress("extract", len(sources), "images", start) as task:
        for pixels in pictures:
            count = len(pixels)
            padded = np.concatenate([pixels, np.zeros((batch - count, *pixels.shape[1:]), np.uint8)])
            out, finite = compute(padded)
            _check_finite(np.asarray(finite)[:count], facts.hooks, sources[task.done : task.done + count], dtype)
            buffer.add({name: np.asarray(x)[:count] for name, x in out.items()})
            task.advance(count)
    buffer.close()
    return writer.commit()


def _geometry(ctx: Context, backbone: Backbone) -> Geometry:
    name, side = ctx.config.extract.geometry, backbone.image_size
    if name == "processor":
        return processor(read_preprocessor(backbone.folder, backbone.family), side, backbone.family)
    return square(side) if name == "square" else stretch(side)


def activations_function(
    backbone: Backbone, hooks: tuple[str, ...], dtype: str, mesh: jax.sharding.Mesh
) -> Callable[[np.ndarray], tuple[dict[str, jax.Array], jax.Array]]:
    """Jitted uint8 [b, s, s, 3] -> ({`hook/cls`: [b, d], `hook/patch`: [b, t, d]}, finite [b, hooks]).

    The batch is split over the mesh's `data` axis; the model is on every device. Pixels are donated.
    """
    mean = jnp.asarray(backbone.mean, jnp.float32)[None, None, None]
    std = jnp.asarray(backbone.std, jnp.float32)[None, None, None]
    split = NamedSharding(mesh, P("data"))

    cls, prefix = backbone.has_cls, backbone.prefix_tokens

    @jax.jit
    def compute(model, pixels: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        x = (pixels.astype(jnp.float32) / 255.0 - mean) / std
        acts = {hook: x.astype(dtype) for hook, x in forward(model, x, hooks).items()}
        out = {array_name(hook, "cls"): x[:, 0] for hook, x in acts.items()} if cls else {}
        out |= {array_name(hook, "patch"): x[:, prefix:] for hook, x in acts.items()}
        finite = jnp.stack([jnp.isfinite(acts[hook]).all(axis=(1, 2)) for hook in hooks], axis=1)
        return jax.lax.with_sharding_constraint(out, split), finite

    model = jax.device_put(backbone.model, NamedSharding(mesh, P()))
    return lambda pixels: compute(model, jax.device_put(pixels, split))


def _check_finite(finite_bl: np.ndarray, hooks: tuple[str, ...], files: tuple, dtype: str) -> None:
    if finite_bl.all():
        return
    row, layer = np.argwhere(~finite_bl)[0]
    raise UserError(
        f"extract: activations of {files[row]} at {hooks[layer]} are not finite as {dtype}. "
        + ("Set extract.dtype to float32." if dtype == "float16" else "Check the image and the weights.")
    )
