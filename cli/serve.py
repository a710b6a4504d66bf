"""`sbm-jax serve`: a finished run to look at in a browser of this machine."""

from __future__ import annotations

from pathlib import Path

import click

from sbm_jax.cli.start import Machine, start_jax


@click.command("serve")
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0: any that is free.")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="YAML file of the run. Without it: what lies beside its last report.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one setting, as for `run`.")
@click.option(
    "--head",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Segmentation head for the edits (`sbm-jax segmentation-head`). Without it: `edit.head` of the configuration.",
)
@click.option("--no-live", is_flag=True, help="Without the backbone: no views that compute features or edits.")
@click.pass_obj
def serve(
    machine: Machine,
    run: Path,
    port: int,
    config_path: Path | None,
    overrides: tuple[str, ...],
    head: Path | None,
    no_live: bool,
) -> None:
    """Look at the finished run in RUN: cortex, units, pictures and edits, in a browser of this machine.

    Prints the address and serves until Ctrl-C. Only 127.0.0.1 is listened to, and nothing of the run is written.
    """
    from sbm_jax.serve.opening import open_run
    from sbm_jax.serve.server import serve as serve_until_interrupted

    lib = open_run(run, config_path, overrides, head)
    live = None
    if not no_live:
        start_jax(machine)
        from sbm_jax.serve.live import Live

        live = Live(lib)
    click.echo(f"{run}: Ctrl-C ends it")
    serve_until_interrupted(lib, live, port, click.echo)
