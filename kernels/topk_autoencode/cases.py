"""Named shapes shared by tests and benchmarks: a shape that was measured was also checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Case:
    """b tokens of width d, u units of which k are active; tags say who uses it."""

    name: str
    b: int
    d: int
    u: int
    k: int
    tags: tuple[str, ...] = ("test",)

    def make(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """x, w_enc, b_enc, w_dec, b_dec, float32."""
        rng = np.random.default_rng([seed, self.b, self.d, self.u, self.k])
        w_dec = rng.normal(size=(self.u, self.d))
        w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
        w_enc = 0.6 * w_dec.T + 0.02 * rng.normal(size=(self.d, self.u))
        x = rng.normal(size=(self.b, self.d)).astype(np.float32)
        b_enc = 0.1 * rng.normal(size=self.u).astype(np.float32)
        b_dec = 0.1 * rng.normal(size=self.d).astype(np.float32)
        return x, w_enc.astype(np.float32), b_enc, w_dec.astype(np.float32), b_dec


CASES = (
    Case("one token", 1, 5, 7, 2),
    Case("one unit kept", 9, 6, 40, 1),
    Case("every unit kept", 11, 4, 13, 13),
    Case("odd", 37, 11, 301, 5),
    Case("ranked", 50, 16, 1024, 8),
    Case("many kept, ranked", 21, 8, 4096, 40),
    Case("tokens beyond a block", 523, 8, 256, 3),
    Case("peers", 4096, 192, 4096, 32, tags=("bench",)),
    Case("base model", 4096, 768, 12_288, 32, tags=("bench",)),
)
