"""The page that compares the runs of a sweep: one offline HTML text in the style of a run's own report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from sbm_jax.axes import MODE_TITLES
from sbm_jax.report.data import Plot, Trace
from sbm_jax.report.page import asset, environment_of, policy
from sbm_jax.sweep.grid import Run, value_text
from sbm_jax.sweep.plan import Sweep
from sbm_jax.sweep.table import Row

# Of the Parquet table; those that no row has are left out.
SCORES = {
    "held_out_mean": "held-out r",
    "held_out_of_ceiling": "r / ceiling",
    "shuffled_held_out_mean": "shuffled",
    "significant_fdr": "FDR .05",
    "recovered": "truth found",
    "recovered_shuffled": "found, permuted",
    "sae_explained_variance": "explained variance",
    "sae_l0": "L0",
    "sae_dead": "dead",
    "best_layer": "best layer",
    "rdm_corr": "RDM corr",
    "rdm_spearman": "RDM spearman",
    "rdm_tau-a": "RDM tau-a",
    "rdm_rho-a": "RDM rho-a",
    "rdm_cosine": "RDM cosine",
    "ceiling_lower": "ceiling, lower",
}
DRAWN = ("held_out_mean", "recovered", "sae_explained_variance", "rdm_spearman")


def render_sweep(sweep: Sweep, rows: Sequence[Row], title: str) -> str:
    """The page as text. rows: as `table.collect` gives them."""
    style, script = asset("page.css") + _own("sweep.css"), _own("sort.js")
    scores = {key: name for key, name in SCORES.items() if any(row.get(key) is not None for row in rows)}
    records = means(rows, list(scores))
    text = (
        _environment()
        .get_template("sweep.html.j2")
        .render(
            title=title,
            subtitle=_subtitle(sweep),
            heads=["run", *sweep.runs[0].values, "features", "subjects", *scores.values()],
            keys=list(sweep.runs[0].values),
            scores=list(scores),
            records=records,
            modes=MODE_TITLES,
            missing=[run for run in sweep.runs if not sweep.finished(sweep.report(run))],
            plots=plots(records, sweep.runs, scores),
            style=Markup(style),
            script=Markup(script),
            policy=policy(style, script),
        )
    )
    # A file name that is no valid UTF-8 reaches us as lone surrogates, which could not be written.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def means(rows: Sequence[Row], scores: Sequence[str]) -> list[Row]:
    """One row per run and mode: means over subjects of the numbers that are known; of texts the first."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["run"], row["mode"]), []).append(row)
    out = []
    for mine in groups.values():
        record = dict(mine[0])
        for key in scores:
            known = [row[key] for row in mine if row.get(key) is not None]
            numbers = [value for value in known if not isinstance(value, str)]
            record[key] = sum(numbers) / len(numbers) if numbers else next(iter(known), None)
        out.append(record | {"subjects": len(mine)})
    return out


def plots(records: Sequence[Row], runs: Sequence[Run], scores: dict[str, str]) -> list[Plot]:
    """For every grid key with several numbers: the scores over it, a dot per run and mode, a line through the means."""
    out = []
    for key in runs[0].values:
        values = [run.values[key] for run in runs]
        if len(set(map(str, values))) < 2 or not all(map(_plain_number, values)):
            continue
        # a geometric grid is spread evenly by a logarithmic axis
        log_x = min(values) > 0 and max(values) >= 8 * min(values)
        for score in DRAWN:
            if score in scores:
                traces = {
                    MODE_TITLES[mode]: trace for mode in MODE_TITLES if (trace := _trace(records, key, score, mode))
                }
                out.append(Plot(scores[score], traces, key, scores[score], log_x=log_x))
    return out


def _plain_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _trace(records: Sequence[Row], key: str, score: str, mode: str) -> Trace | None:
    mine = [record for record in records if record["mode"] == mode and record.get(score) is not None]
    if not mine:
        return None
    x, y = [record[key] for record in mine], [record[score] for record in mine]
    dots: list[str | None] = [f"run {record['run']}: {record[score]:.4g}" for record in mine]
    ends = sorted(set(x))
    centres = [[b for a, b in zip(x, y, strict=True) if a == end] for end in ends]
    line = range(len(x), len(x) + len(ends))
    return Trace([*x, *ends], [*y, *(sum(c) / len(c) for c in centres)], line, [*dots, *([None] * len(ends))])


def _subtitle(sweep: Sweep) -> str:
    counts = {key: len({value_text(run.values[key]) for run in sweep.runs}) for key in sweep.runs[0].values}
    over = ", ".join(f"{key} ({count})" for key, count in counts.items())
    return f"{len(sweep.runs)} runs over {over}"


@cache
def _own(name: str) -> str:
    return (files("sbm_jax.sweep") / "assets" / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = environment_of("sweep.html.j2", _own("sweep.html.j2"))
    environment.filters |= {"value": value_text}
    return environment
