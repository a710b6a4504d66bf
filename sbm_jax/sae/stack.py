"""Which autoencoders are trained together: token kinds x layers x grid points, grouped by what one program can do."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

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

    def __str__(self) -> str:
        size = f"k={self.k}" if OBJECTIVES[self.objective].uses_k else f"sparsity={self.sparsity:g}"
        return f"{self.objective} {size} lr={self.lr:g} seed={self.seed}"


def points(config: TrainConfig) -> tuple[Point, ...]:
    """The primary setting first, then every other combination of the sweep, each once.

    Raises UserError when the objective does not use what is swept.
    """
    sweep = config.sweep
    axes = [[getattr(config, name), *getattr(sweep, name)] for name in ("objective", "k", "sparsity", "lr", "seed")]
    names = set(axes[0])
    if sweep.k and not any(OBJECTIVES[name].uses_k for name in names):
        raise UserError(
            f"train.sweep.k is set, but {', '.join(sorted(names))} does not use k; sweep train.sparsity instead"
        )
    if sweep.sparsity and all(OBJECTIVES[name].uses_k for name in names):
        raise UserError(f"train.sweep.sparsity is set, but {', '.join(sorted(names))} uses k; sweep train.k instead")
    found = []
    for objective, k, sparsity, lr, seed in itertools.product(*axes):
        uses_k = OBJECTIVES[objective].uses_k
        found.append(Point(objective, k if uses_k else config.k, config.sparsity if uses_k else sparsity, lr, seed))
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Group:
    """Points that share one program (objective and k are static in it); `config` is the configuration with these two.

    An autoencoder of a group has the number token * len(points) + point, token running over kinds and hooks: devices that
    hold a token kind and hook hold all its points.
    """

    config: TrainConfig
    points: tuple[Point, ...]


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

    def groups(self, config: TrainConfig) -> list[Group]:
        """Points by (objective, k), in the order in which these first come."""
        found: dict[tuple[str, int], list[Point]] = {}
        for point in self.points:
            found.setdefault((point.objective, point.k), []).append(point)
        return [
            Group(config.model_copy(update={"objective": objective, "k": k}), tuple(mine))
            for (objective, k), mine in found.items()
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
