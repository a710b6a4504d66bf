"""Edits of units inside the backbone, while one waits: what becomes of its answer and of what voxels are predicted to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from sbm_jax.serve import data_cortex, data_maps
from sbm_jax.serve.answers import Refused
from sbm_jax.serve.predict import by_region, change_map, predicted
from sbm_jax.serve.query import Words

if TYPE_CHECKING:
    from sbm_jax.serve.live import Live
    from sbm_jax.serve.live_engine import Engine

HOWS = ("zero", "scale", "clamp", "set")
MOST_UNITS = 64
MOST_CLASSES = 8
EMBEDDING = "embedding"  # as `stages.editing` calls it, whose import starts JAX
CASES = ("before", "after", "rebuilt", "matched")


def edit_answers(live: Live) -> dict[str, Callable[[Words], Any]]:
    return {"/api/edit": lambda words: edit(live, words)}


def edit(live: Live, words: Words) -> dict[str, Any]:
    """One edit of one picture: probabilities of the classes before, after, with the reconstruction alone and with matched units
    edited instead; the same of every patch where there is a segmentation head; the units' code on every token; and, for a
    subject and a kind of features, the change of the predicted response of every voxel.
    """
    from sbm_jax.serve.live import numbers
    from sbm_jax.stages.editing_plan import How, UnitEdit

    lib = live.lib
    kind, hook, how = words.text("kind"), words.text("hook"), words.text("how", "zero")
    units = numbers(words.text("units"))
    if len(units) > MOST_UNITS:
        raise Refused(400, f"at most {MOST_UNITS} units at once")
    for unit in units:
        lib.unit_key(kind, hook, unit)
    if how not in HOWS or how not in get_args(How):
        raise Refused(400, f"how is one of {', '.join(HOWS)}")
    every = tuple(range(lib.ctx.facts.backbone.n_patches))
    # all patches by name, so that a choice of patches needs no other program
    patches = None if kind == "cls" else tuple(numbers(words.text("patches"))) if words.has("patches") else every
    change = UnitEdit(kind, hook, tuple(units), how, words.number("value", 0), patches)  # type: ignore[arg-type]
    rebuild = UnitEdit(kind, hook, (), "rebuild", 0, patches)
    subject, mode = lib.subject(words.text("subject")).name, lib.mode(words.text("mode"))
    picture = live.chosen(words)
    return live.work(lambda engine: _answer(engine, engine.pixels(picture), change, rebuild, subject, mode))


def _answer(engine: Engine, pixels: np.ndarray, change: Any, rebuild: Any, subject: str, mode: str) -> dict[str, Any]:
    lib, editor = engine.lib, engine.editor
    inner = tuple(hook for hook in lib.hooks if hook in editor.hooks)
    matched = engine.controls(change.kind, change.hook, change.units)
    control = [replace(change, units=matched)] if len(matched) == len(change.units) else []
    ends = (EMBEDDING, "final_norm") if engine.head else (EMBEDDING,)
    # always four cases: one shape, one program
    found = editor.run(pixels[None], [[], [change], [rebuild], control], (*inner, *ends))
    embeddings = found[EMBEDDING][:, 0]
    cases = CASES if control else CASES[:-1]
    out: dict[str, Any] = {
        "cases": cases,
        "classes": classes(engine, embeddings[: len(cases)], cases),
        "cosine": {case: _cosine(embeddings[0], embeddings[i]) for i, case in enumerate(cases) if i},
        "controls": matched if control else (),
        "codes": editor.codes(found[change.hook][0], change.kind, change.hook, change.units)[0].sum(axis=1),
        "largest": None,
        "segmentation": segmentation(engine, found, cases),
    }
    if engine.largest:
        out["largest"] = engine.largest[change.kind, change.hook][list(change.units)]
    if inner == lib.hooks and any(mode in lib.modes_of(kind) for kind in lib.kinds):
        before, after = (engine.pooled(_codes(engine, found, case), mode, None) for case in (0, 1))
        values = predicted(lib, subject, mode, after - before, part=True)
        layer = change_map(
            "Change of the predicted response", values, "after minus before, in standard deviations over images"
        )
        out |= {"regions": by_region(lib, subject, values), "note": layer.note}
        if not data_maps.why_unplaced(lib, subject):
            out["map"] = data_cortex.packed(data_maps.on_cortex(lib, subject, layer), "change")
    return out


def segmentation(engine: Engine, found: dict[str, np.ndarray], cases: tuple[str, ...]) -> dict[str, Any] | None:
    """The likeliest class of every patch in each case; None without a head."""
    if engine.head is None:
        return None
    tokens = found["final_norm"][:, 0, engine.backbone.prefix_tokens :]
    return {"names": engine.head.names, **{case: engine.head.classes(tokens[i]) for i, case in enumerate(cases)}}


def _codes(engine: Engine, found: dict[str, np.ndarray], case: int) -> dict[tuple[str, str], Any]:
    """Codes of the picture by dictionary, from the streams of one case."""
    tokens = {"cls": slice(0, 1), "patch": slice(engine.backbone.prefix_tokens, None)}
    return {key: engine.sparse(*key, found[key[1]][case][:, tokens[key[0]]]) for key in engine.members}


def classes(engine: Engine, embeddings_ed: np.ndarray, cases: tuple[str, ...]) -> list[dict[str, Any]]:
    """Probability of every class in each case: softmax of the zero-shot or the model's own classifier; none without either."""
    if engine.readout is None:
        return []
    logits = engine.readout.logits(embeddings_ed)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    order = np.argsort(-p[:2].max(axis=0), kind="stable")[:MOST_CLASSES]
    return [{"name": engine.readout.names[c], **{case: p[i, c] for i, case in enumerate(cases)}} for c in order]


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
