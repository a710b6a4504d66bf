"""`python bench/sae_step.py`: one training step of a stack of autoencoders, and its parts, against the GEMM rate."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import gemm_rate, interleaved, median, save

from sbm_jax.config import TrainConfig
from sbm_jax.mesh import training_mesh
from sbm_jax.sae import step as sae_step
from sbm_jax.sae.model import Norm, encode, init_params

A, B, D = 12, 512, 128


def rows(u: int, k: int, ceiling: float) -> list[dict[str, Any]]:
    """Encoder alone, and the whole step."""
    config = TrainConfig(k=k, batch=B, steps=100)
    x = jax.random.normal(jax.random.key(0), (A, B, D))
    norm = Norm(jnp.zeros((A, D)), jnp.ones(A))
    params = init_params(np.arange(A), D, u, 0.577)
    mesh = training_mesh(1, 1, 1, jax.devices())
    encoder = jax.jit(lambda p, x: encode(p, x, k))
    run = sae_step.make_step(mesh, config, norm, D // 2, 2)
    own = jax.tree.map(jnp.copy, params)  # a step donates its state
    state = sae_step.put_state(sae_step.init_state(own, config, 50), mesh)

    def step() -> Any:
        nonlocal state
        state, mse = run(state, x)
        return mse

    calls: dict[str, Any] = {"encoder with top-k": lambda: encoder(params, x), "step": step}
    taken = interleaved(calls)
    encoder_flops = 2 * A * B * D * u
    return [
        {
            "case": f"{name}, a={A} b={B} d={D} u={u} k={k}",
            "seconds": median(values),
            "encoder_product_at_gemm_rate": encoder_flops / ceiling,
            "samples": values,
        }
        for name, values in taken.items()
    ]


def main() -> None:
    ceiling = gemm_rate()
    table = [row for u, k in ((1024, 16), (4096, 16)) for row in rows(u, k, ceiling)]
    save("sae_step", {"gemm_flops_per_second": ceiling, "rows": table})


if __name__ == "__main__":
    main()
