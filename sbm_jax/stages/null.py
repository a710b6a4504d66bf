"""The permuted control of a search: which permutations of the images, for which voxels, how many, and the p that follows.

The first permutations are of all voxels that take part; those that go on (`max_shuffles`) are of voxels which fewer than
`stop_after` permutations have reached, where a finer p can matter (Besag & Clifford 1991).
"""

from __future__ import annotations

import numpy as np

from sbm_jax.statistics import permutation_p, sequential_p

KEPT = 10  # permutations whose units are kept and scored on held-out images: the shuffled rows of the tables
# Units that fire on the same images tie exactly, also across permutations. In float32 such similarities differ by a few
# 2^-24, as sums of unit columns in another order do; what is this near counts against significance.
_TIE = 1e-6


class Null:
    """Maxima over units under permuted images, pass by pass over the codes.

    Args: taken bool [v], the voxels that take part. n_select, n_held_out: numbers of images. shuffles: permutations of all
        these voxels. max_shuffles: at most so many of one voxel. stop_after: a voxel is decided when so many permutations
        have reached it.
    """

    def __init__(
        self,
        taken: np.ndarray,
        n_select: int,
        n_held_out: int,
        *,
        shuffles: int,
        max_shuffles: int = 0,
        stop_after: int = 10,
        seed: int = 0,
    ):
        self.taken, self.sizes, self.seed = taken, (n_select, n_held_out), seed
        self.shuffles, self.most, self.stop_after = shuffles, max(shuffles, max_shuffles), stop_after
        self.done = 0
        self.reached = np.zeros(len(taken), np.int64)
        self.used = np.zeros(len(taken), np.int64)
        self.stopped = np.zeros(len(taken), np.int64)  # at which permutation; 0: not
        self.highest: list[float] = []
        self.voxels, self.numbers = np.zeros(0, np.int64), range(0)

    def begin(self, room_bytes: int) -> bool:
        """Set `numbers`, the permutations of the next pass, and `voxels`, whose they are. False: nothing is left to do."""
        first = self.done < self.shuffles
        wanted = self.taken if first else self.taken & (self.reached < self.stop_after)
        self.voxels = np.flatnonzero(wanted)
        left = (self.shuffles if first else self.most) - self.done
        # Later passes double the number, so that few passes are made and not much is wasted.
        size = min(left, max(1, room_bytes // (4 * max(1, len(self.voxels)))), left if first else max(1, self.done))
        self.numbers = range(self.done, self.done + (size if len(self.voxels) else 0))
        self.maxima = np.full((len(self.numbers), len(self.voxels)), -np.inf, np.float32)
        return len(self.numbers) > 0

    def order(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Which response each image has under a permutation, among selection and among held-out images; one for all voxels
        and layers, so that their dependence stays. Permuting responses by the inverse is permuting the codes.
        """
        rng = np.random.default_rng([self.seed, *self.sizes, number])
        select, held_out = (np.argsort(rng.permutation(n)) for n in self.sizes)
        return select, held_out

    def bring(self, numbers: range, at: np.ndarray, keys_bv: np.ndarray) -> None:
        """Best keys [len(numbers), len(at)] of some units; `at`: places in `voxels`."""
        rows = slice(numbers.start - self.done, numbers.stop - self.done)
        self.maxima[rows, at] = np.maximum(self.maxima[rows, at], keys_bv)

    def end(self, observed_v: np.ndarray) -> None:
        """Count a pass: observed_v [all voxels], the final in-sample similarity of each voxel's best unit."""
        threshold = observed_v[self.voxels] - np.float32(_TIE)
        if self.done < self.shuffles:
            self.highest += self.maxima.max(axis=1, initial=-np.inf).tolist()
        for number, row in zip(self.numbers, self.maxima, strict=True):
            self.reached[self.voxels] += row >= threshold
            now = self.voxels[self.reached[self.voxels] >= self.stop_after]
            self.stopped[now] = np.where(self.stopped[now] == 0, number + 1, self.stopped[now])
        self.used[self.voxels] += len(self.numbers)
        self.done += len(self.numbers)

    def p(self, observed_v: np.ndarray) -> dict[str, np.ndarray]:
        """`p` float64 [v] (NaN: left out), `p_fwe` against the maxima over voxels of the first `shuffles` permutations,
        `permutations` int [v], how many the voxel had, and `null_max` [shuffles], those maxima.
        """
        observed, highest = np.where(self.taken, observed_v, np.nan), np.asarray(self.highest, np.float32)
        if self.most == self.shuffles:
            p = np.where(self.taken, (1 + self.reached) / (1 + self.shuffles), np.nan)
        else:
            p = np.where(self.taken, sequential_p(self.reached, self.stopped, self.most, self.stop_after), np.nan)
        p_fwe = permutation_p(observed, highest[:, None], tie=_TIE) if self.taken.any() else p
        return {"p": p, "p_fwe": p_fwe, "permutations": self.used.astype(np.int32), "null_max": highest}
