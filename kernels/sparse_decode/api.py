"""Public function `sparse_decode`."""

from __future__ import annotations

from typing import Any

from sbm_jax.kernels.dispatch import dispatch
from sbm_jax.kernels.sparse_decode import reference


def _xla(*args: Any) -> Any:
    from sbm_jax.kernels.sparse_decode import xla

    return xla.sparse_decode(*args)


IMPLEMENTATIONS = {"xla": _xla, "reference": reference.sparse_decode}


def sparse_decode(values: Any, units: Any, w: Any, *, implementation: str | None = None) -> Any:
    """x [..., d] = sum over k of values[..., k] times decoder row w[units[..., k]].

    Args: values [..., k]; units [..., k] integers in 0..u-1; w [u, d]. Traceable in the XLA form.
    Raises ValueError for shapes that disagree.
    """
    if values.shape != units.shape or w.ndim != 2:
        raise ValueError(f"sparse_decode: values {values.shape}, units {units.shape} and w {w.shape} do not fit")
    return dispatch("sparse_decode", IMPLEMENTATIONS, implementation, values, units, w)
