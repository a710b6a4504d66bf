"""Steps of the stages that say what units mean, with their estimates."""

from __future__ import annotations

from collections.abc import Iterator

from sbm_jax.axes import SAE_MODES, TOKEN_KIND
from sbm_jax.plan_step import Step
from sbm_jax.stages.context import Context
from sbm_jax.stages.online import image_bytes
from sbm_jax.stages.probe import STIMULI, probe_files
from sbm_jax.store.spec import StoreSpec


def meaning_steps(ctx: Context) -> Iterator[Step]:
    """exemplars, explain, emergence, match, edit, stability, where the configuration has a use for them."""
    specs = ctx.specs
    if specs.exemplars is not None:
        yield _exemplars(ctx, specs.exemplars)
    if specs.explain is not None:
        yield Step("explain", specs.explain, 1e5, 0)
    if specs.emergence is not None:
        yield Step("emergence", specs.emergence, 1e5, 0)
    if specs.match is not None:
        yield Step("match", specs.match, 1e6, 0)
    if specs.edit is not None:
        yield Step("edit", specs.edit, 1e5, 0)
    if specs.stability is not None:
        yield Step("stability", specs.stability, 1e5, 0)


_ROIS = 10  # assumed


def _exemplars(ctx: Context, spec: StoreSpec) -> Step:
    """All codes of the probe set once, and lists of the wanted units. Which these are is not known yet: at most the best unit of
    a quarter of the voxels by every mode, two rankings of ten ROIs, and the controls.
    """
    facts, config, kinds = ctx.facts, ctx.config.exemplars, ctx.config.kinds
    layers, t, d = len(facts.hooks), facts.backbone.n_patches, facts.width
    u, folder = ctx.config.train.expansion * d, config.probe != STIMULI
    n = len(probe_files(config.probe)) if folder else facts.n_images
    voxels, size, flops = sum(s.n_voxels for s in facts.subjects), 0.0, 0.0
    for kind in kinds:
        modes = sum(mode in SAE_MODES and TOKEN_KIND[mode] == kind for mode in ctx.config.encode.modes)
        ranked = 2 * _ROIS * ctx.config.roi.top_units * len(facts.subjects)
        wanted = min(u, modes * voxels / 4 / layers + ranked + config.random)
        tokens = t if kind == "patch" else 1
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
