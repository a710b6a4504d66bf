"""dataset: the embedded demo, written as an ordinary dataset folder that the general reader opens."""

from __future__ import annotations

import os
import shutil

from sbm_jax.progress import progress
from sbm_jax.stages.context import Context
from sbm_jax.store.arrays import guarded
from sbm_jax.store.store import Store


def run(ctx: Context) -> Store:
    """Write scenes, simulated responses and the truth to `<store>/data`. A killed run starts this stage again."""
    from sbm_jax.demo.dataset import Plan, write_demo_dataset

    assert ctx.facts.demo is not None
    demo = ctx.config.data.demo
    writer = ctx.writer(ctx.facts.demo)
    folder = writer.path / "data"
    shutil.rmtree(folder, ignore_errors=True)
    settings = {**demo.model_dump(), "n_sessions": SESSIONS}
    pieces = Plan(**settings).n_images
    with guarded(f"writing {folder}"), progress("demo data", pieces, "pieces") as task:

        def report(done: int, total: int) -> None:
            task.total = total
            task.advance(done - task.done)

        write_demo_dataset(folder, **settings, workers=os.cpu_count() or 1, progress=report)
    return writer.commit()


SESSIONS = 3
