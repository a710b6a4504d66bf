"""The text of a configuration: YAML files, `key.sub=value` overrides, and how an unknown key or a bad value is told."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from sbm_jax.errors import UserError


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections of a file. Raises UserError where it cannot be read or is something else."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected sections such as `data:` and `backbone:`, found {type(raw).__name__}")
    return raw


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set `key.sub=value` in place. Raises UserError where it is not of that form or the key leads nowhere."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {override!r}: expected key=value, for example train.steps=200")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override!r}: the value is not valid YAML: {error}") from None
    *parents, last = key.strip().split(".")
    node = raw
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"--set {override!r}: {parent} is a single value, not a section")
        node = child
    node[last] = value


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
    """One of pydantic's errors as `key: what is wrong, found what`."""
    key = ".".join(str(part) for part in error["loc"]) or "the configuration"
    if error["type"] == "missing":
        return f"missing key {key}"
    if key == "the configuration":
        return str(error["msg"]).removeprefix("Value error, ")
    found = error.get("input")
    shown = "" if isinstance(found, (dict, types.NoneType)) else f", found {found!r}"
    return f"{key}: {error['msg']}{shown}"
