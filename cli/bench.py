"""`sbm-jax bench`: how fast the parts are on this machine, beside its measured ceilings and other engines."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import click

_BENCHES = {
    "align": ("align", "best unit of every voxel, beside NumPy and SciPy"),
    "rsa": ("rsa", "RDMs and their Spearman correlation, beside NumPy and, with --python, rsatoolbox"),
    "train": ("sae_step", "one TopK training step and its parts"),
    "extract": ("backbone", "ViT-B/16, beside torch where it is installed or given by --torch-python"),
    "store": ("stream", "training batches from a store"),
}
_HELP = "\n".join(f"  {name:8s} {text}" for name, (_, text) in _BENCHES.items())


@click.command(
    context_settings={"ignore_unknown_options": True},
    help=f"Measure one part on this machine and write JSON with all samples.\n\n\b\n{_HELP}\n\nOptions of a benchmark "
    "follow its name; `sbm-jax bench NAME -- --help` lists them.",
)
@click.argument("name", type=click.Choice(list(_BENCHES)))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("bench-results"),
    show_default=True,
    help="Folder for the JSON.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(name: str, out: Path, arguments: tuple[str, ...]) -> None:
    """See `help` above, which lists the benchmarks."""
    import_module("sbm_jax.bench.common").keep_results_in(out)
    import_module(f"sbm_jax.bench.{_BENCHES[name][0]}").main(list(arguments))
