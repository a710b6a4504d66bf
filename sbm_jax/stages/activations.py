"""Activations of the run's images: the forward pass that `extract` stores, and the same numbers computed when asked for."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sbm_jax.backbones import Backbone, forward, load_backbone
from sbm_jax.backbones.untrained import untrained_twin
from sbm_jax.errors import UserError
from sbm_jax.images.batches import square_batches
from sbm_jax.mesh import make_mesh
from sbm_jax.sae.stream import array_name, read_many
from sbm_jax.stages.facts import token_kinds
from sbm_jax.stages.online import rooms, used_kinds
from sbm_jax.stages.pictures import geometry_of

if TYPE_CHECKING:
    from sbm_jax.images.sources import ImageSource
    from sbm_jax.stages.context import Context

Arrays = dict[str, np.ndarray]
Computed = dict[str, jax.Array]
Compute = Callable[[np.ndarray], tuple[Computed, jax.Array]]
T = TypeVar("T")
_AT_HAND = 512  # images; of more, all arrays may not fit into memory


class ForwardPass:
    """The backbone, and where its tokens are asked for its untrained twin, over the images of a run, by row.

    arrays: shape and dtype of every activation array, by its name in the store; batch: images per step.
    Every step has one shape (short batches are padded), whatever images are asked for.
    """

    def __init__(self, ctx: Context, sources: Sequence[ImageSource] | None = None):
        """sources: other pictures than the run's, of which the untrained twin is not asked."""
        facts, config = ctx.facts, ctx.config.extract
        self.sources: Sequence[ImageSource] = ctx.dataset.images.sources if sources is None else sources
        self.hooks, self.dtype = facts.hooks, config.dtype
        backbone = load_backbone(facts.backbone.path, facts.backbone.image_size, ctx.config.backbone.dtype)
        mesh = make_mesh({"data": len(ctx.devices)}, ctx.devices)
        self.batch = -(-config.batch // mesh.size) * mesh.size
        self.geometry = geometry_of(ctx, backbone)
        self.arrays = array_shapes(ctx)
        self._compute = activations_function(backbone, self.hooks, self.dtype, mesh)
        self._twin: Compute | None = None
        if sources is None and "untrained" in token_kinds(ctx.config, facts):
            twin = untrained_twin(backbone, ctx.config.encode.seed)
            self._twin = _named_untrained(activations_function(twin, self.hooks, self.dtype, mesh), self.hooks)

    def blocks(self, rows_n: Sequence[int] | np.ndarray, names: Iterable[str]) -> Iterator[tuple[slice, Arrays]]:
        """(places in `rows_n`, {name: activations of those images}) per step; the next step runs meanwhile. A backbone of
        which no array is wanted does not run.

        Raises UserError for an unreadable image, or activations that are not finite in the store's dtype.
        """
        sources, done = [self.sources[row] for row in rows_n], 0
        names = list(names)
        kinds = {_kind(name) for name in names}
        functions = [self._compute] if kinds - {"untrained"} else []
        if "untrained" in kinds and self._twin is not None:
            functions.append(self._twin)
        for count, out, finite in one_ahead(self._steps(sources, functions)):
            block = slice(done, done + count)
            _check_finite(np.asarray(finite)[:count], self.hooks, sources[block], self.dtype)
            yield block, {name: np.asarray(out[name])[:count] for name in names}
            done += count

    def _steps(self, sources: Sequence, functions: Sequence[Compute]) -> Iterator[tuple[int, Computed, jax.Array]]:
        for pixels in square_batches(sources, self.geometry, self.batch):
            padded = np.pad(pixels, [(0, self.batch - len(pixels)), (0, 0), (0, 0), (0, 0)])
            found = [function(padded) for function in functions]
            finite = functools.reduce(jnp.logical_and, (finite for _, finite in found))
            yield len(pixels), {name: x for out, _ in found for name, x in out.items()}, finite


class OnlineActivations:
    """Reads like the activation store that `extract` would have made, but computes: nothing is on disk.

    In memory are the images of the last `read`, with all arrays that the run uses, since callers ask for those next; and the
    first images that were computed, as many as `extract.memory_mb` holds: CLS tokens before patch tokens, which cost the same
    forward pass and take t times the room.
    """

    def __init__(self, ctx: Context):
        self.forward = ForwardPass(ctx)
        self.kept: dict[str, Kept] = {}
        for kind, room in rooms(ctx).items():
            arrays = {name: x for name, x in self.forward.arrays.items() if _kind(name) == kind}
            self.kept[kind] = Kept(arrays, room)
        used = used_kinds(ctx)
        self.used = [name for name in self.forward.arrays if _kind(name) in used]
        self._last: tuple[np.ndarray, Arrays] | None = None

    def array(self, name: str) -> jax.ShapeDtypeStruct:
        """Shape and dtype of an array."""
        return self.forward.arrays[name]

    def read(self, name: str, rows: slice | np.ndarray | None = None) -> np.ndarray:
        """Rows of an array (None: all). Of a few images, the other arrays are then at hand until other rows are read."""
        shape = self.array(name).shape
        rows_n = np.arange(shape[0])[slice(None) if rows is None else rows]
        if self._last is not None and name in self._last[1] and np.array_equal(self._last[0], rows_n):
            return self._last[1][name]
        if len(rows_n) == 0:
            return np.empty((0, *shape[1:]), self.array(name).dtype)
        if len(rows_n) > _AT_HAND or name not in self.used:
            return read_many(self, [name], rows_n)[name]
        self._last = rows_n, read_many(self, self.used, rows_n)
        return self._last[1][name]

    def parts(self, names: Sequence[str], rows: np.ndarray) -> Iterator[tuple[np.ndarray, Arrays]]:
        """Pieces (places in `rows`, {name: values}) that together hold all names at all rows; may be called by threads.

        Each image that is not kept goes through the backbone once.
        """
        self._last = None  # whoever read those rows goes on to others
        kinds = {_kind(name) for name in names}
        known = np.logical_and.reduce([self.kept[kind].has(rows) for kind in kinds])
        places = np.flatnonzero(known)
        for name in names if len(places) else ():
            yield places, {name: self.kept[_kind(name)].take(name, rows[places])}
        places = np.flatnonzero(~known)
        if not len(places):
            return
        keeping = [kept for kept in self.kept.values() if not kept.full]
        wanted = dict.fromkeys([*names, *(name for kept in keeping for name in kept.arrays)])
        for block, values in self.forward.blocks(rows[places], wanted):
            for kept in keeping:
                kept.put(rows[places[block]], values)
            yield places[block], {name: values[name] for name in names}


class Kept:
    """Rows of some arrays (equal row counts) in memory: the first `capacity` that are put."""

    def __init__(self, arrays: dict[str, jax.ShapeDtypeStruct], capacity: int):
        n = next(iter(arrays.values())).shape[0]
        self.capacity = capacity
        # Pages that are never written take no memory.
        self.arrays = {name: np.empty((self.capacity, *x.shape[1:]), x.dtype) for name, x in arrays.items()}
        self._place_n = np.full(n, -1)
        self._used = 0
        self._lock = threading.Lock()

    @property
    def full(self) -> bool:
        return self._used == self.capacity

    def has(self, rows: np.ndarray) -> np.ndarray:
        """Which rows can be taken, boolean."""
        return self._place_n[rows] >= 0

    def take(self, name: str, rows: np.ndarray) -> np.ndarray:
        """A copy of rows that are kept."""
        return self.arrays[name][self._place_n[rows]]

    def put(self, rows: np.ndarray, values: Arrays) -> None:
        """Keep what is new and fits; `values` may hold other arrays too."""
        with self._lock:
            new = np.flatnonzero(~self.has(rows))[: self.capacity - self._used]
            end = self._used + len(new)
            for name, array in self.arrays.items():
                array[self._used : end] = values[name][new]
            self._place_n[rows[new]] = np.arange(self._used, end)  # last: other threads look here first
            self._used = end


def array_shapes(ctx: Context) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every array of the activation store: per hook `cls` [n, d] (if there is one), `patch` [n, t, d] and,
    where they are asked for, the patch tokens of the untrained backbone, `untrained` [n, t, d].
    """
    backbone, n = ctx.facts.backbone, ctx.facts.n_images
    out = {}
    for hook in ctx.facts.hooks:
        width = backbone.hook_shape(hook)[1]
        for kind in token_kinds(ctx.config, ctx.facts):
            shape = (n, width) if kind == "cls" else (n, backbone.n_patches, width)
            out[array_name(hook, kind)] = jax.ShapeDtypeStruct(shape, ctx.config.extract.dtype)
    return out


def _kind(name: str) -> str:
    return name.rsplit("/", 1)[1]


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, each when the next has been started, so that the device computes while the host copies."""
    held: list[T] = []
    for item in items:
        held.append(item)
        if len(held) == 2:
            yield held.pop(0)
    yield from held


def activations_function(backbone: Backbone, hooks: tuple[str, ...], dtype: str, mesh: jax.sharding.Mesh) -> Compute:
    """Jitted uint8 [b, s, s, 3] -> ({`hook/cls`: [b, d], `hook/patch`: [b, t, d]}, finite [b, hooks]).

    The batch is split over the mesh's `data` axis; the model is on every device. Nothing is communicated, so that it may run
    beside a training step that another thread started.
    """
    mean = jnp.asarray(backbone.mean, jnp.float32)[None, None, None]
    std = jnp.asarray(backbone.std, jnp.float32)[None, None, None]
    split = NamedSharding(mesh, P("data"))

    cls, prefix = backbone.has_cls, backbone.prefix_tokens

    @jax.jit
    def compute(model, pixels: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        x = (pixels.astype(jnp.float32) / 255.0 - mean) / std
        acts = {hook: x.astype(dtype) for hook, x in forward(model, x, hooks).items()}
        out = {array_name(hook, "cls"): x[:, 0] for hook, x in acts.items()} if cls else {}
        out |= {array_name(hook, "patch"): x[:, prefix:] for hook, x in acts.items()}
        finite = jnp.stack([jnp.isfinite(acts[hook]).all(axis=(1, 2)) for hook in hooks], axis=1)
        return jax.lax.with_sharding_constraint((out, finite), split)

    model = jax.device_put(backbone.model, NamedSharding(mesh, P()))
    return lambda pixels: compute(model, jax.device_put(pixels, split))


def _named_untrained(function: Compute, hooks: tuple[str, ...]) -> Compute:
    """The patch tokens of an untrained backbone under their own names."""

    def compute(pixels: np.ndarray) -> tuple[Computed, jax.Array]:
        out, finite = function(pixels)
        return {array_name(hook, "untrained"): out[array_name(hook, "patch")] for hook in hooks}, finite

    return compute


def _check_finite(finite_bl: np.ndarray, hooks: tuple[str, ...], files: Sequence, dtype: str) -> None:
    if finite_bl.all():
        return
    row, layer = np.argwhere(~finite_bl)[0]
    raise UserError(
        f"extract: activations of {files[row]} at {hooks[layer]} are not finite as {dtype}. "
        + ("Set extract.dtype to float32." if dtype == "float16" else "Check the image and the weights.")
    )
