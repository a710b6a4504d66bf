"""emergence: at which layers units follow concepts, and which low-level features they follow before."""

from __future__ import annotations

from typing import Any

import numpy as np

from sbm_jax.axes import TOKEN_KIND
from sbm_jax.errors import UserError
from sbm_jax.progress import progress
from sbm_jax.stages.context import Context
from sbm_jax.stages.emergence_curves import curve, gallery, group_of
from sbm_jax.stages.exemplar_lists import CONTROL
from sbm_jax.stages.explain_names import judges_of, read_judged, roi_concept
from sbm_jax.stages.explain_tables import Units
from sbm_jax.stages.flow import write_flow
from sbm_jax.stages.roi_rankings import roi_units
from sbm_jax.store.store import Store

GALLERY = 5  # units per layer and concept
_RANKING = "contrast"  # does not favour units that drive everything
_ASKED, _ROI = 2, 3  # streams of random numbers; an ROI's are from there on, by concept


def run(ctx: Context) -> Store:
    """Write `emergence.json`: `curves`, judge -> mode -> concept -> group (`roi`: units that some subject's ROI for the concept
    ranks first by contrast; `asked`: all units that a voxel, an ROI or the user asked for) -> `emergence_curves.curve`, with the
    random units' as `random`; `galleries` alike, lists of `emergence_curves.gallery` per layer; `flow` and arrays of tuning
    as `flow.write_flow`.

    Raises UserError for a concept of `emergence.concepts` that no judge knows.
    """
    assert ctx.specs.emergence is not None and ctx.specs.explain is not None and ctx.specs.exemplars is not None
    config, hooks = ctx.config.emergence, ctx.facts.hooks
    explain, exemplars = ctx.open(ctx.specs.explain), ctx.open(ctx.specs.exemplars)
    about = explain.json("explain.json")["judges"]
    _check(config.concepts, about)
    ranked = roi_units(ctx.open(ctx.specs.roi), ctx)
    asked_for = {
        kind: [tuple(exemplars.read(f"{kind}/{hook}/{part}") for part in ("units", "why")) for hook in hooks]
        for kind in ctx.config.kinds
    }
    writer = ctx.writer(ctx.specs.emergence)
    curves: dict[str, Any] = {judge: {} for judge in about}
    galleries: dict[str, Any] = {judge: {} for judge in about}
    with progress("emergence", len(ranked) * len(about), "judges x modes") as task:
        for mode, subjects in ranked.items():
            kind = TOKEN_KIND[mode]
            found = judges_of(explain, kind)
            for judge in found:
                base = np.array([about[judge]["base_rate"][name] for name in about[judge]["concepts"]])
                layers = [
                    Units(units, read_judged(explain, judge, kind, hook), base, np.flatnonzero(why & CONTROL))
                    for hook, (units, why) in zip(hooks, asked_for[kind], strict=True)
                ]
                asked = [np.flatnonzero(why & ~np.uint8(CONTROL)) for _, why in asked_for[kind]]
                wanted = [
                    c
                    for c, name in enumerate(about[judge]["concepts"])
                    if not config.concepts or name in config.concepts
                ]
                by_concept = {c: _roi_rows(layers, subjects, about[judge]["concepts"], c) for c in wanted}
                made = _curves(layers, asked, by_concept, wanted, config.bootstrap, config.seed)
                names = about[judge]["concepts"]
                curves[judge][mode] = {names[c]: record for c, record in made.items()}
                galleries[judge][mode] = {
                    names[c]: [
                        gallery(units, rows, c, GALLERY)
                        for units, rows in zip(layers, by_concept[c] or asked, strict=True)
                    ]
                    for c in wanted
                }
                task.advance()
            task.advance(len(about) - len(found))
    document = {"layers": list(ctx.facts.layer_labels), "curves": curves, "galleries": galleries}
    document["flow"] = write_flow(ctx, explain, exemplars.json("probe.json")["kind"], ranked, writer)
    document["left_out"] = _left_out(ctx)
    writer.put_json("emergence.json", document)
    return writer.commit()


def _check(concepts: list[str], about: dict[str, Any]) -> None:
    known = list(dict.fromkeys(name for judge in about.values() for name in judge["concepts"]))
    unknown = [name for name in concepts if name not in known]
    if unknown:
        raise UserError(f"emergence.concepts: no judge knows {unknown[0]!r}; known are {', '.join(known) or 'none'}")


def _left_out(ctx: Context) -> dict[str, str]:
    if len({ctx.config.train.seed, *ctx.config.train.sweep.seed}) > 1:
        return {"seeds": "exemplars are of the first seed's units alone: intervals are over units, not over seeds"}
    return {}


def _roi_rows(
    layers: list[Units], subjects: dict[str, dict[str, dict[str, np.ndarray]]], concepts: list[str], concept: int
) -> list[np.ndarray]:
    """Rows per layer of the units that any subject's ROI for the concept ranks first; no list where no ROI is known for it."""
    chosen = [
        rois[roi][_RANKING] for rois in subjects.values() for roi in rois if roi_concept(roi, concepts) == concept
    ]
    if not chosen:
        return []
    return [units.rows(np.unique(np.concatenate([u[layer] for u in chosen]))) for layer, units in enumerate(layers)]


def _curves(
    layers: list[Units],
    asked: list[np.ndarray],
    by_concept: dict[int, list[np.ndarray]],
    wanted: list[int],
    draws: int,
    seed: int,
) -> dict[int, dict[str, Any]]:
    """concept -> group -> curve."""
    random = [group_of(units, units.control, wanted) for units in layers]
    every = [group_of(units, rows, wanted) for units, rows in zip(layers, asked, strict=True)]
    made = {
        "asked": curve(every, random, draws, seed, _ASKED),
        "random": curve(random, random, 0, seed, _ASKED),
    }
    out: dict[int, dict[str, Any]] = {c: {name: made[name][i] for name in made} for i, c in enumerate(wanted)}
    for i, c in enumerate(wanted):
        del out[c]["random"]["gain"]  # over themselves
        if by_concept[c]:
            own = [group_of(units, rows, [c]) for units, rows in zip(layers, by_concept[c], strict=True)]
            (out[c]["roi"],) = curve(own, [g.column(i) for g in random], draws, seed, _ROI + c)
    return out
