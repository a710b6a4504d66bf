"""Small parts of the explorer: what is kept, what is written, and sums over codes."""

from __future__ import annotations

import csv
import io
import json
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbm_jax.kernels.codes import SparseCodes
from sbm_jax.serve.answers import csv_bytes, json_bytes
from sbm_jax.serve.data_units import relative
from sbm_jax.serve.library import Kept
from sbm_jax.serve.live_engine import Codes
from sbm_jax.serve.predict import moments


def test_results_are_made_once_and_the_least_used_are_thrown_away():
    kept, made, go = Kept(100), [], threading.Event()

    def make(name: str) -> bytes:
        go.wait(5)
        made.append(name)
        return bytes(40)

    threads = [threading.Thread(target=kept.get, args=("a", lambda: make("a"), len)) for _ in range(8)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert made == ["a"]
    for name in ("b", "a", "c", "a", "b"):  # c throws b away, which was used longer ago than a
        kept.get(name, lambda name=name: make(name), len)
    assert made == ["a", "b", "c", "b"] and kept.used <= 100


def test_an_error_is_not_kept():
    kept = Kept(100)
    with pytest.raises(ValueError):
        kept.get("a", lambda: (_ for _ in ()).throw(ValueError("no")), len)
    assert kept.get("a", lambda: b"yes", len) == b"yes"


def test_json_has_null_for_what_is_not_finite_and_survives_bad_names():
    value = {
        "a": np.array([1.5, np.nan, np.inf]),
        "b": np.int32(3),
        "c": np.bool_(True),
        "d": "caf\udce9",
        "e": np.float32(0.1),
    }
    assert json.loads(json_bytes(value)) == {"a": [1.5, None, None], "b": 3, "c": True, "d": "caf\udce9", "e": 0.1}


@given(
    st.lists(
        st.lists(st.one_of(st.text('=+-@\t\r\n,"ab'), st.integers(), st.none()), min_size=2, max_size=2), max_size=5
    )
)
def test_no_cell_of_a_table_is_a_formula(rows):
    text = csv_bytes(["a", "b"], rows).decode()
    found = list(csv.reader(io.StringIO(text, newline="")))[1:]
    assert len(found) == len(rows)
    for row, given_row in zip(found, rows, strict=True):
        for cell, value in zip(row, given_row, strict=True):
            if isinstance(value, str):
                assert (
                    cell.endswith(value)
                    and len(cell) <= len(value) + 1
                    and cell[:1] not in ("=", "+", "-", "@", "\t", "\r")
                )


@given(st.integers(0, 2**32 - 1))
def test_moments_and_pooling_are_those_of_dense_codes(seed):
    rng = np.random.default_rng(seed)
    n, k, u = rng.integers(2, 6), rng.integers(1, 4), rng.integers(4, 9)
    units = np.stack([rng.permutation(u)[:k] for _ in range(n)]).astype(np.int32)
    codes = SparseCodes(rng.random((n, k)).astype(np.float32), units, int(u))
    dense = codes.to_dense(np.float64)
    mean, sd = moments(codes, int(u))
    np.testing.assert_allclose(mean, dense.mean(axis=0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(sd, dense.std(axis=0), rtol=1e-4, atol=1e-4)
    tokens, chosen = Codes(codes.values_nk, units), rng.permutation(n)[: rng.integers(1, n + 1)]
    np.testing.assert_allclose(
        tokens.pooled("patch_mean", int(u), chosen), dense[chosen].sum(axis=0) / n, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(tokens.pooled("patch_max", int(u), chosen), dense[chosen].max(axis=0), rtol=1e-6)
    np.testing.assert_allclose(tokens.pooled("patch_mean", int(u), None), dense.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_heat_maps_are_relative_to_each_picture_and_may_be_none_at_all():
    heat = np.array([[0.5, 1.0, -1.0], [0, 0, 0]], np.float32)
    assert relative(heat).tolist() == [[128, 255, 0], [0, 0, 0]]
    assert relative(np.zeros((0, 4), np.float32)).shape == (0, 4)
