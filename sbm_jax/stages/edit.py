"""edit: what a model no longer knows, or sees everywhere, when the units that an ROI selected are removed or driven."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sbm_jax.images.batches import square_batches
from sbm_jax.progress import progress
from sbm_jax.stages.context import Context
from sbm_jax.stages.edit_cases import DRIVE, REMOVE, Trial, trials_of
from sbm_jax.stages.edit_effects import Effects, Outcomes
from sbm_jax.stages.edit_heads import segmentation_records
from sbm_jax.stages.edit_inputs import Selected, edited_hooks, open_editor, selected_units
from sbm_jax.stages.edit_voxels import Voxels, voxel_mode
from sbm_jax.stages.editing import EMBEDDING, Editor, UnitEdit
from sbm_jax.stages.exemplar_lists import read_firing
from sbm_jax.stages.fidelity import spread
from sbm_jax.stages.image_sets import autoencoder_sets
from sbm_jax.stages.matched_units import firing_profile
from sbm_jax.stages.pictures import geometry_of
from sbm_jax.stages.readouts import categories_of, readout_of
from sbm_jax.store.store import Store

_BATCH = 32


def run(ctx: Context) -> Store:
    """Write, per `SUBJECT/ROI/`, over e cases (the first un-edited) and n images: `cosine` float32, `answer` int32, `margin`
    float32 [e, n] (see `edit_effects.Outcomes`); `rows` and `labels` int32 [n]; `edit.json`, the cases with their units and
    effects, and the controls.

    Images are held-out ones, those that no autoencoder was trained on where there are such.
    """
    assert ctx.specs.edit is not None and ctx.specs.exemplars is not None
    config, exemplars = ctx.config.edit, ctx.open(ctx.specs.exemplars)
    images, hooks = ctx.dataset.images, edited_hooks(ctx)
    sets = selected_units(ctx, hooks)
    held_out = autoencoder_sets(images.shared)[1]
    rows = spread(held_out, config.images or len(held_out))
    editor = open_editor(ctx, keep_streams=config.voxels)
    profiles = {key: firing_profile(read_firing(exemplars, *key)) for key in editor.dictionaries}
    readout = readout_of(editor.backbone, tuple(images.labels))
    labels = None if readout is None else categories_of(readout.names, images.labels)
    labels = None if labels is None else labels[rows]
    trials = [trials_of(chosen, i, config, profiles) for i, chosen in enumerate(sets)]
    pictures = square_batches([images.sources[row] for row in rows], geometry_of(ctx, editor.backbone), _BATCH)
    embeddings, rebuilt = _embeddings(editor, list(pictures), trials, hooks)
    writer = ctx.writer(ctx.specs.edit)
    writer.put("rows", rows.astype(np.int32))
    writer.put("labels", (np.full(len(rows), -1) if labels is None else labels).astype(np.int32))
    names = () if readout is None else readout.names
    records = []
    for chosen, of_set, found in zip(sets, trials, embeddings, strict=True):
        outcomes = Outcomes.of(found, readout, labels)
        base = f"{chosen.subject}/{chosen.roi.replace('/', '.')}"
        writer.put(f"{base}/cosine", outcomes.cosine.astype(np.float32))
        writer.put(f"{base}/answer", outcomes.answer.astype(np.int32))
        writer.put(f"{base}/margin", outcomes.margin.astype(np.float32))
        concept = names.index(chosen.concept) if chosen.concept in names else None
        effects = Effects(outcomes, labels, concept, config.bootstrap, config.seed)
        records.append(_record(chosen, of_set, effects, names))
    if config.voxels and sets:
        _add_voxels(ctx, editor, rows, sets, trials, records, labels, names)
    whole = {}
    for hook, found in rebuilt.items():
        effects = Effects(Outcomes.of(found, readout, labels), labels, None, config.bootstrap, config.seed)
        whole[hook] = _by_concept(effects, 1, names) | {"distance": effects.describe(1)["distance"]}
    writer.put_json(
        "edit.json",
        {
            "images": len(rows),
            "categories": list(names),
            "embedding": editor.readout,
            "hooks": list(hooks),
            "accuracy": _accuracy(records, embeddings, readout, labels, names),
            "sets": records,
            "rebuilt": whole,
            "segmentation": segmentation_records(ctx, editor, rows, sets, trials, config),
        },
    )
    return writer.commit()


def _embeddings(
    editor: Editor, pictures: Sequence[np.ndarray], trials: Sequence[Sequence[Trial]], hooks: Sequence[str]
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Per set of units the embeddings [1 + trials, n, width], un-edited first; per hook those [2, n, width] un-edited and with
    whole reconstructions put in. The cases of one hook go through the network together, each beside its un-edited twin.
    """
    found = [[np.empty(0)] * (1 + len(of_set)) for of_set in trials]
    rebuilt = {}
    count = sum(map(len, trials)) + 2 * len(hooks)
    with progress("edit", count * sum(map(len, pictures)), "images x cases") as task:
        for hook in hooks:
            places = [(s, i) for s, of_set in enumerate(trials) for i, trial in enumerate(of_set) if trial.hook == hook]
            whole = tuple(
                UnitEdit(kind, hook, (), "rebuild") for kind in editor.stacked if hook in editor.stacked[kind]
            )
            cases = [(), whole, *(trials[s][i].edits for s, i in places)]
            parts = []
            for batch in pictures:
                padded = np.pad(batch, [(0, len(pictures[0]) - len(batch)), (0, 0), (0, 0), (0, 0)])
                parts.append(editor.run(padded, cases)[EMBEDDING][:, : len(batch)])
                task.advance(len(cases) * len(batch))
            together = np.concatenate(parts, axis=1)
            rebuilt[hook] = together[:2]
            for place, (s, i) in enumerate(places):
                found[s][1 + i] = together[2 + place]
            for s, of_set in enumerate(trials):
                if of_set and not found[s][0].size:
                    found[s][0] = together[0]
    return [np.stack(parts) for parts in found], rebuilt


