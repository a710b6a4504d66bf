"""match: planted permutations are found by codes and decoders, chance is what chance is, and other images are refused."""

from __future__ import annotations

import json
import os
import shutil
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from sbm_jax.config import load_config
from sbm_jax.errors import UserError
from sbm_jax.kernels import SparseCodes
from sbm_jax.stages import match
from sbm_jax.stages.context import Context
from sbm_jax.stages.inputs import read_sparse
from sbm_jax.stages.match_dictionaries import (
    Dictionary,
    Loader,
    Own,
    check_same_images,
    find_codes,
    image_rows,
    pairs,
    seed_members,
)
from sbm_jax.stages.match_lists import matches_of
from sbm_jax.stages.match_search import (
    Decoders,
    best_by_chance,
    best_by_codes,
    match_one_to_one,
    without_rare,
)
from sbm_jax.stages.report_match import match_exemplars, match_summary, match_tables
from sbm_jax.store.store import Store

CLOSE = 2e-6  # float32 sums over some dozens of images
BUDGET = 1 << 26


def sparse(dense_nu: np.ndarray) -> SparseCodes:
    """The same codes, active units in front of each row."""
    width = max(1, int((dense_nu != 0).sum(axis=1).max()))
    units = np.argsort(dense_nu == 0, axis=1, kind="stable")[:, :width].astype(np.int32)
    return SparseCodes(np.take_along_axis(dense_nu, units, axis=1).astype(np.float32), units, dense_nu.shape[1])


def random_codes(rng: np.random.Generator, n: int, u: int, share: float = 0.3) -> np.ndarray:
    return (rng.random((n, u)) + 0.1) * (rng.random((n, u)) < share)


def test_a_planted_permutation_is_found_by_codes_and_by_decoders(rng):
    n, u, d = 120, 41, 24
    dense, order = random_codes(rng, n, u), rng.permutation(u)
    other = dense[:, order] * rng.uniform(0.5, 3, u)  # unit i of b is unit order[i] of a, on another scale
    decoder = rng.standard_normal((u, d))
    found = best_by_codes(sparse(dense), sparse(other), 5, BUDGET)
    np.testing.assert_array_equal(found.b_units[:, 0], order)
    np.testing.assert_array_equal(order[found.a_units[:, 0]], np.arange(u))
    assert np.all(found.a_values[:, 0] > 1 - 1e-5) and np.all(found.a_values[:, 1] < 0.9)
    one = match_one_to_one(found)
    np.testing.assert_array_equal(order[one.units], np.arange(u))
    assert one.pairs == u and one.mean == pytest.approx(1, abs=1e-5) and one.bound == pytest.approx(1, abs=1e-5)
    decoders = Decoders.of(decoder, 7 * decoder[order], found)
    best, turned = decoders.best(BUDGET), decoders.turned(0).best(BUDGET)
    np.testing.assert_array_equal(best.b_units[:, 0], order)
    np.testing.assert_allclose(decoders.at(found.a_units)[:, 0], 1, atol=1e-5)
    assert turned.a_values.mean() < 0.8 < 0.999 < best.a_values.min()
    gram = decoders.b @ decoders.b.T
    np.testing.assert_allclose(decoders.turned(0).b @ decoders.turned(0).b.T, gram, atol=1e-5)


