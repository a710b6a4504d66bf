"""Named shapes shared by tests and benchmarks: a shape that was measured was also checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sbm_jax.kernels.codes import SparseCodes


@dataclass(frozen=True)
class Case:
    """n images, u units of which k are active per image (0: dense), v voxels; tags say who uses it."""

    name: str
    n: int
    u: int
    v: int
    k: int = 0
    k_voxel: int = 3
    k_unit: int = 3
    tags: tuple[str, ...] = ("test",)

    def make(self, seed: int = 0) -> tuple[SparseCodes | np.ndarray, np.ndarray]:
        """Random codes and responses with a planted signal, float32."""
        rng = np.random.default_rng([seed, self.n, self.u, self.v, self.k])
        if self.k:
            # Zipf-like firing: real dictionaries have a few dense units and a long tail of rare ones.
            weight = 1.0 / (1.0 + np.arange(self.u)) ** 0.7
            noise = rng.gumbel(size=(self.n, self.u)).astype(np.float32) + np.log(weight).astype(np.float32)
            units = np.argpartition(-noise, self.k - 1, axis=1)[:, : self.k].astype(np.int32)
            codes: SparseCodes | np.ndarray = SparseCodes(
                rng.gamma(2.0, size=units.shape).astype(np.float32), units, self.u
            )
        else:
            codes = rng.normal(size=(self.n, self.u)).astype(np.float32)
        responses = rng.normal(size=(self.n, self.v)).astype(np.float32)
        return codes, responses


CASES = (
    Case("tiny", 5, 3, 4),
    Case("one voxel", 11, 7, 1, k_unit=1),
    Case("one unit", 11, 1, 6, k_voxel=1),
    Case("odd", 37, 301, 53),
    Case("every unit kept", 19, 12, 9, k_voxel=12, k_unit=9),
    Case("sparse odd", 41, 203, 67, k=5),
    Case("sparse wide", 64, 5000, 130, k=8),
    Case("more units than a block", 23, 4500, 33),
    Case("demo", 600, 6144, 20484, k_voxel=5, k_unit=5, tags=("bench",)),
    Case("sparse NSD layer", 1000, 24576, 15000, k=32, k_voxel=1, k_unit=0, tags=("bench",)),
)
