"""The backbone and the dictionaries at work on one picture at a time: activations, codes, and what voxels would do."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np
from PIL import Image

from sbm_jax.axes import TOKEN_KIND
from sbm_jax.backbones import load_backbone
from sbm_jax.errors import UserError
from sbm_jax.mesh import make_mesh
from sbm_jax.sae.model import normalise
from sbm_jax.sae.objectives import final_codes
from sbm_jax.sae.stream import array_name
from sbm_jax.serve.data_units import firing_of
from sbm_jax.serve.library import Kept, Library
from sbm_jax.stages.activations import activations_function
from sbm_jax.stages.editing import EMBEDDING, Editor, UnitEdit
from sbm_jax.stages.editing_codes import kept_codes
from sbm_jax.stages.matched_units import firing_profile, matched_units
from sbm_jax.stages.members import Code, Member, member_numbers, read_member
from sbm_jax.stages.pictures import geometry_of
from sbm_jax.stages.readouts import Readout, readout_of
from sbm_jax.stages.segmentation import Head, read_head

MOST_ACTIVE = 64  # codes kept of a token where any number may be active, the largest
_KEPT_BYTES = 64 << 20


@dataclass(frozen=True)
class Codes:
    """Codes of one picture's tokens: values float32 [t, k], largest first, and units int32 [t, k]; 0 where fewer are active."""

    values: np.ndarray
    units: np.ndarray

    def pooled(self, mode: str, width: int, patches: np.ndarray | None) -> np.ndarray:
        """Code [u] of the picture as a kind of features has it, from some patches alone (None: all).

        The mean is over all patches, so that what is left out counts as silent.
        """
        part = slice(None) if patches is None or mode == "cls" else patches
        out = np.zeros(width, np.float32)
        values, units = self.values[part].reshape(-1), self.units[part].reshape(-1)
        if mode == "patch_max":
            np.maximum.at(out, units, values)
        else:
            np.add.at(out, units, values)
            out /= len(self.values)
        return out


class Engine:
    """Loaded once; one thread at a time computes (`serve.live.Live` holds the lock)."""

    def __init__(self, lib: Library):
        ctx = lib.ctx
        self.lib, facts = lib, ctx.facts
        self.backbone = load_backbone(facts.backbone.path, facts.backbone.image_size, ctx.config.backbone.dtype)
        self.geometry = geometry_of(ctx, self.backbone)
        self.mesh = make_mesh({"data": 1}, ctx.devices[:1])
        self._activations = activations_function(self.backbone, facts.hooks, ctx.config.extract.dtype, self.mesh)
        saes = lib.store(ctx.specs.saes)
        numbers = member_numbers(saes)
        self.members: dict[tuple[str, str], Member] = {
            key: read_member(saes, a) for key, a in numbers.items() if key[0] in lib.kinds and key[1] in lib.hooks
        }
        self.code = Code(ctx.config.train.objective, ctx.config.train.k)
        self._encode = jax.jit(self._sparse)
        self._kept = Kept(_KEPT_BYTES)

    @cached_property
    def largest(self) -> dict[tuple[str, str], np.ndarray]:
        """The largest code of every unit over the probe set, by dictionary; empty without the store of exemplars."""
        found = {key: firing_of(self.lib, *key) for key in self.members}
        return {key: firing.largest for key, firing in found.items() if firing is not None}

    @cached_property
    def editor(self) -> Editor:
        return Editor(self.backbone, self.members, self.code, self.largest, self.lib.ctx.devices[:1])

    @cached_property
    def readout(self) -> Readout | None:
        """How the backbone names what it sees: zero-shot over the dataset's concepts, or its own classifier."""
        return readout_of(self.backbone, tuple(self.lib.images.labels))

    @cached_property
    def head(self) -> Head | None:
        """The segmentation head that `--head` or `edit.head` names. Raises UserError for one of another backbone."""
        return None if self.lib.head is None else read_head(self.lib.head, self.backbone)

    def controls(self, kind: str, hook: str, units: tuple[int, ...]) -> tuple[int, ...]:
        """Units that fire about as often and carry about as much energy as these, drawn by a fixed seed; none where that is
        not known.
        """
        firing = firing_of(self.lib, kind, hook)
        if firing is None:
            return ()
        return tuple(int(u) for u in matched_units(np.array(units), firing_profile(firing), [0, *units]))

    def warm(self, pixels: np.ndarray, edits: bool) -> None:
        """Compile what a picture needs, and an edit of each token kind."""
        self.codes(pixels)
        first = (
            {kind: hook for kind, hook in reversed(list(self.members)) if hook in self.editor.hooks} if edits else {}
        )
        for kind, hook in first.items():
            patches = None if kind == "cls" else tuple(range(self.backbone.grid**2))
            case = [UnitEdit(kind, hook, (0,), "zero", 0, patches)]
            ends = (EMBEDDING, "final_norm") if self.head else (EMBEDDING,)
            self.editor.run(pixels[None], [[], case, case, case], (*self.editor.hooks, *ends))
            self.editor.codes(
                np.zeros((1, self.backbone.model.spec.tokens, self.backbone.d_model), np.float32), kind, hook, (0,)
            )
        _ = edits and self.readout

    def pixels(self, picture: Image.Image) -> np.ndarray:
        """uint8 [side, side, 3], what the backbone sees."""
        return self.geometry(picture)

    def codes(self, pixels: np.ndarray) -> dict[tuple[str, str], Codes]:
        """Codes of a picture by (token kind, hook). Raises UserError where activations are not finite."""
        key = hashlib.sha256(pixels.tobytes()).hexdigest()
        return self._kept.get(key, lambda: self._codes(pixels), lambda c: sum(2 * x.values.nbytes for x in c.values()))

    def _codes(self, pixels: np.ndarray) -> dict[tuple[str, str], Codes]:
        found, finite = self._activations(pixels[None])
        if not bool(np.asarray(finite).all()):
            raise UserError("activations of this picture are not finite in the run's dtype (extract.dtype)")
        return {(kind, hook): self.sparse(kind, hook, found[array_name(hook, kind)]) for kind, hook in self.members}

    def sparse(self, kind: str, hook: str, x: jax.Array | np.ndarray) -> Codes:
        """Codes of the tokens of one picture, [1, t, d], or [1, d] of a CLS token."""
        x_btd = x[:, None] if x.ndim == 2 else x
        values, units = self._encode(self.members[kind, hook], x_btd)
        return Codes(np.asarray(values)[0], np.asarray(units)[0])

    def _sparse(self, member: Member, x_btd: jax.Array) -> tuple[jax.Array, jax.Array]:
        if not self.code.any_number:
            return kept_codes(member, self.code.k, x_btd)
        b, t, d = x_btd.shape
        x = normalise(member.norm, x_btd.reshape(1, b * t, d))[0]
        z = final_codes(*self.code, member.params, member.threshold, x)
        values, units = jax.lax.top_k(z, min(MOST_ACTIVE, z.shape[1]))
        return values.reshape(b, t, -1), units.reshape(b, t, -1)

    def pooled(self, codes: dict[tuple[str, str], Codes], mode: str, patches: np.ndarray | None) -> np.ndarray:
        """Codes [l * u] of all layers as a kind of features has them."""
        width, kind = self.lib.units_per_layer[mode], TOKEN_KIND[mode]
        return np.concatenate([codes[kind, hook].pooled(mode, width, patches) for hook in self.lib.hooks])
