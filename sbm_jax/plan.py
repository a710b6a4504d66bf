"""What a run will make: every store in order, with estimates of bytes on disk, memory, work, and time on a stated machine."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping, Sequence

from sbm_jax.axes import REAL_KINDS, SAE_MODES, TOKEN_KIND, WIDTH_MODES
from sbm_jax.errors import UserError
from sbm_jax.plan_meaning import meaning_steps
from sbm_jax.plan_step import H100, Machine, Step
from sbm_jax.stages.context import Context
from sbm_jax.stages.facts import SubjectFacts, token_kinds
from sbm_jax.stages.null import KEPT
from sbm_jax.stages.online import by_backbone, encoding_images, image_bytes, kept_bytes, training_images
from sbm_jax.store.store import PARTIAL

STAGES = (
    "dataset",
    "betas",
    "extract",
    "train",
    "encode",
    "align",
    "assign",
    "sizes",
    "joint",
    "pooling",
    "rsa",
    "roi",
    "layers",
    "recovery",
    "exemplars",
    "explain",
    "emergence",
    "match",
    "edit",
    "stability",
    "report",
    "rdms",
)
TOGETHER = ("align",)  # stages that make the stores of all subjects at once


def run_steps(ctx: Context, steps: Sequence[Step]) -> None:
    """Make the stores of some steps of one stage; those of `TOGETHER` in one call."""
    stage = importlib.import_module(f"sbm_jax.stages.{steps[0].stage}")
    if steps[0].stage in TOGETHER:
        stage.run(ctx, [step.argument for step in steps])
        return
    for step in steps:
        if step.argument is None:
            stage.run(ctx)
        else:
            stage.run(ctx, ctx.dataset.subject(step.argument) if step.stage == "betas" else step.argument)


def steps(ctx: Context) -> list[Step]:
    """Every store of the run in order, with estimates of its bytes on disk and its floating-point operations."""
    return list(_steps(ctx))


def refuse_extract(ctx: Context, chosen: Sequence[str]) -> None:
    """Raise UserError when nothing but `extract` is asked for and activations are not to be kept."""
    if tuple(chosen) == ("extract",) and not any(step.stage == "extract" for step in steps(ctx)):
        raise UserError(
            "extract.keep is false: no activation store is made, and `train`, `encode` and `rdms` compute activations when they "
            "need them. Set extract.keep=true to write the store; it has the same name and changes no later store."
        )


def _steps(ctx: Context) -> Iterator[Step]:
    facts, config, specs = ctx.facts, ctx.config, ctx.specs
    backbone, layers, n = facts.backbone, len(facts.hooks), facts.n_images
    t, d = backbone.n_patches, facts.width
    u, k = config.train.expansion * d, config.train.k
    if facts.demo is not None:
        trials = sum(s.n_trials * s.n_voxels for s in facts.subjects)
        # pictures compress to about 1.9 bytes per pixel; responses are float16
        yield Step("dataset", facts.demo, 1.9 * n * config.data.demo.size**2 + 2 * trials, 0)
    response = 2 if config.betas.dtype == "float16" else 4
    for s in facts.subjects:
        # trials in an order in which voxels can be read lie on disk for a while
        trials = 0 if ctx.has(specs.betas[s.name]) else s.trial_bytes * s.n_trials * s.n_voxels
        size = response * s.n_images * s.n_voxels + trials
        work = 12 * s.n_trials * s.n_voxels
        budget = min(config.betas.memory_mb << 20, (21 * s.n_trials + 12 * s.n_images) * s.n_voxels)
        yield Step("betas", specs.betas[s.name], size, work, s.name, budget, s.source_bytes + trials)
    stored = token_kinds(config, facts)
    per_image = sum(image_bytes(ctx, kind) for kind in stored)
    acts = n * per_image
    weights = 4 * backbone.n_layers * backbone.d_model * (4 * backbone.d_model + 2 * backbone.mlp_width)
    # activations as computed and as stored, of one step and the next
    forward = weights * len(by_backbone(stored)) + config.extract.batch * per_image * (
        6 if config.extract.dtype == "float16" else 4
    )
    backbone_flops = backbone.flops_per_image(facts.depth)
    if online := not (config.extract.keep or ctx.has(specs.activations)):
        acts, forward = 0, forward + kept_bytes(ctx)
    else:
        memory = forward + 2 * min(n, config.extract.shard_images) * per_image
        yield Step("extract", specs.activations, acts, n * len(by_backbone(stored)) * backbone_flops, None, memory)
    if facts.has_rdms:
        work, memory = 4 * layers * n * n * d, 4 * n * layers * (1 + backbone.has_cls) * d
        yield Step("rdms", specs.rdms, 1e5, work + online * n * backbone_flops, None, memory + online * forward, acts)
        return
    trained_kinds = {TOKEN_KIND[mode] for mode in config.sae_modes}
    kinds, own = len(trained_kinds), len(trained_kinds & set(REAL_KINDS))
    train = config.train
    sweep = train.sweep
    # at most: combinations that only differ in what an objective does not use are trained once
    grid = math.prod(1 + len(x) for x in (sweep.objective, sweep.k, sweep.sparsity, sweep.lr, sweep.seed))
    members = kinds * layers * grid
    every = members * sum(expansion * d for expansion in dict.fromkeys([train.expansion, *sweep.expansion]))
    # encoder forward and its weight gradient are dense; decoding touches the k active rows only
    cost = train.steps * train.batch * (4 * d * every + 12 * d * k * members * (1 + len(sweep.expansion)))
    # parameters, gradients and two moments; pre-activations and their gradient; pools of mixed tokens
    memory = every * (16 * 2 * d + 8 * train.batch) + _pools(ctx)
    # what follows the hook, half of the blocks on average, for every member, the control, each kind alone and all together
    cases = layers * (1 + grid * (1 + len(sweep.expansion))) * max(0, 2 * own - 1)
    cost += min(train.fidelity_images, facts.n_measured) * backbone.flops_per_image(backbone.n_layers) * (1 + cases / 2)
    if online:
        memory, cost = memory + forward, cost + training_images(ctx) * backbone_flops
    yield Step("train", specs.saes, every * (2 * d + 4) * 4, cost, None, memory, min(acts, _drawn(ctx)))
    units = {mode: d if mode in WIDTH_MODES else u for mode in config.encode.modes}
    pooled = 2 * min(u, t * k)
    width = {**units, "cls": 2 * k, "patch_mean": pooled, "patch_max": pooled, "untrained": pooled}
    codes = {mode: n * layers * width[mode] * 4 for mode in config.encode.modes}
    tokens = sum(
        {"cls": 1, "patch_mean": t, "random_relu": t, "untrained": t}.get(mode, 0) for mode in config.encode.modes
    )
    memory = 4 * kinds * layers * 2 * d * u + 4 * config.encode.batch * t * u
    cost = 2 * n * layers * tokens * d * u
    if online:  # with the images of one shard of codes at hand
        memory, cost = memory + forward + 256 * per_image, cost + encoding_images(ctx) * backbone_flops
    yield Step("encode", specs.codes, sum(codes.values()), cost, None, memory, acts)
    # permutations are searched for responsive voxels alone; how many these are is not known yet, a quarter is assumed
    align, budget = config.align, config.align.memory_mb << 20
    searches = (1 + align.shuffles / 4) * (2 if align.sign == "absolute" else 1)
    n_folds = align.folds if align.select == "kfold" else 0
    # all subjects are searched together: lists of all are in memory, and the first one's step reads the codes of all
    lists = sum(s.n_voxels for s in facts.subjects) * (13 * (align.k_voxel + layers + KEPT) * (1 + n_folds))
    lists += len(facts.subjects) * layers * max(units.values()) * 9 * align.k_unit
    for s in facts.subjects:
        # every fold searches once more without its own images, with one permutation beside; a pass costs by its images
        passes = searches * (s.n_unique if align.select == "shared" else s.n_images)
        passes += 1.25 * (n_folds - 1) * s.n_images if n_folds else 0
        flops = sum(2 * passes * layers * units[mode] * s.n_voxels for mode in config.encode.modes)
        per_voxel = 12 * (align.k_voxel + layers + min(align.shuffles, KEPT) + n_folds)
        out = sum(
            s.n_voxels * (per_voxel + (4 * d if mode in SAE_MODES else 0)) + 8 * layers * units[mode] * align.k_unit
            for mode in config.encode.modes
        )
        reads = sum(codes.values()) if s is facts.subjects[0] else 0
        memory = min(max(codes.values()), budget / 2) + 2 * budget + lists
        yield Step("align", specs.align[s.name], out, flops, s.name, memory, reads)
    for s in facts.subjects:
        pairs = max(s.n_voxels * align.k_voxel + layers * units[mode] * align.k_unit for mode in config.encode.modes)
        out = 20 * s.n_voxels * len(config.encode.modes)
        # 900 bytes of the solver per pair, as measured; it is not counted in floating-point operations
        memory = (900 if config.assign.soft else 100) * pairs + (align.memory_mb << 20)
        yield Step("assign", specs.assign[s.name], out, 0, s.name, memory)
    chosen = sum(min(s.n_voxels, config.sizes.voxels) * s.n_images for s in facts.subjects)
    flops = sum(2 * chosen * layers * units[mode] for mode in config.encode.modes)
    read = sum(codes.values()) * sum(s.n_images for s in facts.subjects) / n
    yield Step("sizes", specs.sizes, 1e4, flops, None, max(codes.values()) / layers + 2 * budget, read)
    for s in facts.subjects:
        if s.name in specs.joint:
            yield _joint(ctx, s, units, codes)
    for s in facts.subjects if specs.pooling else ():
        # every image once, with cross-fit once more to score; a quarter of the voxels, and as many permuted
        images = s.n_images * (2 if n_folds else 1)
        fields = 1 + config.pooling.positions**2 * len(config.pooling.sizes)
        flops = (
            images * layers * t * (2 * d * u + 2 * fields * u / 2)
            + 2 * images * fields * s.n_voxels / 2 * align.k_voxel
        )
        memory = 2 * (align.memory_mb << 20) + online * forward
        flops += online * images * backbone_flops
        yield Step("pooling", specs.pooling[s.name], 52 * s.n_voxels, flops, s.name, memory, acts * images / n)
    rdms = facts.n_shared**2 * layers * sum(2 * units[mode] for mode in config.encode.modes)
    memory = 8 * facts.n_shared * (facts.n_shared + u)
    read = sum(codes.values()) * facts.n_shared / n
    if (
        config.rsa.brain_metric == "crossnobis"
    ):  # all trials once, three repeats of the shared images of half the voxels
        memory += min(config.betas.memory_mb << 20, max(21 * s.n_trials * s.n_voxels for s in facts.subjects))
        rdms += 3 * facts.n_shared**2 * sum(s.n_voxels for s in facts.subjects)
        read += sum((s.trial_bytes or 4) * s.n_trials * s.n_voxels for s in facts.subjects)
    yield Step("rsa", specs.rsa, 1e5, rdms, None, memory, read)
    exemplars = len(config.roi.modes) * layers * u * config.roi.exemplars * 4
    yield Step("roi", specs.roi, exemplars, 0, None, 4 * n * u, sum(codes[m] for m in config.roi.modes))
    modes, voxels = len(config.encode.modes), sum(s.n_voxels for s in facts.subjects)
    draws = config.layers.bootstrap if align.select == "shared" else 0
    # three products per layer, and two of the responses; again for a quarter of the voxels
    flops = 2 * modes * draws * facts.n_shared * (3 * layers + 2) * voxels / 4
    size, reads = 9 + (12 * layers + 8 if draws else 0), sum(codes.values()) * facts.n_shared / n if draws else 0
    yield Step(
        "layers", specs.layers, modes * size * voxels, flops, None, (align.memory_mb << 20) if draws else 0, reads
    )
    if specs.recovery is not None:
        yield Step("recovery", specs.recovery, 1e4, 0)
    yield from meaning_steps(ctx)
    yield Step("report", specs.report, 2e7, 0)


def _joint(ctx: Context, s: SubjectFacts, units: dict[str, int], codes: Mapping[str, float]) -> Step:
    """Joint models of one subject; a quarter of its voxels is assumed to be responsive. codes: bytes by mode."""
    config, align, modes = ctx.config.joint, ctx.config.align, ctx.config.joint_modes
    n, layers, share = s.n_images, len(ctx.facts.hooks), s.n_images / ctx.facts.n_images
    p = config.predictors or ctx.facts.width
    voxels, fits = s.n_voxels / 4, 2 * (1 + (align.folds if align.select == "kfold" else 0))
    flops = 0.0
    for mode in modes:
        sets = 1 + layers * (mode in WIDTH_MODES)
        search = 2 * n * layers * units[mode] * voxels
        grams = 4 * n * min(config.candidates, units[mode]) ** 2 * voxels
        # a Gram matrix and its decomposition; predictions of the validation images under every penalty
        ridge = sets * (
            2 * n * p * p + 10 * min(n, p) ** 3 + 2 * n * p * voxels * (1 + config.validation * len(config.lambdas))
        )
        flops += fits * (search + grams + ridge)
    size = len(modes) * s.n_voxels * (12 * config.atoms + 28)
    memory = max(codes[mode] for mode in modes) * share + (align.memory_mb << 20)
    return Step("joint", ctx.specs.joint[s.name], size, flops, s.name, memory, sum(codes[m] for m in modes) * share)


def _pools(ctx: Context) -> float:
    """Bytes of the pools of mixed tokens: two per token kind, one in use and the next; one where it holds every image."""
    n, total = ctx.facts.n_trained, 0.0
    for kind in {TOKEN_KIND[mode] for mode in ctx.config.sae_modes}:
        images = ctx.config.train.pool_tokens / (ctx.facts.backbone.n_patches if kind != "cls" else 1)
        total += min(n, 2 * images) * image_bytes(ctx, kind)
    return total


def _drawn(ctx: Context) -> float:
    """Bytes of activations that the training reads: at most once per token drawn."""
    item = 2 if ctx.config.extract.dtype == "float16" else 4
    return ctx.config.train.steps * ctx.config.train.batch * len(ctx.facts.hooks) * 2 * ctx.facts.width * item


def plan_lines(ctx: Context, chosen: Sequence[str], machine: Machine = H100) -> list[str]:
    """The dry run: one line per store with its state, size, memory, cost and time on a stated machine, and what is left."""
    rows = [("stage", "store", "state", "disk", "memory", "FLOPs", machine.name)]
    todo = []
    for step in steps(ctx):
        path = step.spec.path(ctx.stores)
        partial = path.with_name(path.name + PARTIAL).exists()
        state = "found" if ctx.has(step.spec) else "to finish" if partial else "to make"
        if step.stage not in chosen:
            state = f"{state} (not asked for)" if state != "found" else state
        elif state != "found":
            todo.append(step)
        sizes = (short(step.bytes, "B"), short(step.memory, "B"), short(step.flops, "FLOP"))
        rows.append((step.stage, step.spec.name, state, *sizes, duration(step.seconds(machine))))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    disk, flops = sum(step.bytes for step in todo), sum(step.flops for step in todo)
    memory = max((step.memory for step in todo), default=0)
    return [
        *lines,
        f"to do: about {short(disk, 'B')} on disk, at most {short(memory, 'B')} of arrays in memory, {short(flops, 'FLOP')}, "
        f"{duration(sum(step.seconds(machine) for step in todo))} on {machine.name}; folder {ctx.out}",
        f"assumed for {machine.name}: {machine.flops / 1e12:g} TFLOP/s in float32 products, {machine.disk / 1e9:g} GB/s of disk",
    ]


def duration(seconds: float) -> str:
    """Seconds below two minutes, minutes below two hours, else hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def short(value: float, unit: str) -> str:
    """A number with a decimal prefix; a dash for zero."""
    if value == 0:
        return "-"
    for power, prefix in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:.1f} {prefix}{unit}"
    return f"{value:.0f} {unit}"
