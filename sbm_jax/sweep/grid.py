"""`--grid key=a,b,c`: the table of runs. Every combination is one run with a configuration of its own."""

from __future__ import annotations

import itertools
import json
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sbm_jax.config import Config, load_config
from sbm_jax.errors import UserError


@dataclass(frozen=True)
class Run:
    """One line of the table. values: grid key -> value as the schema reads it, in the order of the grid."""

    number: int
    values: dict[str, Any]
    config: Config

    @property
    def label(self) -> str:
        """`train.k=8 backbone.layers=3`."""
        return " ".join(f"{key}={value_text(value)}" for key, value in self.values.items())


def value_text(value: Any) -> str:
    """A value on one line: plain text as it is, a list of one as its only element, everything else as JSON."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else json.dumps(value)


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """Key -> overrides `key=value`, one per value; values are written as in YAML, between commas.

    A single value for a key that takes a list means a list of one. Raises UserError for a grid that is empty, cannot be
    read, or names a key twice (a section counts as all its keys).
    """
    if not texts:
        raise UserError("a sweep needs at least one --grid KEY=a,b,c, for example --grid train.k=8,16,32")
    grid: dict[str, list[str]] = {}
    for text in texts:
        key, equals, listed = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(f"--grid {text!r}: expected KEY=a,b,c, for example train.k=8,16,32")
        for other in grid:
            if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}."):
                raise UserError(f"--grid {text!r}: {other} is in the grid already; give all its values at once")
        try:
            values = yaml.safe_load(f"[{listed}]")
        except yaml.YAMLError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--grid {text!r}: {listed!r} is not a list of YAML values: {reason}") from None
        if not values:
            raise UserError(f"--grid {text!r}: no value is given for {key}")
        many = _takes_list(key)
        grid[key] = [_override(text, key, [v] if many and not isinstance(v, list) else v) for v in values]
    return grid


def make_runs(path: Path, overrides: Sequence[str], grid: dict[str, list[str]]) -> list[Run]:
    """Every combination; the last key changes fastest.

    Raises UserError for a key that there is not, a value that the schema refuses, or two equal runs.
    """
    load_config(path, overrides)  # what is wrong without the grid is said without it
    runs: list[Run] = []
    seen: dict[str, int] = {}
    for number, chosen in enumerate(itertools.product(*grid.values())):
        try:
            config = load_config(path, (*overrides, *chosen))
        except UserError as error:
            raise UserError(f"run {number} of the grid ({', '.join(chosen)}): {error}") from None
        run = Run(number, {key: _value(config, key) for key in grid}, config)
        same = seen.setdefault(config.model_dump_json(), number)
        if same != number:
            raise UserError(f"runs {same} and {number} of the grid are the same ({run.label}): a value is given twice")
        runs.append(run)
    return runs


def _override(text: str, key: str, value: Any) -> str:
    try:
        return f"{key}={json.dumps(value)}"  # JSON is YAML
    except TypeError:
        raise UserError(f"--grid {text!r}: write {value} in quotes; YAML reads it as a date") from None


def _takes_list(key: str) -> bool:
    kind: Any = Config
    for part in key.split("."):
        fields = getattr(kind, "model_fields", {})
        if part not in fields:
            return False  # an unknown key: the configuration says which is the nearest
        kind = fields[part].annotation
    return typing.get_origin(kind) is list


def _value(config: Config, key: str) -> Any:
    value: Any = config.model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    return value
