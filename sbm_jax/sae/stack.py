"""Which autoencoders are trained together: token kinds x layers x grid points, grouped by what one program can do."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from sbm_jax.config import TrainConfig
from sbm_jax.errors import UserError
from sbm_jax.sae.objectives import OBJECTIVES


@dataclass(frozen=True)
class Point:
    """One grid point. k or sparsity is that of the configuration where the objective does not use it."""

    objective: str
    k: int
    sparsity: float
    lr: float
    seed: int
    expansion: int

    def __str__(self) -> str:
        size = f"k={self.k}" if OBJECTIVES[self.objective].uses_k else f"sparsity={self.sparsity:g}"
        return f"{self.objective} {size} lr={self.lr:g} seed={self.seed} expansion={self.expansion}"


_AXES = ("expansion", "objective", "k", "sparsity", "lr", "seed")
_LR_UNITS = 4096  # train.lr is the rate of a dictionary of this size


def points(config: TrainConfig) -> tuple[Point, ...]:
    """The primary setting first, then every other combination of the sweep, each once; dictionary sizes outermost.

    Raises UserError when the objective does not use what is swept.
    """
    sweep = config.sweep
    axes = [[getattr(config, name), *getattr(sweep, name)] for name in _AXES]
    names = set(axes[1])
    if sweep.k and not any(OBJECTIVES[name].uses_k for name in names):
        raise UserError(
            f"train.sweep.k is set, but {', '.join(sorted(names))} does not use k; sweep train.sparsity instead"
        )
    if sweep.sparsity and all(OBJECTIVES[name].uses_k for name in names):
        raise UserError(f"train.sweep.sparsity is set, but {', '.join(sorted(names))} uses k; sweep train.k instead")
    found = []
    for expansion, objective, k, sparsity, lr, seed in itertools.product(*axes):
        uses_k = OBJECTIVES[objective].uses_k
        k, sparsity = (k, config.sparsity) if uses_k else (config.k, sparsity)
        found.append(Point(objective, k, sparsity, lr, seed, expansion))
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Group:
    """Points that share one program; `config` is the configuration with what is static in it: objective, k, expansion.

    An autoencoder of a group has the number token * len(points) + point, token running over kinds and hooks: devices that
    hold a token kind and hook hold all its points.
    """

    config: TrainConfig
    points: tuple[Point, ...]

    def units(self, d: int) -> int:
        """Dictionary size for inputs of width d."""
        return self.config.expansion * d

    def lr_factor(self, d: int) -> float:
        """What learning rates are multiplied by: sqrt(4,096 / units) with train.lr_scale sqrt (Gao et al. 2024), else 1."""
        return (_LR_UNITS / self.units(d)) ** 0.5 if self.config.lr_scale == "sqrt" else 1.0


@dataclass(frozen=True)
class Member:
    """One autoencoder."""

    kind: str
    hook: str
    point: Point


@dataclass(frozen=True)
class Stack:
    """Every kind with every hook, kinds outermost, at every point; members run over points outermost, the primary first."""

    hooks: tuple[str, ...]
    kinds: tuple[str, ...]
    points: tuple[Point, ...]

    @property
    def tokens(self) -> list[tuple[str, str]]:
        """(kind, hook) of every stream of tokens."""
        return [(kind, hook) for kind in self.kinds for hook in self.hooks]

    @property
    def members(self) -> list[Member]:
        return [Member(kind, hook, point) for point in self.points for kind, hook in self.tokens]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Dictionary sizes as multiples of the width, the primary one first."""
        return tuple(dict.fromkeys(point.expansion for point in self.points))

    def by_size(self) -> list[Stack]:
        """A stack per dictionary size; their members end to end are those of this one."""
        return [replace(self, points=tuple(p for p in self.points if p.expansion == size)) for size in self.sizes]

    def groups(self, config: TrainConfig) -> list[Group]:
        """Points by (objective, k, expansion), in the order in which these first come."""
        found: dict[tuple[str, int, int], list[Point]] = {}
        for point in self.points:
            found.setdefault((point.objective, point.k, point.expansion), []).append(point)
        return [
            Group(config.model_copy(update={"objective": objective, "k": k, "expansion": expansion}), tuple(mine))
            for (objective, k, expansion), mine in found.items()
        ]

    def order(self, groups: list[Group]) -> np.ndarray:
        """For every member its place among the autoencoders of all groups laid end to end, int64 [a]."""
        m, first = len(self.tokens), {}
        start = 0
        for group in groups:
            for j, point in enumerate(group.points):
                first[point] = (start, j, len(group.points))
            start += m * len(group.points)
        return np.array(
            [first[point][0] + token * first[point][2] + first[point][1] for point in self.points for token in range(m)]
        )
