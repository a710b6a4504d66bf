"""Codes of a few units inside the jitted network, where cases of edits share one compiled program."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sbm_jax.sae.model import normalise
from sbm_jax.sae.objectives import final_codes
from sbm_jax.stages.members import Code, Member

_HIGHEST = jax.lax.Precision.HIGHEST
Kept = tuple[jax.Array, jax.Array]


def kept_codes(member: Member, k: int, x_btd: jax.Array) -> Kept:
    """Values [b, t, k] and units [b, t, k] of the k largest codes of every token: what `topk_encode` gives, by `lax.top_k`,
    which compiles in a fiftieth of the time; dictionaries are looked at for a few images here.
    """
    b, t, d = x_btd.shape
    x = normalise(member.norm, x_btd.reshape(1, b * t, d))[0]
    pre = jnp.einsum("nd,du->nu", x, member.params.w_enc, precision=_HIGHEST) + member.params.b_enc[None]
    values, units = jax.lax.top_k(pre, k)
    return jax.nn.relu(values).reshape(b, t, k), units.reshape(b, t, k)


def picked(kept: Kept, units_s: jax.Array) -> jax.Array:
    """Codes z [b, t, s] of some units: 0 where they are not among the kept ones."""
    values, units = kept
    same = units[..., None] == units_s[None, None, None]
    return jnp.sum(jnp.where(same, values[..., None], 0.0), axis=2)


def thresholded(member: Member, x_btd: jax.Array, units_s: jax.Array) -> jax.Array:
    """Codes z [b, t, s] of some units of an objective that cuts each unit by itself, so that no other unit is computed."""
    b, t, d = x_btd.shape
    x = normalise(member.norm, x_btd.reshape(1, b * t, d))[0]
    w_ds = jnp.take(member.params.w_enc, units_s, axis=1, mode="clip")
    bias_s, cut_s = (jnp.take(y, units_s, mode="clip") for y in (member.params.b_enc, member.threshold))
    pre = jnp.einsum("nd,ds->ns", x, w_ds, precision=_HIGHEST) + bias_s[None]
    return jnp.where(pre > cut_s[None], jax.nn.relu(pre), 0.0).reshape(b, t, -1)


def unit_codes(member: Member, code: Code, x_btd: jax.Array, units_s: jax.Array) -> jax.Array:
    """Codes z [b, t, s] of many different units; those beyond the dictionary are padding (of any value)."""
    if code.any_number:
        return thresholded(member, x_btd, units_s)
    values, units = kept_codes(member, code.k, x_btd)
    (b, t, _), s = values.shape, len(units_s)
    column_u = jnp.full(member.params.b_enc.shape[0], s, jnp.int32).at[units_s].set(jnp.arange(s), mode="drop")
    rows = jnp.arange(b * t)[:, None]
    columns = column_u[units.reshape(b * t, -1)]
    return jnp.zeros((b * t, s)).at[rows, columns].add(values.reshape(b * t, -1), mode="drop").reshape(b, t, s)


def added(member: Member, moved_bts: jax.Array, units_s: jax.Array) -> jax.Array:
    """sum_s moved w_dec[s] / scale, [b, t, d]: the difference of two reconstructions in the model's own units."""
    rows = jnp.take(member.params.w_dec, units_s, axis=0, mode="clip")
    return jnp.einsum("bts,sd->btd", moved_bts, rows, precision=_HIGHEST) / member.norm.scale[0]


def rebuilt(member: Member, code: Code, kept: Kept | None, x_btd: jax.Array, chosen_t: jax.Array) -> jax.Array:
    """x^ = mean + x'^ / scale at the chosen tokens, with x'^ the reconstruction (from the kept codes, where k are kept) in
    normalised coordinates.
    """

    def decoded(x_td: jax.Array) -> jax.Array:
        z_tu = final_codes(*code, member.params, member.threshold, normalise(member.norm, x_td[None])[0])
        return jnp.einsum("tu,ud->td", z_tu, member.params.w_dec, precision=_HIGHEST)

    def summed(kept: Kept) -> jax.Array:
        return jnp.einsum("tk,tkd->td", kept[0], member.params.w_dec[kept[1]], precision=_HIGHEST)

    # one image at a time: dense codes, or decoder rows of all tokens, of a batch would not fit
    x_hat = jax.lax.map(decoded, x_btd) if kept is None else jax.lax.map(summed, kept)
    x_hat = (x_hat + member.params.b_dec[None, None]) / member.norm.scale[0] + member.norm.mean[None]
    return jnp.where(chosen_t[None, :, None], x_hat, x_btd)
