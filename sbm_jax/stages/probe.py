"""The probe set, the images among which exemplars are looked for: the stimuli of the run, or a folder of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sbm_jax.errors import UserError
from sbm_jax.stages.facts import identity

if TYPE_CHECKING:
    from sbm_jax.images.sources import ImageSource
    from sbm_jax.stages.context import Context

STIMULI = "stimuli"
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


def probe_files(probe: str) -> list[Path]:
    """The pictures below a folder, in the order of their paths in it. Raises UserError where there are none."""
    folder = Path(probe).expanduser()
    found = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not found:
        what = "no picture lies below this folder" if folder.is_dir() else "there is no such folder"
        raise UserError(
            f"exemplars.probe: {probe}: {what}. Name a folder of pictures ({' '.join(sorted(SUFFIXES))}), or {STIMULI}."
        )
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def probe_ids(probe: str, files: Sequence[Path]) -> list[str]:
    """Paths in the folder, with forward slashes."""
    folder = Path(probe).expanduser()
    return [path.relative_to(folder).as_posix() for path in files]


def probe_identity(probe: str) -> str:
    """Changes when a picture of the folder comes, goes, or has another size or time of change."""
    files = probe_files(probe)
    return identity(files, *probe_ids(probe, files))


def probe_sources(ctx: Context) -> list[ImageSource]:
    """Where the pictures of the probe set lie, by row of the exemplar lists."""
    probe = ctx.config.exemplars.probe
    return list(ctx.dataset.images.sources) if probe == STIMULI else list(probe_files(probe))


@dataclass(frozen=True)
class Probe:
    """Images and the activations of any of their hooks. block: the most images that come at once."""

    ctx: Context
    ids: list[str]
    block: int
    files: list[Path] | None

    def blocks(self, names: Sequence[str]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(first row, {name: activations of the rows from there}), of every name in the order of the rows; stored ones one after
        the other. Every image is computed or read once.

        Raises UserError for an unreadable picture, or activations that are not finite in the store's dtype.
        """
        if self.files is not None:
            from sbm_jax.stages.activations import ForwardPass

            forward = ForwardPass(self.ctx, self.files)
            for places, arrays in forward.blocks(range(len(self.files)), names):
                yield places.start, arrays
            return
        from sbm_jax.sae.stream import read_many

        acts = self.ctx.activations
        for start in range(0, len(self.ids), self.block):
            rows = np.arange(start, min(start + self.block, len(self.ids)))
            if _stored(self.ctx):
                for name in names:
                    yield start, {name: acts.read(name, rows)}
            else:
                yield start, read_many(acts, names, rows)


def _stored(ctx: Context) -> bool:
    return ctx.config.extract.keep or ctx.has(ctx.specs.activations)


def open_probe(ctx: Context, step: int) -> Probe:
    """step: images that are used at once; those that a backbone computes come in blocks of `extract.batch`."""
    probe = ctx.config.exemplars.probe
    if probe != STIMULI:
        files = probe_files(probe)
        return Probe(ctx, probe_ids(probe, files), ctx.config.extract.batch, files)
    return Probe(ctx, list(ctx.dataset.images.ids), step if _stored(ctx) else ctx.config.extract.batch, None)
