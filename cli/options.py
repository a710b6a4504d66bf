"""Options that several commands share, and the making of a context from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--config, --set, --out: which run."""
    for option in reversed(
        (
            click.option(
                "--config",
                "config_path",
                type=click.Path(path_type=Path, dir_okay=False),
                help="YAML file. Without it: the embedded demo.",
            ),
            click.option(
                "--set",
                "overrides",
                multiple=True,
                metavar="KEY=VALUE",
                help="Override one setting, e.g. train.steps=200. Repeatable.",
            ),
            click.option(
                "--out",
                type=click.Path(path_type=Path, file_okay=False),
                default=Path("runs/demo"),
                show_default=True,
                help="Folder of the run: stores, checkpoints, report.",
            ),
        )
    ):
        command = option(command)
    return command


def make_context(config_path: Path | None, overrides: tuple[str, ...], out: Path) -> Any:
    """The context of a run. Imports the stages' vocabulary, not the stages."""
    from sbm_jax.config import load_config
    from sbm_jax.stages.context import Context

    return Context(load_config(config_path, overrides), out)
