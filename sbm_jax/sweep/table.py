"""One table of all finished runs: a row per run, subject and kind of feature, written as Parquet."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sbm_jax.axes import TOKEN_KIND
from sbm_jax.errors import UserError
from sbm_jax.store.arrays import guarded
from sbm_jax.store.store import Store
from sbm_jax.sweep.grid import Run, value_text
from sbm_jax.sweep.plan import Sweep

Row = dict[str, Any]
# Of an autoencoder's record, as means over the layers.
SAE_METRICS = ("explained_variance", "normalised_mse", "l0", "dead", "dense", "effective_units")
_OF_SUBJECT = ("voxels", "usable", "responsive", "median_ncsnr", "median_ceiling")


def need_parquet() -> None:
    """Raise UserError where no library writes Parquet: said before a sweep starts, not after it has run for days."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError("a sweep ends in a Parquet table, and pyarrow is not installed: pip install 'sbm_jax[sweep]'")


def collect(sweep: Sweep) -> list[Row]:
    """The rows of all runs whose report is finished, in the order of the runs.

    Columns: run, page (its report, seen from the sweep's folder), the grid's keys, subject, mode, then numbers of its
    `summary.json` (None where one has none).
    """
    rows = []
    for run in sweep.runs:
        store = sweep.report(run)
        if sweep.finished(store):
            summary = Store(sweep.out / "stores" / store).json("summary.json")
            rows += [{**_head(run, store), **row} for row in summary_rows(summary, run)]
    return rows


def _head(run: Run, store: str) -> Row:
    return {"run": run.number, "page": f"../stores/{store}/report.html", **run.values}


def summary_rows(summary: dict[str, Any], run: Run) -> list[Row]:
    """A row per subject and mode; of a dataset that brings RDMs, per person and kind of activation, at the best layer."""
    if "subjects" not in summary:
        return _rdm_rows(summary, run.config.rsa.method)
    saes = {kind: _sae_means(summary["saes"], kind) for kind in set(TOKEN_KIND.values())}
    rows = []
    for subject, record in summary["subjects"].items():
        for mode in run.config.encode.modes:
            scores = {key: value for key, value in record["modes"][mode].items() if not isinstance(value, list)}
            rows.append(
                {
                    "subject": subject,
                    "mode": mode,
                    **{key: record[key] for key in _OF_SUBJECT},
                    **scores,
                    **_recovery(summary["recovery"], subject, mode),
                    **(saes[TOKEN_KIND[mode]] if mode in run.config.sae_modes else dict.fromkeys(saes["patch"])),
                }
            )
    return rows


def _sae_means(members: Sequence[dict[str, Any]], kind: str) -> Row:
    """Means over the layers of the autoencoders that were encoded: the first of every layer is the primary setting's."""
    first: dict[str, dict[str, Any]] = {}
    for member in members:
        if member["kind"] == kind:
            first.setdefault(member["hook"], member)
    return {f"sae_{key}": _mean(member[key] for member in first.values()) for key in SAE_METRICS}


def _recovery(recovery: dict[str, Any] | None, subject: str, mode: str) -> Row:
    """Vertices of all planted concepts together: share found, and the same with images permuted."""
    names = ("recovered", "recovered_shuffled")
    parts = list(recovery["modes"][mode]["subjects"][subject]["concepts"].values()) if recovery else []
    count = sum(part["vertices"] for part in parts)
    if not count:
        return {**dict.fromkeys(names), "recovered_of": None}
    shares = {
        name: sum(part["vertices"] * part[key] for part in parts) / count
        for name, key in zip(names, ("found", "shuffled"), strict=True)
    }
    return {**shares, "recovered_of": count}


def _rdm_rows(summary: dict[str, Any], method: str) -> list[Row]:
    """The best layer is the one that the mean over people chooses, by the method of the configuration."""
    rows = []
    for kind, records in summary["layers"].items():
        best = max(range(len(records)), key=lambda i: records[i][method]["mean"])
        for person in summary["dataset"]["people"]:
            by_person = {name: values for name, values in records[best].items() if isinstance(values, dict)}
            scores = {f"rdm_{name}": values[person] for name, values in by_person.items()}
            ceiling = {f"ceiling_{end}": value for end, value in summary["ceiling"][method].items()}
            layer = summary["backbone"]["layers"][best]
            rows.append({"subject": person, "mode": kind, "best_layer": layer, **scores, **ceiling})
    return rows


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Column -> values, in the order in which columns first come; text where the values are of several kinds or nested."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _one_kind([row.get(name) for row in rows]) for name in names}


def _one_kind(values: list[Any]) -> list[Any]:
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} or kinds <= {bool} or kinds <= {str}:
        return [float(value) if float in kinds and value is not None else value for value in values]
    return [None if value is None else value_text(value) for value in values]


def write_table(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as Parquet; a reader, or a kill, sees the old file or the new. Raises UserError for a full disk."""
    import pyarrow
    from pyarrow import parquet

    # Without a value the type would be null, which few readers know; every column that may lack all of them is of numbers.
    arrays = {
        name: pyarrow.array(values, pyarrow.float64() if set(values) == {None} else None)
        for name, values in columns(rows).items()
    }
    temporary = path.with_name(f"{path.name}.tmp")
    with guarded(f"writing {path}"):
        parquet.write_table(pyarrow.table(arrays), temporary)
        os.replace(temporary, path)  # noqa: PTH105
