"""Steps of the stages that say what units mean, with their estimates."""

from __future__ import annotations

from collections.abc import Iterator

from sbm_jax.axes import SAE_MODES, TOKEN_KIND
from sbm_jax.backbones.describe import describe_backbone
from sbm_jax.plan_step import Step
from sbm_jax.stages.context import Context
from sbm_jax.stages.inputs import ROI_CONCEPTS
from sbm_jax.stages.judge_sources import clip_folder
from sbm_jax.stages.match_dictionaries import sweep_seeds
from sbm_jax.stages.online import image_bytes
from sbm_jax.stages.probe import STIMULI, probe_files
from sbm_jax.store.spec import StoreSpec


def meaning_steps(ctx: Context) -> Iterator[Step]:
    """exemplars, explain, emergence, match, edit, stability, where the configuration has a use for them."""
    specs = ctx.specs
    if specs.exemplars is not None:
        yield _exemplars(ctx, specs.exemplars)
    if specs.explain is not None:
        yield _explain(ctx, specs.explain)
    if specs.emergence is not None:
        yield _emergence(ctx, specs.emergence)
    if specs.match is not None:
        yield _match(ctx, specs.match)
    if specs.edit is not None:
        yield _edit(ctx)
    if specs.stability is not None:
        yield _stability(ctx, specs.stability)


_ROIS, _JUDGES, _CONCEPTS = 10, 3, 6  # assumed
_STATISTICS, _BLOCK_CODES = 20, 1 << 23  # of stages/image_statistics.py and flow.py, which start JAX


def _wanted(ctx: Context, kind: str) -> float:
    """Units per dictionary. Which these are is not known yet: at most the best unit of a quarter of the voxels by every mode, two
    rankings of ten ROIs, and the controls.
    """
    facts, config = ctx.facts, ctx.config
    modes = sum(mode in SAE_MODES and TOKEN_KIND[mode] == kind for mode in config.encode.modes)
    ranked = 2 * _ROIS * config.roi.top_units * len(facts.subjects)
    voxels = sum(s.n_voxels for s in facts.subjects)
    return min(
        config.train.expansion * facts.width, modes * voxels / 4 / len(facts.hooks) + ranked + config.exemplars.random
    )


def _probe_images(ctx: Context) -> int:
    probe = ctx.config.exemplars.probe
    return ctx.facts.n_images if probe == STIMULI else len(probe_files(probe))


def _explain(ctx: Context, spec: StoreSpec) -> Step:
    """Every exemplar list once per judge, the sorted heat maps of some units, and with `clip` one pass of the judging model."""
    config, n, t = ctx.config, _probe_images(ctx), ctx.facts.backbone.n_patches
    units = len(ctx.facts.hooks) * sum(_wanted(ctx, kind) for kind in config.kinds)
    lists = units * config.exemplars.top * 8
    heat = 2 * t * config.exemplars.top * len(ctx.facts.hooks) * _wanted(ctx, "patch") if "patch" in config.kinds else 0
    size = _JUDGES * units * (4 * _CONCEPTS + 24) + 2 * n * _CONCEPTS
    flops = 0.0
    if config.explain.clip:
        model = describe_backbone(str(clip_folder(config)))
        flops = n * model.flops_per_image(model.n_layers)
    sorting = 128 * t * config.exemplars.top * 8 * (4 + 2 * _CONCEPTS)
    return Step(
        "explain", spec, size, flops, None, heat / len(ctx.facts.hooks) + sorting + 4 * n * t, _JUDGES * lists + heat
    )


def _emergence(ctx: Context, spec: StoreSpec) -> Step:
    """Draws of units at every layer, and one pass over the codes of the stimuli with their second moments."""
    config, facts = ctx.config, ctx.facts
    u, n, layers = config.train.expansion * facts.width, facts.n_images, len(facts.hooks)
    features = _STATISTICS + _CONCEPTS
    dictionaries = layers * len(config.kinds)
    draws = (
        2.0
        * config.emergence.bootstrap
        * sum(_wanted(ctx, kind) for kind in config.kinds)
        * layers
        * _JUDGES
        * 3
        * _CONCEPTS
    )
    moments = dictionaries * (2.0 * n * u * features + 40 * 5 * u * features**2)
    # codes in blocks, their copy in float64, sums of five folds; or the draws of one group
    widest = max(_wanted(ctx, kind) for kind in config.kinds)
    memory = max(12 * _BLOCK_CODES + 40 * u * features, 8 * config.emergence.bootstrap * widest)
    reads = dictionaries * n * 8 * config.train.k * facts.backbone.n_patches / 4
    return Step("emergence", spec, dictionaries * u * 70 + 4 * n * features, draws + moments, None, memory, reads)


