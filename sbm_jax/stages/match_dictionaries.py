"""The dictionaries that are compared: of this run, of other seeds of its sweep, and of other runs over the same images."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from sbm_jax.axes import TOKEN_KIND
from sbm_jax.config import Config, load_config
from sbm_jax.errors import UserError
from sbm_jax.store.store import is_finished

if TYPE_CHECKING:
    from sbm_jax.kernels import SparseCodes
    from sbm_jax.stages.context import Context
    from sbm_jax.store.store import Store

SETTINGS = ("objective", "k", "sparsity", "lr", "expansion")  # with the seed, what tells members of a sweep apart


@dataclass(frozen=True)
class Dictionary:
    """The autoencoder of one token kind at one hook. run: "" for this run, else the name of the other's folder; other: its place
    in `match.others` (-1: this run).
    """

    kind: str
    hook: str
    seed: int
    run: str = ""
    other: int = -1

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return " ".join(filter(None, (self.run, self.kind, self.hook)))


class Own(NamedTuple):
    """What may be paired of one run: kinds, hooks in order, the seed, and further seeds of its sweep."""

    kinds: Sequence[str]
    hooks: Sequence[str]
    seed: int
    seeds: Sequence[int] = ()
    run: str = ""
    other: int = -1

    def dictionary(self, kind: str, hook: str) -> Dictionary:
        return Dictionary(kind, hook, self.seed, self.run, self.other)


def pairs(own: Own, others: Sequence[Own], which: Literal["near", "all"]) -> list[tuple[Dictionary, Dictionary]]:
    """What is compared, one token kind at a time. near: each layer with the next one, and with the layer of another run at the
    same share of its depth; all: every layer with every other. And each layer with the other seeds of the sweep.
    """
    out: list[tuple[Dictionary, Dictionary]] = []
    for kind in own.kinds:
        layers: Iterable[tuple[str, str]] = itertools.pairwise(own.hooks)
        if which == "all":
            layers = itertools.combinations(own.hooks, 2)
        out += [(own.dictionary(kind, one), own.dictionary(kind, two)) for one, two in layers]
        for hook, seed in itertools.product(own.hooks, own.seeds):
            out.append((own.dictionary(kind, hook), Dictionary(kind, hook, seed)))
        for other in others:
            if kind in other.kinds:
                some = itertools.product(own.hooks, other.hooks) if which == "all" else _same_depth(own, other)
                out += [(own.dictionary(kind, one), other.dictionary(kind, two)) for one, two in some]
    return out


def _same_depth(own: Own, other: Own) -> list[tuple[str, str]]:
    last, last_other = len(own.hooks) - 1, len(other.hooks) - 1
    at = [round(i * last_other / last) if last else last_other for i in range(len(own.hooks))]
    return [(hook, other.hooks[j]) for hook, j in zip(own.hooks, at, strict=True)]


def sweep_seeds(config: Config) -> list[int]:
    """Further seeds of the sweep."""
    return [seed for seed in dict.fromkeys(config.train.sweep.seed) if seed != config.train.seed]


def find_codes(entry: str) -> Path:
    """The code store that an entry of `match.others` means: the only one of a run's folder, or the store itself.

    Raises UserError where there is none, or several.
    """
    path = Path(entry).expanduser()
    if path.name.startswith("codes-") and is_finished(path):
        return path
    found = sorted(p for p in (path / "stores").glob("codes-*") if is_finished(p))
    if not found:
        raise UserError(
            f"match.others: {path} holds no finished store of codes. Name the folder (--out) of a finished `sbm-jax run` "
            "over the same images, or one of its stores/codes-..."
        )
    if len(found) > 1:
        listed = ", ".join(str(p) for p in found)
        raise UserError(f"match.others: {path} holds several stores of codes; name one of them: {listed}")
    return found[0]


def folder_of(codes: Path) -> Path:
    """The run's folder of a store."""
    return codes.resolve().parents[1]


def open_other(codes: Path) -> Context:
    """The run that made a store of codes, by the configuration beside it. Raises UserError where its settings, data or backbone
    no longer lead to that store.
    """
    from sbm_jax.stages.context import Context

    try:
        ctx = Context(load_config(codes / "config.yaml"), folder_of(codes))
    except UserError as error:
        raise UserError(f"match.others: {codes}: {error}") from None
    if ctx.specs.codes.name != codes.name:
        raise UserError(
            f"match.others: the settings beside {codes} now lead to {ctx.specs.codes.name}: its data or backbone changed since, "
            "or another version made it. Run `sbm-jax encode` there again."
        )
    return ctx


def check_same_images(own: Context, other: Context) -> None:
    """Raise UserError unless both runs are over the same images in the same order."""
    mine, theirs = own.dataset.images.ids, other.dataset.images.ids
    what = None
    if len(mine) != len(theirs):
        what = f"{len(theirs)} images where this run has {len(mine)}"
    elif list(mine) != list(theirs):
        at = next(i for i, (one, two) in enumerate(zip(mine, theirs, strict=True)) if one != two)
        what = f"image {at} is {theirs[at]!r} where this run has {mine[at]!r}"
    elif own.facts.images_fingerprint != other.facts.images_fingerprint:
        what = (
            "the same ids, but other picture files or tables, or other shared images "
            f"(fingerprints {other.facts.images_fingerprint} and {own.facts.images_fingerprint})"
        )
    if what:
        raise UserError(
            f"match.others: {other.out} was not run over the images of this run: {what}. Codes are compared image by image: "
            "run it with the same `data`."
        )


