"""What the engines of bench/sae_peers.py share: synthetic activations, the order of the batches, one score. NumPy only."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

EVAL_ROWS = 16_384


def synthetic(n: int, d: int, seed: int = 0, noise: float = 0.05) -> np.ndarray:
    """[n, d] float32: sparse non-negative codes over 2,048 directions (16 on average, power law), a part of rank 8, a mean,
    and `noise` of the variance as noise, so that explained variance cannot pass 1 - noise by much.
    """
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((2048, d)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    chance = (np.arange(2048) + 10.0) ** -0.7
    chance = np.minimum(chance * (16.0 / chance.sum()), 0.9)
    basis = np.linalg.qr(rng.standard_normal((d, 8)))[0].T.astype(np.float32)
    spread = (0.7 ** np.arange(8)).astype(np.float32)
    out = np.empty((n, d), np.float32)
    for rows in np.array_split(out, -(-n // 8192)):
        fire = rng.random((len(rows), 2048)) < chance
        codes = np.where(fire, 0.5 + np.abs(rng.standard_normal(fire.shape)), 0.0)
        low = rng.standard_normal((len(rows), 8)).astype(np.float32) * spread
        rows[:] = codes.astype(np.float32) @ directions + low @ basis
    level = float(np.sqrt(noise / (1 - noise) * out.var(axis=0, dtype=np.float64).sum() / d))
    for rows in np.array_split(out, -(-n // 8192)):
        rows += (level * rng.standard_normal(rows.shape)).astype(np.float32)
    out += rng.standard_normal(d).astype(np.float32)
    return out


class Rows:
    """Held-out and training rows of a file, centred and scaled to mean square 1 by the training rows."""

    def __init__(self, path: str) -> None:
        x = np.load(path)
        order = np.random.default_rng(20240607).permutation(len(x))
        n_eval = min(EVAL_ROWS, len(x) // 5)
        train = x[order[n_eval:]]
        mean = train.mean(axis=0, dtype=np.float64).astype(np.float32)
        train -= mean
        scale = np.float32(np.sqrt(np.mean(train**2, dtype=np.float64)))
        self.train, self.held_out = train / scale, (x[order[:n_eval]] - mean) / scale

    def batch(self, step: int, size: int, seed: int) -> np.ndarray:
        """Rows of one step: every epoch its own permutation."""
        per_epoch = len(self.train) // size
        epoch, part = divmod(step, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(self.train)) if part == 0 else self._order
        self._order = order
        return self.train[order[part * size : (part + 1) * size]]

    def score(self, reconstruct: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]], u: int) -> dict:
        """Explained variance on the held-out rows (float64), share of units that fire on none of them, mean L0.

        reconstruct: x [b, d] -> x_hat [b, d], values [b, k], units [b, k].
        """
        x = self.held_out.astype(np.float64)
        wrong, fired, active = 0.0, np.zeros(u, bool), 0
        for part in np.array_split(self.held_out, -(-len(x) // 2048)):
            x_hat, values, units = reconstruct(part)
            wrong += float(np.sum((part.astype(np.float64) - x_hat) ** 2))
            fired[units[values != 0]] = True
            active += np.count_nonzero(values)
        total = float(np.sum((x - x.mean(axis=0)) ** 2))
        return {"explained_variance": 1 - wrong / total, "dead": 1 - float(fired.mean()), "l0": active / len(x)}


def serve(step: Callable[[int], Any], wait: Callable[[], Any], score: Callable[[], dict], facts: dict) -> None:
    """Answer lines on stdin: `{"steps": n}` with the seconds of the next n steps, `{"score": true}` with the score."""
    done = 0
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if "steps" not in job:
            print(json.dumps(score()), flush=True)
            continue
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(job["steps"]):
            step(done)
            done += 1
        wait()
        print(json.dumps({"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}), flush=True)
