"""Public function `topk_autoencode`."""

from __future__ import annotations

from typing import Any

from sbm_jax.kernels.dispatch import dispatch
from sbm_jax.kernels.topk_autoencode import reference


def _xla(*args: Any) -> Any:
    from sbm_jax.kernels.topk_autoencode import xla

    return xla.topk_autoencode(*args)


IMPLEMENTATIONS = {"xla": _xla, "reference": reference.topk_autoencode}


def topk_autoencode(
    x: Any, w_enc: Any, b_enc: Any, w_dec: Any, b_dec: Any, k: int, *, implementation: str | None = None
) -> tuple[Any, Any, Any]:
    """x_hat [b, d], values [b, k] and units [b, k] of a TopK autoencoder; in the XLA form differentiable and fast.

    values and units are those of `topk_encode`, x_hat = sparse_decode(values, units, w_dec) + b_dec. Gradients reach
    x, both weights and both biases, through x_hat and through values. A unit with b_enc = -inf is never active, which
    restricts the autoencoder to some units. Under vmap (a stack of autoencoders) the members run in turn.

    Args: x [b, d]; w_enc [d, u]; b_enc [u]; w_dec [u, d]; b_dec [d], float32; 1 <= k <= u.
    Raises ValueError for shapes that disagree or k out of range.
    """
    d, u = w_enc.shape
    if x.ndim != 2 or x.shape[1] != d or b_enc.shape != (u,) or w_dec.shape != (u, d) or b_dec.shape != (d,):
        shapes = f"x {x.shape}, w_enc {w_enc.shape}, b_enc {b_enc.shape}, w_dec {w_dec.shape}, b_dec {b_dec.shape}"
        raise ValueError(f"topk_autoencode: {shapes} do not fit")
    if not 1 <= k <= u:
        raise ValueError(f"topk_autoencode: k is {k}, allowed 1..{u}")
    return dispatch("topk_autoencode", IMPLEMENTATIONS, implementation, x, w_enc, b_enc, w_dec, b_dec, k)
