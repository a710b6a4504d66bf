"""Running lists of the images that drive units most, with the codes of their patches; and how often all units fire."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sbm_jax.kernels import topk_encode
from sbm_jax.sae.model import normalise
from sbm_jax.sae.objectives import final_codes
from sbm_jax.stages.exemplar_lists import Firing
from sbm_jax.stages.members import Code, Member

Score = Literal["max", "mean"]
_PAIRS = 512  # of image and unit, per device and call: their patch codes are gathered at once
_ORDERED = 256  # units whose heat maps are put in order at once
_HALF_MAX = float(np.finfo(np.float16).max)


class Codes(NamedTuple):
    """Codes of the tokens of a batch: the kept values and units [b, t, k] each; or, of objectives with any number of active
    units, values [b, t, u] alone.
    """

    values: jax.Array
    units: jax.Array | None


class Sums(NamedTuple):
    """Over the images of one device, float32 [1, u] each: images on which a unit fires, its largest code; tokens on which it
    fires, its codes and their squares added up. The last three are None for kept values, which the host adds up faster.
    """

    images: jax.Array
    largest: jax.Array
    tokens: jax.Array | None = None
    total: jax.Array | None = None
    square: jax.Array | None = None


@functools.lru_cache(maxsize=8)
def encode_batch(mesh: Mesh, code: Code, score: Score) -> Callable[..., tuple[jax.Array, Sums, Codes]]:
    """Jitted (member, x [b, t, d], real [b]) -> (scores [b, u] of the images, 0 where not real, `Sums` of each device, `Codes`).

    score: the maximum or the mean over tokens. Images are split over the mesh's `data` axis.
    """

    def local(member: Member, x_btd: jax.Array, real_b: jax.Array) -> tuple[jax.Array, Sums, Codes]:
        b, t, d = x_btd.shape
        u = member.params.b_enc.shape[0]
        x = normalise(member.norm, x_btd.reshape(1, b * t, d))[0]
        if code.any_number:
            z = final_codes(*code, member.params, member.threshold, x).reshape(b, t, u)
            z = jnp.where(real_b[:, None, None], z, 0.0)
            peak, total = z.max(axis=1), z.sum(axis=1)
            pooled = peak if score == "max" else total / t
            sums = _fired(peak)._replace(
                tokens=(z > 0).sum(axis=(0, 1), dtype=jnp.float32)[None],
                total=total.sum(axis=0)[None],
                square=(z * z).sum(axis=(0, 1))[None],
            )
            return pooled, sums, Codes(z, None)
        values, units = topk_encode(x, member.params.w_enc, member.params.b_enc, code.k)
        values, units = values.reshape(b, t * code.k), units.reshape(b, t * code.k)
        values = jnp.where(real_b[:, None], values, 0.0)
        rows, zero = jnp.arange(b)[:, None], jnp.zeros((b, u), jnp.float32)
        peak = zero.at[rows, units].max(values)
        pooled = peak if score == "max" else zero.at[rows, units].add(values / t)
        return pooled, _fired(peak), Codes(values.reshape(b, t, code.k), units.reshape(b, t, code.k))

    split = P("data")
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P(), split, split), out_specs=split, check_vma=False))


def _fired(peak_bu: jax.Array) -> Sums:
    return Sums((peak_bu > 0).sum(axis=0, dtype=jnp.float32)[None], peak_bu.max(axis=0)[None])


def heat_maps(mesh: Mesh, codes: Codes, image_m: np.ndarray, unit_m: np.ndarray, u: int) -> np.ndarray:
    """float16 [m, t]: the codes of all patches for pairs of an image (its place in the batch) and one of u units."""
    if codes.units is None:
        return _gathered(mesh, codes.values, image_m, unit_m)
    values, units = np.asarray(codes.values), np.asarray(codes.units)
    b, t, _ = values.shape
    pair = np.full((b, u), -1, np.int32)
    pair[image_m, unit_m] = np.arange(len(image_m))
    m_btk = np.take_along_axis(pair, units.reshape(b, -1), axis=1).reshape(units.shape)
    image, token, kept = np.nonzero((m_btk >= 0) & (values > 0))
    out = np.zeros((len(image_m), t), np.float16)
    out[m_btk[image, token, kept], token] = np.minimum(values[image, token, kept], _HALF_MAX)
    return out


def _gathered(mesh: Mesh, z: jax.Array, image_m: np.ndarray, unit_m: np.ndarray) -> np.ndarray:
    """`heat_maps` from codes z [b, t, u], which stay on the devices."""
    b, t, _ = z.shape
    own = b // mesh.size
    device = image_m // own
    out = np.empty((len(image_m), t), np.float16)
    queues = [np.flatnonzero(device == i) for i in range(mesh.size)]
    for start in range(0, max(map(len, queues)), _PAIRS):
        parts = [queue[start : start + _PAIRS] for queue in queues]
        image, unit = (np.zeros((mesh.size, _PAIRS), np.int32) for _ in range(2))
        for i, part in enumerate(parts):
            image[i, : len(part)], unit[i, : len(part)] = image_m[part] % own, unit_m[part]
        found = np.asarray(_patch_codes(mesh)(z, image.ravel(), unit.ravel()))
        for i, part in enumerate(parts):
            out[part] = found[i * _PAIRS : i * _PAIRS + len(part)]
    return out


@functools.lru_cache(maxsize=8)
def _patch_codes(mesh: Mesh) -> Callable[..., jax.Array]:
    """Jitted (z [b, t, u], image [m], unit [m]) -> float16 [m, t]; image: row within the device's own part of the batch."""

    def local(z_btu: jax.Array, image_m: jax.Array, unit_m: jax.Array) -> jax.Array:
        return jnp.minimum(z_btu[image_m, :, unit_m], _HALF_MAX).astype(jnp.float16)

    split = P("data")
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=split, out_specs=split, check_vma=False))


