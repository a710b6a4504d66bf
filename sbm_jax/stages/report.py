"""report: the page, `summary.json`, figures and GIFTI maps, from finished stores."""

from __future__ import annotations

from sbm_jax.progress import progress
from sbm_jax.report.figures import brain_figure
from sbm_jax.report.page import render_page
from sbm_jax.stages.context import Context
from sbm_jax.stages.report_content import build
from sbm_jax.stages.report_maps import SPACE, atlases, cortex, subject_maps, write_gifti
from sbm_jax.stages.report_summary import summarise
from sbm_jax.store.spec import pretty_json
from sbm_jax.store.store import Store, replace_text

_FIGURES = ("held_out", "best_layer", "category")


def run(ctx: Context) -> Store:
    """Write `report.html`, `summary.json`, `figures/*.png` (first subject) and `maps/*.func.gii`."""
    writer = ctx.writer(ctx.specs.report)
    summary = summarise(ctx)
    on_cortex = ctx.dataset.space == SPACE
    maps = {s.name: subject_maps(ctx, s) for s in ctx.subjects} if on_cortex else {}
    pieces = 1 + (len(_FIGURES) + len(maps) if maps else 0)
    with progress("report", pieces, "pieces") as task:
        replace_text(writer.path / "report.html", render_page(build(ctx, summary, maps)))
        task.advance()
        for name in ("figures", "maps") if maps else ():
            (writer.path / name).mkdir(exist_ok=True)
        for subject, layers in maps.items():
            for layer in layers:
                write_gifti(writer.path / "maps", subject, layer)
            task.advance()
        for subject in ctx.subjects[:1] if maps else []:
            surfaces = cortex()
            for layer in maps[subject.name]:
                if layer.name in _FIGURES:
                    brain_figure(
                        writer.path / "figures" / f"{subject.name}_{layer.name}.png",
                        surfaces,
                        layer.values,
                        layer.kind,
                        layer.vmin,
                        layer.vmax,
                        f"{layer.label}, {subject.name}",
                        atlases(subject),
                        label=layer.unit,
                        categories=layer.categories,
                        palette=layer.palette,
                        threshold=layer.threshold,
                        dpi=110,
                    )
                    task.advance()
    replace_text(writer.path / "summary.json", pretty_json(summary))
    return writer.commit()
