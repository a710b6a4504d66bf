"""`sbm-jax`: one click command per stage, and `run` for all.

Exit codes: 0 done, 1 jobs of a sweep failed, 2 the user can mend it, 130 stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from sbm_jax import __version__, interrupt
from sbm_jax.cli.bench import bench
from sbm_jax.cli.data import data
from sbm_jax.cli.options import make_context, run_options
from sbm_jax.cli.sae import sae
from sbm_jax.cli.segmentation import segmentation_head
from sbm_jax.cli.serve import serve
from sbm_jax.cli.start import Machine, start_if_needed, start_jax
from sbm_jax.cli.sweep import sweep, sweep_job
from sbm_jax.errors import UserError

_STAGES = {
    "betas": "Average single trials to one response per image and voxel, with reliability.",
    "extract": "Turn images into activations: the residual stream after every block.",
    "train": "Train one TopK autoencoder per layer and token kind.",
    "encode": "Turn activations into per-image codes.",
    "align": "Find each voxel's best units and each unit's best voxels.",
    "assign": "Match units and voxels one-to-one, and softly.",
    "sizes": "Score every kind of feature against the number of candidate units.",
    "joint": "Model each voxel from several units: matching pursuit, and ridge at an equal budget.",
    "pooling": "Give every voxel a receptive field over the patches.",
    "rsa": "Compare image x image RDMs and voxel structure.",
    "roi": "Find the units that each ROI prefers, and what they show.",
    "layers": "Place each voxel in the depth of the network.",
    "recovery": "Score how well the planted truth of a simulated dataset is found.",
    "exemplars": "Find the images, and the patches in them, that drive each wanted unit most.",
    "explain": "Name units: labels, segmentations or a zero-shot model judge their exemplars.",
    "emergence": "Follow concepts and low-level tuning along the layers.",
    "match": "Find the same units in two dictionaries.",
    "edit": "Change units inside the frozen backbone and measure what becomes of its answers.",
    "stability": "Compare dictionaries, voxel assignments and headline numbers that were made again.",
    "report": "Write the page, the summary, figures and surface maps.",
    "rdms": "Compare every layer with the RDMs that a dataset brings instead of responses.",
}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="sbm-jax")
@click.option(
    "--cpu-devices", type=click.IntRange(1), help="Run on the CPU as so many devices (default: one per core, up to 4)."
)
@click.option("--distributed", is_flag=True, help="One of several processes, as Slurm, Open MPI or a TPU pod says.")
@click.option("--coordinator", metavar="HOST:PORT", help="The same without them: where the first process listens,")
@click.option("--processes", type=click.IntRange(1), help="how many there are,")
@click.option("--process", type=click.IntRange(0), help="and which this one is.")
@click.pass_context
def cli(context: click.Context, **machine: Any) -> None:
    """Align sparse autoencoder units of vision transformers with fMRI voxels.

    `sbm-jax run` does everything; each stage is a command of its own. Stores that exist are found, not made again.
    """
    given = [machine[name] is not None for name in ("coordinator", "processes", "process")]
    if any(given) and not all(given):
        raise click.UsageError("--coordinator, --processes and --process belong together")
    if machine["process"] is not None and machine["process"] >= machine["processes"]:
        raise click.UsageError(f"--process is {machine['process']}, but there are {machine['processes']} processes")
    context.obj = Machine(**machine)


@cli.command("run")
@run_options
@click.option("--stages", metavar="NAMES", help="Only these: a,b,c or a range such as train..align.")
@click.option("--dry-run", is_flag=True, help="Print what would be made, with bytes and FLOPs, and stop.")
@click.pass_obj
def run_command(
    machine: Machine,
    config_path: Path | None,
    overrides: tuple[str, ...],
    out: Path,
    stages: str | None,
    dry_run: bool,
) -> None:
    """Run every stage (or some) and print where the results are."""
    from sbm_jax import pipeline, processes
    from sbm_jax.plan import plan_lines, refuse_extract
    from sbm_jax.store.lock import run_lock

    chosen = pipeline.choose(stages)
    context = make_context(config_path, overrides, out)
    refuse_extract(context, chosen)
    if dry_run:
        click.echo("\n".join(plan_lines(context, chosen)))
        return
    start_if_needed(context, chosen, machine)
    with run_lock(out):
        pipeline.run(context, chosen)
        if context.has(context.last) and processes.is_first():
            click.echo("\n".join(pipeline.publish(context)))


def _add_stage(name: str, text: str) -> None:
    @cli.command(name, help=f"{text} Needs the stores of the stages before it.")
    @run_options
    @click.pass_obj
    def command(
        machine: Machine, config_path: Path | None, overrides: tuple[str, ...], out: Path, dry_run: bool = False
    ) -> None:
        from sbm_jax import pipeline, processes
        from sbm_jax.plan import refuse_extract, steps
        from sbm_jax.progress import log
        from sbm_jax.store.lock import run_lock

        context = make_context(config_path, overrides, out)
        refuse_extract(context, (name,))
        if dry_run:
            start_jax(machine)
            from sbm_jax.stages import train

            click.echo("\n".join(train.dry_run(context)))
            return
        start_if_needed(context, (name,), machine)
        with run_lock(out):
            pipeline.run(context, (name,))
            made = [step for step in steps(context) if step.stage == name]
            if not made:
                log(f"{name}: this configuration has nothing for it to make")
            for step in made if processes.is_first() else ():
                click.echo(str(step.spec.path(context.stores)))

    if name == "train":
        text = "Compile the steps, print what they take of every device, and stop."
        click.option("--dry-run", is_flag=True, help=text)(command)


for _name, _text in _STAGES.items():
    _add_stage(_name, _text)


cli.add_command(data)
cli.add_command(sae)
cli.add_command(serve)
cli.add_command(segmentation_head)
cli.add_command(sweep)
cli.add_command(sweep_job)
cli.add_command(bench)


@cli.group()
def demo() -> None:
    """The embedded backbone."""


@demo.command("zero-shot")
@click.option("--scenes", type=click.IntRange(100), default=3000, show_default=True, help="Held-out scenes to draw.")
@click.pass_obj
def demo_zero_shot(machine: Machine, scenes: int) -> None:
    """Held-out zero-shot accuracy of the embedded CLIP, as JSON."""
    import json

    start_jax(machine)
    from sbm_jax.demo.zero_shot import zero_shot_accuracy

    click.echo(json.dumps(zero_shot_accuracy(n_scenes=scenes), indent=1))


def main() -> None:
    """Entry point: a UserError is one message on stderr and exit code 2, never a traceback."""
    interrupt.watch()
    try:
        sys.exit(cli(prog_name="sbm-jax", standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except click.Abort:  # what click makes of an interrupt
        click.echo("stopped; finished shards are kept, run the same command to go on", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
