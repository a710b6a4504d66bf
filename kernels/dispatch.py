"""One way to choose an implementation of a kernel.

`NotImplementedError` means "not on this device or for these arguments: try the next"; `ValueError` means that the caller
is wrong and is never swallowed; an implementation asked for by name never falls back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

R = TypeVar("R")


def dispatch(
    op: str, table: Mapping[str, Callable[..., R]], implementation: str | None, *args: Any, **kwargs: Any
) -> R:
    """Call the first implementation of `table` (best first) that can do it, or the one named.

    Raises ValueError for an unknown name, NotImplementedError with every reason when none can.
    """
    if implementation is not None:
        if implementation not in table:
            raise ValueError(f"{op}: no implementation {implementation!r}; there are {', '.join(table)}")
        return table[implementation](*args, **kwargs)
    reasons = []
    for name, function in table.items():
        try:
            return function(*args, **kwargs)
        except NotImplementedError as error:
            reasons.append(f"{name}: {error}")
    raise NotImplementedError(f"{op}: " + "; ".join(reasons))
