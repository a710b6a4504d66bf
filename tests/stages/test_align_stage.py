"""The alignment of the tiny run against every unit x every voxel in float64."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy import stats

from sbm_jax.kernels import SparseCodes
from sbm_jax.mesh import make_mesh
from sbm_jax.stages.null import Null
from sbm_jax.stages.ranking import Engine
from sbm_jax.stages.report_summary import significant_share
from sbm_jax.stages.search import Search

MODES = ("cls", "patch_mean", "patch_max", "raw", "random")
TOLERANCE = 2e-6  # float32 sums over 36 images
CLOSE = 1e-5  # similarities nearer than this may change places


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=("subj01", "subj02"))
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def similarities(stores, correlation, mode, subject):
    """(in sample, held out), each [l, u, v]; a constant column has 0 in the first and is ranked by `_keys`."""
    codes, brain = stores.codes(mode), stores.brain(subject)
    out = []
    for part in ("select", "held_out"):
        rows, y = brain.part(part)
        out.append(np.stack([correlation(layer[rows], y) for layer in codes]))
    return out


def _keys(s: np.ndarray) -> np.ndarray:
    """Constant candidates rank below every real one."""
    return np.where(s == 0, -2.0, s)


def test_voxel_lists(stores, mode, subject, similarities):
    in_sample, held_out = (s.reshape(-1, s.shape[2]) for s in similarities)
    values, units, scores = (
        stores.array("align", f"{mode}/{key}", subject) for key in ("voxel_values", "voxel_units", "held_out")
    )
    every = np.arange(values.shape[0])[:, None]
    keys = _keys(in_sample)
    best = -np.sort(-keys, axis=0)[:3].T
    assert stores.brain(subject).usable.all()
    np.testing.assert_allclose(values, best, atol=TOLERANCE)
    np.testing.assert_allclose(values, in_sample[units, every], atol=TOLERANCE)
    np.testing.assert_allclose(scores, held_out[units, every], atol=TOLERANCE)
    # Where the first is clearly first, it is that very unit.
    clear = best[:, 0] - best[:, 1] > CLOSE
    assert clear.mean() > 0.5  # CLS units that fire on one image alone are exact ties
    np.testing.assert_array_equal(units[clear, 0], keys.argmax(axis=0)[clear])
    # No unit is listed twice.
    assert all((units[:, i] != units[:, j]).all() for i, j in ((0, 1), (0, 2), (1, 2)))


def test_layers(stores, mode, subject, similarities):
    in_sample, held_out = similarities
    layers, per_layer, n_voxels = in_sample.shape
    values, units, scores = (
        stores.array("align", f"{mode}/layer_{key}", subject) for key in ("values", "units", "held_out")
    )
    assert values.shape == (layers, n_voxels)
    np.testing.assert_allclose(values, _keys(in_sample).max(axis=1), atol=TOLERANCE)
    for layer in range(layers):
        assert (units[layer] // per_layer == layer).all()
        chosen = held_out[layer][units[layer] % per_layer, np.arange(n_voxels)]
        np.testing.assert_allclose(scores[layer], chosen, atol=TOLERANCE)


def test_unit_lists(stores, mode, subject, similarities):
    in_sample = similarities[0]
    values, voxels = (stores.array("align", f"{mode}/unit_{key}", subject) for key in ("values", "voxels"))
    silent = (in_sample == 0).all(axis=2)
    best = -np.sort(-in_sample, axis=2)[:, :, :3]
    np.testing.assert_allclose(values, np.where(silent[:, :, None], 0, best), atol=TOLERANCE)
    layer, unit, slot = np.nonzero(np.broadcast_to(~silent[:, :, None], values.shape))
    listed = in_sample[layer, unit, voxels[layer, unit, slot]]
    np.testing.assert_allclose(values[layer, unit, slot], listed, atol=TOLERANCE)
    assert not silent.all()


def test_shuffled_control(stores, mode, subject, correlation):
    """The same search with images permuted: one order for all voxels and layers, from (seed, image counts)."""
    codes, brain = stores.codes(mode), stores.brain(subject)
    alive = brain.responsive
    values, units, scores = (
        stores.array("align", f"{mode}/shuffled_{key}", subject) for key in ("values", "units", "held_out")
    )
    assert values.shape[0] == 2
    assert (units[:, ~alive] == -1).all() and np.isnan(values[:, ~alive]).all() and np.isnan(scores[:, ~alive]).all()
    (select, y_select), (held_out, y_held_out) = brain.part("select"), brain.part("held_out")
    for b in range(2):
        rng = np.random.default_rng([0, len(select), len(held_out), b])
        orders = rng.permutation(len(select)), rng.permutation(len(held_out))
        rows = select[orders[0]], held_out[orders[1]]
        s, t = (
            np.concatenate([correlation(layer[r], y[:, alive]) for layer in codes])
            for r, y in zip(rows, (y_select, y_held_out), strict=True)
        )
        np.testing.assert_allclose(values[b, alive], _keys(s).max(axis=0), atol=TOLERANCE)
        np.testing.assert_allclose(scores[b, alive], t[units[b, alive], np.arange(alive.sum())], atol=TOLERANCE)
    assert not np.allclose(values[0, alive], values[1, alive])


def test_p_of_the_best_unit(stores, mode, subject, similarities, correlation):
    """p from every unit x every voxel in float64: values nearer than `CLOSE` to a tie may count either way."""
    codes, brain = stores.codes(mode), stores.brain(subject)
    alive = brain.responsive
    p, p_fdr, p_fwe = (stores.array("align", f"{mode}/{key}", subject) for key in ("p", "p_fdr", "p_fwe"))
    assert all(np.isnan(x[~alive]).all() and np.isfinite(x[alive]).all() for x in (p, p_fdr, p_fwe))
    select, y = brain.part("select")
    null = []
    for b in range(2):
        rows = select[np.random.default_rng([0, len(select), brain.shared.sum(), b]).permutation(len(select))]
        s = np.concatenate([correlation(layer[rows], y[:, alive]) for layer in codes])
        null.append(_keys(s).max(axis=0))
    best = _keys(similarities[0].reshape(-1, len(alive))).max(axis=0)[alive]
    for found, reference in ((p, np.stack(null)), (p_fwe, np.stack(null).max(axis=1, keepdims=True))):
        least, most = ((1 + (reference >= best + e).sum(axis=0)) / 3 for e in (CLOSE, -CLOSE))
        assert ((found[alive] >= least) & (found[alive] <= most)).all()
        assert (least == most).any()
    np.testing.assert_allclose(p_fdr[alive], stats.false_discovery_control(p[alive]), atol=1e-12)


@pytest.fixture(scope="module")
def planted():
    """Two layers of sparse codes, and voxels: 60 follow a unit (r about .8), then 240 noise; the last is left out."""
    rng = np.random.default_rng(5)
    n, u, k = 80, 40, 6
    units = np.stack([rng.permutation(u)[:k] for _ in range(2 * n)]).reshape(2, n, k)
    layers = [SparseCodes(rng.random((n, k)).astype(np.float32) + 0.5, layer, u) for layer in units]
    dense = np.concatenate([layer.to_dense() for layer in layers], axis=1)
    standard = (dense - dense.mean(axis=0)) / dense.std(axis=0)
    y = rng.standard_normal((n, 300))
    y[:, :60] = standard[:, rng.integers(0, 2 * u, 60)] + 0.75 * y[:, :60]
    return layers, y.astype(np.float32)


def _searched(
    planted,
    *,
    dense: bool = False,
    memory: int = 1 << 26,
    room: int = 1 << 40,
    blocks: int = 1,
    cuts: int = 1,
    devices: int = 1,
    absolute: bool = False,
    **null,
) -> dict[str, np.ndarray]:
    """The search with 99 permutations; selected on the first 60 images. cuts: pieces of every layer; room: for maxima."""
    layers, y_nv = planted
    select, held_out = slice(0, 60), slice(60, 80)
    mesh = make_mesh({"units": 1, "voxels": devices}, jax.devices()[:devices]) if devices > 1 else None
    taken = Null(np.arange(300) < 299, 60, 20, **{"shuffles": 99, **null})
    search = Search(300, 2, 40, 2, 2, Engine(mesh, memory, absolute), taken)
    while search.begin(room):
        for voxels in np.array_split(np.arange(300), blocks):
            search.start(voxels, y_nv[select, voxels], y_nv[held_out, voxels])
            for i, layer in enumerate(layers):
                for units in np.array_split(np.arange(40), cuts):
                    part = layer.to_dense()[:, units] if dense or cuts > 1 else layer
                    parts = [
                        part[rows] if isinstance(part, np.ndarray) else part.rows(rows) for rows in (select, held_out)
                    ]
                    search.piece(i, int(units[0]), *parts)
        search.end()
    return search.results()


@pytest.fixture(scope="module")
def searched(planted):
    return _searched(planted)


def test_planted_voxels_are_significant_and_noise_is_not(searched):
    out = searched
    real, noise = slice(0, 60), slice(60, 299)
    assert (out["p"][real] == 0.01).all() and (out["p_fwe"][real] <= 0.05).mean() > 0.9
    for alpha in (0.05, 0.2):
        false = int((out["p"][noise] <= alpha).sum())
        # Permutations are common to all voxels, which adds to the binomial error a little.
        assert min(stats.binom.cdf(false, 239, alpha), stats.binom.sf(false - 1, 239, alpha)) > 1e-3
    found = out["p_fdr"][:299] <= 0.05
    assert found[real].all() and found[noise].sum() <= 0.2 * found.sum()
    assert (out["p_fwe"][noise] <= 0.05).sum() <= 1
    assert all(np.isnan(out[key][299]) for key in ("p", "p_fdr", "p_fwe"))


@pytest.mark.parametrize(
    "how",
    [
        {"dense": True},
        {"memory": 1 << 22},
        {"room": 4 * 299 * 20},
        {"blocks": 3},
        {"cuts": 3},
        {"devices": 8},
        {"max_shuffles": 99},
    ],
    ids=str,
)
def test_p_do_not_depend_on_how_the_search_is_cut(planted, searched, how):
    """Dense codes, a few permutations at a time, passes, blocks of voxels, layers in pieces, eight devices: the same null."""
    one, other = searched, _searched(planted, **how)
    assert set(one) == set(other)
    for key, value in one.items():
        if value.dtype.kind == "f" and key[0] != "p":
            np.testing.assert_allclose(value, other[key], atol=TOLERANCE, err_msg=key)
        else:
            np.testing.assert_array_equal(value, other[key], err_msg=key)


def test_permutations_are_spent_where_they_matter(planted, searched):
    """From 19 on only voxels that fewer than 5 of them have reached; the same p where a fixed number gives a small one."""
    out = _searched(planted, shuffles=19, max_shuffles=99, stop_after=5)
    used, p = out["permutations"][:299], out["p"][:299]
    assert set(np.unique(used)) == {19, 38, 76, 99} and (used[:60] == 99).all()
    assert used.sum() < 0.6 * 99 * 299
    fixed_p = searched["p"][:299]
    undecided = fixed_p < 0.055  # reached by fewer than 5 of 99
    assert (used[undecided] == 99).all()
    np.testing.assert_array_equal(p[undecided], fixed_p[undecided])
    fixed = _searched(planted, shuffles=19)
    np.testing.assert_array_equal(out["p_fwe"], fixed["p_fwe"])
    np.testing.assert_array_equal(out["null_max"], searched["null_max"][:19])
    assert (p[~undecided] >= 5 / used[~undecided]).all() and np.isin(p[~undecided], 5 / np.arange(5, 100)).all()


def test_voxels_without_a_control(planted):
    """Nobody takes part in the null: the search itself is made all the same."""
    layers, y_nv = planted
    search = Search(300, 2, 40, 2, 2, Engine(None, 1 << 26), Null(np.zeros(300, bool), 60, 20, shuffles=9))
    passes = 0
    while search.begin():
        search.start(np.arange(300), y_nv[:60], y_nv[60:])
        for i, layer in enumerate(layers):
            search.piece(i, 0, layer.rows(slice(0, 60)), layer.rows(slice(60, 80)))
        search.end()
        passes += 1
    out = search.results()
    assert passes == 1 and np.isnan(out["p"]).all() and (out["voxel_units"] >= 0).all()


@pytest.mark.parametrize("how", [{}, {"dense": True}, {"devices": 8}, {"cuts": 3}], ids=str)
def test_absolute_similarity(planted, how):
    """|s| is maximised, its sign kept, and held-out scores carry the sign of the selection; against float64."""
    layers, y_nv = planted
    y_nv = np.where(np.arange(300) % 2, -1, 1) * y_nv
    out = _searched((layers, y_nv), absolute=True, **how)
    dense = np.concatenate([layer.to_dense() for layer in layers], axis=1).astype(np.float64)

    def similar(rows: slice) -> np.ndarray:
        a, y = (x[rows] - x[rows].mean(axis=0) for x in (dense, y_nv.astype(np.float64)))
        norm = np.linalg.norm(a, axis=0)
        return (a / np.where(norm > 0, norm, 1)).T @ (y / np.linalg.norm(y, axis=0))

    s, held_out = similar(slice(0, 60)), similar(slice(60, 80))
    best = -np.sort(-np.abs(s), axis=0)[:2].T
    np.testing.assert_allclose(out["voxel_values"], best, atol=TOLERANCE)
    every = np.arange(300)[:, None]
    np.testing.assert_allclose(out["voxel_signs"] * out["voxel_values"], s[out["voxel_units"], every], atol=TOLERANCE)
    np.testing.assert_allclose(
        out["held_out"], out["voxel_signs"] * held_out[out["voxel_units"], every], atol=TOLERANCE
    )
    assert ((out["voxel_signs"][:60, 0] == np.where(np.arange(60) % 2, -1, 1)).mean()) > 0.95
    units = np.abs(s).reshape(2, 40, 300)
    np.testing.assert_allclose(out["unit_values"], -np.sort(-units, axis=2)[:, :, :2], atol=TOLERANCE)
    listed = np.take_along_axis(s.reshape(2, 40, 300), out["unit_voxels"], axis=2)
    np.testing.assert_allclose(out["unit_signs"] * out["unit_values"], listed, atol=TOLERANCE)
    # Noise voxels of either sign are as often significant.
    assert (out["p"][:60] == 0.01).all() and 0.02 < (out["p"][60:299] <= 0.05).mean() < 0.09


def test_absolute_lists_hold_every_unit_once():
    """More slots than units that vary: constant units come last, at 0, none twice."""
    codes = np.zeros((20, 6), np.float32)
    codes[:, 1], codes[::3, 4] = np.arange(20), 1
    search = Search(3, 1, 6, 6, 1, Engine(None, 1 << 26, absolute=True), Null(np.ones(3, bool), 20, 0, shuffles=1))
    search.begin()
    search.start(np.arange(3), np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32))
    search.piece(0, 0, codes)
    search.end()
    out = search.results()
    assert all(sorted(row) == list(range(6)) for row in out["voxel_units"].tolist())
    assert set(out["voxel_units"][:, :2].ravel()) == {1, 4}
    assert (out["voxel_values"][:, :2] > 0).all() and (out["voxel_values"][:, 2:] == 0).all()


def test_shares_of_significant_voxels():
    """The table has a dash where so few permutations cannot reach .05."""
    p = np.array([0.05, 0.06, 0.01, 1.0])
    assert significant_share(p, 19) == 0.5 and significant_share(p, 18) is None


def test_decoder_rows(stores, mode, subject):
    folder = stores.folder("align", subject) / mode
    if mode in ("raw", "random"):
        assert not (folder / "decoder").exists()
        return
    kind = "cls" if mode == "cls" else "patch"
    members = [(m["kind"], m["hook"]) for m in stores.document("saes", "metrics.json")["members"]]
    w_dec, scale = stores.array("saes", "w_dec"), stores.array("saes", "scale")
    best = stores.array("align", f"{mode}/voxel_units", subject)[:, 0]
    layer, unit = np.divmod(best, w_dec.shape[1])
    member = np.array([members.index((kind, hook)) for hook in ("block01.resid", "block05.resid")])[layer]
    expected = w_dec[member, unit] / scale[member][:, None]
    np.testing.assert_allclose(stores.array("align", f"{mode}/decoder", subject), expected, rtol=1e-6)
