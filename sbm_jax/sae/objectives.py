"""What an autoencoder minimises: one small pure function per objective, for one autoencoder, vmapped over the stack.

All read normalised tokens x [b, d] and give `Terms`. Letters as in `sbm_jax/axes.py`; lam is the weight of sparsity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from sbm_jax.kernels import topk_autoencode, topk_encode
from sbm_jax.kernels.select import top_k
from sbm_jax.sae.model import Params, decoder_rows
from sbm_jax.sae.over import Over, product

Name = Literal["topk", "batch_topk", "jumprelu", "relu", "tied_relu", "matryoshka", "archetypal"]
# Shares of the dictionary in the nested prefixes (Bussmann et al. 2025 use five, each about twice the one before).
PREFIXES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
BANDWIDTH = 0.001  # of JumpReLU's pseudo-derivative (Rajamanoharan et al. 2024, section 4)
_HALVINGS = 24  # of the search for BatchTopK's threshold: to 6e-8 of the largest code


class Terms(NamedTuple):
    """One autoencoder on one batch: residual [b, d], loss (a scalar; the auxiliary loss comes on top), how often each unit
    fired [u], the cut below which codes are 0 (BatchTopK's; 0 elsewhere).
    """

    residual: jax.Array
    loss: jax.Array
    fired: jax.Array
    cut: jax.Array


@dataclass(frozen=True)
class Objective:
    """How an objective differs: unit_rows (decoder rows are kept at norm 1), tied (the encoder is the decoder's transpose),
    uses_k, dense (a token may have any number of active units), revives (dead units take part in the auxiliary loss).
    """

    terms: Callable[..., Terms]
    unit_rows: bool = True
    tied: bool = False
    uses_k: bool = True
    dense: bool = False
    revives: bool = True


def pre_activations(params: Params, x_bd: jax.Array, dtype: str = "float32") -> jax.Array:
    """x w_enc + b_enc, float32 [b, u]."""
    return product(dtype, x_bd, params.w_enc) + params.b_enc[None]


def scattered(values_bk: jax.Array, units_bk: jax.Array, u: int) -> jax.Array:
    """Codes as [b, u]; for one batch inside the step only."""
    rows = jnp.arange(values_bk.shape[0])[:, None]
    return jnp.zeros((values_bk.shape[0], u), values_bk.dtype).at[rows, units_bk].add(values_bk)


def largest(pre_bu: jax.Array, k: int, over: Over) -> jax.Array:
    """The k largest pre-activations of each token over the whole dictionary, negative ones and all others 0: [b, u]."""
    u = pre_bu.shape[1]
    values, units = top_k(pre_bu, min(k, u))
    values = jnp.where(jnp.isfinite(values), jax.nn.relu(values), 0.0)
    if over.parts > 1:
        values = jnp.where(over.among_best(jax.lax.stop_gradient(values), k), values, 0.0)
    return scattered(values, units, u)


def decoded(params: Params, z_bu: jax.Array, over: Over) -> jax.Array:
    """Reconstruction without bias [b, d]."""
    return over.total(product(over.dtype, z_bu, decoder_rows(params)))


def _residual(params: Params, x_bd: jax.Array, z_bu: jax.Array, over: Over) -> jax.Array:
    return x_bd - (decoded(params, z_bu, over) + params.b_dec[None])


def _fired(z_bu: jax.Array) -> jax.Array:
    return jnp.sum(z_bu > 0, axis=0, dtype=jnp.int32)


def _mse(residual_bd: jax.Array) -> jax.Array:
    return jnp.mean(residual_bd**2)


def topk(params: Params, x_bd: jax.Array, k: int, lam: jax.Array, over: Over) -> Terms:
    """MSE with the k largest pre-activations, negative ones set to 0 (Gao et al. 2024, arXiv 2406.04093)."""
    # On a CPU active rows alone are touched; on accelerators dense products on the masked codes are faster than gathers.
    plain = params.mix is None and over.parts == 1 and over.dtype == "float32"
    if plain and jax.default_backend() == "cpu":
        x_hat, values, units = topk_autoencode(x_bd, params.w_enc, params.b_enc, params.w_dec, params.b_dec, k)
        fired = jnp.zeros(params.b_enc.shape, jnp.int32).at[units].add((values > 0).astype(jnp.int32))
        residual = x_bd - x_hat
        return Terms(residual, _mse(residual), fired, jnp.zeros(()))
    z = largest(pre_activations(params, x_bd, over.dtype), k, over)
    residual = _residual(params, x_bd, z, over)
    return Terms(residual, _mse(residual), _fired(z), jnp.zeros(()))


def batch_topk(params: Params, x_bd: jax.Array, k: int, lam: jax.Array, over: Over) -> Terms:
    """MSE with the k b largest codes of the whole batch, so that tokens share them as they need (Bussmann et al. 2024,
    arXiv 2412.06410). The cut is found by halving an interval, which needs counts alone and so gives the same codes on any
    mesh; codes equal to the cut are left out.
    """
    pre = jax.nn.relu(pre_activations(params, x_bd, over.dtype))
    cut = batch_cut(jax.lax.stop_gradient(pre), k, over)
    z = jnp.where(pre > cut, pre, 0.0)
    residual = _residual(params, x_bd, z, over)
    return Terms(residual, _mse(residual), _fired(z), cut)


def batch_cut(z_bu: jax.Array, k: int, over: Over) -> jax.Array:
    """The smallest cut found with at most k codes per token above it on average, 0 if all codes are that few."""

    def too_many(cut: jax.Array) -> jax.Array:
        return over.mean(jnp.mean(over.total(jnp.sum(z_bu > cut, axis=1, dtype=jnp.float32)))) > k

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        many = too_many(middle)
        return jnp.where(many, middle, low), jnp.where(many, high, middle)

    zero = jnp.zeros(())
    _, high = jax.lax.fori_loop(0, _HALVINGS, halve, (zero, over.max(jnp.max(z_bu))))
    return jnp.where(too_many(zero), high, 0.0)


def relu(params: Params, x_bd: jax.Array, k: int, lam: jax.Array, over: Over) -> Terms:
    """MSE + lam mean_b sum_u z / d (Bricken et al. 2023); decoder rows have norm 1, so that codes cannot shrink for free."""
    z = jax.nn.relu(pre_activations(params, x_bd, over.dtype))
    residual = _residual(params, x_bd, z, over)
    sparsity = jnp.mean(over.total(jnp.sum(z, axis=1))) / x_bd.shape[1]
    return Terms(residual, _mse(residual) + lam * sparsity, _fired(z), jnp.zeros(()))


def tied_relu(params: Params, x_bd: jax.Array, k: int, lam: jax.Array, over: Over) -> Terms:
    """mean_b |x - x^|^2 / |x|^2 + lam mean_b sum_u z / |x|, encoder = decoder transposed (SAEs-BrainMap, arXiv 2506.11123:
    lam = 0.00086). Rows are free.
    """
    rows = params.w_dec
    z = jax.nn.relu(product(over.dtype, x_bd, rows.T) + params.b_enc[None])
    residual = _residual(params, x_bd, z, over)
    square = jnp.sum(x_bd**2, axis=1) + 1e-12
    error = jnp.mean(jnp.sum(residual**2, axis=1) / square)
    sparsity = jnp.mean(over.total(jnp.sum(z, axis=1)) / jnp.sqrt(square))
    return Terms(residual, error + lam * sparsity, _fired(z), jnp.zeros(()))


def matryoshka(params: Params, x_bd: jax.Array, k: int, lam: jax.Array, over: Over) -> Terms:
    """Mean over nested prefixes of the dictionary of the MSE with the TopK codes inside the prefix (Bussmann et al. 2025,
    arXiv 2503.17547, with TopK instead of BatchTopK). Each prefix adds its block to the reconstruction before it.
    """
    u = params.b_enc.shape[0]
    z = largest(pre_activations(params, x_bd, over.dtype), k, over)
    rows, ends = decoder_rows(params), prefix_ends(u * over.parts)
    x_hat, first, total = jnp.broadcast_to(params.b_dec[None], x_bd.shape), 0, jnp.zeros(())
    for last in ends:
        if over.parts == 1:
            part = product(over.dtype, z[:, first:last], rows[first:last])
        else:
            at = over.positions(u)
            part = over.total(product(over.dtype, jnp.where(((at >= first) & (at < last))[None], z, 0.0), rows))
        x_hat = x_hat + part
        total, first = total + _mse(x_bd - x_hat), last
    return Terms(x_bd - x_hat, total / len(ends), _fired(z), jnp.zeros(()))


def prefix_ends(u: int) -> tuple[int, ...]:
    """Sizes of the nested prefixes of a dictionary of u units, the last one all of it."""
    return tuple(sorted({max(1, round(u * share)) for share in PREFIXES}))


@jax.custom_vjp
def _jump(pre: jax.Array, threshold: jax.Array) -> jax.Array:
    return jnp.where(pre > threshold[None], pre, 0.0)


def _jump_forward(pre: jax.Array, threshold: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _jump(pre, threshold), (pre, threshold)


def _near(pre: jax.Array, threshold: jax.Array) -> jax.Array:
    """The rectangle kernel of width BANDWIDTH around the threshold, of integral 1."""
    return (jnp.abs(pre - threshold[None]) < BANDWIDTH / 2).astype(pre.dtype) / BANDWIDTH


def _jump_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    pre, threshold = saved
    return jnp.where(pre > threshold[None], g, 0.0), -threshold * jnp.sum(_near(pre, threshold) * g, axis=0)


_jump.defvjp(_jump_forward, _jump_backward)


@jax.custom_vjp
def _step(pre: jax.Array, threshold: jax.Array) -> jax.Array:
    return (pre > threshold[None]).astype(pre.dtype)


def _step_forward(pre: jax.Array, threshold: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _step(pre, threshold), (pre, threshold)


def _step_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    pre, threshold = saved
    return jnp.zeros_like(pre), jnp.sum(-_near(pre, threshold) * g, axis=0)


_step.defvjp(_step_forward, _step_backward)


def jumprelu(params: Params, x_bd: jax.Array, k: int, lam: jax.Array, over: Over) -> Terms:
    """MSE + lam mean_b L0 / d with z = pre where pre > threshold_u, thresholds learned through a rectangle kernel
    (Rajamanoharan et al. 2024, arXiv 2407.14435). Thresholds are kept positive as exp of the parameter.
    """
    assert params.threshold is not None
    threshold = jnp.exp(params.threshold)
    pre = jax.nn.relu(pre_activations(params, x_bd, over.dtype))
    z = _jump(pre, threshold)
    residual = _residual(params, x_bd, z, over)
    l0 = jnp.mean(over.total(jnp.sum(_step(pre, threshold), axis=1)))
    return Terms(residual, _mse(residual) + lam * l0 / x_bd.shape[1], _fired(z), jnp.zeros(()))


OBJECTIVES: dict[str, Objective] = {
    "topk": Objective(topk),
    "batch_topk": Objective(batch_topk, dense=True),
    "matryoshka": Objective(matryoshka),
    # The same codes and loss; what differs is that decoder_rows mixes data points (model.py).
    "archetypal": Objective(topk, unit_rows=False),
    "relu": Objective(relu, uses_k=False, dense=True, revives=False),
    "tied_relu": Objective(tied_relu, unit_rows=False, tied=True, uses_k=False, dense=True, revives=False),
    "jumprelu": Objective(jumprelu, uses_k=False, dense=True, revives=False),
}


def final_codes(name: str, k: int, params: Params, threshold_u: jax.Array, x_bd: jax.Array) -> jax.Array:
    """Codes z [b, u] of a trained autoencoder, token by token: k a token, or what lies above the threshold.

    BatchTopK uses the running mean of its cuts, so that the codes of a token do not depend on the rest of the batch.
    """
    if not OBJECTIVES[name].dense:
        values, units = topk_encode(x_bd, params.w_enc, params.b_enc, k)
        return scattered(values, units, params.b_enc.shape[0])
    pre = pre_activations(params, x_bd)
    return jnp.where(pre > threshold_u[None], jax.nn.relu(pre), 0.0)
