"""exemplars: the images, and the patches in them, that drive each wanted unit most, in one pass over a probe set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sbm_jax.errors import UserError
from sbm_jax.mesh import make_mesh
from sbm_jax.progress import progress
from sbm_jax.sae.stream import array_name
from sbm_jax.stages.activations import one_ahead
from sbm_jax.stages.context import Context
from sbm_jax.stages.exemplar_lists import Firing
from sbm_jax.stages.exemplar_search import FiringSums, Score, TopLists, encode_batch, heat_maps, list_bytes
from sbm_jax.stages.members import Code, Member, member_numbers, read_member
from sbm_jax.stages.probe import STIMULI, Probe, open_probe
from sbm_jax.stages.wanted import wanted_units
from sbm_jax.store.store import Store, StoreWriter

_WORKING = 4  # the part of the budget that the codes of one batch may take
_SHARD_UNITS = 512


@dataclass
class Dictionary:
    """One autoencoder on its way through the probe set, and what is known of its units so far."""

    kind: str
    hook: str
    number: int
    why: np.ndarray
    patches: int

    @property
    def units(self) -> np.ndarray:
        return np.flatnonzero(self.why).astype(np.int32)

    @property
    def tokens(self) -> int:
        return self.patches if self.kind == "patch" else 1

    def bytes(self, e: int) -> int:
        """Of the lists of all wanted units and the sums of all."""
        return len(self.units) * list_bytes(e, self.patches if self.kind == "patch" else None) + 40 * len(self.why)


def run(ctx: Context) -> Store:
    """Write, per `KIND/HOOK/`, of the wanted units (`wanted.py`): `units` int32 [w], ascending; `why` uint8 [w]; `images` int32
    [w, e], rows of the probe set, strongest first and the earlier image first where equal, -1 where fewer images drive the
    unit; `scores` float32 [w, e], 0 there; for patches `heat` float16 [w, e, g, g], the code of every patch, rows from the top.
    Of all units, float32 [u]: the fields of `exemplar_lists.Firing`. `probe.json`: what the probe set is, and its `ids`.

    A score is the maximum or the mean over patches of the code (`exemplars.score`), or the code of the CLS token.
    Raises UserError for a unit that is not there, a picture that cannot be read, or lists beyond `exemplars.memory_mb`.
    """
    assert ctx.specs.exemplars is not None
    config, saes = ctx.config.exemplars, ctx.open(ctx.specs.saes)
    numbers, t = member_numbers(saes), ctx.facts.backbone.n_patches
    wanted = wanted_units(ctx, numbers)
    every = [Dictionary(*key, numbers[key], why, t) for key, why in wanted.items()]
    mesh = make_mesh({"data": len(ctx.devices)}, ctx.devices)
    code = Code(ctx.config.train.objective, ctx.config.train.k)
    budget = config.memory_mb << 20
    step = batch_images(config.batch, budget, t, len(every[0].why), mesh.size)
    probe = open_probe(ctx, step)
    step = even_parts(probe.block, step, mesh.size)
    writer = ctx.writer(ctx.specs.exemplars)
    groups = group(every[writer.cursor :], budget - budget // _WORKING, config.top)
    done = writer.cursor
    with progress("exemplars", len(probe.ids) * len(every), "images x dictionaries", len(probe.ids) * done) as task:
        for part in groups:
            members = {d.number: everywhere(read_member(saes, d.number), mesh) for d in part}
            found = search(probe, part, members, code, mesh, step, config.top, config.score, task.advance)
            for d, (lists, firing) in zip(part, found, strict=True):
                _write(writer, d, lists, firing)
            done += len(part)
            writer.advance(done)
    ctx.forget_activations()
    folder = "" if config.probe == STIMULI else config.probe
    writer.put_json(
        "probe.json",
        {
            "kind": "folder" if folder else STIMULI,
            "folder": folder,
            "images": len(probe.ids),
            "ids": probe.ids,
            "grid": _side(t),
            "score": config.score,
        },
    )
    return writer.commit()


def batch_images(most: int, budget: int, patches: int, units: int, devices: int) -> int:
    """Images at once, a multiple of the devices: at most `most`, and what a part of the budget holds of 12 bytes per token and unit
    (pre-activations, and what selects among them).
    """
    return max(1, min(-(-most // devices), budget // _WORKING // (12 * patches * units * devices))) * devices


def even_parts(block: int, step: int, devices: int) -> int:
    """The largest of the equal parts, at most `step` each, that a block is cut into; a multiple of the devices."""
    return -(-block // -(-block // step) // devices) * devices


def group(dictionaries: Sequence[Dictionary], budget: int, e: int) -> list[list[Dictionary]]:
    """Dictionaries of one pass after the other, as many as the budget holds. Raises UserError where one is too large."""
    out: list[list[Dictionary]] = []
    room = 0
    for d in dictionaries:
        size = d.bytes(e)
        if size > budget:
            need = -(-size * _WORKING // (_WORKING - 1)) >> 20
            raise UserError(
                f"exemplars: lists of {e} images of {len(d.units):,} units of {d.kind}/{d.hook} take {size / 2**20:,.0f} MiB, more "
                f"than exemplars.memory_mb allows. Set exemplars.memory_mb to at least {need + 1}, or lower exemplars.top."
            )
        if not out or size > room:
            out.append([])
            room = budget
        out[-1].append(d)
        room -= size
    return out


def search(
    probe: Probe,
    dictionaries: Sequence[Dictionary],
    members: dict[int, Member],
    code: Code,
    mesh: Mesh,
    step: int,
    e: int,
    score: Score,
    advance: Callable[[int], None] = lambda count: None,
) -> list[tuple[TopLists, Firing]]:
    """Lists of e images and firing statistics of the dictionaries, from one pass over the probe set in batches of `step`."""
    lists = [TopLists(len(d.units), e, d.patches if d.kind == "patch" else None) for d in dictionaries]
    sums = [FiringSums(len(d.why)) for d in dictionaries]
    encode = encode_batch(mesh, code, score)
    names, units = [array_name(d.hook, d.kind) for d in dictionaries], [d.units for d in dictionaries]

    def batches() -> Iterator[tuple[int, int, int, Any]]:
        for start, arrays in probe.blocks(names):
            for i, d in ((i, d) for i, d in enumerate(dictionaries) if names[i] in arrays):
                x_ntd = arrays[names[i]].reshape(-1, d.tokens, arrays[names[i]].shape[-1])
                for first in range(0, len(x_ntd), step):
                    x = x_ntd[first : first + step]
                    real = np.arange(step) < len(x)
                    x = np.pad(x, [(0, step - len(x)), (0, 0), (0, 0)])
                    yield i, start + first, int(real.sum()), encode(members[d.number], x, real)

    # the device computes one batch while the host sorts the one before
    for i, first, count, (scores, parts, codes) in one_ahead(batches()):
        sums[i].add(parts, codes)
        entered = lists[i].take(first, np.asarray(scores)[:count, units[i]])
        heat = lists[i].heat
        if heat is not None and len(entered.image):
            heat[entered.row, entered.slot] = heat_maps(
                mesh, codes, entered.image, units[i][entered.row], len(dictionaries[i].why)
            )
        advance(count)
    out, n = [], len(probe.ids)
    for d, found, total in zip(dictionaries, lists, sums, strict=True):
        found.sort()
        out.append((found, total.firing(n, n * d.tokens, np.asarray(members[d.number].params.w_dec))))
    return out


def everywhere(member: Member, mesh: Mesh) -> Member:
    """The autoencoder on every device."""
    return jax.device_put(member, NamedSharding(mesh, P()))


def _side(patches: int) -> int:
    return round(patches**0.5)


def _write(writer: StoreWriter, d: Dictionary, lists: TopLists, firing: Firing) -> None:
    base = f"{d.kind}/{d.hook}"
    for name, value, dimensions in (
        ("units", d.units, "w"),
        ("why", d.why[d.units], "w"),
        ("images", lists.images, "we"),
        ("scores", lists.scores, "we"),
    ):
        writer.put(f"{base}/{name}", value, dimensions=tuple(dimensions))
    if lists.heat is not None:
        heat = lists.heat.reshape(*lists.heat.shape[:2], _side(d.patches), _side(d.patches))
        shape = tuple(heat.shape)
        writer.create(f"{base}/heat", shape, "float16", shard_rows=_SHARD_UNITS, dimensions=("w", "e", "y", "x"))
        for start in range(0, len(heat), _SHARD_UNITS):
            writer.write(f"{base}/heat", start, heat[start : start + _SHARD_UNITS])
    for name, value in zip(Firing.__dataclass_fields__, astuple(firing), strict=True):
        writer.put(f"{base}/{name}", value, dimensions=("u",))
