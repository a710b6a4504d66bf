"""train: one TopK autoencoder per layer and token kind, all in one jitted program over a mesh."""

from __future__ import annotations

import numpy as np

from sbm_jax.axes import TOKEN_KIND
from sbm_jax.sae.metrics import held_out_metrics
from sbm_jax.sae.trainer import Stack, train
from sbm_jax.stages.context import Context
from sbm_jax.store.store import Store


def stack_of(ctx: Context) -> Stack:
    """Every token kind that the encoded modes need, with every layer."""
    kinds = dict.fromkeys(TOKEN_KIND[mode] for mode in ctx.config.sae_modes)
    return Stack(ctx.facts.hooks, tuple(kinds))


def run(ctx: Context) -> Store:
    """Write the store of autoencoders: `w_enc` [a, d, u], `b_enc`, `w_dec` [a, u, d], `b_dec`, `mean`, `scale`, `losses`.

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
    shapes = {"w_enc": "adu", "b_enc": "au", "w_dec": "aud", "b_dec": "ad", "mean": "ad", "scale": "a"}
    for name, value in {**trained.params._asdict(), **trained.norm._asdict()}.items():
        writer.put(name, np.asarray(value), dimensions=tuple(shapes[name]))
    writer.put("losses", np.asarray(trained.losses), dimensions=("step", "a"))
    writer.put_json(
        "metrics.json",
        {
            "members": held_out_metrics(acts, stack, np.flatnonzero(shared), trained, config.k),
            "loss_steps": trained.loss_steps,
            "dead_in_training": np.mean(trained.silent >= config.dead_tokens, axis=1),
        },
    )
    return writer.commit()
