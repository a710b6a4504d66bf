"""encode: activations to per-image codes, sparse for the autoencoders and dense for neurons and random directions."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sbm_jax.axes import CONTROLS, FITTED_MODES, SAE_MODES, TOKEN_KIND, WIDTH_MODES
from sbm_jax.kernels import topk_encode
from sbm_jax.mesh import make_mesh
from sbm_jax.progress import progress
from sbm_jax.sae.model import normalise
from sbm_jax.sae.objectives import final_codes
from sbm_jax.sae.stream import Activations, array_name
from sbm_jax.stages.context import Context
from sbm_jax.stages.controls import Controls, codes, fit
from sbm_jax.stages.image_sets import autoencoder_sets
from sbm_jax.stages.members import Code, Member, member_numbers, read_member
from sbm_jax.store.store import Store, StoreWriter

_SHARD_IMAGES = 256
_CHUNK_CODES = 128


def run(ctx: Context) -> Store:
    """Write the code store. Per mode and hook:

    `cls`, `patch_mean`, `patch_max`, `untrained`: `values` [n, k] with `units` [n, k] (zero values are padding) and
        `active` [n], the number of units that fire on each image. The CLS code, or the patch codes pooled over patches; for
        `untrained` their mean, of the patch tokens of the untrained backbone.
    `raw`, `pca` [n, d], `random`, `random_relu` [n, u]: the controls of `controls.py`, fitted where they need it on the images
        that training may see.
    """
    acts, saes = ctx.activations, ctx.open(ctx.specs.saes)
    writer = ctx.writer(ctx.specs.codes)
    n = ctx.facts.n_images
    shard = min(_SHARD_IMAGES, n)
    hooks, modes = ctx.facts.hooks, ctx.config.encode.modes
    params = {member: read_member(saes, a) for member, a in member_numbers(saes).items()}
    u, code = saes.array("b_enc").shape[1], Code(ctx.config.train.objective, ctx.config.train.k)
    tokens, d = acts.array(array_name(hooks[0], "patch")).shape[1:]
    seen, _ = autoencoder_sets(ctx.dataset.images.shared)
    seen = seen if set(modes) & set(FITTED_MODES) else seen[:0]
    controls = fit(acts, hooks, seen, u, ctx.config.encode.seed)
    for mode in modes:
        for hook in hooks:
            _create(writer, mode, hook, n, shard, width=_width(mode, tokens, code, u, d))
    blocks = -(-n // shard)
    with progress("encode", blocks * len(hooks), "shards", writer.cursor * len(hooks)) as task:
        for block in range(writer.cursor, blocks):
            rows = slice(block * shard, min(n, (block + 1) * shard))
            for hook in hooks:
                _encode_block(ctx, acts, writer, params, controls[hook], hook, rows, u, code)
                task.advance()
            writer.advance(block + 1)
    ctx.forget_activations()
    return writer.commit()


def _width(mode: str, tokens: int, code: Code, u: int, d: int) -> int:
    """Columns of a mode's array: the most units that can be active on one image (chunks of zeros take no space)."""
    per_token = u if code.any_number else code.k
    pooled = min(u, tokens * per_token)
    if mode in CONTROLS:
        return d if mode in WIDTH_MODES else u
    return per_token if mode == "cls" else pooled


def _create(writer: StoreWriter, mode: str, hook: str, n: int, shard: int, width: int) -> None:
    name = f"{mode}/{hook}"
    if mode not in SAE_MODES:
        writer.create(name, (n, width), "float32", shard_rows=shard, dimensions=("n", "u"))
        return
    for part, dtype in (("values", "float32"), ("units", "int32")):
        writer.create(
            f"{name}/{part}", (n, width), dtype, shard_rows=shard, dimensions=("n", "k"), chunk_columns=_CHUNK_CODES
        )
    writer.create(f"{name}/active", (n,), "int32", shard_rows=shard, dimensions=("n",))


