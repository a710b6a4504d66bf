"""Everything that is measured on trained autoencoders, as `metrics.json` has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sbm_jax.sae.metrics import MAGNITUDE_BINS, RATE_BINS, held_out_metrics
from sbm_jax.sae.seeds import seed_stability
from sbm_jax.sae.stack import Stack
from sbm_jax.sae.trainer import Trained
from sbm_jax.stages.context import Context
from sbm_jax.stages.fidelity import fidelity
from sbm_jax.stages.image_sets import autoencoder_sets


def measure(
    ctx: Context, stack: Stack, trained: Sequence[Trained]
) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
    """The content of `metrics.json`, and per dictionary size the arrays `rate` and `magnitude` [a, u] (see `sae.metrics`).

    trained: one result per dictionary size, as `trainer.train` gives them. Measured on the images of
    `image_sets.autoencoder_sets`: the shared ones alone where there are some.
    """
    config, (_, measured) = ctx.config.train, autoencoder_sets(ctx.dataset.images.shared)
    members: list[dict[str, Any]] = []
    stability: list[dict[str, Any]] = []
    arrays = []
    for part, result in zip(stack.by_size(), trained, strict=True):
        records = held_out_metrics(ctx.activations, part, measured, result)
        use = [record.pop("units") for record in records]
        arrays.append({name: np.stack([units[name] for units in use]) for name in ("rate", "magnitude")})
        stability += seed_stability(part, result.params, arrays[-1]["rate"] > 0)
        dead = np.mean(result.silent >= config.dead_tokens, axis=1)
        members += [record | {"dead_in_training": float(x)} for record, x in zip(records, dead, strict=True)]
    about, downstream = fidelity(ctx, stack, trained) if config.fidelity_images else (None, [None] * len(members))
    metrics = {
        "members": [member | {"fidelity": found} for member, found in zip(members, downstream, strict=True)],
        "rate_bins": RATE_BINS,
        "magnitude_bins": MAGNITUDE_BINS,
        "loss_steps": trained[0].loss_steps,
        "dead_tokens": config.dead_tokens,
        "stability": stability,
        "fidelity": about,
    }
    return metrics, arrays
