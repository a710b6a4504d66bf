"""train: one autoencoder per layer, token kind and grid point, side by side in one program over a mesh."""

from __future__ import annotations

import numpy as np

from sbm_jax.axes import TOKEN_KIND
from sbm_jax.sae.metrics import RATE_BINS, held_out_metrics
from sbm_jax.sae.stack import Stack, points
from sbm_jax.sae.trainer import train
from sbm_jax.stages.context import Context
from sbm_jax.store.store import Store


def stack_of(ctx: Context) -> Stack:
    """Every token kind that the encoded modes need, with every layer, at every point of the sweep."""
    kinds = dict.fromkeys(TOKEN_KIND[mode] for mode in ctx.config.sae_modes)
    return Stack(ctx.facts.hooks, tuple(kinds), points(ctx.config.train))


def run(ctx: Context) -> Store:
    """Write the store of autoencoders: `w_enc` [a, d, u], `b_enc`, `w_dec` [a, u, d], `b_dec`, `threshold` [a, u], `mean`,
    `scale`, `losses`. The first ones are those of the primary setting, which later stages use; the sweep's follow.

    Trained on images that are not shared, measured on the shared ones (`metrics.json`), so that nothing about the
    held-out images is learned.
    """
    acts = ctx.open(ctx.specs.activations)
    stack = stack_of(ctx)
    shared = ctx.dataset.images.shared
    checkpoints = ctx.out / "checkpoints" / ctx.specs.saes.name
    config = ctx.config.train
    trained = train(acts, stack, np.flatnonzero(~shared), config, ctx.devices, checkpoints)
    writer = ctx.writer(ctx.specs.saes)
    shapes = {
        "w_enc": "adu",
        "b_enc": "au",
        "w_dec": "aud",
        "b_dec": "ad",
        "mean": "ad",
        "scale": "a",
        "threshold": "au",
    }
    arrays = {**trained.params._asdict(), **trained.norm._asdict(), "threshold": trained.threshold}
    for name, dimensions in shapes.items():
        writer.put(name, np.asarray(arrays[name]), dimensions=tuple(dimensions))
    writer.put("losses", np.asarray(trained.losses), dimensions=("step", "a"))
    writer.put_json(
        "metrics.json",
        {
            "members": held_out_metrics(acts, stack, np.flatnonzero(shared), trained),
            "rate_bins": RATE_BINS,
            "loss_steps": trained.loss_steps,
            "dead_in_training": np.mean(trained.silent >= config.dead_tokens, axis=1),
        },
    )
    return writer.commit()