@pytest.mark.parametrize(("n", "u_a", "u_b", "k"), [(37, 19, 300, 4), (23, 270, 11, 3), (50, 7, 5, 9)])
def test_best_partners_against_a_plain_search(rng, correlation, n, u_a, u_b, k):
    a, b = random_codes(rng, n, u_a), random_codes(rng, n, u_b)
    a[:, 2], b[:, 1] = 0, 0.5  # never active, always alike
    found = best_by_codes(sparse(a), sparse(b), k, 1 << 16)  # blocks of 256 units
    r = correlation(a.astype(np.float32), b.astype(np.float32))
    r[2], r[:, 1] = -np.inf, -np.inf
    for values, units, table in ((found.a_values, found.a_units, r), (found.b_values, found.b_units, r.T)):
        real = np.isfinite(table).any(axis=1)
        assert np.all(units[~real] == -1) and np.isnan(values[~real]).all()
        expected = -np.sort(-table[real], axis=1)[:, :k]
        listed = np.isfinite(expected)
        assert np.all((units[real] >= 0) == listed)
        np.testing.assert_allclose(values[real][listed], expected[listed], atol=CLOSE)
        np.testing.assert_allclose(
            np.take_along_axis(table[real], np.maximum(units[real], 0), axis=1)[listed], expected[listed], atol=CLOSE
        )


def test_one_to_one_is_the_best_of_all_matchings_where_all_pairs_are_listed(rng, correlation):
    a, b = random_codes(rng, 31, 23), random_codes(rng, 31, 17)
    one = match_one_to_one(best_by_codes(sparse(a), sparse(b), 40, BUDGET))
    r = np.maximum(correlation(a.astype(np.float32), b.astype(np.float32)), 0)
    rows, columns = linear_sum_assignment(r, maximize=True)
    assert one.mean == pytest.approx(r[rows, columns].sum() / 17, abs=CLOSE)
    assert one.bound == pytest.approx(one.mean, abs=CLOSE)
    partners = one.units[one.units >= 0]
    assert len(set(partners)) == len(partners) == one.pairs == np.isfinite(one.values).sum()


def test_chance_is_the_best_unit_of_permuted_images(rng, correlation):
    a, b = random_codes(rng, 29, 300), random_codes(rng, 29, 13)
    a[:, 4] = 0
    chance_a, chance_b = best_by_chance(sparse(a), sparse(b), 2, 5, 1 << 16)
    for draw in range(2):
        order = np.random.default_rng([5, draw]).permutation(29)
        r = correlation(a.astype(np.float32), b[order].astype(np.float32))
        r[4] = np.nan
        np.testing.assert_allclose(chance_a[:, draw], r.max(axis=1), atol=CLOSE)
        np.testing.assert_allclose(chance_b[:, draw], np.nanmax(r, axis=0), atol=CLOSE)


def test_unrelated_dictionaries_are_above_chance_as_often_as_chance_says(rng):
    a, b = sparse(random_codes(rng, 80, 900)), sparse(random_codes(rng, 80, 60))
    found = best_by_codes(a, b, 1, BUDGET)
    summary = match._summary(found.a_values, best_by_chance(a, b, 4, 0, BUDGET)[0])
    assert summary["units"] == 900 and summary["above_chance_expected"] == 0.2
    # units of a share the 60 of b: more spread than 900 coins (SD .013)
    assert summary["above_chance"] == pytest.approx(0.2, abs=0.08)
    assert summary["mean"] == pytest.approx(summary["chance"], abs=0.01)


def test_units_of_few_images_take_no_part(rng):
    dense = random_codes(rng, 40, 6)
    dense[:, 3] = 0
    dense[7, 3] = 1.0
    codes = without_rare(sparse(dense), 2)
    expected = dense.copy()
    expected[:, 3] = 0
    np.testing.assert_allclose(codes.to_dense(), expected, rtol=1e-6)
    found = best_by_codes(codes, codes, 2, BUDGET)
    assert found.a_units[3, 0] == -1 and not np.any(found.a_units == 3)


def test_which_dictionaries_are_compared():
    own = Own(("patch", "cls"), ("h0", "h1", "h2"), 0, (5,))
    other = Own(("patch",), ("g0", "g1", "g2", "g3", "g4"), 3, (), "dino", 0)

    def named(kind: str, which: Literal["near", "all"]) -> list[tuple[str, str, int]]:
        return [(a.hook, b.run + b.hook, b.seed) for a, b in pairs(own, [other], which) if a.kind == b.kind == kind]

    layers, seeds = [("h0", "h1", 0), ("h1", "h2", 0)], [(h, h, 5) for h in own.hooks]
    assert named("cls", "near") == layers + seeds  # the other run has no CLS dictionaries
    assert named("patch", "near")[5:] == [("h0", "dinog0", 3), ("h1", "dinog2", 3), ("h2", "dinog4", 3)]
    assert len(named("patch", "all")) == 3 + 3 + 15
    assert all(a.other == -1 for a, _ in pairs(own, [other], "all"))


