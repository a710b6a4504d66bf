"""train: one autoencoder per layer, token kind and grid point, side by side in one program over a mesh."""

from __future__ import annotations

import numpy as np

from sbm_jax.axes import TOKEN_KIND
from sbm_jax.mesh import device_memory
from sbm_jax.processes import is_first
from sbm_jax.sae import trainer
from sbm_jax.sae.stack import Stack, points
from sbm_jax.sae.trainer import train
from sbm_jax.stages.context import Context
from sbm_jax.stages.image_sets import autoencoder_sets
from sbm_jax.stages.measure import measure
from sbm_jax.store.store import Store

_SHAPES = {
    "w_enc": "adu",
    "b_enc": "au",
    "w_dec": "aud",
    "b_dec": "ad",
    "mean": "ad",
    "scale": "a",
    "threshold": "au",
    "rate": "au",
    "magnitude": "au",
}


def stack_of(ctx: Context) -> Stack:
    """Every token kind that the encoded modes need, with every layer, at every point of the sweep."""
    kinds = dict.fromkeys(TOKEN_KIND[mode] for mode in ctx.config.sae_modes)
    return Stack(ctx.facts.hooks, tuple(kinds), points(ctx.config.train))


def run(ctx: Context) -> Store | None:
    """Write the store of autoencoders: `w_enc` [a, d, u], `b_enc`, `w_dec` [a, u, d], `b_dec`, `threshold` [a, u], `mean`,
    `scale`, `losses`, and of the held-out tokens `rate` and `magnitude` [a, u] (see `sae.metrics`). The first ones are those
    of the primary setting, which later stages use; the sweep's follow. Further dictionary sizes lie in `expansion<size>/`.

    Trained on images that are not shared, measured on the shared ones (`metrics.json`), so that nothing about the
    held-out images is learned; on all and measured on all where no image is shared, or every one. With several processes
    all train, and the first one writes.
    """
    stack, config = stack_of(ctx), ctx.config.train
    checkpoints = ctx.out / "checkpoints" / ctx.specs.saes.name
    images, _ = autoencoder_sets(ctx.dataset.images.shared)
    trained = train(ctx.activations, stack, images, config, ctx.all_devices, checkpoints)
    if not is_first():
        return None
    metrics, use = measure(ctx, stack, trained)
    writer = ctx.writer(ctx.specs.saes)
    for size, result, of_units in zip(stack.sizes, trained, use, strict=True):
        folder = "" if size == stack.sizes[0] else f"expansion{size}/"
        arrays = {**result.params._asdict(), **result.norm._asdict(), "threshold": result.threshold, **of_units}
        for name, dimensions in _SHAPES.items():
            writer.put(folder + name, np.asarray(arrays[name]), dimensions=tuple(dimensions))
        writer.put(f"{folder}losses", np.asarray(result.losses), dimensions=("step", "a"))
    writer.put_json("metrics.json", metrics)
    return writer.commit()


def dry_run(ctx: Context) -> list[str]:
    """What training will take of every device, as compiled. Raises UserError where it does not fit."""
    config, width = ctx.config.train, ctx.facts.width
    need = trainer.dry_run(stack_of(ctx), config, width, ctx.config.extract.dtype, ctx.all_devices)
    free = device_memory(ctx.all_devices)
    of = f" of {free / 1e9:.2f} GB free" if free is not None else ""
    return [f"train: {need}{of}, {len(ctx.all_devices)} x {ctx.all_devices[0].device_kind}"]
