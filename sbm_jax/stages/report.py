"""report: the page, `summary.json`, figures and maps, from finished stores."""

from __future__ import annotations

from sbm_jax.progress import progress
from sbm_jax.report.figures import brain_figure
from sbm_jax.report.page import render_page
from sbm_jax.stages.context import Context
from sbm_jax.stages.report_content import build
from sbm_jax.stages.report_maps import cortex, subject_maps, write_files
from sbm_jax.stages.report_summary import summarise
from sbm_jax.store.spec import pretty_json
from sbm_jax.store.store import Store, replace_text

_FIGURES = ("held_out", "best_layer", "category")


def run(ctx: Context) -> Store:
    """Write `report.html`, `summary.json`, `maps/` in the space of the data and on fsaverage5, and `figures/*.png` of the
    first subject that can be put on fsaverage5; `front.json`, error against L0, where something was swept.
    """
    writer = ctx.writer(ctx.specs.report)
    summary = summarise(ctx)
    maps = {s.name: subject_maps(ctx, s) for s in ctx.subjects}
    drawn = next((name for name, found in maps.items() if found.on_cortex), "")
    figures = [layer for layer in maps[drawn].on_cortex if layer.name in _FIGURES] if drawn else []
    with progress("report", 1 + len(maps) + len(figures), "pieces") as task:
        replace_text(writer.path / "report.html", render_page(build(ctx, summary, maps)))
        task.advance()
        for name in ("maps", "figures") if figures else ("maps",):
            (writer.path / name).mkdir(exist_ok=True)
        for subject in ctx.subjects:
            write_files(writer.path / "maps", subject, maps[subject.name])
            task.advance()
        for layer in figures:
            brain_figure(
                writer.path / "figures" / f"{drawn}_{layer.name}.png",
                cortex(),
                layer.values,
                layer.kind,
                layer.vmin,
                layer.vmax,
                f"{layer.label}, {drawn}",
                maps[drawn].atlases,
                label=layer.unit,
                categories=layer.categories,
                palette=layer.palette,
                threshold=layer.threshold,
                dpi=110,
            )
            task.advance()
    replace_text(writer.path / "summary.json", pretty_json(summary))
    if summary["front"]:
        writer.put_json("front.json", summary["front"])
    return writer.commit()