def test_images_are_all_or_drawn_by_seed():
    np.testing.assert_array_equal(image_rows(5, 0, 0), np.arange(5))
    rows = image_rows(100, 10, 1)
    assert len(set(rows)) == 10 and np.all(np.diff(rows) > 0)
    assert not np.array_equal(rows, image_rows(100, 10, 2))


def test_other_runs_are_found_and_what_is_wrong_is_said(tmp_path):
    with pytest.raises(UserError, match="holds no finished store of codes"):
        find_codes(str(tmp_path / "nowhere"))
    for name in ("codes-1", "codes-2"):
        (tmp_path / "stores" / name).mkdir(parents=True)
        (tmp_path / "stores" / name / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"several stores of codes; name one of them: .*codes-1, .*codes-2"):
        find_codes(str(tmp_path))
    assert find_codes(str(tmp_path / "stores" / "codes-2")).name == "codes-2"
    config = load_config(None, [f"match.others=[{tmp_path}]"])
    with pytest.raises(UserError, match="several stores"):
        Context(config, tmp_path / "out")


@pytest.mark.parametrize(
    ("ids", "mark", "said"),
    [
        (("a", "b"), "x", "2 images where this run has 3"),
        (("a", "z", "c"), "x", "image 1 is 'z' where this run has 'b'"),
        (("a", "b", "c"), "y", "other picture files or tables"),
    ],
)
def test_a_run_with_other_images_is_refused(ids, mark, said):
    def run(ids: tuple[str, ...], mark: str) -> Any:
        images = SimpleNamespace(images=SimpleNamespace(ids=ids))
        return SimpleNamespace(dataset=images, facts=SimpleNamespace(images_fingerprint=mark), out="elsewhere")

    own = run(("a", "b", "c"), "x")
    check_same_images(own, run(("a", "b", "c"), "x"))
    with pytest.raises(UserError, match=said):
        check_same_images(own, run(ids, mark))


@pytest.fixture(scope="module")
def tiny_context(tiny):
    return Context(load_config(tiny.config), tiny.out)


def test_codes_of_another_seed_are_encoded_as_encode_does(tiny_context):
    ctx = tiny_context
    saes, codes = ctx.open(ctx.specs.saes), ctx.open(ctx.specs.codes)
    rows = image_rows(ctx.facts.n_images, 40, 0)
    load = Loader(ctx, [], rows)
    for kind, mode in (("cls", "cls"), ("patch", "patch_mean")):
        a = seed_members(saes)[kind, "block05.resid", 0]
        found = load._encode(ctx, saes, a, Dictionary(kind, "block05.resid", 0), mode)
        expected = read_sparse(codes, mode, "block05.resid", rows, found.n_units)
        np.testing.assert_allclose(found.to_dense(), expected.to_dense(), atol=1e-5)


