"""From the names of pictures in trial tables to an image table: where each picture lies, and which ones are shared."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sbm_jax.brain.dataset import Images, Subject, unique_ids
from sbm_jax.brain.readers.generic_tables import find_table, read_columns
from sbm_jax.brain.readers.options import ReadOptions
from sbm_jax.brain.tables import integers
from sbm_jax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


class PictureFolder:
    """The pictures of a folder and of the folders in it, found by path, by name, or by name without suffix.

    Raises UserError if the folder is missing.
    """

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise UserError(
                f"{folder}: folder not found; expected the pictures there (data.stimuli names another folder)"
            )
        self.folder = folder
        self.by_name: dict[str, list[Path]] = {}
        visited: set[str] = set()
        for parent, folders, files in os.walk(folder, followlinks=True):
            place = os.path.realpath(parent)  # links to folders are followed, once
            if place in visited:
                folders.clear()
                continue
            visited.add(place)
            folders.sort()
            for file in sorted(files):
                if file.lower().endswith(SUFFIXES):
                    path = Path(parent, file)
                    for key in (file, path.stem):
                        self.by_name.setdefault(key, []).append(path)

    def find(self, name: str) -> Path | None:
        """The file of a picture; None if there is none. Raises UserError if several files could be meant."""
        tail = name.replace("\\", "/")
        found = self.by_name.get(tail.rsplit("/", 1)[-1], [])
        if len(found) > 1 or "/" in tail:
            # a path from the table may begin above the folder, so the longest common ending decides
            depth = [_common_ending(path, tail) for path in found]
            found = [path for path, d in zip(found, depth, strict=True) if d == max(depth)]
        if len(found) > 1:
            raise UserError(
                f"{self.folder}: {name!r} may be {found[0]} or {found[1]}; keep one, or give the path in the table"
            )
        return found[0] if found else None

    def find_all(self, names: Sequence[str], source: Path) -> tuple[Path, ...]:
        """The files of pictures. Raises UserError naming the first that is not there, and how many are not."""
        files = {name: self.find(name) for name in names}
        missing = [name for name, file in files.items() if file is None]
        if missing:
            raise UserError(
                f"{self.folder}: there is no picture {missing[0]!r}, which {source} names ({len(missing):,} of "
                f"{len(files):,} pictures are not there); set data.stimuli to the folder that holds them"
            )
        return tuple(file for file in files.values() if file is not None)


def stimuli_folder(root: Path, options: ReadOptions, usual: Sequence[str]) -> Path:
    """`data.stimuli`, or the first of the layout's usual folders that is there.

    Raises UserError if there is none, or `data.stimuli` is not a folder.
    """
    if options.stimuli is not None:
        folder = Path(options.stimuli).expanduser()
        if not folder.is_dir():
            raise UserError(
                f"{folder}: data.stimuli has to be a folder of pictures for this layout; there is no such folder"
            )
        return folder
    for name in usual:
        if (root / name).is_dir():
            return root / name
    raise UserError(
        f"{root}: no pictures found; expected a folder {' or '.join(usual)} there, or data.stimuli set to their folder"
    )


def read_ids(path: Path) -> set[str]:
    """Image ids from a file with one per line. Raises UserError if it cannot be read or is empty."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected image ids, one per line, but it cannot be read ({error})") from None
    ids = {line.strip() for line in lines if line.strip()}
    if not ids:
        raise UserError(f"{path}: expected image ids, one per line; found none")
    return ids


def shared_by_list(path: Path, ids: Sequence[str]) -> np.ndarray:
    """bool [n]: which images a list names (`data.shared`). Raises UserError if it names none of them."""
    listed = read_ids(path)
    shared = np.array([image_id in listed for image_id in ids], dtype=bool)
    if not shared.any():
        raise UserError(f"{path}: names none of the {len(ids):,} images of the dataset; their ids look like {ids[0]!r}")
    return shared


def shared_by_use(n_images: int, subjects: Sequence[Subject], repeated: bool = False) -> tuple[np.ndarray, str]:
    """bool [n] where no list says which images are shared, and the rule that was followed.

    Seen by every subject if there are several and that leaves others over (not asked if `repeated`); else shown more than
    once to a subject if some are; else all.
    """
    seen_by = np.zeros(n_images, dtype=np.int64)
    most = np.zeros(n_images, dtype=np.int64)
    for subject in subjects:
        count = np.bincount(subject.trial_image, minlength=n_images)
        seen_by += count > 0
        np.maximum(most, count, out=most)
    by_all = seen_by == len(subjects)
    if not repeated and len(subjects) > 1 and not by_all.all():
        return by_all, "shared images: those that every subject saw"
    again = most > 1
    if again.any() and not again.all():
        return again, "shared images: those shown more than once"
    return (
        by_all,
        "shared images: all that every subject saw, since either all or none were shown more than once",
    )


def image_table(
    root: Path,
    options: ReadOptions,
    names: Sequence[str],
    source: Path,
    usual: Sequence[str] = ("stimuli", "images"),
) -> tuple[tuple[str, ...], tuple[Path, ...], np.ndarray | None, tuple[Path, ...]]:
    """Ids, files, the `shared` column (None without one) and the table of the images that trials name.

    From images.csv or images.tsv (image_id, file below the folder of pictures or the root, optional shared) if the root
    has one, in its order; else by looking for every name in the folder of pictures, sorted.

    Raises UserError: an image is not in the table, an id is in it twice, `shared` is not 0 or 1, a picture is missing.
    """
    table = find_table(root, ("images",))
    if table is None:
        ids = tuple(sorted(set(names)))
        folder = PictureFolder(stimuli_folder(root, options, usual))
        return ids, folder.find_all(ids, source), None, ()
    columns = read_columns(table, ("image_id", "file"))
    ids = unique_ids(table, columns["image_id"])
    unknown = sorted(set(names) - set(ids))
    if unknown:
        raise UserError(
            f"{source}: the image {unknown[0]!r} is not in {table} ({len(unknown):,} are not); add it there"
        )
    shared = None
    if "shared" in columns:
        shared = integers(table, "shared", columns["shared"], 0)
        if shared.max() > 1:
            row = int(np.argmax(shared > 1))
            raise UserError(f"{table}, row {row + 1}: column 'shared' needs 0 or 1, found {shared[row]}")
        shared = shared == 1
    base = Path(options.stimuli).expanduser() if options.stimuli is not None else root
    files = tuple(base / cell for cell in columns["file"])
    for row, file in enumerate(files, start=1):
        if not file.is_file():
            raise UserError(f"{table}, row {row}: the image file {file} does not exist")
    return ids, files, shared, (table,)


def make_images(ids: tuple[str, ...], files: tuple[Path, ...], shared: np.ndarray) -> Images:
    """An image table without captions and labels."""
    return Images(ids, files, ("",) * len(ids), {}, shared)


def _common_ending(path: Path, tail: str) -> int:
    """How many last parts of a path equal those of a name, the file itself counting with or without its suffix."""
    parts, wanted = path.parts[::-1], tail.strip("/").split("/")[::-1]
    count = 1
    while count < min(len(parts), len(wanted)) and parts[count] == wanted[count]:
        count += 1
    return count
