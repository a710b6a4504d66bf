"""Causal edits inside the frozen backbone: codes of some units are changed at some hooks, and the rest of the network runs.

At a hook, x becomes x + (decode(z') - decode(z)) = x + sum_u (z'_u - z_u) w_dec[u] / scale on the chosen tokens (Stevens et al.,
saev): what the autoencoder fails to rebuild stays as it was, so that its own error never leaks in. Later hooks of the same
case read the codes of the stream as it then is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sbm_jax.axes import hook_name
from sbm_jax.backbones import Backbone
from sbm_jax.backbones.positions import rotations
from sbm_jax.mesh import make_mesh
from sbm_jax.stages.editing_codes import added, kept_codes, picked, rebuilt, thresholded, unit_codes
from sbm_jax.stages.editing_plan import Changes, Dictionary, Plan, UnitEdit, check_case, first_block, plan_cases
from sbm_jax.stages.members import Code, Member

__all__ = ["EMBEDDING", "Editor", "UnitEdit"]

EMBEDDING = "embedding"
# Values of the widest array of a block, images x tokens x mlp_width: what stays in a CPU's cache, and what fills an accelerator.
_VALUES = {"cpu": 1 << 20}
_VALUES_ELSEWHERE = 1 << 26


class _Network(NamedTuple):
    """The frozen model; its blocks and the autoencoders of each kind of token again, stacked along a leading axis."""

    model: Any
    blocks: Any
    members: dict[str, Member]


class Editor:
    """A backbone whose units can be changed.

    members: autoencoders by (token kind, hook); those off the residual stream cannot be edited. largest: the largest code of
    every unit [u] by (kind, hook), which `clamp` needs. devices: cases are spread over them (default: the first). rows: images
    x cases per step. keep_streams: calls that ask for no stream share the program of those that do, which saves a compilation.
    """

    def __init__(
        self,
        backbone: Backbone,
        members: Mapping[tuple[str, str], Member],
        code: Code,
        largest: Mapping[tuple[str, str], np.ndarray],
        devices: Sequence[Any] = (),
        rows: int | None = None,
        keep_streams: bool = False,
    ):
        spec = backbone.model.spec
        self.backbone, self.code, self.keep_streams = backbone, code, keep_streams
        self.n_layers, self.prefix, self.patches = spec.n_layers, spec.prefix_tokens, spec.grid**2
        self.hooks = tuple(hook_name(i) for i in range(spec.n_layers))
        self.readout = "projection" if spec.embedding_width else "final_norm"
        self.dictionaries = {
            key: Dictionary(int(member.params.b_enc.shape[0]), largest.get(key)) for key, member in members.items()
        }
        devices = list(devices) or jax.devices()[:1]
        values = _VALUES.get(devices[0].platform, _VALUES_ELSEWHERE) * len(devices)
        self.rows = rows or max(1, values // (spec.tokens * spec.block.mlp_width))
        self._mesh = make_mesh({"data": len(devices)}, devices)
        self._everywhere, self._split = NamedSharding(self._mesh, P()), NamedSharding(self._mesh, P("data"))
        # Blocks are equal in shape, so that one loop, compiled once, serves every place to start from.
        self._block = nnx.split(backbone.model.blocks[0])[0]
        here = {key: member for key, member in members.items() if key[1] in self.hooks}
        self.stacked = {kind: tuple(hook for k, hook in here if k == kind) for kind, _ in here}
        network = _Network(
            backbone.model,
            _stack(nnx.split(block)[1] for block in backbone.model.blocks),
            {kind: _stack(here[kind, hook] for hook in hooks) for kind, hooks in self.stacked.items()},
        )
        self._network: _Network = jax.device_put(network, self._everywhere)
        self._rope = rotations(spec) if spec.rope_theta is not None else None
        self._programs: dict[Any, Callable[..., Any]] = {}
        self._trunk = jax.jit(self._streams)

    def run(
        self, pixels_bhwc: np.ndarray, cases: Sequence[Sequence[UnitEdit]], hooks: Sequence[str] = (EMBEDDING,)
    ) -> dict[str, np.ndarray]:
        """What the network answers to uint8 pictures [b, side, side, 3] in every case, a list of edits (none: un-edited).

        hooks: `embedding` [e, b, width], the joint embedding where there is one, else CLS after the last norm, else the mean
        patch; `final_norm` [e, b, t, d], all tokens after the last norm; `blockNN.resid` [e, b, t, d], the stream with the
        edits in it. float32. Edits of one case apply in their order where they meet at one unit and token. All cases of a call
        start behind the first block that any of them edits (so give those of one hook together); edits that change nothing
        give the very bits of a case without edits in the same call. Raises UserError for edits of what is not there.
        """
        for case in cases:
            check_case(case, self.dictionaries, self.hooks, self.patches)
        known = (EMBEDDING, "final_norm", *self.hooks)
        if unknown := [hook for hook in hooks if hook not in known]:
            raise ValueError(f"hooks must be of {', '.join(known)}, not {unknown}")
        first, b = first_block(cases, self.hooks), len(pixels_bhwc)
        streams_lbtd = self.streams(pixels_bhwc)
        start = jax.device_put(streams_lbtd[first], self._everywhere)
        step = self._cases_per_step(len(cases), b)
        parts: dict[str, list[np.ndarray]] = {hook: [] for hook in hooks}
        for at in range(0, len(cases), step):
            part = cases[at : at + step]
            plan = plan_cases(part, self.dictionaries, self.stacked, self.hooks, self.patches, step)
            ends, kept = self._rest(hooks)(self._network, start, np.int32(first), np.arange(step), plan)
            for hook in hooks:
                if hook in ends:
                    values = np.asarray(ends[hook])[: len(part)]
                else:
                    block = self.hooks.index(hook)
                    before = np.broadcast_to(streams_lbtd[block][None], (len(part), *start.shape))
                    values = before if block < first else np.asarray(kept[block])[: len(part)]
                parts[hook].append(values)
        return {hook: np.concatenate(values) for hook, values in parts.items()}

    def streams(self, pixels_bhwc: np.ndarray) -> jax.Array:
        """The un-edited residual stream after every block, float32 [l, b, t, d]."""
        b, size = len(pixels_bhwc), self._mesh.size
        padded = np.pad(pixels_bhwc, [(0, -b % size), (0, 0), (0, 0), (0, 0)])
        return self._trunk(self._network, jax.device_put(padded, self._split))[:, :b]

    def codes(self, stream_btd: np.ndarray | jax.Array, kind: str, hook: str, units: Sequence[int]) -> np.ndarray:
        """Codes z [b, t, c] of some different units at the tokens of `kind` of a residual stream [b, t, d], edited or not."""
        check_case([UnitEdit(kind, hook, tuple(units), "zero")], self.dictionaries, self.hooks, self.patches)
        place = self.stacked[kind].index(hook)
        # room for a power of two: few shapes, few programs
        padded = np.full(1 << max(3, (len(units) - 1).bit_length()), self.dictionaries[kind, hook].units, np.int32)
        padded[: len(units)] = np.asarray(units, np.int32)
        if ("codes", kind) not in self._programs:
            self._programs["codes", kind] = jax.jit(functools.partial(self._codes, kind))
        found = self._programs["codes", kind](self._network.members[kind], np.int32(place), stream_btd, padded)
        return np.asarray(found)[..., : len(units)]

    def _codes(self, kind: str, members: Member, place: jax.Array, x_btd: jax.Array, units_c: jax.Array) -> jax.Array:
        return unit_codes(_one(members, place), self.code, x_btd[:, self._tokens(kind)], units_c)

    def _tokens(self, kind: str) -> slice:
        return slice(0, 1) if kind == "cls" else slice(self.prefix, None)

    def _cases_per_step(self, cases: int, images: int) -> int:
        """As many as fit, or the next power of two above all of them, times the number of devices."""
        size = self._mesh.size
        most = max(1, self.rows // max(images, 1) // size)
        wanted = 1 << (max(1, -(-cases // size)) - 1).bit_length()
        return size * min(most, wanted)

    def _run_block(self, state: Any, x_btd: jax.Array) -> jax.Array:
        rope = None if self._rope is None else (jnp.asarray(self._rope[0]), jnp.asarray(self._rope[1]))
        return nnx.merge(self._block, state)(x_btd, rope=rope)

    def _streams(self, network: _Network, pixels: jax.Array) -> jax.Array:
        mean, std = (jnp.asarray(x, jnp.float32)[None, None, None] for x in (self.backbone.mean, self.backbone.std))
        x_btd = network.model.embed((pixels.astype(jnp.float32) / 255.0 - mean) / std)

        def step(x_btd: jax.Array, state: Any) -> tuple[jax.Array, jax.Array]:
            x_btd = self._run_block(state, x_btd)
            return x_btd, x_btd

        return jax.lax.scan(step, x_btd, network.blocks)[1]

    def _rest(self, hooks: Sequence[str]) -> Callable[..., tuple[dict[str, jax.Array], jax.Array]]:
        """Jitted (network, stream [b, t, d] after block `first`, first, cases [e], plan) -> what `hooks` name of the end of the
        network [e, ...], and, if they name any, all streams [l, e, b, t, d] (those before `first` are 0).
        """
        kinds, keep = tuple(self.stacked), self.keep_streams or any(hook in self.hooks for hook in hooks)
        final = tuple(sorted(set(hooks) - set(self.hooks)))
        if (keep, final) in self._programs:
            return self._programs[keep, final]

        def local(network: _Network, x_btd: jax.Array, first: jax.Array, cases: jax.Array, plan: Plan):
            e, (b, t, d) = len(cases), x_btd.shape

            def step(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
                x, kept = carry
                state = _one(network.blocks, i)
                x = jax.lax.cond(i > first, self._run_block, lambda state, x: x, state, x)
                for kind in kinds:
                    place = plan.places[kind][i]
                    arguments = _one(network.members[kind], place), _one(plan.kinds[kind], place)
                    edit = functools.partial(self._edited, kind, i == first)
                    x = jax.lax.cond(place >= 0, edit, lambda member, change, x: x, *arguments, x)
                return x, kept.at[i].set(x) if keep else kept

            x = jnp.broadcast_to(x_btd[None], (e, b, t, d)).reshape(e * b, t, d)
            kept = jnp.zeros((self.n_layers if keep else 0, e * b, t, d))
            x, kept = jax.lax.fori_loop(first, self.n_layers, step, (x, kept))
            ends = {name: self._end(network.model, x, name) for name in final}
            unfold = {name: y.reshape(e, b, *y.shape[1:]) for name, y in ends.items()}
            return unfold, kept.reshape(len(kept), e, b, t, d)

        everywhere, by_case = P(), P(None, "data")
        where: Any = Plan(everywhere, dict.fromkeys(kinds, by_case))  # pyright: ignore[reportArgumentType]
        specs = (everywhere, everywhere, everywhere, P("data"), where)
        mapped = jax.shard_map(local, mesh=self._mesh, in_specs=specs, out_specs=(P("data"), by_case), check_vma=False)
        self._programs[keep, final] = jax.jit(mapped)
        return self._programs[keep, final]

    def _end(self, model: Any, x_btd: jax.Array, name: str) -> jax.Array:
        if name == EMBEDDING and self.readout == "projection":
            return model.embedding(x_btd).astype(jnp.float32)
        tokens = model.post_norm(x_btd).astype(jnp.float32)
        if name == "final_norm":
            return tokens
        return tokens[:, 0] if self.backbone.has_cls else tokens[:, self.prefix :].mean(axis=1)

    def _edited(self, kind: str, shared: jax.Array, member: Member, change: Changes, x_rtd: jax.Array) -> jax.Array:
        """The stream [e b, t, d] with the tokens of one kind edited, case by case. shared: all cases still have one stream."""
        tokens, e = self._tokens(kind), len(change.units)
        x_ebtd = x_rtd[:, tokens].reshape(e, -1, *x_rtd[:, tokens].shape[1:])
        keep = functools.partial(kept_codes, member, self.code.k)
        one = None if self.code.any_number else jax.lax.cond(shared, keep, _no_codes(self.code.k), x_ebtd[0])

        def case(arguments: tuple[Changes, jax.Array]) -> jax.Array:
            change, x_btd = arguments
            units_s, chosen_t = jnp.asarray(change.units), jnp.asarray(change.rebuild)
            kept = None if one is None else jax.lax.cond(shared, lambda x: one, keep, x_btd)
            z_bts = thresholded(member, x_btd, units_s) if kept is None else picked(kept, units_s)
            moved = z_bts * change.slope.T[None] + change.shift.T[None]
            put_in = functools.partial(rebuilt, member, self.code)
            base = jax.lax.cond(chosen_t.any(), put_in, lambda kept, x, chosen: x, kept, x_btd, chosen_t)
            return base + added(member, moved, units_s)

        new = jax.lax.map(case, (change, x_ebtd))  # in turn: codes of all cases at once would not fit
        return x_rtd.at[:, tokens].set(new.reshape(-1, *new.shape[2:]))


def _no_codes(k: int) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    return lambda x_btd: (jnp.zeros((*x_btd.shape[:2], k)), jnp.zeros((*x_btd.shape[:2], k), jnp.int32))


def _stack(trees: Any) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _one(tree: Any, place: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[place], tree)
