"""`sbm-jax sae`: autoencoders to and from other libraries' files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

FORMATS = click.Choice(["saelens", "plain"])


@click.group()
def sae() -> None:
    """Autoencoders to and from other libraries' files."""


@sae.command("export")
@click.argument("store", type=click.Path(path_type=Path, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--format", "layout", type=FORMATS, default="saelens", show_default=True, help="What to write.")
@click.option("--model-name", default="", help="Name of the backbone, for the configuration files.")
def export(store: Path, out: Path, layout: Literal["saelens", "plain"], model_name: str) -> None:
    """Write every autoencoder of a `saes-...` store to a folder of its own."""
    from sbm_jax.sae.interchange_write import export_store
    from sbm_jax.store.store import Store

    for folder in export_store(Store(store), out, layout, model_name):
        click.echo(str(folder))


@sae.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--format", "layout", type=FORMATS, default="plain", show_default=True, help="What to write.")
def import_(path: Path, out: Path, layout: Literal["saelens", "plain"]) -> None:
    """Read a saev, overcomplete, SAELens or sparsify checkpoint and write it as plain or SAELens files."""
    from sbm_jax.sae.interchange_read import read_sae
    from sbm_jax.sae.interchange_write import write_sae

    write_sae(read_sae(path), out, layout)
    click.echo(str(out))
