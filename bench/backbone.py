"""`python bench/backbone.py [--torch-python PYTHON]`: ViT-B/16 passes in f32 and bf16, beside torch in the same run.

PYTHON is an interpreter with torch and transformers (default: this one, if it has torch). The two take turns, so that a
machine that slows down slows both. Pixels are donated, the batch is split over all devices (on a CPU one per core).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sbm_jax.backbones import forward, hook_name
from sbm_jax.backbones.configs import read_spec
from sbm_jax.backbones.spec import DTYPES, VisionSpec
from sbm_jax.backbones.tables import build
from sbm_jax.bench.common import gemm_rate, interleaved, median, samples, save
from sbm_jax.mesh import make_mesh, use_cpu_cores

SIDE, LAYERS, GEMM = 224, 12, 2048


class Torch:
    """bench/backbone_torch.py in a process of its own."""

    def __init__(self, python: str):
        # -P: the folder of the script has a kernels.py, which transformers would take for a library.
        command = [python, "-P", str(Path(__file__).parent / "backbone_torch.py")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = self._answer()

    def seconds(self, **job: Any) -> float:
        """Seconds of one job, as that process measured them."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self._answer()["seconds"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"torch ended with code {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self.process.communicate()


def make_pass(dtype: str, batch: int) -> tuple[Callable[[], jax.Array], VisionSpec]:
    """A jitted pass to the last block's residual stream, with fresh pixels put on the devices at every call."""
    spec = read_spec({"model_type": "vit"}, "ViT-B/16", dtype=dtype)
    assert isinstance(spec, VisionSpec)
    mesh = make_mesh({"data": len(jax.devices())}, jax.devices())
    split = NamedSharding(mesh, P("data"))
    model = jax.device_put(jax.jit(build(spec))(), NamedSharding(mesh, P()))
    last = hook_name(LAYERS - 1)
    run = jax.jit(lambda model, x: forward(model, x, (last,))[last], donate_argnums=1, out_shardings=split)
    pixels = np.random.default_rng(0).standard_normal((batch, SIDE, SIDE, 3)).astype(np.float32)
    return lambda: run(model, jax.device_put(pixels, split)), spec


def bf16_rate(repeats: int) -> float:
    """Measured bf16 GEMM rate of the device, FLOP/s."""
    a = jax.random.normal(jax.random.key(0), (GEMM, GEMM), jnp.bfloat16)
    product = jax.jit(lambda x: x @ x)
    return 2 * GEMM**3 / min(samples(lambda: product(a), repeats))


def error_of_bf16(batch: int = 2) -> dict[str, float]:
    """Largest difference of the bf16 pass from the f32 pass over the largest f32 value, and the relative RMS."""
    exact, rounded = (jax.jit(build(read_spec({"model_type": "vit"}, "", dtype=dtype)))() for dtype in DTYPES)
    nnx.update(rounded, jax.tree.map(lambda x, y: x.astype(y.dtype), nnx.state(exact), nnx.state(rounded)))
    pixels = np.random.default_rng(0).standard_normal((batch, SIDE, SIDE, 3)).astype(np.float32)
    last = hook_name(LAYERS - 1)
    outs = [np.asarray(jax.jit(forward, static_argnums=2)(m, pixels, (last,))[last]) for m in (exact, rounded)]
    difference = outs[1] - outs[0]
    return {
        "max": float(np.abs(difference).max() / np.abs(outs[0]).max()),
        "rms": float(np.sqrt((difference**2).mean() / (outs[0] ** 2).mean())),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, help="256 on an accelerator, 16 on a CPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--torch-python", default=sys.executable if importlib.util.find_spec("torch") else None)
    options = parser.parse_args(argv)
    use_cpu_cores()
    batch, repeats = options.batch or (16 if jax.default_backend() == "cpu" else 256), options.repeats
    rates = {"float32": gemm_rate(GEMM, repeats), "bfloat16": bf16_rate(repeats)}
    passes = {dtype: make_pass(dtype, batch) for dtype in DTYPES}
    calls: dict[str, Callable[[], Any]] = {f"sbm_jax {dtype}": run for dtype, (run, _) in passes.items()}
    torch = Torch(options.torch_python) if options.torch_python else None
    if torch:
        for dtype in DTYPES:
            calls[f"torch {dtype}"] = lambda dtype=dtype: torch.seconds(dtype=dtype, batch=batch)
    with warnings.catch_warnings():
        # A CPU cannot use the pixels' memory for an output of another shape; an accelerator frees it early.
        warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
        taken = interleaved(calls, repeats)
        error = error_of_bf16()
    flops = passes["float32"][1].flops(LAYERS) * batch
    rows = []
    for name, values in taken.items():
        dtype = name.split()[1]
        rows.append(
            {
                "case": f"ViT-B/16 {SIDE}px, {name}, batch {batch}",
                "seconds": median(values),
                "images_per_second": batch / median(values),
                "gflops_per_second": flops / median(values) / 1e9,
                "of_gemm_rate": flops / median(values) / rates[dtype],
                "of_torch": median(taken[f"torch {dtype}"]) / median(values) if torch else None,
                "best_seconds": min(values),
                "samples": values,
            }
        )
    record: dict[str, Any] = {
        "devices": len(jax.devices()),
        "gemm_flops_per_second": rates,
        "bf16_error": error,
        "rows": rows,
    }
    if torch:
        record["torch"] = torch.facts
        record["torch_gemm_flops_per_second"] = {
            dtype: 2 * GEMM**3 / min(torch.seconds(gemm=GEMM, dtype=dtype) for _ in range(repeats + 1))
            for dtype in DTYPES
        }
        torch.close()
    save("backbone", record)


if __name__ == "__main__":
    main()
