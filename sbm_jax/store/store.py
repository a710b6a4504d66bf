"""Writers that commit last and readers that refuse what was not committed.

A store is a folder `<kind>-<hash of spec>`: `spec.json`, `config.yaml`, `provenance.json`, zarr arrays, JSON documents,
and `manifest.json` with the size of every file. It is built in `<name>.partial` and renamed when complete, so a folder
without that suffix is finished. Inside a partial store `cursor.json` counts the finished steps of a resumable stage.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sbm_jax.errors import StoreError
from sbm_jax.store import arrays
from sbm_jax.store.spec import StoreSpec, pretty_json

PARTIAL = ".partial"
_NEVER_IN_MANIFEST = {"manifest.json", "cursor.json"}


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a kill, sees the old content or the new, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with arrays.guarded(f"writing {path}"):
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)


def is_finished(path: Path) -> bool:
    """True when `path` holds a committed store (its files are checked when it is opened)."""
    return (path / "manifest.json").is_file()


class StoreWriter:
    """Builds one store; an interrupted writer of the same spec goes on where the last one stopped.

    Args:
        stores: folder that holds all stores.
        spec: identity of the store.
        documents: texts laid beside the data (`config.yaml`, `provenance.json`).
    """

    def __init__(self, stores: Path, spec: StoreSpec, documents: dict[str, str] | None = None):
        self.spec = spec
        self.final = spec.path(stores)
        self.path = self.final.with_name(self.final.name + PARTIAL)
        self._arrays: dict[str, Any] = {}
        self._shard_rows: dict[str, int] = {}
        with arrays.guarded(f"making {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
        replace_text(self.path / "spec.json", pretty_json(spec.as_json()))
        for name, text in (documents or {}).items():
            replace_text(self.path / name, text)
        self.cursor = self._read_cursor()

    def _read_cursor(self) -> int:
        try:
            return max(0, int(json.loads((self.path / "cursor.json").read_text())["done"]))
        except (OSError, ValueError, KeyError, TypeError):
            return 0  # missing or torn: every shard is written again, with the same bytes

    def create(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        *,
        shard_rows: int | None = None,
        compress: bool = True,
        dimensions: tuple[str, ...] | None = None,
        attributes: dict[str, Any] | None = None,
        chunk_columns: int | None = None,
    ) -> None:
        """Declare an array; rows are then written by whole shards of `shard_rows` rows (None: one shard)."""
        rows = max(1, min(shard_rows or shape[0], shape[0]))
        spec = arrays.array_spec(
            self.path / name,
            shape,
            dtype,
            rows,
            compress=compress,
            attributes=attributes or {},
            dimensions=dimensions,
            chunk_columns=chunk_columns,
        )
        self._arrays[name] = arrays.create_array(spec)
        for parent in list(Path(name).parents)[:-1]:
            arrays.write_group(self.path / parent, {})
        self._shard_rows[name] = rows

    def write(self, name: str, start: int, block: np.ndarray) -> None:
        """Write rows `start : start + len(block)`, which must be whole shards (the last one may be short)."""
        array, rows = self._arrays[name], self._shard_rows[name]
        stop = start + len(block)
        if start % rows or (stop % rows and stop != array.shape[0]):
            raise ValueError(f"{name}: rows {start}:{stop} are not whole shards of {rows} rows")
        if block.shape[1:] != tuple(array.shape[1:]):
            raise ValueError(f"{name}: rows of shape {block.shape[1:]}, declared {tuple(array.shape[1:])}")
        if len(block) == 0:
            return
        with arrays.guarded(f"writing {self.path / name}"):
            array[start:stop].write(np.ascontiguousarray(block, array.dtype.numpy_dtype)).result()

    def read(self, name: str) -> np.ndarray:
        """All rows of a declared array, in memory; those not written yet are zero."""
        with arrays.guarded(f"reading {self.path / name}"):
            return np.asarray(self._arrays[name].read().result())

    def width(self, name: str) -> int:
        """Columns of a declared array."""
        return int(self._arrays[name].shape[1])

    def put(
        self, name: str, value: np.ndarray, *, dimensions: tuple[str, ...] | None = None, **attributes: Any
    ) -> None:
        """Create and write a whole array in one shard."""
        value = np.asarray(value)
        self.create(name, value.shape, value.dtype.name, dimensions=dimensions, attributes=attributes)
        self.write(name, 0, value)

    def put_json(self, name: str, value: Any) -> None:
        """Write a JSON document (keys sorted, NaN as null)."""
        replace_text(self.path / name, pretty_json(value))

    def advance(self, done: int) -> None:
        """Record that `done` steps are finished; everything they wrote must be on disk before."""
        self.cursor = done
        replace_text(self.path / "cursor.json", json.dumps({"done": done}))

    def commit(self) -> Store:
        """Write the group metadata and the manifest, and give the folder its final name."""
        arrays.write_group(self.path, {"spec": self.spec.as_json()})
        with arrays.guarded(f"finishing {self.path}"):
            (self.path / "cursor.json").unlink(missing_ok=True)
            for leftover in self.path.rglob("*.tmp"):
                leftover.unlink()
        sizes = {p: (self.path / p).stat().st_size for p in _files(self.path)}
        replace_text(self.path / "manifest.json", pretty_json({"files": sizes}))
        if self.final.exists():
            shutil.rmtree(self.final)
        os.replace(self.path, self.final)  # noqa: PTH105  (a folder: Path.replace says the same, less plainly)
        return Store(self.final)


def _files(root: Path) -> list[str]:
    found = (p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    return sorted(p for p in found if p not in _NEVER_IN_MANIFEST)


class Store:
    """A finished store, opened for reading.

    Raises StoreError when the store is missing or unfinished, or when a file has another size than its manifest says.
    """

    def __init__(self, path: Path):
        self.path = path
        if not is_finished(path):
            partial = path.with_name(path.name + PARTIAL)
            state = "is unfinished" if path.exists() or partial.exists() else "does not exist"
            raise StoreError(
                f"store {path} {state} (no manifest.json). Run its stage again: finished shards are not computed twice."
            )
        try:
            files = dict(json.loads((path / "manifest.json").read_text())["files"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"store {path} is damaged: manifest.json ({error}). Delete the folder and rerun."
            ) from None
        for name, size in files.items():
            found = (path / name).stat().st_size if (path / name).is_file() else None
            if found != size:
                what = "is missing" if found is None else f"has {found} bytes"
                raise StoreError(
                    f"store {path} is damaged: {name} {what}, its manifest says {size} bytes. Delete the folder and rerun."
                )

        self.spec = self.json("spec.json")

    @property
    def name(self) -> str:
        return self.path.name

    def array(self, name: str) -> Any:
        """The TensorStore array `name`, lazily."""
        return arrays.open_array(self.path / name)

    def read(self, name: str, rows: slice | np.ndarray | None = None) -> np.ndarray:
        """Rows of an array (None: all) in memory. Raises StoreError naming the array when its bytes are corrupt."""
        array = self.array(name)
        with arrays.guarded(f"reading {self.path / name}"):
            view = array if rows is None else array[rows]
            return np.asarray(view.read().result())

    def parts(self, names: Sequence[str], rows: np.ndarray) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
        """Pieces (places in `rows`, {name: values}) that together hold all names at all rows. Raises StoreError as `read`."""
        for name in names:
            yield slice(None), {name: self.read(name, rows)}

    def read_columns(self, name: str, columns: slice) -> np.ndarray:
        """Columns of a two-dimensional array in memory. Raises StoreError as `read`."""
        array = self.array(name)
        with arrays.guarded(f"reading {self.path / name}"):
            return np.asarray(array[:, columns].read().result())

    def json(self, name: str) -> Any:
        """A JSON document of the store."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StoreError(f"store {self.path}: cannot read {name} ({error}). Delete the folder and rerun.") from None