def test_the_store_of_the_tiny_run(tiny, tiny_context, stores, correlation):
    store = Store(tiny.store("match"))
    document = store.json("match.json")
    assert [(p["a"]["kind"], p["a"]["hook"], p["b"]["hook"]) for p in document["pairs"]] == [
        (kind, "block01.resid", "block05.resid") for kind in ("patch", "cls")
    ]
    dense = stores.codes("patch_mean")
    often = (dense > 0).sum(axis=1) >= document["least_images"]
    r = correlation(dense[0], dense[1])
    r[~often[0]], r[:, ~often[1]] = np.nan, np.nan
    pair = document["pairs"][0]
    best = store.read("pair000/a/best_values")[:, 0]
    np.testing.assert_allclose(best[often[0]], np.nanmax(r[often[0]], axis=1), atol=CLOSE)
    assert np.isnan(best[~often[0]]).all()
    assert pair["from_a"]["units"] == often[0].sum() and pair["from_b"]["units"] == often[1].sum()
    assert pair["from_a"]["mean"] == pytest.approx(np.nanmax(r[often[0]], axis=1).mean(), abs=CLOSE)
    assert pair["decoder"]["space"] == "residual stream"
    w_dec = stores.array("saes", "w_dec").astype(np.float64)
    members = [(m["kind"], m["hook"]) for m in stores.document("saes", "metrics.json")["members"]]
    one, two = (w_dec[members.index(("patch", hook))] for hook in ("block01.resid", "block05.resid"))
    unit = int(np.flatnonzero(often[0])[0])
    (found,) = matches_of(store, "patch", "block01.resid", unit)
    assert found.unit == np.nanargmax(r[unit]) and found.r == pytest.approx(np.nanmax(r[unit]), abs=CLOSE)
    cosine = one[unit] @ two[found.unit] / np.linalg.norm(one[unit]) / np.linalg.norm(two[found.unit])
    assert found.cosine == pytest.approx(cosine, abs=1e-5)
    one_to_one = store.read("pair000/one_to_one")
    a, b = int(np.flatnonzero(one_to_one >= 0)[0]), int(one_to_one[np.flatnonzero(one_to_one >= 0)[0]])
    back = matches_of(store, "patch", "block05.resid", b, top=10)
    assert [m.unit for m in back if m.one_to_one] in ([a], [])
    assert matches_of(store, "patch", "block01.resid", int(np.flatnonzero(~often[0])[0])) == []
    shown, images = store.read("pair000/shown_units"), store.read("pair000/shown_images")
    for (i, j), rows in zip(shown, images, strict=True):
        assert one_to_one[i] == j
        for layer, unit, mine in ((0, i, rows[0]), (1, j, rows[1])):
            mine = mine[mine >= 0]
            assert dense[layer, mine, unit].min() >= np.delete(dense[layer, :, unit], mine).max()
    (table,) = match_tables(match_summary(tiny_context))
    assert [row[0] for row in table.rows] == [f"{kind} block01.resid | block05.resid" for kind in ("patch", "cls")]
    cards = match_exemplars(tiny_context)[0].units
    assert [(c.layer, c.unit) for c in cards[:2]] == [("block01.resid", shown[0, 0]), ("block05.resid", shown[0, 1])]


def test_a_run_compared_with_itself_agrees_with_every_layer(tiny, tmp_path):
    for name in ("own", "other"):
        shutil.copytree(tiny.out / "stores", tmp_path / name / "stores", copy_function=os.link)
    config = load_config(tiny.config, [f"match.others=[{tmp_path / 'other'}]", "match.shuffles=1"])
    ctx = Context(config, tmp_path / "own")
    assert ctx.specs.match
    assert ctx.specs.match.inputs["other 0"] == tiny.store("codes").name
    store = match.run(ctx)
    found = [p for p in json.loads((store.path / "match.json").read_text())["pairs"] if p["b"]["run"] == "other"]
    assert [(p["a"]["hook"], p["b"]["hook"]) for p in found[:2]] == [(h, h) for h in ctx.facts.hooks]
    for pair in found:
        assert pair["decoder"]["space"] == "one place"
        if pair["from_a"]["units"] > 2:
            assert pair["from_a"]["mean"] == pytest.approx(1, abs=1e-5)
            assert pair["one_to_one"]["mean"] == pytest.approx(1, abs=1e-5)
            assert pair["decoder"]["one_to_one"] == pytest.approx(1, abs=1e-5)
            assert pair["decoder"]["from_a"] > 0.999 > pair["decoder"]["chance"]