def _record(chosen: Selected, trials: Sequence[Trial], effects: Effects, names: Sequence[str]) -> dict[str, Any]:
    """Effects of every case of the ROI's own units, and beside them those of the matched controls."""
    out: dict[str, Any] = {
        "subject": chosen.subject,
        "roi": chosen.roi,
        "concept": chosen.concept,
        "hook": chosen.best,
        "units": {hook: {kind: list(units) for kind, units in of.items()} for hook, of in chosen.units.items()},
        "cases": [trial.describe() | effects.describe(1 + i) for i, trial in enumerate(trials) if trial.draw is None],
        "controls": [
            trial.describe()
            | {"units": {kind: list(units) for kind, units in trial.units.items()}}
            | effects.describe(1 + i)
            for i, trial in enumerate(trials)
            if trial.draw is not None
        ],
        "beyond_controls": {},
    }
    for what in (REMOVE, DRIVE):
        own = [i for i, t in enumerate(trials) if t.what == what and t.hook == chosen.best and t.draw is None]
        controls = [1 + i for i, t in enumerate(trials) if t.what == what and t.draw is not None]
        if not own or not controls:
            continue
        strongest = 1 + max(own, key=lambda i: trials[i].value)
        out["beyond_controls"][what] = _against(effects, strongest, controls)
        if what == REMOVE:
            out["by_concept"] = _by_concept(effects, strongest, names)
            out["by_concept_controls"] = _by_concept(effects, controls, names)
    return out


