"""A subject before the image table is known, and how such subjects become a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sbm_jax.brain.dataset import Dataset, Dropped, Subject
from sbm_jax.brain.prf import Prf
from sbm_jax.brain.readers.generic_stimuli import image_table, make_images, shared_by_list, shared_by_use
from sbm_jax.brain.readers.generic_tables import TrialTable
from sbm_jax.brain.readers.options import ReadOptions
from sbm_jax.brain.responses import Responses
from sbm_jax.brain.spaces import Space
from sbm_jax.errors import UserError


@dataclass
class Trials:
    """The trials of a subject that are used, collected file by file.

    images: name of the picture of each. session, run: 1-based.
    """

    images: list[str] = field(default_factory=list)
    session: list[int] = field(default_factory=list)
    run: list[int] = field(default_factory=list)
    blank: int = 0
    tables: list[Path] = field(default_factory=list)

    def add(self, table: TrialTable, rows: np.ndarray, session: int | None, run: int | None) -> np.ndarray:
        """Take over the rows of a table that belong to a file; which of the file's trials showed a picture, int64.

        session, run: of the file's name, where the table has no such column; 1 if it says nothing either.
        """
        shown = np.flatnonzero([table.images[row] != "" for row in rows])
        used = rows[shown]
        self.blank += len(rows) - len(used)
        self.images += [table.images[row] for row in used]
        self.session += [session or 1] * len(used) if table.session is None else table.session[used].tolist()
        self.run += [run or 1] * len(used) if table.run is None else table.run[used].tolist()
        if table.path not in self.tables:
            self.tables.append(table.path)
        return shown


@dataclass
class Draft:
    """A subject whose images are still names."""

    name: str
    trials: Trials
    responses: Responses
    space: Space
    rois: dict[str, np.ndarray]
    tables: tuple[Path, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    ncsnr: np.ndarray | None = None
    noise_ceiling: np.ndarray | None = None
    prf: Prf | None = None
    sessions_missing: tuple[int, ...] = ()

    def subject(self, index: dict[str, int]) -> Subject:
        dropped = self.dropped
        if self.trials.blank:
            dropped = (Dropped("trials", self.trials.blank, "blank (n/a in the table of trials)"), *dropped)
        return Subject(
            name=self.name,
            responses=self.responses,
            trial_image=np.array([index[image] for image in self.trials.images], dtype=np.int64),
            session=np.array(self.trials.session, dtype=np.int64),
            run=np.array(self.trials.run, dtype=np.int64),
            space=self.space,
            rois=self.rois,
            ncsnr=self.ncsnr,
            noise_ceiling=self.noise_ceiling,
            prf=self.prf,
            tables=(*self.trials.tables, *self.tables),
            sessions_missing=self.sessions_missing,
            dropped=dropped,
        )


def finish(
    root: Path,
    layout: str,
    options: ReadOptions,
    drafts: Sequence[Draft],
    notes: Sequence[str] = (),
    usual: Sequence[str] = ("stimuli", "images"),
    home: Path | None = None,
    repeated: bool = False,
) -> Dataset:
    """The dataset of some subjects: their image table, and the shared images by `data.shared`, by column, or by use.

    usual: folders of pictures that are looked for in `home` (by default the root). repeated: without a list or column the
    images shown more than once are shared. Raises UserError as `image_table` does,
    or if a subject has no trials with a picture.
    """
    for draft in drafts:
        if not draft.trials.images:
            raise UserError(f"{draft.trials.tables[0]}: no trial with a picture; expected at least one")
    names = sorted({image for draft in drafts for image in draft.trials.images})
    source = drafts[0].trials.tables[0]
    ids, files, shared, tables = image_table(home or root, options, names, source, usual)
    index = {image_id: row for row, image_id in enumerate(ids)}
    subjects = tuple(draft.subject(index) for draft in drafts)
    if options.shared is not None:
        shared, rule = shared_by_list(options.shared, ids), f"shared images: those listed in {options.shared}"
    elif shared is not None:
        rule = f"shared images: the column 'shared' of {tables[0].name}"
    else:
        shared, rule = shared_by_use(len(ids), subjects, repeated)
    images = make_images(ids, files, shared)
    return Dataset(
        root,
        root.name,
        layout,
        subjects[0].space.name,
        (),
        images,
        subjects,
        tables,
        notes=(rule, *dict.fromkeys(notes)),
    )