class Entered(NamedTuple):
    """Images that entered lists, [m] each: the image's place in the batch, the unit's row, and where its heat map belongs."""

    image: np.ndarray
    row: np.ndarray
    slot: np.ndarray


class TopLists:
    """The e images with the largest score of each of w units so far, strongest first, ties to the earlier image; only scores
    above 0 count. scores float32 [w, e] (0: no image), images int32 [w, e] (-1), heat float16 [w, e, t], in order after `sort`.
    """

    def __init__(self, w: int, e: int, t: int | None):
        self.scores = np.zeros((w, e), np.float32)
        self.images = np.full((w, e), -1, np.int32)
        # Heat maps stay where they were put, and their places are sorted instead.
        self.slots = np.tile(np.arange(e, dtype=np.int32), (w, 1))
        self.heat = None if t is None else np.zeros((w, e, t), np.float16)

    def take(self, first: int, scores_bw: np.ndarray) -> Entered:
        """Bring the scores of the images first, first + 1, ...; they must come after all before."""
        image, row = np.nonzero(scores_bw > self.scores[None, :, -1])
        order = np.argsort(row, kind="stable")
        image, row = image[order], row[order]
        rows, begins, counts = np.unique(row, return_index=True, return_counts=True)
        at = np.repeat(np.arange(len(rows)), counts)
        place = np.arange(len(row)) - np.repeat(begins, counts)
        e, widest = self.scores.shape[1], int(counts.max(initial=0))
        scores = np.zeros((len(rows), e + widest), np.float32)
        places = np.full(scores.shape, -1, np.int32)
        scores[:, :e] = self.scores[rows]
        scores[at, e + place], places[at, e + place] = scores_bw[image, row], image
        best = np.argsort(-scores, axis=1, kind="stable")[:, :e]
        fresh = best >= e
        stay = np.zeros(scores.shape, bool)
        np.put_along_axis(stay, best, True, axis=1)
        old = np.minimum(best, e - 1)
        slots = np.take_along_axis(self.slots[rows], old, axis=1)
        slots[fresh] = self.slots[rows][~stay[:, :e]]  # as many leave a unit's list as enter it
        entered = np.take_along_axis(places, best, axis=1)
        images = np.where(fresh, first + entered, np.take_along_axis(self.images[rows], old, axis=1))
        self.scores[rows] = np.take_along_axis(scores, best, axis=1)
        self.images[rows], self.slots[rows] = images, slots
        return Entered(entered[fresh], rows[np.nonzero(fresh)[0]], slots[fresh])

    def sort(self) -> None:
        """Put heat maps into the order of the lists."""
        if self.heat is not None:
            for start in range(0, len(self.slots), _ORDERED):
                part = slice(start, start + _ORDERED)
                self.heat[part] = np.take_along_axis(self.heat[part], self.slots[part][:, :, None], axis=1)
        self.slots[:] = np.arange(self.slots.shape[1])


def list_bytes(e: int, t: int | None) -> int:
    """Bytes of one unit's list."""
    return e * (12 + 2 * (t or 0))


class FiringSums:
    """Running `Sums` of all units in float64."""

    def __init__(self, u: int):
        self.sums = {name: np.zeros(u) for name in Sums._fields}

    def add(self, sums: Sums, codes: Codes) -> None:
        """One batch."""
        np.maximum(self.sums["largest"], np.asarray(sums.largest).max(axis=0), out=self.sums["largest"])
        parts = {name: part for name, part in sums._asdict().items() if name != "largest" and part is not None}
        for name, part in parts.items():
            self.sums[name] += np.asarray(part, np.float64).sum(axis=0)
        if codes.units is not None:
            values, units, u = (
                np.asarray(codes.values).ravel(),
                np.asarray(codes.units).ravel(),
                len(self.sums["total"]),
            )
            active = values > 0
            values, units = values[active].astype(np.float64), units[active]
            self.sums["tokens"] += np.bincount(units, minlength=u)
            self.sums["total"] += np.bincount(units, values, u)
            self.sums["square"] += np.bincount(units, values * values, u)

    def firing(self, n_images: int, n_tokens: int, decoder_ud: np.ndarray) -> Firing:
        """Rates and means over so many images and tokens."""
        sums = self.sums
        length = np.sum(decoder_ud.astype(np.float64) ** 2, axis=1)
        found = (
            sums["images"] / n_images,
            sums["tokens"] / n_tokens,
            sums["total"] / np.maximum(sums["tokens"], 1),
            sums["largest"],
            sums["square"] * length / n_tokens,
        )
        return Firing(*(x.astype(np.float32) for x in found))
