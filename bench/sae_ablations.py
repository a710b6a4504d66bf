"""`python bench/sae_ablations.py`: what each part of the training recipe is worth, three seeds side by side.

Synthetic activations (see sae_peers_data.py), 131,072 tokens of width 96 with a mean of `--mean` times their spread,
dictionaries of 1,056 units, k = 16. Each row changes one choice of the default recipe; scores are of held-out tokens.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sbm_jax.bench.common import save
from sbm_jax.bench.sae_peers_data import synthetic
from sbm_jax.config import SweepConfig, TrainConfig
from sbm_jax.mesh import enable_compilation_cache, use_cpu_cores
from sbm_jax.sae import trainer
from sbm_jax.sae.metrics import held_out_metrics
from sbm_jax.sae.model import Norm
from sbm_jax.sae.stack import Stack, points

D, TOKENS, TRAIN, PER_IMAGE, HOOK = 96, 131_072, 6_144, 16, "block00.resid"
BASE = TrainConfig(
    expansion=11,
    k=16,
    steps=1000,
    batch=1024,
    lr=3e-3,
    lr_scale="none",
    dead_tokens=100_000,
    pool_tokens=TOKENS,
    sweep=SweepConfig(seed=[1, 2]),
)
VARIANTS: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "encoder starts as the decoder's transpose (x 1 instead of 0.577)": {"encoder_scale": 1.0},
    "no auxiliary loss": {"aux_weight": 0.0},
    "no warm-up": {"warmup": 0.0},
    "no decay": {"decay": 0.0},
    "no clipping": {"clip": 1e9},
    "decoder bias from the geometric median": {"centre": "geometric_median"},
    "rate halved": {"lr": 1.5e-3},
    "rate doubled": {"lr": 6e-3},
    "inputs scaled, not centred": {"centred": False},
}


class Tokens:
    """Activations in memory, [images, tokens, d]."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x.reshape(-1, PER_IMAGE, D)

    def array(self, name: str) -> np.ndarray:
        return self.x

    def read(self, name: str, rows: slice | np.ndarray | None = None) -> np.ndarray:
        return self.x if rows is None else self.x[rows]

    def parts(self, names: Sequence[str], rows: np.ndarray) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
        yield slice(None), dict.fromkeys(names, self.x[rows])


def uncentred(norm: Norm, tokens: np.ndarray) -> Norm:
    """Mean 0, and the scale that gives mean square 1 with the mean left in."""
    scale = 1 / np.sqrt(np.mean(tokens.astype(np.float64) ** 2))
    return Norm(np.zeros_like(norm.mean), np.full_like(norm.scale, scale))


def run(name: str, change: dict[str, Any], acts: Tokens) -> dict[str, Any]:
    config = BASE.model_copy(update={key: value for key, value in change.items() if key != "centred"})
    stack = Stack((HOOK,), ("patch",), points(config))
    train, held_out = np.arange(TRAIN), np.arange(TRAIN, len(acts.x))
    usual = trainer.input_norm
    if change.get("centred") is False:
        trainer.input_norm = lambda *args: uncentred(usual(*args), acts.x[train])
    try:
        with tempfile.TemporaryDirectory() as folder:
            (trained,) = trainer.train(acts, stack, train, config, jax.devices(), Path(folder))
    finally:
        trainer.input_norm = usual
    records = held_out_metrics(acts, stack, held_out, trained)
    ev, dead = ([record[key] for record in records] for key in ("explained_variance", "dead"))
    row = {"case": name, "explained_variance": ev, "dead": dead, "change": change}
    print(f"{name:68s} EV {np.mean(ev):.4f} ± {np.std(ev, ddof=1):.4f}   dead {100 * np.mean(dead):.2f} %", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mean", type=float, default=2.0, help="length of the mean, in root mean squares of the rest")
    args = parser.parse_args()
    use_cpu_cores()
    enable_compilation_cache()
    x = synthetic(TOKENS, D)
    x -= x.mean(axis=0)
    direction = np.random.default_rng(1).standard_normal(D)
    x += (args.mean * np.sqrt((x**2).sum(axis=1).mean()) * direction / np.linalg.norm(direction)).astype(np.float32)
    acts = Tokens(x)
    save("sae_ablations", {"mean": args.mean, "rows": [run(name, change, acts) for name, change in VARIANTS.items()]})


if __name__ == "__main__":
    main()
