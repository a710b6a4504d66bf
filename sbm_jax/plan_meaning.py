"""Steps of the stages that say what units mean, with their estimates."""

from __future__ import annotations

from collections.abc import Iterator

from sbm_jax.plan_step import Step
from sbm_jax.stages.context import Context


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
        yield Step("edit", specs.edit, 1e5, 0)
    if specs.stability is not None:
        yield Step("stability", specs.stability, 1e5, 0)
