"""Codes in pieces: what is read, how often, and that nothing depends on the cut."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from sbm_jax.errors import UserError
from sbm_jax.kernels import SparseCodes
from sbm_jax.stages.pieces import Pieces
from sbm_jax.store.spec import StoreSpec
from sbm_jax.store.store import Store, StoreWriter

HOOKS = ("block00.resid", "block01.resid", "block02.resid")
N, U = 50, 24


@pytest.fixture(scope="module")
def codes(tmp_path_factory) -> tuple[Store, np.ndarray]:
    """A code store with modes `patch_mean` (sparse), `raw` (dense), and the same codes dense [l, n, u]."""
    rng = np.random.default_rng(3)
    dense = (rng.random((3, N, U)) * (rng.random((3, N, U)) < 0.3)).astype(np.float32)
    dense[1, 7] = 0
    writer = StoreWriter(tmp_path_factory.mktemp("codes"), StoreSpec("codes", 1, {}, {}))
    for layer, hook in enumerate(HOOKS):
        writer.put(f"raw/{hook}", dense[layer])
        order = np.argsort(dense[layer] == 0, axis=1, kind="stable")
        writer.put(f"patch_mean/{hook}/values", np.take_along_axis(dense[layer], order, axis=1))
        writer.put(f"patch_mean/{hook}/units", order.astype(np.int32))
        writer.put(f"patch_mean/{hook}/active", (dense[layer] != 0).sum(axis=1).astype(np.int32))
    return writer.commit(), dense


class _Saes:
    """Only the number of units is asked for."""

    def array(self, name: str) -> np.ndarray:
        return np.zeros((3, U))


def _dense(found) -> np.ndarray:
    return found.to_dense() if isinstance(found, SparseCodes) else found


@pytest.mark.parametrize("rows", [np.arange(N), np.flatnonzero(np.arange(N) % 3)], ids=["all", "some"])
@pytest.mark.parametrize("mode", ["patch_mean", "raw"])
@pytest.mark.parametrize("budget", [1, 1000, 3000, 5000, 1 << 30])
def test_every_unit_comes_once_in_ascending_order(codes, mode, budget, rows):
    store, dense = codes
    pieces = Pieces(store, _Saes(), mode, HOOKS, rows, budget)
    found = [(piece, held) for shelf in pieces.read() for piece, held in shelf]
    assert len(found) == len(pieces)
    order = [(piece.layer, unit) for piece, _ in found for unit in range(piece.first, piece.last)]
    assert order == [(layer, unit) for layer in range(3) for unit in range(U)]
    for piece, held in found:
        np.testing.assert_array_equal(_dense(held), dense[piece.layer][rows, piece.first : piece.last])
    assert all(sum(p.bytes for p in shelf) <= budget or len(shelf) == 1 for shelf in pieces.shelves)
    assert (len(pieces.shelves) == 1) == (budget == 1 << 30)


@pytest.mark.parametrize("mode", ["patch_mean", "raw"])
@pytest.mark.parametrize("budget, passes", [(1 << 30, 1), (6000, 2)])
def test_codes_are_read_once(codes, mode, budget, passes, monkeypatch):
    """Once for all passes where they fit, else once per pass; a layer that is not cut is never read in part."""
    store, _ = codes
    pieces = Pieces(store, _Saes(), mode, HOOKS, np.arange(N), budget)
    read = Counter()
    monkeypatch.setattr(
        Store, "read", lambda self, name, rows=None, _read=Store.read: (read.update([name]), _read(self, name, rows))[1]
    )
    for _ in range(2):
        list(pieces.read())
    values = {name: count for name, count in read.items() if not name.endswith("active")}
    parts = ("values", "units") if mode == "patch_mean" else ("",)
    assert values == {f"{mode}/{hook}/{part}".rstrip("/"): passes for hook in HOOKS for part in parts}


def test_codes_that_are_not_finite_are_refused(tmp_path):
    writer = StoreWriter(tmp_path, StoreSpec("codes", 1, {}, {}))
    dense = np.ones((5, 4), np.float32)
    dense[2, 3] = np.nan
    writer.put(f"raw/{HOOKS[0]}", dense)
    pieces = Pieces(writer.commit(), _Saes(), "raw", HOOKS[:1], np.arange(5), 1 << 20)
    with pytest.raises(UserError, match=r"raw codes at block00.resid hold NaN"):
        list(pieces.read())
