"""`sbm-jax sweep`: many runs of one configuration with other settings, and the one page that compares them."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import click

from sbm_jax.cli.start import Machine, start_jax


@click.command("sweep")
@click.argument("config", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--grid",
    "grids",
    multiple=True,
    metavar="KEY=A,B,C",
    help="A setting and its values, e.g. train.k=8,16,32. Repeatable: every combination is one run.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one setting of all runs.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/sweep"),
    show_default=True,
    help="Folder of all runs. One that holds stores already is the best: what fits is used.",
)
@click.option("--launcher", type=click.Choice(["local", "slurm"]), default="local", show_default=True, help="Who runs.")
@click.option("--jobs", type=click.IntRange(1), help="Stores made at a time (default: local 1, slurm as many as fit).")
@click.option(
    "--sbatch", "options", multiple=True, metavar="OPTION", help="Of sbatch, e.g. --partition=gpu. Repeatable."
)
@click.option(
    "--nodes", type=click.IntRange(1), default=1, show_default=True, help="Nodes that train together (slurm)."
)
@click.option("--wait/--no-wait", default=True, help="Slurm: stay until the end and collect, or submit and leave.")
@click.option("--dry-run", is_flag=True, help="Print the runs and what would be made, and stop.")
@click.pass_context
def sweep(
    context: click.Context,
    config: Path,
    grids: tuple[str, ...],
    overrides: tuple[str, ...],
    out: Path,
    launcher: str,
    jobs: int | None,
    options: tuple[str, ...],
    nodes: int,
    wait: bool,
    dry_run: bool,
) -> None:
    """Make every run of a grid, sharing all stores that can be shared, and compare them in one table and page.

    A rerun of the same command goes on where the last one stopped.
    """
    machine: Machine = context.obj
    if machine.distributed or machine.coordinator:
        raise click.UsageError("a sweep starts its own processes; leave out --distributed and --coordinator")
    if launcher == "local" and (options or nodes > 1 or not wait):
        raise click.UsageError("--sbatch, --nodes and --no-wait belong to --launcher slurm")
    from sbm_jax.sweep.grid import make_runs, parse_grid
    from sbm_jax.sweep.plan import plan_sweep, sweep_lines
    from sbm_jax.sweep.table import need_parquet

    plan = plan_sweep(make_runs(config, overrides, parse_grid(grids)), out)
    if dry_run:
        click.echo("\n".join(sweep_lines(plan)))
        return
    need_parquet()
    from sbm_jax.pipeline import refuse_full_disk
    from sbm_jax.store.lock import run_lock
    from sbm_jax.sweep.folder import failure_lines, write_folder

    refuse_full_disk(out, [job.step for job in plan.missing()])
    signal.signal(signal.SIGTERM, _interrupt)
    forwarded = ("--cpu-devices", str(machine.cpu_devices)) if machine.cpu_devices else ()
    with run_lock(out, shared=True), run_lock(plan.folder):
        write_folder(plan)
        failed = _launch(plan, launcher, jobs, options, nodes, wait, forwarded)
        if failed is None:
            click.echo("submitted; the same command without --no-wait waits for the rest and collects")
            return
        _publish(plan, config)
    if failed:
        click.echo("\n".join(failure_lines(plan, failed)), err=True)
        context.exit(1)


def _interrupt(number: int, frame: Any) -> None:
    """SIGTERM, as a batch system sends it: end the children too, as Ctrl-C does."""
    raise KeyboardInterrupt


def _launch(
    plan: Any,
    launcher: str,
    jobs: int | None,
    options: tuple[str, ...],
    nodes: int,
    wait: bool,
    forwarded: tuple[str, ...],
) -> dict[str, str] | None:
    if launcher == "local":
        from sbm_jax.sweep.local import run_local

        return run_local(plan, jobs or 1, forwarded)
    from sbm_jax.sweep.slurm import Slurm, run_slurm

    return run_slurm(plan, Slurm(options, nodes, jobs, forwarded), wait)


def _publish(plan: Any, config: Path) -> None:
    """Write the table and the page of what is finished, and say where."""
    from sbm_jax.store.store import replace_text
    from sbm_jax.sweep.page import render_sweep
    from sbm_jax.sweep.table import collect, write_table

    rows = collect(plan)
    if rows:
        write_table(rows, plan.folder / "table.parquet")
        click.echo(f"table    {plan.folder / 'table.parquet'}")
    replace_text(plan.folder / "index.html", render_sweep(plan, rows, f"Sweep of {config.name}"))
    click.echo(f"page     {plan.folder / 'index.html'}")


@click.command("sweep-job", hidden=True)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.argument("store")
@click.pass_obj
def sweep_job(machine: Machine, folder: Path, store: str) -> None:
    """Make one store of a sweep. FOLDER: the sweep's own, in the folder of its runs. What the jobs of a sweep call."""
    from sbm_jax.store.store import is_finished

    together = machine.distributed or machine.coordinator
    if not together and is_finished(folder.parent / "stores" / store):
        return
    from sbm_jax import pipeline, processes
    from sbm_jax.store.lock import run_lock, store_locks
    from sbm_jax.sweep.folder import open_job

    context, step, locks = open_job(folder, store)
    start_jax(machine)
    with run_lock(folder.parent, shared=True), store_locks(folder.parent, locks):
        processes.wait("locks")  # who held them may have finished the store meanwhile
        pipeline.make(context, [step])
        processes.wait("made")
