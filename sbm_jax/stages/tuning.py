"""How much of a unit's code follows groups of features of the images, held out, from sums over the images alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_RIDGE = 1e-3  # of the number of training images, on standardised features: shares that add up to 1 are collinear
_CONSTANT = 1e-9  # a column's variance over its mean square below which it is constant


@dataclass
class FoldSums:
    """Second moments of features x [n, p] (x_0 = 1) and codes y [n, u], per fold, float64: xx [f, p, p], xy [f, p, u], yy [f, u];
    active int64 [u], on how many images the code is above 0.
    """

    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray
    active: np.ndarray

    @classmethod
    def empty(cls, folds: int, features: int, units: int) -> FoldSums:
        return cls(
            np.zeros((folds, features, features)),
            np.zeros((folds, features, units)),
            np.zeros((folds, units)),
            np.zeros(units, np.int64),
        )

    def add(self, x_np: np.ndarray, y_nu: np.ndarray, fold_n: np.ndarray) -> None:
        """More images; fold_n: int [n]."""
        y = y_nu.astype(np.float64)
        for fold in np.unique(fold_n):
            rows = fold_n == fold
            self.xx[fold] += x_np[rows].T @ x_np[rows]
            self.xy[fold] += x_np[rows].T @ y[rows]
            self.yy[fold] += np.einsum("nu,nu->u", y[rows], y[rows])
        self.active += (y_nu > 0).sum(axis=0)

    def r_squared(self, columns: Sequence[int]) -> np.ndarray:
        """Held-out variance explained by a ridge regression on some features: 1 - sum SSE / sum SST over folds, each predicted
        from the others, where SST is the error of the others' mean. float64 [u], NaN for a constant code; may be below 0.
        """
        every = [0, *columns]
        error, spread = (self._errors(part) for part in (every, [0]))
        mean = self.xy[:, 0].sum(axis=0) / self.xx[:, 0, 0].sum()
        square = self.yy.sum(axis=0) / self.xx[:, 0, 0].sum()
        varies = square - mean**2 > _CONSTANT * square
        return np.where(varies, 1 - error / np.where(varies, spread, 1), np.nan)

    def _errors(self, columns: list[int]) -> np.ndarray:
        total_xx, total_xy = self.xx.sum(axis=0), self.xy.sum(axis=0)
        out = np.zeros(self.yy.shape[1])
        for fold in range(len(self.xx)):
            own_xx, own_xy = self.xx[fold][np.ix_(columns, columns)], self.xy[fold][columns]
            rest = total_xx[np.ix_(columns, columns)] - own_xx
            if rest[0, 0] == 0 or own_xx[0, 0] == 0:
                continue  # a fold without images, or nothing but it
            penalty = np.diag([0.0, *[_RIDGE * rest[0, 0]] * (len(columns) - 1)])
            weights = np.linalg.solve(rest + penalty, total_xy[columns] - own_xy)
            fitted = np.einsum("pu,pq,qu->u", weights, own_xx, weights, optimize=True)
            out += self.yy[fold] - 2 * np.einsum("pu,pu->u", weights, own_xy) + fitted
        return out

    def correlations(self) -> np.ndarray:
        """Pearson r of every feature but the first with every code, float64 [p - 1, u]; 0 where one is constant."""
        n = self.xx[:, 0, 0].sum()
        mean_x, mean_y = self.xx[:, 0].sum(axis=0) / n, self.xy[:, 0].sum(axis=0) / n
        cross = self.xy.sum(axis=0) / n - mean_x[:, None] * mean_y
        var_x = np.diag(self.xx.sum(axis=0)) / n - mean_x**2
        var_y = self.yy.sum(axis=0) / n - mean_y**2
        scale = np.sqrt(np.maximum(var_x, 0)[:, None] * np.maximum(var_y, 0))
        return np.where(scale > 1e-12, cross / np.where(scale > 1e-12, scale, 1), 0)[1:]


@dataclass(frozen=True)
class Tuning:
    """alone, unique: float32 [u, g], held-out variance explained by each group, and what all groups together explain beyond the
    others: R^2(all) - R^2(all but the group). preferred: int8 [u, groups without unions], the feature of the group that the
    code correlates most with (signed). active: int [u], images on which the unit fires.
    """

    alone: np.ndarray
    unique: np.ndarray
    preferred: np.ndarray
    active: np.ndarray


def tuning_of(sums: FoldSums, groups: Mapping[str, Sequence[int]], unions: Mapping[str, Sequence[str]]) -> Tuning:
    """groups: columns of x (from 1). unions: named unions of groups, which come behind them in g."""
    sets = {name: set(columns) for name, columns in groups.items()}
    sets |= {name: set().union(*(groups[part] for part in parts)) for name, parts in unions.items()}
    every = set().union(*sets.values())
    whole = sums.r_squared(sorted(every))
    alone = [sums.r_squared(sorted(columns)) for columns in sets.values()]
    unique = [whole - sums.r_squared(sorted(every - columns)) for columns in sets.values()]
    r = sums.correlations()
    best = [r[[c - 1 for c in columns]].argmax(axis=0) for columns in groups.values()]
    as_units = lambda parts, dtype: np.stack(parts, axis=1).astype(dtype)  # noqa: E731
    return Tuning(as_units(alone, np.float32), as_units(unique, np.float32), as_units(best, np.int8), sums.active)


def standardised(x_np: np.ndarray) -> np.ndarray:
    """float64 [n, 1 + p]: a column of ones, then columns of mean 0 and variance 1; constant ones are 0."""
    x = np.asarray(x_np, np.float64)
    centred = x - x.mean(axis=0)
    sd = centred.std(axis=0)
    varies = sd > 1e-9 * (1 + np.abs(x).max(axis=0, initial=0))
    scaled = np.where(varies, centred / np.where(varies, sd, 1), 0)
    return np.column_stack([np.ones(len(x)), scaled])
