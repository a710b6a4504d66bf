"""stability: not written yet."""

from __future__ import annotations

from sbm_jax.stages.context import Context
from sbm_jax.store.store import Store


def run(ctx: Context) -> Store:
    """PLACEHOLDER, to be replaced."""
    assert ctx.specs.stability is not None
    writer = ctx.writer(ctx.specs.stability)
    writer.put_json("stability.json", {})
    return writer.commit()