def _encode_block(
    ctx: Context,
    acts: Activations,
    writer: StoreWriter,
    params: dict[tuple[str, str], Member],
    controls: Controls,
    hook: str,
    rows: slice,
    u: int,
    code: Code,
) -> None:
    """All modes of one hook for one shard of images; each activation is read once."""
    modes = ctx.config.encode.modes
    mesh = make_mesh({"data": len(ctx.devices)}, ctx.devices)
    step = -(-ctx.config.encode.batch // mesh.size) * mesh.size
    start = rows.start
    read = functools.cache(lambda kind: acts.read(array_name(hook, kind), rows))
    if "cls" in modes:
        x = read("cls")
        if code.any_number:
            dense = np.asarray(_cls_codes(params["cls", hook], pad_rows(x, step), code))[: len(x)]
            values, units = compact(dense, u)
        else:
            values, units = _cls_top(params["cls", hook], pad_rows(x, step), code.k)
            values, units = np.asarray(values)[: len(x)], np.asarray(units)[: len(x)]
        _write_sparse(writer, f"cls/{hook}", start, values, np.where(values > 0, units, 0))
    if set(modes) - {"cls", "untrained"}:
        x = read("patch")
        raw = x.astype(np.float32).mean(axis=1)
        for mode in CONTROLS:
            if mode in modes:
                writer.write(f"{mode}/{hook}", start, codes(mode, controls, x, raw, mesh, step))
    for kind in ("patch", "untrained"):
        wanted = tuple(mode for mode in SAE_MODES if TOKEN_KIND[mode] == kind and mode in modes)
        if wanted:
            x = read(kind)
            pool = pooled_codes(mesh, code, u, wanted)
            pooled = [pool(params[kind, hook], pad_rows(x[i : i + step], step)) for i in range(0, len(x), step)]
            for mode in wanted:
                dense = np.concatenate([np.asarray(block[mode]) for block in pooled])[: len(x)]
                width = writer.width(f"{mode}/{hook}/values")
                _write_sparse(writer, f"{mode}/{hook}", start, *compact(dense, width))


def pad_rows(x: np.ndarray, multiple: int) -> np.ndarray:
    """Zero rows up to a multiple, so that every call has one of few shapes."""
    return np.pad(x, [(0, -len(x) % multiple), *[(0, 0)] * (x.ndim - 1)])


@functools.partial(jax.jit, static_argnames="k")
def _cls_top(member: Member, x_nd: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    params = member.params
    return topk_encode(normalise(member.norm, x_nd[None])[0], params.w_enc, params.b_enc, k)


@functools.partial(jax.jit, static_argnames="code")
def _cls_codes(member: Member, x_nd: jax.Array, code: Code) -> jax.Array:
    return final_codes(*code, member.params, member.threshold, normalise(member.norm, x_nd[None])[0])


@functools.lru_cache(maxsize=8)
def pooled_codes(mesh: Mesh, code: Code, u: int, modes: tuple[str, ...]) -> Callable[..., dict[str, jax.Array]]:
    """Jitted (member, x [b, t, d]) -> mean and maximum over patches of the codes of each image, dense [b, u].

    Dense for this batch only; images are split over the mesh's `data` axis, the autoencoder is on every device.
    """

    def kept(member: Member, x_ntd: jax.Array) -> dict[str, jax.Array]:
        n, t, d = x_ntd.shape
        x = normalise(member.norm, x_ntd.reshape(1, n * t, d))[0]
        values, units = topk_encode(x, member.params.w_enc, member.params.b_enc, code.k)
        values, units = values.reshape(n, t * code.k), units.reshape(n, t * code.k)
        rows = jnp.arange(n)[:, None]
        zero = jnp.zeros((n, u), jnp.float32)
        pools = {
            "patch_mean": lambda: zero.at[rows, units].add(values / t),
            "patch_max": lambda: zero.at[rows, units].max(values),
        }
        pools["untrained"] = pools["patch_mean"]
        return {mode: pools[mode]() for mode in modes}

    def any_number(member: Member, x_ntd: jax.Array) -> dict[str, jax.Array]:
        def image(x_td: jax.Array) -> dict[str, jax.Array]:
            z = final_codes(*code, member.params, member.threshold, normalise(member.norm, x_td[None])[0])
            pools = {"patch_mean": lambda: z.mean(axis=0), "patch_max": lambda: z.max(axis=0)}
            pools["untrained"] = pools["patch_mean"]
            return {mode: pools[mode]() for mode in modes}

        return jax.lax.map(image, x_ntd)  # one image at a time: codes of all tokens of a batch would not fit

    local = any_number if code.any_number else kept
    split = P("data")
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P(), split), out_specs=split, check_vma=False))


def compact(dense_nu: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Non-zero entries of each row moved to the front in unit order: values and units [n, width], zeros behind."""
    n = len(dense_nu)
    values, units = np.zeros((n, width), np.float32), np.zeros((n, width), np.int32)
    rows, columns = np.nonzero(dense_nu)
    first = np.searchsorted(rows, np.arange(n))
    slots = np.arange(len(rows)) - first[rows]
    values[rows, slots], units[rows, slots] = dense_nu[rows, columns], columns
    return values, units


def _write_sparse(writer: StoreWriter, name: str, start: int, values: np.ndarray, units: np.ndarray) -> None:
    writer.write(f"{name}/values", start, values)
    writer.write(f"{name}/units", start, units)
    writer.write(f"{name}/active", start, np.count_nonzero(values, axis=1).astype(np.int32))
