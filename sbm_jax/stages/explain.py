"""explain: names for the wanted units by judges that look at their exemplars, and what regions' units are named."""

from __future__ import annotations

from typing import Any

import numpy as np

from sbm_jax.axes import TOKEN_KIND
from sbm_jax.progress import progress
from sbm_jax.stages.context import Context
from sbm_jax.stages.exemplar_lists import CONTROL, Exemplars, read_exemplars
from sbm_jax.stages.explain_names import Judged
from sbm_jax.stages.explain_tables import Units, control_table, roi_tables
from sbm_jax.stages.judges import open_judges
from sbm_jax.stages.judging import Counts, ImageJudge, Judge, Named, name_units, resampling
from sbm_jax.stages.roi_rankings import roi_units
from sbm_jax.statistics import fdr_adjusted
from sbm_jax.store.store import Store, StoreWriter


def run(ctx: Context) -> Store:
    """Write, per judge and `JUDGE/KIND/HOOK/`, of the wanted units in the order of the exemplar lists: `concept` int16 [w] (-1:
    none), `count` int16 [w], `stable` bool [w], `effect`, `effect_low`, `effect_high`, `q` float32 [w], `counts` int16 [w, c],
    `judged` int16 [w]; of masks also `f1`, `ap`, `prevalence` float32 [w, c]. Judges of whole images:
    `JUDGE/shows` bool [n, c], `JUDGE/seen` bool [n] over the probe set, and `JUDGE/scores` [n, c] of zero-shot.
    `explain.json`: judges, what was left out and why, tables of regions and of random units.

    Raises UserError as `judges.open_judges`.
    """
    assert ctx.specs.explain is not None and ctx.specs.exemplars is not None
    config, hooks = ctx.config.explain, ctx.facts.hooks
    exemplars, roi = ctx.open(ctx.specs.exemplars), ctx.open(ctx.specs.roi)
    probe = exemplars.json("probe.json")
    judges, left_out = open_judges(ctx, probe)
    writer = ctx.writer(ctx.specs.explain)
    draw = resampling(config.bootstrap, config.seed) if config.bootstrap else None
    found: dict[str, dict[str, list[Units]]] = {}
    rois: dict[str, Any] = {}
    with progress("explain", len(judges) * len(ctx.config.kinds) * len(hooks), "dictionaries") as task:
        for judge in judges:
            _write_images(writer, judge)
            found[judge.name] = {}
            for kind in ctx.config.kinds:
                named = _kind(judge, kind, exemplars, config.stable, writer, hooks)
                if named:
                    found[judge.name][kind] = named
                task.advance(len(hooks))
            rois[judge.name] = {
                mode: {
                    subject: roi_tables(found[judge.name][TOKEN_KIND[mode]], judge.concepts, ranked, draw)
                    for subject, ranked in subjects.items()
                }
                for mode, subjects in roi_units(roi, ctx).items()
                if TOKEN_KIND[mode] in found[judge.name]
            }
    writer.put_json(
        "explain.json",
        {
            "judges": {judge.name: _about(judge, found[judge.name]) for judge in judges},
            "left_out": left_out,
            "stable": config.stable,
            "exemplars": ctx.config.exemplars.top,
            "rois": rois,
            "controls": {
                judge.name: {kind: control_table(u, judge.concepts) for kind, u in found[judge.name].items()}
                for judge in judges
            },
        },
    )
    return writer.commit()


def _about(judge: Judge, found: dict[str, list[Units]]) -> dict[str, Any]:
    base = dict(zip(judge.concepts, judge.base_c.tolist(), strict=True))
    return {
        "concepts": list(judge.concepts),
        "base_rate": base,
        "about": judge.about,
        "exclusive": judge.exclusive,
        "kinds": list(found),
    }


def _write_images(writer: StoreWriter, judge: Judge) -> None:
    if isinstance(judge, ImageJudge):
        writer.put(f"{judge.name}/shows", judge.shows, dimensions=("n", "c"))
        writer.put(f"{judge.name}/seen", judge.seen, dimensions=("n",))
        if judge.scores is not None:
            writer.put(f"{judge.name}/scores", judge.scores, dimensions=("n", "c"))


def _kind(
    judge: Judge, kind: str, exemplars: Store, stable: int, writer: StoreWriter, hooks: tuple[str, ...]
) -> list[Units]:
    """One `Units` per hook, written too; none where the judge has nothing to say of such units."""
    if judge.by_patch and kind != "patch":
        return []
    asked: list[tuple[np.ndarray, np.ndarray]] = []
    known: list[Counts] = []
    for hook in hooks:  # heat maps of one dictionary at a time
        lists = _lists(exemplars, kind, hook, judge.by_patch)
        asked.append((lists.units, lists.why))
        known.append(judge.count(lists))
    named: list[Named] = [name_units(judge, counts, stable) for counts in known]
    # one family: all units of this kind that have a name
    has_name = [n.concept >= 0 for n in named]
    every = fdr_adjusted(np.concatenate([np.where(has, n.p, np.nan) for n, has in zip(named, has_name, strict=True)]))
    q = np.split(np.nan_to_num(every, nan=1.0).astype(np.float32), np.cumsum([len(n.p) for n in named])[:-1])
    out = []
    for hook, (units, why), counts, n, q_w in zip(hooks, asked, known, named, q, strict=True):
        shown, judged = counts.shown.astype(np.int16), counts.judged.astype(np.int16)
        said = Judged(
            judge.concepts, n.concept, n.count, n.stable, n.effect, n.effect_low, n.effect_high, q_w, shown, judged
        )
        base = f"{judge.name}/{kind}/{hook}"
        for part in list(Judged.__dataclass_fields__)[1:]:
            x = getattr(said, part)
            writer.put(f"{base}/{part}", x, dimensions=("w", "c")[: x.ndim])
        for part, x in counts.more.items():
            writer.put(f"{base}/{part}", x, dimensions=("w", "c"))
        out.append(Units(units, said, judge.base_c, np.flatnonzero(why & CONTROL)))
    return out


def _lists(store: Store, kind: str, hook: str, heat: bool) -> Exemplars:
    if heat:
        return read_exemplars(store, kind, hook)
    units, why, images, scores = (store.read(f"{kind}/{hook}/{part}") for part in ("units", "why", "images", "scores"))
    return Exemplars(units, why, images, scores, None)
