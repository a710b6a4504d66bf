"""Downstream fidelity: what the backbone itself answers when reconstructions stand in for the activations of one layer.

Held-out pictures go through the backbone from their pixels, not from the activation store: the rest of the network needs
every token at a hook, and stores keep no register tokens, round to float16, and need not exist at all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sbm_jax.axes import REAL_KINDS, hook_name
from sbm_jax.backbones import Backbone, forward, forward_from, load_backbone
from sbm_jax.backbones.spec import parse_hook
from sbm_jax.images.batches import square_batches
from sbm_jax.mesh import make_mesh
from sbm_jax.progress import progress
from sbm_jax.sae.model import Norm, Params, normalise
from sbm_jax.sae.objectives import final_codes
from sbm_jax.sae.stack import Point, Stack
from sbm_jax.sae.trainer import Trained
from sbm_jax.stages.answers import Answers, Reference, loss_recovered
from sbm_jax.stages.context import Context
from sbm_jax.stages.image_sets import autoencoder_sets
from sbm_jax.stages.pictures import geometry_of
from sbm_jax.stages.readouts import categories_of, readout_of

_LARGEST_BATCH = 32
_CODES = 1 << 27  # dense codes of one batch: 512 MiB of float32


class Edit(NamedTuple):
    """What is put in for the tokens of one kind at one hook: an autoencoder's reconstruction, or the mean token."""

    norm: Norm
    params: Params
    threshold: jax.Array


@dataclass(frozen=True)
class Case:
    """One way to run the backbone: at `hook` the tokens of `kinds` are replaced by reconstructions of the autoencoders at
    `point`, or by the mean training token where point is None.
    """

    hook: str
    kinds: tuple[str, ...]
    point: Point | None


