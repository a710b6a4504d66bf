"""Our side of bench/sae_peers.py: the training step of `sbm_jax.sae` for one autoencoder, on the same rows."""

from __future__ import annotations

import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sbm_jax.bench.sae_peers_data import Rows, serve
from sbm_jax.config import TrainConfig
from sbm_jax.mesh import enable_compilation_cache, training_mesh, use_cpu_cores
from sbm_jax.sae import auxiliary
from sbm_jax.sae import step as sae_step
from sbm_jax.sae.model import Norm, decode, encode, init_params, turned


def main() -> None:
    args = json.loads(sys.argv[1])
    if args["devices"] == "cores":
        use_cpu_cores()
    enable_compilation_cache()
    rows = Rows(args["file"])
    a, d, u, k, steps = args.get("a", 1), args["d"], args["u"], args["k"], args["n_steps"]
    config = TrainConfig(k=k, batch=args["batch"], steps=steps, lr=args["lr"], warmup=args["warmup"] / steps, decay=0.0)
    mesh = training_mesh(a, 1, math.gcd(config.batch // auxiliary.SHARE, d, u), jax.devices())
    norm = Norm(jnp.zeros((a, d)), jnp.ones(a))
    norm = jax.device_put(norm, NamedSharding(mesh, P(sae_step.SAE)))
    params = init_params(args["seed"] + np.arange(a), d, u, config.encoder_scale)
    state = sae_step.put_state(sae_step.init_state(params, config, 50), mesh)
    run = sae_step.make_step(mesh, config, norm, min(d // 2, u), max(1, steps // 50))
    sharding = NamedSharding(mesh, P(sae_step.SAE, sae_step.DATA))

    def step(index: int) -> None:
        nonlocal state
        x = np.broadcast_to(rows.batch(index, config.batch, args["seed"]), (a, config.batch, d))
        state, _ = run(state, jax.device_put(x, sharding))

    @jax.jit
    def through(params, x):
        values, units = encode(params, x[None], k)
        return decode(params, values, units)[0], values[0], units[0]

    def reconstruct(x: np.ndarray):
        first = jax.tree.map(lambda w: jax.device_put(w[:1], jax.devices()[0]), turned(state.params))
        return jax.device_get(through(first, x))

    facts = {"jax": jax.__version__, "mesh": {name: int(size) for name, size in mesh.shape.items()}}
    serve(step, lambda: jax.block_until_ready(state), lambda: rows.score(reconstruct, u), facts)


if __name__ == "__main__":
    main()