def mode_of(kind: str, modes: Sequence[str]) -> str:
    """The per-image codes of a token kind: its first mode that is encoded (patches: mean before maximum)."""
    return next(mode for mode in ("cls", "patch_mean", "patch_max") if mode in modes and TOKEN_KIND[mode] == kind)


def image_rows(n: int, most: int, seed: int) -> np.ndarray:
    """Rows of the image table over which codes are compared, ascending: all, or `most` of them drawn by seed (0: all)."""
    if not most or n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng([seed, n]).choice(n, most, replace=False))


def seed_members(saes: Store) -> dict[tuple[str, str, int], int]:
    """(token kind, hook, seed) -> number in the store, of the autoencoders at the primary setting but for their seed."""
    members = saes.json("metrics.json")["members"]
    first: dict[tuple[str, str], Mapping[str, Any]] = {}
    found: dict[tuple[str, str, int], int] = {}
    for a, member in enumerate(members):
        primary = first.setdefault((member["kind"], member["hook"]), member)
        if all(member[key] == primary[key] for key in SETTINGS):
            found.setdefault((member["kind"], member["hook"], member["seed"]), a)
    return found


class Loader:
    """Codes and decoders of dictionaries, over the images `rows`; the last few are kept."""

    def __init__(self, own: Context, others: Sequence[Context], rows: np.ndarray):
        self.runs, self.rows = {-1: own, **dict(enumerate(others))}, rows
        self._kept: dict[Dictionary, tuple[SparseCodes, np.ndarray]] = {}

    def __call__(self, which: Dictionary) -> tuple[SparseCodes, np.ndarray]:
        """Codes of the images, and decoder rows [u, d] in the model's own directions."""
        if which not in self._kept:
            if len(self._kept) > 2:
                del self._kept[next(iter(self._kept))]
            self._kept[which] = self._read(which)
        return self._kept[which]

    def _read(self, which: Dictionary) -> tuple[SparseCodes, np.ndarray]:
        from sbm_jax.stages.inputs import n_units, read_sparse

        ctx = self.runs[which.other]
        saes = ctx.open(ctx.specs.saes)
        a = seed_members(saes)[which.kind, which.hook, which.seed]
        decoder = saes.read("w_dec", slice(a, a + 1))[0]
        mode = mode_of(which.kind, ctx.config.encode.modes)
        if which.seed == ctx.config.train.seed:
            codes = ctx.open(ctx.specs.codes)
            return read_sparse(codes, mode, which.hook, self.rows, n_units(codes, saes, mode, which.hook)), decoder
        return self._encode(ctx, saes, a, which, mode), decoder

    def _encode(self, ctx: Context, saes: Store, a: int, which: Dictionary, mode: str) -> SparseCodes:
        """Codes of an autoencoder that `encode` did not apply."""
        from sbm_jax.kernels import SparseCodes
        from sbm_jax.mesh import make_mesh
        from sbm_jax.sae.stream import array_name
        from sbm_jax.stages.encode import compact, pad_rows, pooled_codes
        from sbm_jax.stages.members import Code, read_member

        mesh = make_mesh({"data": len(ctx.devices)}, ctx.devices)
        step = -(-ctx.config.encode.batch // mesh.size) * mesh.size
        member, u = read_member(saes, a), int(saes.array("b_enc").shape[1])
        # the only token of its image: its mean over tokens is itself
        pooled = "patch_mean" if mode == "cls" else mode
        pool = pooled_codes(mesh, Code(ctx.config.train.objective, ctx.config.train.k), u, (pooled,))
        parts = []
        for start in range(0, len(self.rows), step):
            x = ctx.activations.read(array_name(which.hook, which.kind), self.rows[start : start + step])
            tokens = x[:, None] if x.ndim == 2 else x
            dense = np.asarray(pool(member, pad_rows(tokens, step))[pooled])[: len(x)]
            parts.append(compact(dense, max(1, int(np.count_nonzero(dense, axis=1).max(initial=0)))))
        width = max(values.shape[1] for values, _ in parts)
        values, units = (
            np.concatenate([np.pad(part[i], ((0, 0), (0, width - part[i].shape[1]))) for part in parts])
            for i in range(2)
        )
        return SparseCodes(values, units, u)


def shared_space(own: Context, others: Sequence[Context], a: Dictionary, b: Dictionary) -> str:
    """In what sense decoder rows of both lie in one space: "one place" (same weights and hook), "residual stream" (of one
    backbone, at two depths: every block adds to it), or "" where they do not.
    """
    runs = {-1: own, **dict(enumerate(others))}
    one, two = runs[a.other].facts.backbone, runs[b.other].facts.backbone
    if one.weights_hash != two.weights_hash or a.kind != b.kind:
        return ""
    if a.hook == b.hook:
        return "one place"
    return "residual stream" if a.hook.endswith(".resid") and b.hook.endswith(".resid") else ""
