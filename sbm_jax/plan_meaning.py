"""Steps of the stages that say what units mean, with their estimates."""

from __future__ import annotations

from collections.abc import Iterator

from sbm_jax.plan_step import Step
from sbm_jax.stages.context import Context
from sbm_jax.stages.inputs import ROI_CONCEPTS


def meaning_steps(ctx: Context) -> Iterator[Step]:
    """exemplars, explain, emergence, match, edit, stability, where the configuration has a use for them."""
    specs = ctx.specs
    if specs.exemplars is not None:
        yield Step("exemplars", specs.exemplars, 1e6, 0)
    if specs.explain is not None:
        yield Step("explain", specs.explain, 1e5, 0)
    if specs.emergence is not None:
        yield Step("emergence", specs.emergence, 1e5, 0)
    if specs.match is not None:
        yield Step("match", specs.match, 1e6, 0)
    if specs.edit is not None:
        yield _edit(ctx)
    if specs.stability is not None:
        yield Step("stability", specs.stability, 1e5, 0)


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
