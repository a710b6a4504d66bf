"""GIFTI functional files, read one data array at a time (nibabel would hold all of them)."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterator
from pathlib import Path
from xml.parsers import expat

import numpy as np

from sbm_jax.brain.sessions import TrialFile
from sbm_jax.brain.trialfiles_numbers import Numbers, check_indices, need_file, need_trials
from sbm_jax.brain.trialfiles_rows import row_blocks
from sbm_jax.errors import UserError

_READ = 1 << 20
_WHAT = "a GIFTI functional file (.func.gii): one data array per trial, or one of vertices x trials"
# NIfTI's type codes as GIFTI spells them
_TYPES = {
    f"NIFTI_TYPE_{name.upper()}": np.dtype(name)
    for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
}
_NOT_VALUES = ("NIFTI_INTENT_POINTSET", "NIFTI_INTENT_TRIANGLE", "NIFTI_INTENT_LABEL")


class GiftiTrials(TrialFile):
    """A `.func.gii` with one data array [V] per trial, or a single one [V, T].

    Opening reads up to the first data array; the others are checked when they are read. Encodings: ASCII, Base64Binary,
    GZipBase64Binary and ExternalFileBinary, of either byte order.

    Raises UserError: not GIFTI, a surface or labels instead of values, not real numbers, arrays that differ, cut short.
    """

    def __init__(self, path: Path):
        need_file(path, _WHAT)
        if not path.name.endswith(".gii"):
            raise UserError(f"{path}: expected {_WHAT}, found another ending")
        self.path = path
        count, self._first = _head(path)
        if self._first["Intent"] in _NOT_VALUES:
            raise UserError(f"{path}: expected {_WHAT}, found the intent {self._first['Intent']}")
        shape = self._shape(self._first)
        self._one_array = count == 1 and len(shape) == 2
        rank = 2 if self._one_array else 1
        if any(size != 1 for size in shape[rank:]):
            raise UserError(f"{path}: expected {_WHAT}, found {count} arrays of shape {shape}")
        self.n_places, self.n_trials = shape[0], shape[-1] if self._one_array else count
        need_trials(path, self.n_trials, self.n_places)
        self.dtype = self._dtype(self._first)

    def iter_rows(self, rows: np.ndarray, places: np.ndarray, height: int) -> Iterator[np.ndarray]:
        check_indices(rows, places, self.n_trials, self.n_places)
        yield from row_blocks(self._rows(rows), rows, places, Numbers(self.dtype), height)

    def working_bytes(self) -> int:
        # the text of an array, its decoded forms, and its numbers
        return 2 * _READ + 5 * self.n_places * self.dtype.itemsize * (self.n_trials if self._one_array else 1)

    def _rows(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """The wanted trials [V] in order. The file's last one comes after its end has been seen."""
        wanted, last = set(rows.tolist()), None
        found = 0
        for attributes, text in _arrays(self.path):
            if self._one_array:
                values = self._decode(attributes, text)
                if attributes.get("ArrayIndexingOrder") == "ColumnMajorOrder":
                    values_tv = values.reshape(self.n_trials, self.n_places)
                else:
                    values_tv = values.reshape(self.n_places, self.n_trials).T
                yield from (np.ascontiguousarray(values_tv[row]) for row in rows)
                return
            if self._shape(attributes)[0] != self.n_places or self._dtype(attributes) != self.dtype:
                raise UserError(
                    f"{self.path}: data array {found + 1} has {self._shape(attributes)[0]} numbers of type "
                    f"{attributes['DataType']}; the first has {self.n_places} of type {self._first['DataType']}"
                )
            if found in wanted and found < self.n_trials - 1:
                yield self._decode(attributes, text)
            elif found in wanted:
                last = self._decode(attributes, text)
            found += 1
        if found != self.n_trials:
            raise UserError(f"{self.path}: expected {self.n_trials} data arrays as its head says, found {found}")
        if last is not None:
            yield last

    def _shape(self, attributes: dict[str, str]) -> tuple[int, ...]:
        try:
            return tuple(int(attributes[f"Dim{axis}"]) for axis in range(int(attributes["Dimensionality"])))
        except (KeyError, ValueError) as error:
            raise UserError(f"{self.path}: a data array without readable Dimensionality and Dim ({error})") from error

    def _dtype(self, attributes: dict[str, str]) -> np.dtype:
        name = attributes.get("DataType", "nothing")
        if name not in _TYPES:
            raise UserError(f"{self.path}: expected real numbers ({', '.join(_TYPES)}), found {name}")
        return _TYPES[name]

    def _decode(self, attributes: dict[str, str], text: str) -> np.ndarray:
        """Numbers of one data array, flat and in native byte order."""
        dtype, encoding = self._dtype(attributes), attributes.get("Encoding", "")
        stored = dtype.newbyteorder(">" if attributes.get("Endian") == "BigEndian" else "<")
        count = int(np.prod(self._shape(attributes)))
        try:
            if encoding == "ASCII":
                values = np.array(text.split(), dtype=dtype)
            elif encoding == "Base64Binary":
                values = np.frombuffer(base64.b64decode(text), dtype=stored)
            elif encoding == "GZipBase64Binary":
                values = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=stored)
            elif encoding == "ExternalFileBinary":
                name, offset = attributes["ExternalFileName"], int(attributes.get("ExternalFileOffset") or 0)
                values = np.fromfile(self.path.parent / name, dtype=stored, count=count, offset=offset)
            else:
                raise ValueError(f"unknown encoding {encoding!r}")
        except (ValueError, KeyError, OSError, binascii.Error, zlib.error) as error:
            raise UserError(f"{self.path}: a data array cannot be decoded; damaged or cut short ({error})") from error
        if len(values) != count:
            raise UserError(f"{self.path}: a data array announces {count:,} numbers and holds {len(values):,}")
        return values.astype(dtype, copy=False)


