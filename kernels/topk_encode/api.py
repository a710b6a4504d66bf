"""Public function `topk_encode`."""

from __future__ import annotations

from typing import Any

from sbm_jax.kernels.dispatch import dispatch
from sbm_jax.kernels.topk_encode import reference


def _xla(*args: Any) -> Any:
    from sbm_jax.kernels.topk_encode import xla

    return xla.topk_encode(*args)


IMPLEMENTATIONS = {"xla": _xla, "reference": reference.topk_encode}


def topk_encode(x: Any, w: Any, b: Any, k: int, *, implementation: str | None = None) -> tuple[Any, Any]:
    """values_bk, units_bk: the k largest of x w + b per row, descending, negatives set to 0, ties to the lowest unit.

    Args: x [..., d]; w [d, u]; b [u]; 1 <= k <= u. The XLA form can be traced, so it serves inside a jitted step.
    Raises ValueError for shapes that disagree or k out of range.
    """
    d, u = w.shape
    if x.shape[-1] != d or b.shape != (u,):
        raise ValueError(f"topk_encode: x {x.shape}, w {w.shape} and b {b.shape} do not fit")
    if not 1 <= k <= u:
        raise ValueError(f"topk_encode: k is {k}, allowed 1..{u}")
    return dispatch("topk_encode", IMPLEMENTATIONS, implementation, x, w, b, k)
