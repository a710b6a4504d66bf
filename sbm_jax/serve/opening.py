"""Finding a run: its configuration and its finished stores, or a sentence that says what to run."""

from __future__ import annotations

from pathlib import Path

from sbm_jax.config import load_config
from sbm_jax.errors import UserError
from sbm_jax.serve.answers import Refused
from sbm_jax.serve.library import Library
from sbm_jax.stages.context import Context
from sbm_jax.store.store import is_finished


def open_run(run: Path, config_path: Path | None, overrides: tuple[str, ...], head: Path | None = None) -> Library:
    """The run in a folder. Without `config_path` its configuration is the one laid beside the last report.

    Raises UserError for a folder that holds no finished run of this configuration.
    """
    words = f"--out {run}"
    if config_path is not None:
        words = f"--config {config_path} {words}"
    words += "".join(f" --set {text}" for text in overrides)
    if not (run / "stores").is_dir():
        raise UserError(
            f"{run} holds no run: there is no folder {run / 'stores'}. Make one with `sbm-jax run {words}`."
        )
    found = config_path or last_configuration(run)
    if found is None:
        raise UserError(
            f"{run} holds no finished report, so its configuration is not known. Finish the run with `sbm-jax run {words}`, or "
            "name the file with --config."
        )
    ctx = Context(load_config(found, overrides), run)
    if ctx.facts.has_rdms:
        raise UserError(
            f"{ctx.facts.root} brings RDMs instead of responses: no voxel to look at. See {run / 'report.html'}."
        )
    specs = ctx.specs
    for spec in (*specs.betas.values(), specs.saes, specs.codes, *specs.align.values()):
        if not ctx.has(spec):
            raise UserError(
                f"{run} is no finished run of this configuration: {spec.path(ctx.stores)} is not there. Make what is missing with "
                f"`sbm-jax run {words}`."
            )
    try:
        return Library(ctx, words, head)
    except Refused as refused:
        raise UserError(f"{run}: {refused.message}") from refused


def last_configuration(run: Path) -> Path | None:
    """config.yaml of the report store that was finished last."""
    reports = [
        path for path in (run / "stores").glob("report-*") if is_finished(path) and (path / "config.yaml").is_file()
    ]
    return (
        max(reports, key=lambda path: ((path / "manifest.json").stat().st_mtime_ns, path.name)) / "config.yaml"
        if reports
        else None
    )
