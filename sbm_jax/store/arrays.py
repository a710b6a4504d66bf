"""Zarr v3 arrays by TensorStore: sharding codec, crc32c on every chunk and on every shard index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from sbm_jax.errors import StoreError, UserError

CHUNK_BYTES = 1 << 19  # half a MiB: one seek's worth on spinning and network disks, small enough for random reads
_CONTEXT = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
_CORRUPT = ("checksum", "DATA_LOSS", "CRC", "ZSTD", "decompress", "shard index", "Digest")
_FULL_DISK = ("No space left", "RESOURCE_EXHAUSTED", "File too large", "Disk quota")


def _chunk_rows(shape: tuple[int, ...], itemsize: int, shard_rows: int) -> int:
    """Largest divisor of `shard_rows` whose chunk stays below CHUNK_BYTES (at least one row)."""
    row_bytes = max(1, itemsize * int(np.prod(shape[1:], dtype=np.int64)))
    limit = max(1, CHUNK_BYTES // row_bytes)
    return max(rows for rows in range(1, shard_rows + 1) if shard_rows % rows == 0 and rows <= limit)


def array_spec(
    path: Path,
    shape: tuple[int, ...],
    dtype: str,
    shard_rows: int,
    *,
    compress: bool,
    attributes: dict[str, Any],
    dimensions: tuple[str, ...] | None = None,
    chunk_columns: int | None = None,
) -> dict[str, Any]:
    """TensorStore spec of an array whose shards are blocks of `shard_rows` rows of the first axis.

    chunk_columns splits chunks along the second axis too; chunks of zeros only are not stored. The shard is then padded
    to whole chunks.
    """
    inner = [max(1, s) for s in shape[1:]]
    if chunk_columns is not None:
        inner[0] = min(chunk_columns, inner[0])
    chunk = (_chunk_rows((shape[0], *inner), np.dtype(dtype).itemsize, shard_rows), *inner)
    shard = (shard_rows, *(-(-max(1, s) // c) * c for s, c in zip(shape[1:], inner, strict=True)))
    little: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    codecs = [little, {"name": "zstd", "configuration": {"level": 3}}] if compress else [little]
    metadata: dict[str, Any] = {
        "shape": list(shape),
        "data_type": dtype,
        "fill_value": False if dtype == "bool" else 0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shard)}},
        "chunk_key_encoding": {"name": "default"},
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": list(chunk),
                    "codecs": [*codecs, {"name": "crc32c"}],
                    "index_codecs": [little, {"name": "crc32c"}],
                    "index_location": "end",
                },
            }
        ],
        "attributes": attributes,
    }
    if dimensions is not None:
        metadata["dimension_names"] = list(dimensions)
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}, "metadata": metadata}


def create_array(spec: dict[str, Any]) -> ts.TensorStore:
    """Open the array of `spec`, making it when it is not there (a resumed writer finds it there)."""
    with guarded(f"writing {spec['kvstore']['path']}"):
        return ts.open(spec, open=True, create=True, context=_CONTEXT).result()


def open_array(path: Path) -> ts.TensorStore:
    """Open an existing array for reading. Raises StoreError when it is missing or damaged."""
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    with guarded(f"opening {path}"):
        return ts.open(spec, open=True, read=True, context=_CONTEXT).result()


def write_group(path: Path, attributes: dict[str, Any]) -> None:
    """Zarr v3 group metadata, so that zarr-python can open the folder as a group."""
    body = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    with guarded(f"writing {path}"):
        path.mkdir(parents=True, exist_ok=True)
        (path / "zarr.json").write_text(json.dumps(body, indent=1, sort_keys=True))


class guarded:
    """Context manager that turns a failure of the disk into a message that says what to do about it."""

    def __init__(self, doing: str):
        self.doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if not isinstance(error, (OSError, ValueError)):
            return
        text = str(error)
        if any(mark in text for mark in _FULL_DISK):
            raise UserError(
                f"{self.doing}: the disk is full (or over quota). Finished shards are kept: free space and rerun to go on."
            ) from None
        if isinstance(error, PermissionError) or "PERMISSION_DENIED" in text or "Read-only file system" in text:
            raise UserError(f"{self.doing}: no permission to write there. Choose another folder with --out.") from None
        if isinstance(error, ValueError) and any(mark in text for mark in _CORRUPT):
            raise StoreError(
                f"{self.doing}: the data on disk are corrupt ({_first_line(text)}). Delete that store's folder and rerun; "
                "only it and what was made from it are computed again."
            ) from None
        if isinstance(error, ValueError):
            raise StoreError(f"{self.doing}: {_first_line(text)}") from None
        raise UserError(f"{self.doing}: {_first_line(text)}") from None


def _first_line(text: str) -> str:
    return text.splitlines()[0][:300] if text else "unknown error"
