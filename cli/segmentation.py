"""`sbm-jax segmentation-head`: train the head on which the edit stage tests patches."""

from __future__ import annotations

from pathlib import Path

import click

from sbm_jax.cli.options import make_context, run_options
from sbm_jax.cli.start import Machine, start_jax


@click.command("segmentation-head")
@run_options
@click.option(
    "--save",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Where the head goes (safetensors); `edit.head` then names it.",
)
@click.option("--images", type=click.IntRange(0), default=600, show_default=True, help="To train on; 0: all.")
@click.option("--l2", type=click.FloatRange(0), default=1e-4, show_default=True, help="Penalty of squared weights.")
@click.pass_obj
def segmentation_head(
    machine: Machine,
    config_path: Path | None,
    overrides: tuple[str, ...],
    out: Path,
    path: Path,
    images: int,
    l2: float,
) -> None:
    """Train a linear classifier of patches on segmentation masks (the dataset's, or explain.masks) and print its scores.

    Trained on images that are not held out, scored on those that are.
    """
    import json

    start_jax(machine)
    from sbm_jax.backbones import load_backbone
    from sbm_jax.stages.segmentation import train_head

    context = make_context(config_path, overrides, out)
    facts = context.facts.backbone
    head, about = train_head(
        context, load_backbone(facts.path, facts.image_size, context.config.backbone.dtype), images, l2
    )
    head.save(path)
    click.echo(json.dumps(about, indent=1))
    click.echo(str(path))
