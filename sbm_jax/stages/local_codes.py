"""Patch codes of some units seen through receptive fields, for one batch of images on all devices.

Nothing of the size images x tokens x dictionary is made: the codes of the wanted units alone are laid out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sbm_jax.kernels import topk_encode
from sbm_jax.sae.model import normalise
from sbm_jax.sae.objectives import final_codes
from sbm_jax.stages.members import Code, Member

_HIGHEST = jax.lax.Precision.HIGHEST


class Sums(NamedTuple):
    """Over the images of one device: mean of the pooled code; sums of what is left of it (x), of its square (xx), [g, c] by field
    and unit, and of its products with a response, [g, p] by field and pair (xy).
    """

    mean: jax.Array
    x: jax.Array
    xx: jax.Array
    xy: jax.Array


def wanted_codes(member: Member, code: Code, x_btd: jax.Array, units_c: jax.Array) -> jax.Array:
    """Codes z [b, t, c] of the units `units_c`; those beyond the dictionary are padding."""
    b, t, d = x_btd.shape
    if code.any_number:

        def image(x_td: jax.Array) -> jax.Array:
            z = final_codes(*code, member.params, member.threshold, normalise(member.norm, x_td[None])[0])
            return jnp.take(z, units_c, axis=1, mode="clip")

        return jax.lax.map(image, x_btd)  # one image at a time: codes of all tokens of a batch would not fit
    x = normalise(member.norm, x_btd.reshape(1, b * t, d))[0]
    values, units = topk_encode(x, member.params.w_enc, member.params.b_enc, code.k)
    c, u = len(units_c), member.params.b_enc.shape[0]
    column_u = jnp.full(u, c, jnp.int32).at[units_c].set(jnp.arange(c, dtype=jnp.int32), mode="drop")
    rows = jnp.arange(b * t)[:, None]
    return jnp.zeros((b * t, c), jnp.float32).at[rows, column_u[units]].add(values, mode="drop").reshape(b, t, c)


@functools.lru_cache(maxsize=8)
def pooled_sums(mesh: Mesh, code: Code) -> Callable[..., Sums]:
    """Jitted (member, x [b, t, d], units [c], fields [g, t], real [b], y [w, b], column [p], row [p]) -> `Sums` of each device,
    with a leading axis. Pair p is unit column[p] with response row[p]; real is 1 for images and 0 for padding, where y is 0.
    """

    def local(
        member: Member,
        x_btd: jax.Array,
        units_c: jax.Array,
        fields_gt: jax.Array,
        real_b: jax.Array,
        y_wb: jax.Array,
        column_p: jax.Array,
        row_p: jax.Array,
    ) -> Sums:
        z_btc = wanted_codes(member, code, x_btd, units_c)
        y_pb = y_wb[row_p]
        pooled_gcb = jnp.einsum("gt,btc->gcb", fields_gt, z_btc, precision=_HIGHEST)

        mean_gc = jnp.sum(pooled_gcb * real_b[None, None], axis=2) / jnp.maximum(real_b.sum(), 1)
        x_gcb = (pooled_gcb - mean_gc[:, :, None]) * real_b[None, None]
        # one field at a time: the codes of all pairs through all fields would not fit
        xy_gp = jax.lax.map(lambda x_cb: jnp.sum(x_cb[column_p] * y_pb, axis=1), x_gcb)
        sums = Sums(mean_gc, x_gcb.sum(axis=2), (x_gcb * x_gcb).sum(axis=2), xy_gp)
        return jax.tree.map(lambda a: a[None], sums)

    split = P("data")
    specs = (P(), split, P(), P(), split, P(None, "data"), P(), P())
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False))


@functools.lru_cache(maxsize=8)
def read_through(mesh: Mesh, code: Code) -> Callable[..., jax.Array]:
    """Jitted (member, x [b, t, d], units [c], column [p], weights [t, p]) -> sum over t of weights[t, p] z[b, t, column[p]],
    [b, p]: every pair sees its unit through a field of its own.
    """

    def local(
        member: Member, x_btd: jax.Array, units_c: jax.Array, column_p: jax.Array, weights_tp: jax.Array
    ) -> jax.Array:
        z_tcb = wanted_codes(member, code, x_btd, units_c).transpose(1, 2, 0)

        def patch(seen_pb: jax.Array, args: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            z_cb, weight_p = args
            return seen_pb + z_cb[column_p] * weight_p[:, None], None

        start = jnp.zeros((len(column_p), len(x_btd)), jnp.float32)
        return jax.lax.scan(patch, start, (z_tcb, weights_tp))[0].T

    split = P("data")
    specs = (P(), split, P(), P(), P())
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False))


def padded(values: np.ndarray, length: int, fill: int | float = 0) -> np.ndarray:
    """The last axis filled up to `length`, so that layers share one compiled program."""
    width = [(0, 0)] * (values.ndim - 1) + [(0, length - values.shape[-1])]
    return np.pad(values, width, constant_values=fill)