def _against(effects: Effects, own: int, controls: list[int]) -> dict[str, Any]:
    """Change less that of the controls' mean, and how many control sets change as much (share with the ROI's own set counted)."""
    parts = effects.parts()
    everywhere = np.ones(effects.outcomes.cosine.shape[1], bool)
    wanted = {"distance": ("distance", everywhere)}
    if parts:
        wanted |= {f"on {name}": (name, parts["on"]) for name in ("accuracy", "margin")}
        wanted["off margin"] = ("margin", parts["off"])
        wanted["claimed"] = ("claimed", parts["off"])
    out: dict[str, Any] = {}
    for name, (quantity, chosen) in wanted.items():
        values = [effects.change(e, quantity, chosen)[0] for e in (own, *controls)]
        reached = sum(abs(x or 0) >= abs(values[0] or 0) for x in values[1:])
        out[name] = {
            "difference": effects.against(own, controls, quantity, chosen),
            "p": (1 + reached) / (1 + len(controls)),
        }
    return out


def _by_concept(effects: Effects, e: int | list[int], names: Sequence[str]) -> dict[str, Any]:
    if effects.labels is None:
        return {}
    return {
        name: {quantity: effects.change(e, quantity, effects.labels == c) for quantity in ("accuracy", "margin")}
        for c, name in enumerate(names)
    }


def _accuracy(
    records: Sequence[Any],
    embeddings: Sequence[np.ndarray],
    readout: Any,
    labels: np.ndarray | None,
    names: Sequence[str],
) -> dict[str, Any] | None:
    """Un-edited accuracy by category, with the number of images."""
    if readout is None or labels is None or not embeddings:
        return None
    right = readout.logits(embeddings[0][0]).argmax(axis=1) == labels
    counts = {name: int((labels == c).sum()) for c, name in enumerate(names)}
    return {
        name: {"images": counts[name], "accuracy": float(right[labels == c].mean()) if counts[name] else None}
        for c, name in enumerate(names)
    }


def _add_voxels(
    ctx: Context,
    editor: Editor,
    rows: np.ndarray,
    sets: Sequence[Selected],
    trials: Sequence[Sequence[Trial]],
    records: list[dict[str, Any]],
    labels: np.ndarray | None,
    names: Sequence[str],
) -> None:
    """Predicted change of every ROI's response when the units are removed, and when the first control set is."""
    mode = voxel_mode(ctx)
    if mode is None:
        return
    images = ctx.dataset.images
    pictures = list(square_batches([images.sources[row] for row in rows], geometry_of(ctx, editor.backbone), _BATCH))
    predicted = {name: Voxels(ctx, name, mode) for name in dict.fromkeys(chosen.subject for chosen in sets)}
    with progress("edit: voxels", len(sets), "sets") as task:
        for chosen, of_set, record in zip(sets, trials, records, strict=True):
            voxels = predicted[chosen.subject]
            chosen_trials = [t for t in of_set if t.what == REMOVE and t.hook == chosen.best and t.draw in (None, 0)]
            later = [hook for hook in editor.hooks[editor.hooks.index(chosen.best) :] if hook in voxels.units]
            if later:
                parts = []
                for batch in pictures:
                    padded = np.pad(batch, [(0, len(pictures[0]) - len(batch)), (0, 0), (0, 0), (0, 0)])
                    streams = editor.run(padded, [(), *(t.edits for t in chosen_trials)], (EMBEDDING, *later))
                    parts.append(voxels.change(editor, streams)[:, : len(batch)])
                change = np.concatenate(parts, axis=1)
            else:
                change = np.zeros((1 + len(chosen_trials), len(rows), len(voxels.rois)))
            of_concept = (
                labels == names.index(chosen.concept) if labels is not None and chosen.concept in names else None
            )
            record["voxels"] = {
                "mode": mode,
                "rois": voxels.rois,
                **{
                    ("removed" if trial.draw is None else "control"): {
                        "all": change[1 + i].mean(axis=0).tolist(),
                        "concept": change[1 + i][of_concept].mean(axis=0).tolist()
                        if of_concept is not None and of_concept.any()
                        else None,
                    }
                    for i, trial in enumerate(chosen_trials)
                },
            }
            task.advance()
