"""`python bench/sae_step.py`: one TopK training step and its parts, wall and processor milliseconds, beside the GEMM rate.

One device with all cores. The parts run in programs of their own, so their sum is not the step's time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from sbm_jax.bench.common import gemm_rate, median, save
from sbm_jax.config import TrainConfig
from sbm_jax.kernels.select import top_k
from sbm_jax.kernels.topk_autoencode import xla
from sbm_jax.mesh import training_mesh
from sbm_jax.sae import step as sae_step
from sbm_jax.sae.model import Norm, init_params, unit_rows

SIZES = ((192, 4096), (768, 12_288))
BATCH, K, REPEATS = 4096, 32, 5


def timed(call: Callable[[], Any]) -> dict[str, list[float]]:
    """Seconds of the wall and of all threads, after two calls."""
    for _ in range(2):
        jax.block_until_ready(call())
    wall, cpu = [], []
    for _ in range(REPEATS):
        start, busy = time.perf_counter(), time.process_time()
        jax.block_until_ready(call())
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - busy)
    return {"wall_s": wall, "cpu_s": cpu}


def parts(d: int, u: int) -> dict[str, Callable[[], Any]]:
    """The step, and what it consists of."""
    config = TrainConfig(k=K, batch=BATCH, steps=100)
    mesh = training_mesh(1, 1, 1, jax.devices())
    x = jax.random.normal(jax.random.key(0), (1, BATCH, d))
    params = init_params(np.arange(1), d, u, config.encoder_scale)
    rows, w_dec = params.w_enc[0].T + 0, params.w_dec[0]
    whole = sae_step.make_step(mesh, config, Norm(jnp.zeros((1, d)), jnp.ones(1)), d // 2, 2)
    state = sae_step.put_state(sae_step.init_state(jax.tree.map(jnp.copy, params), config, 50), mesh)

    def step() -> Any:
        nonlocal state
        state, mse = whole(state, x)
        return mse

    forward = jax.jit(xla._forward(K))
    x_hat, values, units = forward(x[0], rows, params.b_enc[0], w_dec, params.b_dec[0])
    product = jax.jit(lambda x, w: jnp.einsum("bd,ud->bu", x, w, precision=jax.lax.Precision.HIGHEST))
    select = jax.jit(lambda pre: top_k(pre, K))
    pre = product(x[0], rows)
    decode, backward = jax.jit(xla.decode), jax.jit(xla._backward())
    residual = x[0] - x_hat
    adam, tree = sae_step.optimiser(config), cast(Any, params)  # optax's types know no named tuples
    moments = jax.vmap(adam.init)(tree)
    update = jax.jit(lambda p, m: jax.vmap(adam.update)(p, m, p))
    normed = jax.jit(unit_rows)
    return {
        "step": step,
        "encoder product": lambda: product(x[0], rows),
        "selection": lambda: select(pre),
        "decode": lambda: decode(values, units, w_dec),
        "product, selection and decode in blocks": lambda: forward(x[0], rows, params.b_enc[0], w_dec, params.b_dec[0]),
        "backward": lambda: backward(x[0], w_dec, values, units, residual, jnp.zeros_like(values)),
        "Adam": lambda: update(tree, moments),
        "unit rows": lambda: normed(w_dec),
    }


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    jax.config.update("jax_num_cpu_devices", 1)
    ceiling = gemm_rate()
    table: list[dict[str, Any]] = []
    for d, u in SIZES:
        for name, call in parts(d, u).items():
            taken = timed(call)
            row = {"case": f"d={d} u={u} k={K} b={BATCH}", "part": name}
            row |= {"wall_ms": 1e3 * median(taken["wall_s"]), "cpu_ms": 1e3 * median(taken["cpu_s"]), **taken}
            table.append(row)
        table.append({"case": f"d={d} u={u} k={K} b={BATCH}", "part": "encoder product at the GEMM rate"})
        table[-1]["wall_ms"] = 1e3 * 2 * BATCH * d * u / ceiling
    save("sae_step", {"gemm_flops_per_second": ceiling, "rows": table})
    for row in table:
        print(f"{row['case']}: {row['part']:42s} {row['wall_ms']:7.1f} ms, {row.get('cpu_ms', 0):7.1f} CPU ms")


if __name__ == "__main__":
    main()
