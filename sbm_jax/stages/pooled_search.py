"""Choosing a unit and a receptive field for every voxel on some images, and scoring the choice on others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sbm_jax.stages.fields import UNIFORM, Fields
from sbm_jax.stages.pooled_sums import PairSums, Patches
from sbm_jax.stages.ranking import as_keys, from_keys

_CONSTANT = 1e-6  # as in kernels/cosine_topk


@dataclass(frozen=True)
class Split:
    """One choice. train: groups of images that make it. test: places of the images that score it, None where none does.
    units_wk: candidates of every target, layer x units + unit, -1 where there is none.
    """

    train: tuple[int, ...]
    test: np.ndarray | None
    units_wk: np.ndarray


@dataclass(frozen=True)
class Choice:
    """Per target: unit (layer x units + unit), field, r where chosen (|r| where that is sought) and its sign, each [w]; -1 and NaN
    without a candidate.
    """

    unit: np.ndarray
    field: np.ndarray
    value: np.ndarray
    sign: np.ndarray


@dataclass(frozen=True)
class Scored:
    """What one way of choosing (a set of fields) gives. choice: by the first split. held_out [w]: mean over scored splits of r
    on their images; NaN without any.
    """

    choice: Choice
    held_out: np.ndarray


@dataclass(frozen=True)
class Tested:
    """Pooled codes and responses of one split's images, float64 [n, v], columns centred and of unit norm (0: constant)."""

    local: np.ndarray
    uniform: np.ndarray
    responses: np.ndarray


def choose(
    r_gp: np.ndarray, slots_wk: np.ndarray, units_wk: np.ndarray, fields: Sequence[int], absolute: bool = False
) -> Choice:
    """The best candidate and field of every target; ties go to the earlier candidate, then to the earlier field.

    r_gp: similarity of pairs; slots_wk: the pair of each candidate, -1 for none. Constant candidates lose to every real one.
    """
    r_gwk = np.where((slots_wk >= 0)[None], r_gp[np.asarray(fields)][:, slots_wk], -np.inf)
    r = r_gwk.transpose(1, 2, 0).reshape(len(slots_wk), -1)
    flat = as_keys(np.where(np.isfinite(r), np.abs(r), r) if absolute else r)
    at = flat.argmax(axis=1)
    best = np.take_along_axis(flat, at[:, None], axis=1)[:, 0].astype(np.float32)
    candidate, field = np.divmod(at, len(fields))
    there = np.isfinite(best)
    unit = np.take_along_axis(units_wk, candidate[:, None], axis=1)[:, 0]
    return Choice(
        np.where(there, unit, -1).astype(np.int32),
        np.where(there, np.asarray(fields)[field], -1).astype(np.int32),
        from_keys(best),
        np.where(absolute & (np.take_along_axis(r, at[:, None], axis=1)[:, 0] < 0), -1, 1).astype(np.int8),
    )


class PooledSearch:
    """The search of a block of v voxels and of their control, in which the images of the responses are permuted.

    Targets are the v voxels and then the same under permutation, w = 2 v. own_tv: a field [t, v] of each voxel (NaN: it has
    none), with the index after the last of `fields`; None without. kinds: name -> indices of the fields that it may choose
    among; `local` is the one with a control. absolute: |r| is maximised, and held-out r carries the sign of the choice.
    """

    def __init__(
        self,
        patches: Patches,
        y_nv: np.ndarray,
        order_n: np.ndarray,
        groups: Sequence[np.ndarray],
        splits: Sequence[Split],
        fields: Fields,
        own_tv: np.ndarray | None,
        kinds: dict[str, Sequence[int]],
        absolute: bool = False,
    ):
        self.patches, self.order_n, self.splits, self.fields, self.own_tv = patches, order_n, splits, fields, own_tv
        self.y_nv, self.kinds, self.n_voxels = _standard(y_nv), kinds, y_nv.shape[1]
        w = 2 * self.n_voxels
        every = np.concatenate([split.units_wk for split in splits], axis=1).astype(np.int64)
        target = np.broadcast_to(np.arange(w)[:, None], every.shape)
        keys = np.unique((every * w + target)[every >= 0])
        unit_p, row_p = np.divmod(keys, w)
        own_tp = None if own_tv is None else np.nan_to_num(own_tv[:, row_p % self.n_voxels])
        sums = PairSums(patches, unit_p, row_p, fields, own_tp, groups, self._responses)
        self.choices: list[dict[str, Choice]] = []
        for split in splits:
            r_gp = sums.similarity(split.train)
            if own_tv is not None:
                r_gp[-1, ~np.isfinite(own_tv[0, row_p % self.n_voxels])] = -np.inf
            wanted = split.units_wk.astype(np.int64) * w + np.arange(w)[:, None]
            slots = np.where(split.units_wk >= 0, np.searchsorted(keys, wanted), -1)
            self.choices.append(
                {name: choose(r_gp, slots, split.units_wk, kind, absolute) for name, kind in kinds.items()}
            )

    def _responses(self, places: np.ndarray) -> np.ndarray:
        return np.concatenate([self.y_nv[places], self.y_nv[self.order_n[places]]], axis=1).T

    def score(self) -> tuple[dict[str, Scored], Iterator[Tested]]:
        """What every kind of field gives, and the codes and responses behind it, split by split."""
        names = list(self.kinds)
        total = {name: np.zeros(2 * self.n_voxels) for name in names}
        tested, count = [], 0
        for split, choices in zip(self.splits, self.choices, strict=True):
            if split.test is None:
                continue
            count += 1
            y = unit_columns(self._responses(split.test).T)
            unit = np.concatenate([choices[name].unit for name in names])
            field = np.concatenate([choices[name].field for name in names])
            seen = self.patches.read(split.test, unit, self._weights(field))
            parts = np.split(unit_columns(seen), len(names), axis=1)
            codes = {name: part * choices[name].sign for name, part in zip(names, parts, strict=True)}
            for name in names:
                total[name] += np.where(choices[name].unit >= 0, (codes[name] * y).sum(axis=0), np.nan)
            v = slice(0, self.n_voxels)
            tested.append(Tested(codes["local"][:, v], codes["uniform"][:, v], y[:, v]))
        mean = {name: (x / count if count else np.full(len(x), np.nan)) for name, x in total.items()}
        return {name: Scored(self.choices[0][name], mean[name].astype(np.float32)) for name in names}, iter(tested)

    def _weights(self, field_p: np.ndarray) -> np.ndarray:
        """Weights [t, p] of fields by index, for targets in their order, kind after kind."""
        own = field_p == len(self.fields)
        out = self.fields.weights_gt[np.where(own, UNIFORM, np.maximum(field_p, 0))].T.copy()
        if self.own_tv is not None:
            out[:, own] = self.own_tv[:, np.flatnonzero(own) % self.n_voxels]
        return out


def unit_columns(x_np: np.ndarray) -> np.ndarray:
    """Columns centred and of unit norm, float64; 0 where constant."""
    x = np.asarray(x_np, np.float64)
    before = np.linalg.norm(x, axis=0)
    x = x - x.mean(axis=0)
    norm = np.linalg.norm(x, axis=0)
    real = norm > _CONSTANT * before
    return x * np.where(real, 1 / np.where(real, norm, 1), 0)


def _standard(y_nv: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and mean square 1 over all images, float32."""
    return (unit_columns(y_nv) * np.sqrt(len(y_nv))).astype(np.float32)
