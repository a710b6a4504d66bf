"""How good the autoencoders are on held-out tokens, by streaming float64 sums (definitions in docs/methods.md)."""

from __future__ import annotations

import functools
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sbm_jax.sae.effective import effective_size
from sbm_jax.sae.model import Norm, Params, normalise
from sbm_jax.sae.objectives import final_codes
from sbm_jax.sae.over import PRECISION
from sbm_jax.sae.stack import Member, Stack
from sbm_jax.sae.stream import Activations, array_name
from sbm_jax.sae.trainer import Trained

DENSE = 0.01  # a unit that fires on more than 1 % of tokens (saev's definition)
RARE = 1e-9  # saev calls a unit dead below 1e-7 %; on fewer than 1e9 tokens that is one that never fires
_READ_IMAGES = 64
_WEIGHT_BYTES = 2 << 30  # of dictionaries that stay on the device while images are read
_CODES = 1 << 27  # dense codes at once: 512 MiB of float32
# Edges of the histograms over units; what lies beyond an end is counted in the last bin there.
RATE_BINS = np.linspace(-7, 0, 29)  # log10 firing rate, quarter decades
MAGNITUDE_BINS = np.linspace(-4, 4, 81)  # log10 mean code when active, tenths of decades


@functools.partial(jax.jit, static_argnames=("name", "k"))
def _sums(
    norm: Norm, params: Params, threshold_u: jax.Array, x_raw: jax.Array, name: str, k: int
) -> dict[str, jax.Array]:
    x = normalise(norm, x_raw[None])[0]
    z = final_codes(name, k, params, threshold_u, x)
    x_hat = jnp.einsum("bu,ud->bd", z, params.w_dec, precision=PRECISION) + params.b_dec[None]
    residual = x - x_hat
    active = z > 0
    size, length = jnp.linalg.norm(x, axis=1), jnp.linalg.norm(x_hat, axis=1)
    cosine = jnp.sum(x * x_hat, axis=1) / jnp.maximum(size * length, 1e-12)
    return {
        "error": jnp.sum(residual**2, axis=0),
        "square": jnp.sum(x**2, axis=0),
        "total": jnp.sum(x, axis=0),
        "relative": jnp.sum(jnp.sum(residual**2, axis=1) / jnp.maximum(size**2, 1e-12)),
        "cosine": jnp.sum(cosine),
        "l0": jnp.sum(active),
        "l1": jnp.sum(z),
        "fired": jnp.sum(active, axis=0, dtype=jnp.int32),
        "mass": jnp.sum(z, axis=0),
    }


def held_out_metrics(acts: Activations, stack: Stack, images: np.ndarray, trained: Trained) -> list[dict[str, Any]]:
    """One record per member over all tokens of `images`; x is normalised (see `model`).

    mse: mean of (x - x^)^2 over tokens and dimensions. normalised_mse: mean over tokens of |x - x^|^2 / |x|^2.
    explained_variance: 1 - sum |x - x^|^2 / sum |x - mean x|^2, mean per dimension over the held-out tokens.
    explained_variance_per_dimension: mean over dimensions of the same within a dimension. cosine: mean over tokens.
    l0: mean active units per token. l1: mean sum of codes. dead: share of units that never fired on these tokens. dense:
    share firing on > 1 %. effective_units: exp of the entropy of the units' shares of all code mass. rates, magnitudes:
    histograms over units that fired of log10 of the rate and of the mean code when active (saev's mean_values).
    units: arrays float32 [u] `rate` (share of tokens) and `magnitude` (that mean; 0 for a unit that never fired).
    """
    sums: list[dict[str, np.ndarray]] = [{} for _ in stack.members]
    tokens = [0] * len(stack.members)
    most = max(256, _CODES // trained.params.b_enc.shape[1])

    def on_device(a: int) -> tuple[Norm, Params, jax.Array]:
        norm = Norm(*(jnp.asarray(x[a : a + 1]) for x in trained.norm))
        return norm, Params(*(jnp.asarray(x[a]) for x in trained.params[:4])), jnp.asarray(trained.threshold[a])

    size = sum(np.asarray(x)[0].nbytes for x in trained.params[:4])
    member_arrays = functools.lru_cache(maxsize=max(1, _WEIGHT_BYTES // size))(on_device)
    # Images outermost: activations that are computed when asked for are then computed once.
    for start in range(0, len(images), _READ_IMAGES):
        rows = images[start : start + _READ_IMAGES]
        read = functools.cache(lambda hook, kind, rows=rows: _flat(acts.read(array_name(hook, kind), rows)))
        for a, member in enumerate(stack.members):
            norm, params, threshold = member_arrays(a)
            x = read(member.hook, member.kind)
            tokens[a] += len(x)
            for first in range(0, len(x), most):
                block = x[first : first + most]
                part = _sums(norm, params, threshold, block, member.point.objective, member.point.k)
                for name, value in jax.device_get(part).items():
                    sums[a][name] = sums[a].get(name, 0.0) + np.asarray(value, np.float64)
    return [
        _record(member, sums[a], tokens[a]) | {"final_loss": float(trained.losses[-1, a])}
        for a, member in enumerate(stack.members)
    ]


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


def _record(member: Member, sums: dict[str, np.ndarray], tokens: int) -> dict[str, Any]:
    d = len(sums["error"])
    spread = sums["square"] - sums["total"] ** 2 / tokens
    rate = sums["fired"] / tokens
    magnitude = sums["mass"] / np.maximum(sums["fired"], 1)
    return {
        **member_key(member),
        "tokens": tokens,
        "mse": float(sums["error"].sum() / (tokens * d)),
        "normalised_mse": float(sums["relative"] / tokens),
        "explained_variance": float(1 - sums["error"].sum() / spread.sum()),
        "explained_variance_per_dimension": float(
            np.mean(1 - sums["error"] / np.maximum(spread, 1e-12 * spread.max()))
        ),
        "cosine": float(sums["cosine"] / tokens),
        "l0": float(sums["l0"] / tokens),
        "l1": float(sums["l1"] / tokens),
        "dead": float(np.mean(rate <= RARE)),
        "dense": float(np.mean(rate > DENSE)),
        "effective_units": float(effective_size(sums["mass"])["entropy"]) if sums["mass"].any() else 0.0,
        "rates": log_histogram(rate, RATE_BINS),
        "magnitudes": log_histogram(magnitude, MAGNITUDE_BINS),
        "units": {"rate": rate.astype(np.float32), "magnitude": magnitude.astype(np.float32)},
    }


def member_key(member: Member) -> dict[str, Any]:
    """What tells an autoencoder of a run from the others: kind, hook, and the settings of its point."""
    return {"kind": member.kind, "hook": member.hook, **asdict(member.point)}


def log_histogram(values_u: np.ndarray, edges: np.ndarray) -> list[int]:
    """Counts of log10 of the positive values between the edges; values beyond an end are counted in the bin there."""
    logs = np.log10(values_u[values_u > 0])
    return np.histogram(np.clip(logs, edges[0], edges[-1]), bins=edges)[0].tolist()