def fidelity(
    ctx: Context, stack: Stack, trained: Sequence[Trained]
) -> tuple[dict[str, Any], list[dict[str, Any] | None]]:
    """Facts of the measurement, and one record per member (None at hooks off the residual stream).

    trained: one result per dictionary size. Computed on the devices of the calling process alone.
    Tokens of an untrained backbone are in no case: they stand for nothing in this one, and their records are None.

    Record: `alone` (this member's tokens replaced) and `together` (all kinds of tokens of the stack at that hook, each by
    its own autoencoder; None with one kind), each with `sae`, `mean` (the control, the mean training token everywhere) as
    of `answers.Answers`, and `loss_recovered`. Facts: images, categories, `original` and `identity`: the numerical floor,
    the same comparison with nothing replaced, the backbone run block by block as in every case.
    """
    images = ctx.dataset.images
    rows = spread(autoencoder_sets(images.shared)[1], ctx.config.train.fidelity_images)
    facts = ctx.facts.backbone
    backbone = load_backbone(facts.path, facts.image_size, ctx.config.backbone.dtype)
    mesh = make_mesh({"data": len(ctx.devices)}, ctx.devices)
    runner = Runner(backbone, mesh)
    after = {hook: place for hook in stack.hooks if (place := _block(backbone, hook)) is not None}
    kinds = tuple(kind for kind in stack.kinds if kind in REAL_KINDS)
    cases = _cases(replace(stack, kinds=kinds), tuple(after))
    edits = _Edits(stack, trained, mesh)
    found: dict[Case | None, list[np.ndarray]] = {case: [] for case in (None, *cases)}
    original: list[np.ndarray] = []
    units = max(result.params.b_enc.shape[1] for result in trained)
    most = max(1, min(_LARGEST_BATCH, len(rows), _CODES // (units * backbone.grid**2)))
    batch = -(-most // mesh.size) * mesh.size
    pictures = square_batches([images.sources[row] for row in rows], geometry_of(ctx, backbone), batch)
    with progress("fidelity", len(rows), "images") as task:
        for pixels in pictures:
            padded = np.pad(pixels, [(0, batch - len(pixels)), (0, 0), (0, 0), (0, 0)])
            whole, answers = runner.batch(padded, after, cases, edits)
            original.append(whole[: len(pixels)])
            for case, embedding in answers.items():
                found[case].append(embedding[: len(pixels)])
            task.advance(len(pixels))
    readout = readout_of(backbone, tuple(images.labels))
    labels = None if readout is None else categories_of(readout.names, images.labels)
    reference = Reference(np.concatenate(original), readout, None if labels is None else labels[rows])
    scored = {case: reference.compare(np.concatenate(parts)) for case, parts in found.items()}
    about = {
        "images": len(rows),
        "embedding": runner.readout,
        "categories": [] if readout is None else list(readout.names),
        "original": {"accuracy": reference.accuracy},
        "identity": scored[None].as_json(),
    }
    return about, [_record(scored, kinds, member.kind, member.hook, member.point) for member in stack.members]


def _record(
    scored: dict[Case | None, Answers], together: tuple[str, ...], kind: str, hook: str, point: Point
) -> dict[str, Any] | None:
    if Case(hook, (kind,), point) not in scored:
        return None
    out: dict[str, Any] = {}
    for name, kinds in (("alone", (kind,)), ("together", together)):
        if name == "together" and len(kinds) == 1:
            out[name] = None
            continue
        sae, mean = scored[Case(hook, kinds, point)], scored[Case(hook, kinds, None)]
        out[name] = {
            "sae": sae.as_json(),
            "mean": mean.as_json(),
            "loss_recovered": loss_recovered(sae, mean, scored[None]),
        }
    return out


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the rows, evenly over their order, so that no session or category at the start fills them."""
    return rows if len(rows) <= count else rows[np.arange(count) * len(rows) // count]


def _block(backbone: Backbone, hook: str) -> int | None:
    """The block after which a hook reads the residual stream (-1: before the first), None where it reads something else."""
    block, name = parse_hook(backbone.model.spec, hook)
    return block if name in ("resid", "embed") else None


def _cases(stack: Stack, hooks: tuple[str, ...]) -> list[Case]:
    groups = [(kind,) for kind in stack.kinds] + ([stack.kinds] if len(stack.kinds) > 1 else [])
    return [Case(hook, kinds, point) for hook in hooks for point in (None, *stack.points) for kinds in groups]


class _Edits:
    """The autoencoders of a stack on the devices of a mesh, one at a time."""

    def __init__(self, stack: Stack, trained: Sequence[Trained], mesh: Mesh):
        self._places = {
            (member.kind, member.hook, member.point): (result, a)
            for part, result in zip(stack.by_size(), trained, strict=True)
            for a, member in enumerate(part.members)
        }
        self._first = stack.points[0]
        self._everywhere = NamedSharding(mesh, P())

    def get(self, kind: str, hook: str, point: Point | None) -> Edit:
        """The autoencoder of these tokens; point None: the first, whose mean token is that of all."""
        result, a = self._places[kind, hook, point or self._first]
        edit = Edit(
            Norm(result.norm.mean[a : a + 1], result.norm.scale[a : a + 1]),
            Params(*(np.asarray(x)[a] for x in result.params[:4])),  # pyright: ignore[reportArgumentType]
            result.threshold[a],  # pyright: ignore[reportArgumentType]
        )
        return jax.device_put(edit, self._everywhere)


class Runner:
    """A backbone cut into its blocks. Each block is compiled once, whatever the number of layers and cases."""

    def __init__(self, backbone: Backbone, mesh: Mesh):
        spec = backbone.model.spec
        self.n_layers, self.prefix, self.tokens = spec.n_layers, spec.prefix_tokens, spec.tokens
        self.has_cls = spec.has_cls
        self.readout = "projection" if spec.embedding_width else "final_norm"
        self._mesh = mesh
        self._split = NamedSharding(mesh, P("data"))
        self._model = jax.device_put(backbone.model, NamedSharding(mesh, P()))
        self._mean = jnp.asarray(backbone.mean, jnp.float32)[None, None, None]
        self._std = jnp.asarray(backbone.std, jnp.float32)[None, None, None]

        @jax.jit
        def whole(model, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
            x = (pixels.astype(jnp.float32) / 255.0 - self._mean) / self._std
            out = forward(model, x, ("embed", self.readout))
            return out["embed"], self._pooled(out[self.readout])

        @functools.partial(jax.jit, static_argnames="block")
        def step(model, x: jax.Array, block: int) -> jax.Array:
            name = hook_name(block)
            return forward_from(model, x, block - 1, (name,))[name]

        @jax.jit
        def finish(model, x: jax.Array) -> jax.Array:
            return self._pooled(forward_from(model, x, self.n_layers - 1, (self.readout,))[self.readout])

        self._whole, self._step, self._finish = whole, step, finish

    def _pooled(self, out: jax.Array) -> jax.Array:
        """float32 [b, e]: the joint embedding where there is one, else CLS after the last norm, else the mean patch."""
        if self.readout == "final_norm":
            out = out[:, 0] if self.has_cls else out[:, self.prefix :].mean(axis=1)
        return out.astype(jnp.float32)

    def rest(self, x_btd: jax.Array, block: int) -> np.ndarray:
        """Embedding [b, e] from the residual stream after a block."""
        for i in range(block + 1, self.n_layers):
            x_btd = self._step(self._model, x_btd, i)
        return np.asarray(self._finish(self._model, x_btd))

    def where(self, kind: str) -> tuple[int, int]:
        """First place of a kind of token in the stream, and the one after the last."""
        return (0, 1) if kind == "cls" else (self.prefix, self.tokens)

    def batch(
        self, pixels: np.ndarray, after: dict[str, int], cases: list[Case], edits: _Edits
    ) -> tuple[np.ndarray, dict[Case | None, np.ndarray]]:
        """The embeddings [b, e] of uint8 pictures [b, s, s, 3]: by the whole backbone, and in every case. Case None
        replaces nothing.
        """
        x, whole = self._whole(self._model, jax.device_put(pixels, self._split))
        out: dict[Case | None, np.ndarray] = {}
        for block in range(-1, self.n_layers):
            if block >= 0:
                x = self._step(self._model, x, block)
            for hook in (hook for hook, place in after.items() if place == block):
                out |= self._replaced(x, block, [case for case in cases if case.hook == hook], edits)
        return np.asarray(whole), out | {None: np.asarray(self._finish(self._model, x))}

    def _replaced(self, x: jax.Array, block: int, cases: list[Case], edits: _Edits) -> dict[Case, np.ndarray]:
        out = {}
        for point in dict.fromkeys(case.point for case in cases):
            wanted = [case for case in cases if case.point == point]
            kinds = dict.fromkeys(kind for case in wanted for kind in case.kinds)
            streams = {}
            for kind in kinds:
                replace = _replacement(self._mesh, self.where(kind), point and point.objective, point.k if point else 0)
                streams[kind] = replace(edits.get(kind, wanted[0].hook, point), x)
            for case in wanted:
                edited = x
                for kind in case.kinds:
                    tokens = slice(*self.where(kind))
                    edited = edited.at[:, tokens].set(streams[kind][:, tokens])
                out[case] = self.rest(edited, block)
        return out


@functools.lru_cache(maxsize=32)
def _replacement(
    mesh: Mesh, where: tuple[int, int], objective: str | None, k: int
) -> Callable[[Edit, jax.Array], jax.Array]:
    """Jitted (edit, stream [b, t, d]) -> the stream with some tokens replaced; objective None: by the mean token.

    x^ = mean + x'^ / scale, with x'^ the reconstruction in normalised coordinates.
    """

    tokens = slice(*where)

    def local(edit: Edit, x_btd: jax.Array) -> jax.Array:
        mean = edit.norm.mean[0]
        if objective is None:
            return x_btd.at[:, tokens].set(mean.astype(x_btd.dtype)[None, None])
        b, _, d = x_btd.shape
        x = normalise(edit.norm, x_btd[:, tokens].reshape(1, -1, d))[0]
        z = final_codes(objective, k, edit.params, edit.threshold, x)
        rebuilt = jnp.einsum("bu,ud->bd", z, edit.params.w_dec, precision=jax.lax.Precision.HIGHEST)
        rebuilt = (rebuilt + edit.params.b_dec[None]) / edit.norm.scale[0] + mean[None]
        return x_btd.at[:, tokens].set(rebuilt.reshape(b, -1, d).astype(x_btd.dtype))

    split = P("data")
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P(), split), out_specs=split, check_vma=False))