class _Handler:
    """Collects data arrays as the parser comes by them."""

    def __init__(self) -> None:
        self.root: dict[str, str] | None = None
        self.attributes: dict[str, str] = {}
        self.first: dict[str, str] = {}
        self.text: list[str] | None = None
        self.done: list[tuple[dict[str, str], str]] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "GIFTI":
            self.root = attributes
        elif name == "DataArray":
            self.attributes = {"Intent": "", **attributes}
            self.first = self.first or self.attributes
        elif name == "Data":
            self.text = []

    def end(self, name: str) -> None:
        if name == "Data":
            self.done.append((self.attributes, "".join(self.text or [])))
            self.text = None

    def characters(self, text: str) -> None:
        if self.text is not None:
            self.text.append(text)


def _parse(path: Path) -> Iterator[_Handler]:
    """The handler after every piece of the file. Raises UserError for XML that is damaged or cut short."""
    handler = _Handler()
    parser = expat.ParserCreate()
    parser.buffer_text, parser.buffer_size = True, _READ
    parser.StartElementHandler, parser.EndElementHandler = handler.start, handler.end
    parser.CharacterDataHandler = handler.characters
    with path.open("rb") as file:
        ended = False
        while not ended:
            try:
                piece = file.read(_READ)
                parser.Parse(piece, ended := not piece)
            except expat.ExpatError as error:
                raise UserError(f"{path}: expected {_WHAT}; its XML is damaged or cut short ({error})") from error
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror}") from error
            yield handler


def _arrays(path: Path) -> Iterator[tuple[dict[str, str], str]]:
    """(attributes, text) of every data array in order."""
    for handler in _parse(path):
        yield from handler.done
        handler.done.clear()


def _head(path: Path) -> tuple[int, dict[str, str]]:
    """Number of data arrays, and the attributes of the first."""
    for handler in _parse(path):
        if handler.root is not None and handler.first:
            try:
                return int(handler.root["NumberOfDataArrays"]), handler.first
            except (KeyError, ValueError) as error:
                raise UserError(f"{path}: GIFTI without a readable NumberOfDataArrays ({error})") from error
    raise UserError(f"{path}: expected {_WHAT}, found no data array")
