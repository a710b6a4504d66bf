"""What is wrong with a configuration, key by key, in words that name the nearest key."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel


def unknown_keys(raw: Any, model: type[BaseModel], root: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """A clause per key of `raw` that `model` (a section of `root`) does not have, naming the nearest there is."""
    if not isinstance(raw, dict):
        return
    fields = model.model_fields
    for key, value in raw.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), _all_keys(root), n=1, cutoff=0.0)
            sibling = difflib.get_close_matches(str(key), list(fields), n=1, cutoff=0.6)
            hint = f"{prefix}{sibling[0]}" if sibling else _full_key(near[0], root)
            yield f"unknown key {prefix}{key}; the nearest is {hint}"
            continue
        annotation = fields[key].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from unknown_keys(value, annotation, root, f"{prefix}{key}.")


def _key_paths(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, field in model.model_fields.items():
        yield key, prefix + key
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _key_paths(field.annotation, f"{prefix}{key}.")


def _all_keys(root: type[BaseModel]) -> list[str]:
    return [key for key, _ in _key_paths(root)]


def _full_key(key: str, root: type[BaseModel]) -> str:
    paths = [path for name, path in _key_paths(root) if name == key]
    return min(reversed(paths), key=lambda path: path.count("."))


def describe(error: Any) -> str:
    """One of pydantic's errors as a clause that begins with the key."""
    key = ".".join(str(part) for part in error["loc"]) or "the configuration"
    if error["type"] == "missing":
        return f"missing key {key}"
    if key == "the configuration":
        return str(error["msg"]).removeprefix("Value error, ")
    found = error.get("input")
    shown = "" if isinstance(found, (dict, types.NoneType)) else f", found {found!r}"
    return f"{key}: {error['msg']}{shown}"
