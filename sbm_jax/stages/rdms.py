"""rdms: image x image RDMs of every layer against the RDMs that a dataset brings, beside its noise ceiling and other models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sbm_jax.brain.dataset import HumanRdms
from sbm_jax.errors import UserError
from sbm_jax.kernels import rdm, rdm_compare
from sbm_jax.kernels.rdm_compare.api import METHODS, upper_triangle
from sbm_jax.kernels.rdm_compare.ceiling import noise_ceiling
from sbm_jax.kernels.rdm_compare.whitened import WHITENED
from sbm_jax.progress import progress
from sbm_jax.report.data import Cell, LayerCurve, ReportData, Table
from sbm_jax.report.page import render_page
from sbm_jax.sae.stream import array_name, read_many
from sbm_jax.stages.context import Context
from sbm_jax.stages.resampled import resampled
from sbm_jax.store.spec import pretty_json
from sbm_jax.store.store import Store, replace_text

_READ_IMAGES = 256
ALL_METHODS = (*METHODS, *WHITENED)
KIND_TITLES = {"cls": "CLS token", "patch_mean": "mean of the patch tokens"}


def run(ctx: Context) -> Store:
    """Write `summary.json` and `report.html`.

    Every person's RDM is the mean over sessions. `models` and `layers` hold the comparison with every person and its mean,
    by every method of `rdm_compare`, and the 95 % `interval` of the mean by `rsa.method`; `ceiling` the lower and upper bound.
    """
    human = ctx.dataset.rdms
    assert human is not None
    people = {name: sessions.mean(axis=0) for name, sessions in human.subjects.items()}
    if len(people) < 2:
        raise UserError(f"{ctx.dataset.root}: a noise ceiling needs at least 2 people, found {', '.join(people)}")
    features = _features(ctx)
    writer = ctx.writer(ctx.specs.rdms)
    layers: dict[str, list[dict[str, Any]]] = {}
    vectors: list[np.ndarray] = []
    with progress("rdms", sum(map(len, features.values())), "RDMs") as task:
        for kind, by_hook in features.items():
            layers[kind] = []
            for x_nd in by_hook:
                vectors.append(upper_triangle(rdm(x_nd, ctx.config.rsa.metric)))
                layers[kind].append(compare(vectors[-1], people))
                task.advance()
    models = {name: compare(vector, people) for name, vector in human.models.items()}
    brains = np.stack(list(people.values()))[None]
    drawn = resampled(np.stack([*human.models.values(), *vectors]), brains, ctx.config.rsa)
    if drawn:
        # In the order of `vectors`: the models, then the layers of each kind.
        for record, row in zip(
            [*models.values(), *(r for rs in layers.values() for r in rs)], drawn[0].scores, strict=True
        ):
            record["interval"] = row[1:].tolist()
    summary = {
        "dataset": {"name": ctx.dataset.name, "region": human.region, "people": list(people)},
        "backbone": {"family": ctx.facts.backbone.family, "layers": list(ctx.facts.layer_labels)},
        "metric": ctx.config.rsa.metric,
        "ceiling": ceilings(people),
        "ceiling_intervals": drawn[0].ceiling[:, 1:].tolist() if drawn else None,
        "models": models,
        "layers": layers,
    }
    replace_text(writer.path / "summary.json", pretty_json(summary))
    replace_text(writer.path / "report.html", render_page(_page(ctx, summary, human)))
    return writer.commit()


def _features(ctx: Context) -> dict[str, list[np.ndarray]]:
    """Per kind and hook float32 [n, d]: patch tokens averaged, CLS tokens as they are. Every image is taken once."""
    kinds = {"patch_mean": "patch"} | ({"cls": "cls"} if ctx.facts.backbone.has_cls else {})
    acts, n = ctx.activations, ctx.facts.n_images
    names = {kind: [array_name(hook, tokens) for hook in ctx.facts.hooks] for kind, tokens in kinds.items()}
    blocks: dict[str, list[np.ndarray]] = {name: [] for group in names.values() for name in group}
    for start in range(0, n, _READ_IMAGES):
        for name, x in read_many(acts, list(blocks), np.arange(start, min(n, start + _READ_IMAGES))).items():
            x = x.astype(np.float32)
            blocks[name].append(x.mean(axis=1) if x.ndim == 3 else x)
    ctx.forget_activations()
    return {kind: [np.concatenate(blocks[name]) for name in group] for kind, group in names.items()}


def compare(model: np.ndarray, people: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """By method: similarity of a condensed RDM to every person's, and their `mean`."""
    out = {}
    for method in ALL_METHODS:
        scores = {name: rdm_compare(model, vector, method) for name, vector in people.items()}
        out[method] = {"mean": float(np.mean(list(scores.values()))), **scores}
    return out


