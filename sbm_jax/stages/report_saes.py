"""What the page says of the autoencoders: held-out metrics, the front of a sweep, stability, distributions over units."""

from __future__ import annotations

from typing import Any

import numpy as np

from sbm_jax.report.data import Cell, Column, Plot, Table, Trace
from sbm_jax.sae.front import SETTINGS

_DOWNSTREAM = "replacing this autoencoder's tokens alone, or together with the other kind's; see below the table"
_MOST_NAMES = 12
_NAMES = {"cls": "CLS", "patch": "patch", "untrained": "untrained backbone's patch"}


def sae_tables(summary: dict[str, Any]) -> list[Table]:
    """Held-out metrics of the primary setting; of all autoencoders where something was swept; stability where seeds were."""
    return [_metrics(summary), *_fronts(summary), *_stability(summary)]


def sae_plots(summary: dict[str, Any]) -> list[Plot]:
    """A front per token kind and layer, and per token kind the distributions over units of every layer."""
    return [*_front_plots(summary), *_distributions(summary)]


def _primary(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The autoencoders that later stages use: the first of each token kind and hook."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for member in summary["saes"]:
        found.setdefault((member["kind"], member["hook"]), member)
    return list(found.values())


def _metrics(summary: dict[str, Any]) -> Table:
    keys = ("explained_variance", "normalised_mse", "l0", "dead", "dead_in_training", "dense")
    facts, members = summary["sae_fidelity"], _primary(summary)
    rows = [[_name(m, members), *(m[key] for key in keys), *_downstream(m, facts), m["final_loss"]] for m in members]
    columns = [
        "autoencoder",
        "explained variance",
        Column("MSE", "normalised"),
        Column("L0", digits=1),
        Column("dead", help="share of units that never fired on these tokens"),
        Column("dead", "in training", help=f"silent for the last {summary['dead_tokens']:,} training tokens"),
        Column("dense", help="share of units that fire on more than 1 % of these tokens"),
        Column("downstream", "alone", help=_DOWNSTREAM),
        Column("downstream", "together", help=_DOWNSTREAM),
        "training loss",
    ]
    data = summary["dataset"]
    kept = 0 < data["shared"] < data["images"]
    note = (
        "On tokens of the shared images, which were not trained on. "
        if kept
        else "On the tokens trained on: no image was kept apart. "
    )
    return Table("Autoencoders", note + _fidelity_note(facts), columns, rows, section="layers")


def _downstream(member: dict[str, Any], facts: dict[str, Any] | None) -> list[float | None]:
    """The member's tokens alone, and all kinds of tokens together."""
    answers = facts is not None and bool(facts["categories"])
    found = member["fidelity"] or {"alone": None, "together": None}
    parts = (found["alone"], found["together"])
    return [part and (part["loss_recovered"] if answers else part["sae"]["cosine"]) for part in parts]


def _fidelity_note(facts: dict[str, Any] | None) -> str:
    if facts is None:
        return "Downstream fidelity was not measured."
    images = f"of {facts['images']} images"
    if not facts["categories"]:
        return (
            f"Downstream: cosine between the backbone's embeddings {images} with and without the reconstruction in place "
            "of the layer's activations."
        )
    identity, accuracy, names = facts["identity"], facts["original"]["accuracy"], facts["categories"]
    over = ", ".join(names) if len(names) <= _MOST_NAMES else f"{len(names):,} categories"
    return (
        f"Downstream: 1 − KL / KL of the mean token, for the backbone's own answers {images} over {over} when the "
        "reconstruction stands in for the layer's activations; a dash where the mean token changes no answer. "
        f"With nothing replaced KL is {identity['kl']:.1g}"
        + ("." if accuracy is None else f", and {100 * accuracy:.0f} % of the answers are the label.")
    )


def _fronts(summary: dict[str, Any]) -> list[Table]:
    members, facts = summary["saes"], summary["sae_fidelity"]
    by_setting = {_key(m): m for m in members}
    rows: list[list[Cell]] = []
    for front in summary["front"]:
        for point in sorted(front["points"], key=lambda p: (p["l0"], p["normalised_mse"])):
            member = by_setting[_key({**point, "kind": front["kind"], "hook": front["hook"]})]
            place = "all" if point["pareto"] else "its objective" if point["pareto_of_objective"] else ""
            shown = (member[key] for key in ("l0", "normalised_mse", "explained_variance", "dead"))
            rows.append([_name(member, members), *shown, *_downstream(member, facts), place])
    note = "On the front: no autoencoder of the same tokens (of all objectives, or of its own) has both lower L0 and lower error."
    columns = [
        "autoencoder",
        Column("L0", digits=1),
        Column("MSE", "normalised"),
        "explained variance",
        "dead",
        Column("downstream", "alone", help=_DOWNSTREAM),
        Column("downstream", "together", help=_DOWNSTREAM),
        "on the front of",
    ]
    return [Table("Error against sparsity", note, columns, rows, section="layers")] if rows else []


def _key(member: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(member[key] for key in ("kind", "hook", *SETTINGS))


def _front_plots(summary: dict[str, Any]) -> list[Plot]:
    members = summary["saes"]
    out = []
    for front in summary["front"]:
        points = front["points"]
        traces = {}
        for name in dict.fromkeys(p["objective"] for p in points):
            mine = [p for p in points if p["objective"] == name]
            best = [i for i, p in enumerate(mine) if p["pareto_of_objective"]]
            traces[name] = Trace(
                [p["l0"] for p in mine],
                [p["normalised_mse"] for p in mine],
                sorted(best, key=lambda i: mine[i]["l0"]),
                [f"{_setting(p, members)}: L0 {p['l0']:.3g}, MSE {p['normalised_mse']:.3g}" for p in mine],
                [not p["pareto"] for p in mine],
            )
        out.append(
            Plot(
                f"{_NAMES[front['kind']]} tokens, {front['hook']}",
                traces,
                "L0",
                "normalised MSE",
                "Filled: on the front of all. Line: front of the objective." if not out else "",
                log_x=all(p["l0"] > 0 for p in points),
            )
        )
    return out


def _distributions(summary: dict[str, Any]) -> list[Plot]:
    """Of the primary setting: how many units have which firing rate, and which mean code when active."""
    parts = (
        ("rates", "rate_bins", "Firing rate of units", "log10 share of tokens on which a unit fires"),
        ("magnitudes", "magnitude_bins", "Size of codes", "log10 mean code of a unit when active"),
    )
    out = []
    for kind in dict.fromkeys(m["kind"] for m in summary["saes"]):
        mine = [m for m in _primary(summary) if m["kind"] == kind]
        for key, bins, title, label in parts:
            edges = np.asarray(summary[bins])
            centres = (edges[:-1] + edges[1:]) / 2
            seen = np.flatnonzero(np.sum([m[key] for m in mine], axis=0))
            if not len(seen):
                continue
            # One empty bin at either end, where there is one, so that curves come down to 0.
            shown = slice(max(0, seen[0] - 1), seen[-1] + 2)
            traces = {m["hook"]: Trace(x := centres[shown].tolist(), m[key][shown], range(len(x))) for m in mine}
            out.append(Plot(f"{title}, {_NAMES[kind]} tokens", traces, label, "units", ranked=True))
    return out


def _stability(summary: dict[str, Any]) -> list[Table]:
    rows = [
        [
            _name(record, summary["saes"], but=("seed",)),
            len(record["seeds"]),
            record["mean_matched_cosine"],
            record["shared"],
            record["mean_max_cosine"],
        ]
        for record in summary["stability"]
    ]
    columns = [
        "autoencoder",
        "seeds",
        Column("matched cosine", help="mean cosine of decoder rows paired one to one so that their sum is largest"),
        Column("shared", help="share of units whose partner has a cosine above 0.7 in decoder and encoder"),
        Column("largest cosine", help="mean over units of the largest cosine to any unit of the other seed"),
    ]
    note = "Dictionaries that differ in their seed, over units that fire on held-out tokens; means over pairs of seeds."
    if not all(record["exact"] for record in summary["stability"]):
        note += " Large dictionaries are paired greedily."
    return [Table("Stability between seeds", note, columns, rows, section="layers")] if rows else []


def _name(member: dict[str, Any], members: list[dict[str, Any]], but: tuple[str, ...] = ()) -> str:
    """Token kind and hook, and the settings in which the autoencoders of a sweep differ."""
    return ", ".join(filter(None, (member["kind"], member["hook"], _setting(member, members, but))))


def _setting(member: dict[str, Any], members: list[dict[str, Any]], but: tuple[str, ...] = ()) -> str:
    parts = []
    for key in SETTINGS:
        if key not in but and len({m[key] for m in members}) > 1:
            parts.append(member[key] if key == "objective" else f"{key}={member[key]:g}")
    return ", ".join(parts)
