"""`sbm-jax data`: look at a dataset folder, convert it, or write the demo's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sbm_jax.cli.options import make_context, run_options
from sbm_jax.cli.start import Machine, start_if_needed
from sbm_jax.errors import UserError


@click.group()
def data() -> None:
    """Datasets: check a folder, convert it, or write the demo's."""


@data.command("check")
@click.argument("path", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--format", "layout", default="auto", show_default=True, help="The layout, if it should not be recognised."
)
@click.option("--subject", "subjects", multiple=True, help="Only this subject. Repeatable.")
@click.option("--space", default="", help="func1pt8mm, fsaverage, ...; default: the layout's first.")
@click.option("--betas", default="", help="Version of the betas: b1, b2, b3, TYPED, ...")
@click.option("--mask", default="", help="ROI or mask file that chooses the columns.")
@click.option(
    "--stimuli", type=click.Path(path_type=Path), help="Pictures outside the folder: a folder or an HDF5 file."
)
@click.option("--shared", type=click.Path(path_type=Path, dir_okay=False), help="File that lists the shared images.")
@click.option(
    "--hold-out", type=click.FloatRange(0, 1, max_open=True), default=0, help="This share of the images scores."
)
@click.option("--full", is_flag=True, help="Also decode every picture and read every response once.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(path: Path, layout: str, full: bool, as_json: bool, subjects: tuple[str, ...], **choices: Any) -> None:
    """Print what a dataset folder holds, and all that will be dropped and why."""
    import json

    from sbm_jax.brain.check import describe, lines
    from sbm_jax.brain.opening import open_dataset
    from sbm_jax.brain.readers.options import ReadOptions

    dataset = open_dataset(path, ReadOptions(subjects=subjects, **choices), layout)
    record = describe(dataset)
    click.echo(json.dumps(record, indent=1) if as_json else "\n".join(lines(record)))
    if full:
        _read_everything(dataset)


def _read_everything(dataset: Any) -> None:
    from sbm_jax.brain.check import read_everything
    from sbm_jax.progress import progress

    pictures = len({int(row) for subject in dataset.subjects for row in subject.seen()})
    total = pictures + sum(subject.n_trials for subject in dataset.subjects)
    with progress("reading", total, "pictures and trials") as task:
        faults = read_everything(dataset, 1 << 29, lambda what, count: task.advance(count))
    if faults:
        listed = "\n  ".join(faults[:20])
        raise UserError(f"{len(faults)} damaged files\n  {listed}" + ("\n  ..." if len(faults) > 20 else ""))
    click.echo("every picture and every response can be read")


@data.command("convert")
@run_options
@click.pass_obj
def convert(machine: Machine, config_path: Path | None, overrides: tuple[str, ...], out: Path) -> None:
    """Turn single trials into the project's own betas (images x voxels), one store per subject. Same as `betas`."""
    from sbm_jax import pipeline
    from sbm_jax.store.lock import run_lock

    context = make_context(config_path, overrides, out)
    with run_lock(out):
        start_if_needed(context, ("betas",), machine)
        pipeline.run(context, ("dataset", "betas") if context.facts.demo else ("betas",))
    for spec in context.specs.betas.values():
        click.echo(str(spec.path(context.stores)))


@data.command("demo")
@run_options
@click.pass_obj
def demo(machine: Machine, config_path: Path | None, overrides: tuple[str, ...], out: Path) -> None:
    """Write the embedded dataset: scenes, simulated brains, and the truth behind them."""
    from sbm_jax import pipeline
    from sbm_jax.store.lock import run_lock

    context = make_context(config_path, overrides, out)
    if context.facts.demo is None:
        raise UserError(f"data.root is {context.config.data.root}; only data.root=demo can be written")
    with run_lock(out):
        start_if_needed(context, ("dataset",), machine)
        pipeline.run(context, ("dataset",))
    click.echo(str(context.facts.root))
