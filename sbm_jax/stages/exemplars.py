"""exemplars: not written yet."""

from __future__ import annotations

from sbm_jax.stages.context import Context
from sbm_jax.store.store import Store


def run(ctx: Context) -> Store:
    """PLACEHOLDER, to be replaced."""
    assert ctx.specs.exemplars is not None
    writer = ctx.writer(ctx.specs.exemplars)
    writer.put_json("exemplars.json", {})
    return writer.commit()