def _exemplars(ctx: Context, spec: StoreSpec) -> Step:
    """All codes of the probe set once, and lists of the wanted units."""
    facts, config, kinds = ctx.facts, ctx.config.exemplars, ctx.config.kinds
    layers, t, d = len(facts.hooks), facts.backbone.n_patches, facts.width
    u, folder = ctx.config.train.expansion * d, config.probe != STIMULI
    n, size, flops = _probe_images(ctx), 0.0, 0.0
    for kind in kinds:
        wanted, tokens = _wanted(ctx, kind), t if kind == "patch" else 1
        size += layers * (wanted * config.top * (12 + (2 * t if kind == "patch" else 0)) + 20 * u)
        flops += 2.0 * n * layers * tokens * d * u
    budget = config.memory_mb << 20
    reads = n * sum(image_bytes(ctx, kind) for kind in kinds)
    # weights of the dictionaries of one pass, its lists, and the codes of a batch
    memory = 8 * d * u * len(kinds) * layers + min(size, 0.75 * budget) + min(12 * config.batch * t * u, budget / 4)
    if folder or not (ctx.config.extract.keep or ctx.has(ctx.specs.activations)):
        passes = max(1, size / (0.75 * budget))
        flops += passes * n * facts.backbone.flops_per_image(facts.depth)
        memory, reads = memory + ctx.config.extract.batch * reads / n, 0
    return Step("exemplars", spec, size, flops, None, memory, reads)


def _match(ctx: Context, spec: StoreSpec) -> Step:
    """Other runs as if they had this one's layers and dictionaries."""
    config, kinds, layers, u = ctx.config.match, len(ctx.config.kinds), len(ctx.facts.hooks), _units(ctx)
    n = min(ctx.facts.n_images, config.images or ctx.facts.n_images)
    every = config.pairs == "all"
    within, across = (layers * (layers - 1) // 2, layers**2) if every else (layers - 1, layers)
    pairs = kinds * (within + layers * len(sweep_seeds(ctx.config)) + across * len(config.others))
    codes = 8 * n * _active(ctx)
    return Step(
        "match",
        spec,
        pairs * u * (24 * config.top + 8 * config.shuffles + 40),
        pairs * 2 * u * u * ((1 + config.shuffles) * n + 2 * ctx.facts.width),
        memory=3 * codes + (config.memory_mb << 20),
        reads=2 * pairs * codes,
    )


def _stability(ctx: Context, spec: StoreSpec) -> Step:
    """Of the halves of every subject's images; each variant besides costs as much as `match` of its layers."""
    config, u, layers = ctx.config.stability, _units(ctx), len(ctx.facts.hooks)
    modes = len([mode for mode in config.modes if mode in ctx.config.encode.modes])
    searches = sum(s.n_images for s in ctx.facts.subjects) * modes * layers * config.draws * 1.5
    most = max(s.n_images for s in ctx.facts.subjects)
    memory = 4 * most * (3 * config.draws * config.voxels + u) + 8 * most * _active(ctx)
    matched = len(config.variants) * len(ctx.config.kinds) * layers
    flops = searches * 2 * u * config.voxels + matched * 4 * u * u * min(
        ctx.facts.n_images, ctx.config.match.images or most
    )
    return Step("stability", spec, 1e5, flops, memory=memory + (ctx.config.align.memory_mb << 20))


def _units(ctx: Context) -> int:
    return ctx.config.train.expansion * ctx.facts.width


def _active(ctx: Context) -> int:
    """Most units that can be active on an image, over its patches."""
    return min(_units(ctx), ctx.facts.backbone.n_patches * ctx.config.train.k)


def _edit(ctx: Context) -> Step:
    """Half of the network follows an edit on average. At most one set of units per subject and region known for a concept."""
    assert ctx.specs.edit is not None
    config, facts = ctx.config.edit, ctx.facts
    images = min(config.images or facts.n_measured, facts.n_measured)
    hooks = len(config.hooks or facts.hooks)
    sets = len(facts.subjects) * len(ROI_CONCEPTS)
    cases = sets * (hooks + len(config.doses) + len(config.drive) + 2 * config.draws) + 2 * hooks
    backbone, d = facts.backbone, facts.width
    u, t = ctx.config.train.expansion * d, backbone.n_patches
    encode = 2 * t * d * u
    voxels = 3 * sets * len(facts.hooks) * encode if config.voxels else 0
    flops = images * (cases * (backbone.flops_per_image(backbone.n_layers) / 2 + encode) + voxels)
    members = len(ctx.config.kinds) * len(facts.hooks) * 2 * d * u * 4
    return Step("edit", ctx.specs.edit, 12 * images * (cases + sets), flops, None, 2 * members, members)
