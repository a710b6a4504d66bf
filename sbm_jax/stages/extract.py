"""extract: images to activations at the chosen hooks, CLS and patch tokens apart; register tokens are not kept."""

from __future__ import annotations

from sbm_jax.progress import progress
from sbm_jax.stages.activations import ForwardPass
from sbm_jax.stages.context import Context
from sbm_jax.store.buffer import ShardBuffer
from sbm_jax.store.store import Store


def run(ctx: Context) -> Store:
    """Write the activation store: per hook `cls` [n, d] (if the backbone has it) and `patch` [n, t, d] for every image.

    Raises UserError for an unreadable image, or activations that are not finite in the store's dtype.
    """
    forward = ForwardPass(ctx)
    writer, n = ctx.writer(ctx.specs.activations), ctx.facts.n_images
    shard = min(ctx.config.extract.shard_images, n)
    for name, x in forward.arrays.items():
        dimensions = ("n", "d") if len(x.shape) == 2 else ("n", "t", "d")
        writer.create(name, x.shape, x.dtype.name, shard_rows=shard, compress=False, dimensions=dimensions)
    start = writer.cursor * shard
    buffer = ShardBuffer(writer, shard, n, start, resumable=True)
    with progress("extract", n, "images", start) as task:
        for block, values in forward.blocks(range(start, n), forward.arrays):
            buffer.add(values)
            task.advance(block.stop - block.start)
    buffer.close()
    return writer.commit()
