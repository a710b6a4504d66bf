"""How good the autoencoders are on held-out tokens, by streaming sums (definitions in docs/methods.md)."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sbm_jax.sae.model import Norm, Params, decode, encode, normalise
from sbm_jax.sae.stream import array_name
from sbm_jax.sae.trainer import Stack, Trained
from sbm_jax.store.store import Store

DENSE = 0.01  # a unit that fires on more than 1 % of tokens (saev's definition)
_READ_IMAGES = 64


@functools.partial(jax.jit, static_argnames="k")
def _sums(norm: Norm, params: Params, x_raw: jax.Array, k: int) -> dict[str, jax.Array]:
    x = normalise(norm, x_raw)
    values, units = encode(params, x, k)
    residual = x - decode(params, values, units)
    u = params.b_enc.shape[1]
    fired = jax.vmap(lambda v, i: jnp.zeros(u, jnp.int32).at[i].add((v > 0).astype(jnp.int32)))(
        values.reshape(len(x), -1), units.reshape(len(x), -1)
    )
    return {
        "error": jnp.sum(residual**2, axis=(1, 2)),
        "square": jnp.sum(x**2, axis=(1, 2)),
        "total": jnp.sum(x, axis=1),
        "l0": jnp.sum(values > 0, axis=(1, 2)),
        "fired": fired,
    }


def held_out_metrics(store: Store, stack: Stack, images: np.ndarray, trained: Trained, k: int) -> list[dict[str, Any]]:
    """One record per autoencoder over all tokens of `images`.

    explained_variance: 1 - sum |x - x^|^2 / sum |x - mean x|^2, mean per dimension over the held-out tokens.
    l0: mean active units per token. dead: share of units that never fired on them. dense: share firing on > 1 %.
    """
    records = []
    for a, (kind, hook) in enumerate(stack.members):
        norm = Norm(*(jnp.asarray(x[a : a + 1]) for x in trained.norm))
        params = Params(*(jnp.asarray(x[a : a + 1]) for x in trained.params))
        sums: dict[str, np.ndarray] = {}
        tokens = 0
        for start in range(0, len(images), _READ_IMAGES):
            x = store.read(array_name(hook, kind), images[start : start + _READ_IMAGES])
            x = x.reshape(1, -1, x.shape[-1])
            tokens += x.shape[1]
            for name, value in jax.device_get(_sums(norm, params, x, k)).items():
                sums[name] = sums.get(name, 0.0) + np.asarray(value[0], np.float64)
        spread = sums["square"] - np.sum(sums["total"] ** 2) / tokens
        rate = sums["fired"] / tokens
        records.append(
            {
                "kind": kind,
                "hook": hook,
                "tokens": tokens,
                "explained_variance": float(1 - sums["error"] / spread),
                "l0": float(sums["l0"] / tokens),
                "dead": float(np.mean(rate == 0)),
                "dense": float(np.mean(rate > DENSE)),
                "final_loss": float(trained.losses[-1, a]),
            }
        )
    return records
