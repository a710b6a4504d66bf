"""What a user may choose when a dataset folder is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sbm_jax.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class ReadOptions:
    """Choices of `data:` in a configuration; an empty text or tuple means the layout's own default.

    subjects: names, in the wanted order. space: func1pt8mm, fsaverage, ... betas: version (b1, b2, b3; TYPED, ...).
    mask: ROI or file that chooses the columns. stimuli: pictures that lie outside the folder (a folder or an HDF5 file).
    shared: file that lists the shared images where the dataset does not say (nsd_expdesign.mat, or ids one per line).
    hold_out: instead, this share of the images, drawn by a fixed seed, scores (0: as the dataset or `shared` says).
    """

    subjects: tuple[str, ...] = ()
    space: str = ""
    betas: str = ""
    mask: str = ""
    stimuli: Path | None = None
    shared: Path | None = None
    hold_out: float = 0

    def pick(self, root: Path, found: dict[str, T]) -> list[T]:
        """The wanted ones of what was found, by subject name. Raises UserError for a name that is not there."""
        unknown = [name for name in self.subjects if name not in found]
        if unknown:
            raise UserError(f"{root}: data.subjects names {unknown}, which are not there; found {', '.join(found)}")
        return [found[name] for name in self.subjects] if self.subjects else list(found.values())

    def choose(self, root: Path, key: str, known: tuple[str, ...]) -> str:
        """The value of `space`, `betas` or `mask`, by default the first of `known`. Raises UserError for any other."""
        value = getattr(self, key)
        if value and value not in known:
            raise UserError(f"{root}: data.{key} is {value!r}; this folder offers {', '.join(known) or 'no choice'}")
        return value or (known[0] if known else "")

    def refuse(self, root: Path, layout: str, **known: tuple[str, ...]) -> None:
        """Raise UserError when an option is set to what this layout does not have: `space=("fsaverage",)`, `betas=()`."""
        for key, values in known.items():
            value = getattr(self, key)
            if value and value not in values:
                has = f"only {', '.join(values)}" if values else "no such choice"
                raise UserError(
                    f"{root}: data.{key} is {value!r}, but the layout {layout} has {has}; leave the key out"
                )
