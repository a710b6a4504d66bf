"""`python bench/sae_peers.py --torch PYTHON`: our training step against other engines', in turns, on the same rows.

PYTHON is the interpreter of an environment with torch and, for the engine of that name, eai-sparsify. Each engine is a
process that waits while the others run; every round each trains `--chunk` steps. Warm-up and scoring are not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from sbm_jax.bench.common import gemm_rate, median, save
from sbm_jax.bench.sae_peers_data import synthetic

HERE = Path(__file__).parent
OURS = {"ours": "cores", "ours, one device": "one"}
TORCH = ("sparsify", "gather", "dense")


class Engine:
    """One engine in its own process."""

    def __init__(self, name: str, python: str, args: dict[str, Any]) -> None:
        script = "sae_peers_ours.py" if name in OURS else "sae_peers_torch.py"
        call = [python, HERE / script, json.dumps({**args, "engine": name, "devices": OURS.get(name)})]
        self.process = subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name = name
        self.facts = self._answer()
        self.rates: list[float] = []
        self.cpu: list[float] = []

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the engine {self.name} stopped; its message is above")
        return json.loads(line) if line.startswith("{") else self._answer()

    def ask(self, **job: Any) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def train(self, steps: int, timed: bool) -> None:
        taken = self.ask(steps=steps)
        if timed:
            self.rates.append(steps / taken["seconds"])
            self.cpu.append(taken["cpu"] / steps)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def compare(
    case: dict[str, Any], names: list[str], torch: str, chunk: int, limit: float, seed: int = 0
) -> list[dict[str, Any]]:
    """Rows of results: steps/s (best, median), processor seconds per step, score after all steps."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.npy"
        np.save(file, synthetic(case["n"], case["d"]))
        args = {**case, "file": str(file), "seed": seed, "lr": 6e-3, "warmup": max(1, case["n_steps"] // 20)}
        engines: list[Engine] = []
        try:
            for name in names:
                engines.append(Engine(name, sys.executable if name in OURS else torch, args))
            for start in range(0, case["n_steps"], chunk):
                for engine in engines:
                    engine.train(chunk, start > 0)
            return [
                {
                    "case": "d={d} u={u} k={k} batch={batch}, {n_steps} steps".format(**case),
                    "engine": engine.name,
                    "seed": seed,
                    "stacked": case.get("a", 1),
                    "steps_per_s_best": max(engine.rates),
                    "steps_per_s": median(engine.rates),
                    "cpu_s_per_step": median(engine.cpu),
                    "encoder_product_alone_steps_per_s": limit / (2 * case["batch"] * case["d"] * case["u"]),
                    **(engine.ask(score=True)),
                    **engine.facts,
                    "samples_steps_per_s": engine.rates,
                }
                for engine in engines
            ]
        finally:
            for engine in engines:
                engine.stop()


def print_row(row: dict[str, Any]) -> None:
    print(
        f"{row['case']}, {row['stacked']} stacked, seed {row['seed']}: {row['engine']:18s} {row['steps_per_s']:.2f} steps/s "
        f"(best {row['steps_per_s_best']:.2f}), {row['cpu_s_per_step']:.3f} CPU s/step, "
        f"EV {row['explained_variance']:.4f}, dead {100 * row['dead']:.2f} %",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("--torch", required=True, help="python of an environment with torch")
    parser.add_argument("--engines", nargs="+", default=[*OURS, *TORCH], help="also: compiled")
    parser.add_argument("--chunk", type=int, default=25, help="steps per turn")
    parser.add_argument("--large", type=int, nargs="?", const=30, help="also d=768, u=12,288, so many steps")
    parser.add_argument("--seeds", type=int, default=1, help="repeat the first case, for the spread of its scores")
    parser.add_argument("--stacked", type=int, default=0, help="also so many of our autoencoders side by side")
    options = parser.parse_args()
    cases = [{"n": 200_000, "d": 192, "u": 4096, "k": 32, "batch": 4096, "n_steps": 300}]
    if options.large:
        cases.append({"n": 40_000, "d": 768, "u": 12_288, "k": 32, "batch": 4096, "n_steps": options.large})
    ceiling = gemm_rate()
    before = os.getloadavg()
    rows = []
    for case in cases:
        chunk = min(options.chunk, max(1, case["n_steps"] // 6))
        rows += compare(case, options.engines, options.torch, chunk, ceiling)
    for seed in range(1, options.seeds):
        rows += compare(cases[0], options.engines, options.torch, min(options.chunk, 50), ceiling, seed)
    if options.stacked:
        mine = [name for name in options.engines if name in OURS]
        rows += compare({**cases[0], "a": options.stacked, "n_steps": 30}, mine, options.torch, 5, ceiling)
    for row in rows:
        print_row(row)
        sparsify = [
            r for r in rows if r["engine"] == "sparsify" and (r["case"], r["seed"]) == (row["case"], row["seed"])
        ]
        if sparsify:
            row["times_sparsify"] = row["steps_per_s"] / sparsify[0]["steps_per_s"]
            row["times_sparsify_best"] = row["steps_per_s_best"] / sparsify[0]["steps_per_s_best"]
    save("sae_peers", {"gemm_flops_per_second": ceiling, "load_before": before, "rows": rows})


if __name__ == "__main__":
    main()