def ceilings(people: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """By method: lower and upper noise ceiling over people."""
    stacked = np.stack(list(people.values()))
    return {
        method: dict(zip(("lower", "upper"), noise_ceiling(stacked, method), strict=True)) for method in ALL_METHODS
    }


def lines(summary: Mapping[str, Any], method: str) -> list[str]:
    """The table that ends a run."""
    ceiling = summary["ceiling"][method]
    out = ["", f"{method} with {summary['dataset']['region']} of {len(summary['dataset']['people'])} people"]
    out += [f"  {name:32s}{score:8.3f}  {_span(interval)}" for name, score, interval in _ranking(summary, method)]
    out.append(f"  noise ceiling{'':19s}{ceiling['lower']:8.3f} to {ceiling['upper']:.3f}")
    return [*out, "  [95 % intervals over images and people]"] if summary["ceiling_intervals"] else out


def _span(interval: Sequence[float] | None) -> str:
    return f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""


def _ranking(summary: Mapping[str, Any], method: str) -> list[tuple[str, float, list[float] | None]]:
    """Models as they come, and the best layer of each kind of feature; with the interval of each."""
    rows = [(name, record[method]["mean"], record.get("interval")) for name, record in summary["models"].items()]
    for kind, records in summary["layers"].items():
        scores = [record[method]["mean"] for record in records]
        best = int(np.nanargmax(scores))
        title = f"{KIND_TITLES[kind]}, block {summary['backbone']['layers'][best]}"
        rows.append((title, scores[best], records[best].get("interval")))
    return rows


def _page(ctx: Context, summary: Mapping[str, Any], human: HumanRdms) -> ReportData:
    method, people = ctx.config.rsa.method, list(human.subjects)
    ceiling = summary["ceiling"][method]
    levels = {f"ceiling, {name}": value for name, value in ceiling.items()}
    series = {KIND_TITLES[kind]: _series(records, method, people) for kind, records in summary["layers"].items()}
    note = f"mean over {len(people)} people, band: lowest to highest person; {ctx.config.rsa.metric} RDMs of raw activations"
    curve = LayerCurve(
        f"Similarity to {human.region}",
        summary["backbone"]["layers"],
        series,
        method,
        note=note,
        section="rsa",
        levels=levels,
    )
    rows: list[list[Cell]] = [
        [name, *(record[m]["mean"] for m in ALL_METHODS), _span(record.get("interval"))]
        for name, record in summary["models"].items()
    ]
    for kind, records in summary["layers"].items():
        rows += [
            [
                f"{KIND_TITLES[kind]}, block {label}",
                *(record[m]["mean"] for m in ALL_METHODS),
                _span(record.get("interval")),
            ]
            for label, record in zip(summary["backbone"]["layers"], records, strict=True)
        ]
    ends = summary["ceiling_intervals"] or (None, None)
    rows += [
        [f"noise ceiling, {end}", *(summary["ceiling"][m][end] for m in ALL_METHODS), _span(interval)]
        for end, interval in zip(("lower", "upper"), ends, strict=True)
    ]
    table = Table(
        "RDM comparison",
        "mean similarity to people's RDMs",
        ["model", *ALL_METHODS, f"95 % interval, {method}"],
        rows,
        section="rsa",
    )
    best = max(_ranking({**summary, "models": {}}, method), key=lambda row: row[1])
    return ReportData(
        title=ctx.config.report.title,
        subtitle=f"{ctx.dataset.name}: {len(ctx.dataset.images.ids)} images, {human.region} of {len(people)} people",
        headline=[
            (f"best layer ({method})", f"{best[1]:.3f}", best[0]),
            ("noise ceiling", f"{ceiling['lower']:.3f} to {ceiling['upper']:.3f}", "lower and upper bound over people"),
        ],
        tables=[table],
        curves=[curve],
    )


def _series(
    records: Sequence[Mapping[str, Any]], method: str, people: Sequence[str]
) -> tuple[list[float], list[float], list[float]]:
    by_person = np.array([[record[method][name] for name in people] for record in records])
    return by_person.mean(axis=1).tolist(), by_person.min(axis=1).tolist(), by_person.max(axis=1).tolist()
