"""Local pooling against plain float64 definitions, planted fields, and the tiny run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.brain.prf import from_polar
from sbm_jax.mesh import make_mesh
from sbm_jax.sae.model import Norm, Params
from sbm_jax.stages.fields import UNIFORM, field_grid, gaussian_weights, in_image
from sbm_jax.stages.members import Code, Member
from sbm_jax.stages.pooled_search import PooledSearch, Split
from sbm_jax.stages.pooled_sums import PairSums, Patches
from sbm_jax.stages.pooling_summary import centre_record, gain_draws

TOKENS, UNITS, LAYERS = 16, 12, 2
TOLERANCE = 5e-6  # float32 sums over at most 8 images and 16 patches of a device


class Arrays:
    """Activations in memory."""

    def __init__(self, arrays):
        self.arrays = arrays

    def array(self, name):
        return self.arrays[name]

    def read(self, name, rows=None):
        return self.arrays[name][slice(None) if rows is None else rows]


def member(threshold: float = 0.0) -> Member:
    """An autoencoder whose pre-activations are its inputs less `threshold`."""
    eye = jnp.eye(UNITS)
    params = Params(eye, jnp.full(UNITS, -threshold), eye, jnp.zeros(UNITS))
    return Member(Norm(jnp.zeros((1, UNITS)), jnp.ones(1)), params, jnp.zeros(UNITS))


def patches(x_lntd: np.ndarray, code: Code, devices: int = 1, batch: int = 8, threshold: float = 0.0) -> Patches:
    mesh = make_mesh({"data": devices}, jax.devices()[:devices])
    acts = Arrays({str(i): x for i, x in enumerate(x_lntd)})
    names = tuple(acts.arrays)
    return Patches(acts, names, np.arange(x_lntd.shape[1]), (member(threshold),) * len(names), code, mesh, batch)  # pyright: ignore


def plain_codes(x: np.ndarray, code: Code, threshold: float = 0.0) -> np.ndarray:
    """Codes of all tokens, float64: the k largest, or all above the threshold."""
    pre = np.maximum(x.astype(np.float64) - threshold, 0)
    if code.objective == "relu":
        return pre
    kept = np.sort(pre, axis=-1)[..., -code.k][..., None]
    return np.where(pre >= kept, pre, 0)


def plain_r(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    norm = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / norm) if norm > 1e-9 else 0.0


def activity(n: int, seed: int = 0) -> np.ndarray:
    """[l, n, t, u]: unit 3 is the same everywhere, unit 4 is silent, unit 5 varies little around a large value."""
    rng = np.random.default_rng(seed)
    x = rng.random((LAYERS, n, TOKENS, UNITS))
    x[..., 3], x[..., 4] = 0.75, -1
    x[..., 5] = 100 + 1e-2 * x[..., 5]
    return x.astype(np.float32)


@pytest.mark.parametrize(("objective", "k"), [("topk", 5), ("topk", UNITS), ("relu", 1)])
@pytest.mark.parametrize("devices", [1, 2])
def test_similarity_of_every_pair_and_field(objective, k, devices):
    """37 images in batches of 8, in two groups of unequal size; every unit with every row, through every field and an own one."""
    code, n = Code(objective, k), 37
    x = activity(n)
    rng = np.random.default_rng(1)
    y = rng.standard_normal((n, 3))
    y[:, 2] = 0
    fields = field_grid(2, [0.15, 0.5], TOKENS)
    unit, row = (a.ravel() for a in np.meshgrid(np.arange(LAYERS * UNITS), np.arange(3), indexing="ij"))
    own = gaussian_weights(rng.random(len(unit)), rng.random(len(unit)), np.full(len(unit), 0.3), TOKENS).T
    groups = [np.arange(0, n, 3), np.setdiff1d(np.arange(n), np.arange(0, n, 3))]
    responses = y.astype(np.float32)
    sums = PairSums(patches(x, code, devices), unit, row, fields, own, groups, lambda places: responses[places].T)
    z = plain_codes(x, code).transpose(0, 3, 1, 2).reshape(LAYERS * UNITS, n, TOKENS)
    for chosen in ((0,), (1,), (0, 1)):
        places = np.concatenate([groups[g] for g in chosen])
        found = sums.similarity(chosen)
        assert found.shape == (len(fields) + 1, len(unit))
        for p in range(len(unit)):
            for g in range(len(fields) + 1):
                weights = own[:, p] if g == len(fields) else fields.weights_gt[g]
                seen = z[unit[p], places] @ weights.astype(np.float64)
                # unit 5: spread 1e-4 of its size, of which float32 keeps three digits
                close = 5e-3 if unit[p] % UNITS == 5 else TOLERANCE
                assert found[g, p] == pytest.approx(plain_r(seen, y[places, row[p]]), abs=close), (p, g)
    # a unit that never varies, one that never fires, a voxel that never varies
    assert not found[:, np.isin(unit % UNITS, [4])].any() and not found[:, row == 2].any()
    if objective == "relu":
        assert not found[:, unit % UNITS == 3].any()


def test_reading_through_fields():
    code, n = Code("topk", 6), 13
    x = activity(n, 2)
    rng = np.random.default_rng(3)
    unit = rng.permutation(np.r_[rng.integers(0, LAYERS * UNITS, 20), -1])
    weights = rng.random((TOKENS, len(unit))).astype(np.float32)
    places = rng.permutation(n)[:11]
    found = patches(x, code, devices=2).read(places, unit, weights)
    z = plain_codes(x, code)
    for p, u in enumerate(unit):
        expected = z[u // UNITS, places, :, u % UNITS] @ weights[:, p].astype(np.float64) if u >= 0 else np.zeros(11)
        np.testing.assert_allclose(found[:, p], expected, rtol=1e-5)


def planted(noise: float = 0.5, voxels: int = 40, n: int = 400, seed: int = 4):
    """Codes whose first units vary from patch to patch, and voxels that follow a unit through a field of the grid."""
    rng = np.random.default_rng(seed)
    x = (rng.random((LAYERS, n, TOKENS, UNITS)) * (rng.random((LAYERS, n, TOKENS, UNITS)) < 0.3)).astype(np.float32)
    fields = field_grid(2, [0.1], TOKENS)
    unit = rng.integers(0, LAYERS * UNITS, voxels)
    field = rng.integers(1, len(fields), voxels)
    z = plain_codes(x, Code("relu", 1))
    y = np.stack([z[u // UNITS, :, :, u % UNITS] @ fields.weights_gt[g] for u, g in zip(unit, field, strict=True)], 1)
    y = (y - y.mean(axis=0)) / y.std(axis=0) + noise * rng.standard_normal(y.shape)
    return x, fields, unit, field, y


def search(x, fields, y, candidates, own=None, kinds=None, folds=None, absolute=False):
    """The search with a third of the images to score, or over folds; candidates [v, k] are those of voxel and control alike."""
    n = len(y)
    both = np.concatenate([candidates, candidates]).astype(np.int32)
    test = np.arange(n) % 3 == 0
    order = np.random.default_rng(5).permutation(n)
    groups, splits = [np.flatnonzero(~test)], [Split((0,), np.flatnonzero(test), both)]
    if folds:
        groups = [np.arange(f, n, folds) for f in range(folds)]
        splits = [Split(tuple(range(folds)), None, both)]
        splits += [Split(tuple(g for g in range(folds) if g != f), groups[f], both) for f in range(folds)]
    kinds = kinds or {"local": range(len(fields)), "uniform": [UNIFORM]}
    found = PooledSearch(patches(x, Code("relu", 1), batch=64), y, order, groups, splits, fields, own, kinds, absolute)
    scored, tested = found.score()
    return scored, list(tested)


@pytest.mark.parametrize("folds", [None, 4])
def test_planted_fields_are_found_and_gain(folds):
    x, fields, unit, field, y = planted()
    others = np.random.default_rng(6).integers(0, LAYERS * UNITS, (len(unit), 2))
    scored, tested = search(x, fields, y, np.concatenate([others, unit[:, None]], axis=1), folds=folds)
    v, local, uniform = len(unit), scored["local"], scored["uniform"]
    assert (local.choice.unit[:v] == unit).all() and (local.choice.field[:v] == field).all()
    ceiling = 1 / np.sqrt(1 + 0.5**2)
    assert local.held_out[:v].mean() == pytest.approx(ceiling, abs=0.02)
    assert (local.held_out[:v] > uniform.held_out[:v] + 0.1).all()
    # the control: nothing is left of it on images that did not choose
    n = 400 if folds else 134
    assert abs(local.held_out[v:].mean()) < 4 / np.sqrt(n * v)
    assert local.choice.value[v:].mean() > 0.05
    draws = gain_draws(tested, 200, 0).mean(axis=1)
    gain = (local.held_out[:v] - uniform.held_out[:v]).mean()
    low, high = np.quantile(draws, [0.025, 0.975])
    assert low < gain < high and low > 0 and high - low < 0.2


def test_absolute_similarity_keeps_the_sign_of_the_choice():
    """A voxel that a unit silences is found where |r| is sought; its score is that of the voxel turned over."""
    x, fields, unit, field, y = planted(voxels=8)
    turned = y * np.where(np.arange(8) < 4, -1, 1)
    found, tested = search(x, fields, turned, unit[:, None], absolute=True)
    plain, _ = search(x, fields, y, unit[:, None])
    for kind in ("local", "uniform"):
        np.testing.assert_array_equal(found[kind].choice.field[:8], plain[kind].choice.field[:8])
        np.testing.assert_allclose(found[kind].held_out[:8], plain[kind].held_out[:8], atol=1e-6)
        np.testing.assert_allclose(found[kind].choice.value[:8], plain[kind].choice.value[:8], atol=1e-6)
    assert found["local"].choice.sign[:8].tolist() == [-1] * 4 + [1] * 4
    np.testing.assert_array_equal(found["local"].choice.field[:8], field)
    np.testing.assert_allclose(
        (tested[0].local * tested[0].responses).sum(axis=0), found["local"].held_out[:8], atol=1e-6
    )


def test_noise_scores_nothing_held_out():
    x, fields, _, _, _ = planted()
    rng = np.random.default_rng(7)
    y = rng.standard_normal((400, 300))
    candidates = np.stack([rng.permutation(LAYERS * UNITS)[:5] for _ in range(300)])
    scored, _ = search(x, fields, y, candidates)
    held_out = scored["local"].held_out[:300]
    # r of 134 images has standard error 1 / sqrt(133); voxels are independent given the choice
    assert abs(held_out.mean()) < 3 / np.sqrt(133 * 300)
    assert held_out.std() == pytest.approx(1 / np.sqrt(133), rel=0.15)
    assert scored["local"].choice.value[:300].mean() > 0.1


def test_own_fields_and_voxels_without_one():
    x, fields, unit, field, y = planted()
    own = fields.weights_gt[field].T.copy()
    own[:, :3] = np.nan
    kinds = {"local": range(len(fields)), "uniform": [UNIFORM], "prf": [len(fields)]}
    scored, _ = search(x, fields, y, unit[:, None], own, kinds)
    prf, local, v = scored["prf"], scored["local"], len(unit)
    assert (
        (prf.choice.unit[:3] == -1).all() and np.isnan(prf.held_out[:3]).all() and np.isnan(prf.choice.value[:3]).all()
    )
    # where a voxel's own field is the planted one, both ways agree
    np.testing.assert_allclose(prf.held_out[3:v], local.held_out[3:v], atol=1e-5)
    np.testing.assert_allclose(prf.choice.value[3:v], local.choice.value[3:v], atol=1e-5)
    scored, _ = search(x, fields, y, unit[:, None], own, {"local": [len(fields)], "uniform": [UNIFORM]})
    np.testing.assert_array_equal(scored["local"].held_out, prf.held_out)


def test_ties_go_to_the_uniform_field_and_the_earlier_candidate():
    """Units that are the same on every patch look alike through every field."""
    rng = np.random.default_rng(8)
    flat = np.repeat(rng.random((1, 60, 1, 1)), TOKENS, axis=2)
    x = np.concatenate([np.repeat(flat, UNITS, axis=3)] * LAYERS).astype(np.float32)
    fields = field_grid(1, [1e9], TOKENS)  # as good as uniform
    fields = type(fields)(fields.x, fields.y, fields.size, np.repeat(fields.weights_gt[:1], 2, axis=0))
    y = flat[0, :, 0] + 0.1 * rng.standard_normal((60, 4))
    scored, _ = search(x, fields, y, np.array([[7, 3], [3, 7], [-1, 9], [-1, -1]]))
    assert scored["local"].choice.unit[:4].tolist() == [7, 3, 9, -1]
    assert scored["local"].choice.field[:4].tolist() == [0, 0, 0, -1]
    assert np.isnan(scored["local"].held_out[3])


@settings(max_examples=50, deadline=None)
@given(st.floats(-3, 4), st.floats(-3, 4), st.floats(1e-3, 10), st.integers(1, 9))
def test_gaussians_are_weights_with_their_peak_at_the_nearest_patch(x, y, size, side):
    (weights,) = gaussian_weights(np.array([x]), np.array([y]), np.array([size]), side**2)
    assert weights.sum() == pytest.approx(1, abs=1e-5) and (weights >= 0).all()
    places = (np.arange(side) + 0.5) / side
    distance = np.hypot(*np.meshgrid(places - x, places - y)).ravel()
    assert distance[weights.argmax()] == pytest.approx(distance.min(), abs=1e-6 + 1e-3 * size)


def test_field_grid_and_degrees():
    fields = field_grid(2, [0.1, 0.4], 9)
    assert len(fields) == 9 and np.isnan([fields.x[0], fields.y[0], fields.size[0]]).all()
    np.testing.assert_allclose(fields.weights_gt[0], 1 / 9, rtol=1e-6)
    np.testing.assert_allclose(fields.x[1:5], [0.25, 0.75, 0.25, 0.75])
    np.testing.assert_allclose(fields.y[1:5], [0.25, 0.25, 0.75, 0.75])
    np.testing.assert_allclose(fields.size[1:], [0.1] * 4 + [0.4] * 4)
    assert fields.weights_gt[2].reshape(3, 3).argmax() == 2  # the upper right corner
    assert len(field_grid(3, [], 9)) == 1
    with pytest.raises(ValueError, match="no square grid"):
        gaussian_weights(np.zeros(1), np.zeros(1), np.ones(1), 8)
    prf = from_polar(np.array([0.0, 90, 180, np.nan, 45]), np.array([2.1, 2.1, 2.1, 0, np.nan]), np.full(5, 0.84))
    x, y, size = in_image(prf, 8.4)
    np.testing.assert_allclose(x, [0.75, 0.5, 0.25, 0.5, np.nan], atol=1e-12)
    np.testing.assert_allclose(y, [0.5, 0.25, 0.5, 0.5, np.nan], atol=1e-12)
    np.testing.assert_allclose(size, [0.1] * 4 + [np.nan])


def test_bootstrap_draws_are_samples_written_out():
    """The mean over draws and voxels' spread against r of samples that are drawn image by image."""
    x, fields, unit, _, y = planted(voxels=6)
    scored, tested = search(x, fields, y, unit[:, None])
    (part,) = tested
    draws = gain_draws(tested, 1000, 3)
    assert draws.shape == (1000, 6)
    n = len(part.responses)
    counts = np.random.default_rng([3, n, 0]).multinomial(n, np.full(n, 1 / n), size=1000)
    for b in (0, 7, 999):
        rows = np.repeat(np.arange(n), counts[b])
        for v in range(6):
            local, uniform = (plain_r(a[rows, v], part.responses[rows, v]) for a in (part.local, part.uniform))
            assert draws[b, v] == pytest.approx(local - uniform, abs=1e-4)
    gain = (scored["local"].held_out - scored["uniform"].held_out)[:6]
    np.testing.assert_allclose(draws.mean(axis=0), gain, atol=4 * draws.std(axis=0).max() / np.sqrt(1000) + 0.02)


def test_centres_against_known_ones():
    rng = np.random.default_rng(9)
    known = tuple(rng.random((3, 500)))
    near = (known[0] + 0.05, known[1], known[2])
    other = tuple(rng.random((3, 500)))
    known[0][:10], near[0][10:20] = np.nan, np.nan
    found = centre_record(near, other, known, 0)
    assert found is not None and found["voxels"] == 480
    assert found["median_distance"] == pytest.approx(0.05)
    # two random points of the unit square are .512 apart in the median
    assert found["permuted"] == pytest.approx(0.512, abs=0.03) and found["shuffled"] == pytest.approx(0.512, abs=0.05)
    assert found["r"]["x"] == pytest.approx(1) and len(found["bins"]["x"]) == 8
    assert centre_record(tuple(np.full((3, 500), np.nan)), other, known, 0) is None


# The tiny run ----------------------------------------------------------------------------------------------------------


def folder(stores, subject):
    align = stores.folder("align", subject).name
    found = (stores.run.out / "stores").glob("pooling-*")
    return next(p for p in found if align in (p / "spec.json").read_text())


def arrays(stores, subject):
    """All arrays of a subject's store by name."""
    import zarr

    path = folder(stores, subject)
    names = [p.parent.name for p in path.glob("*/zarr.json")]
    return {name: np.asarray(zarr.open_array(path / name, mode="r")[...]) for name in names}


@pytest.mark.parametrize("subject", ["subj01", "subj02"])
def test_the_tiny_run_agrees_with_a_plain_search(stores, subject):
    brain, found = stores.brain(subject), arrays(stores, subject)
    taken = np.flatnonzero(brain.responsive)
    assert (found["unit"][~brain.responsive] == -1).all() and (found["field"][~brain.responsive] == -1).all()
    candidates = stores.array("align", "patch_mean/voxel_units", subject)
    metrics = stores.document("saes", "metrics.json")["members"]
    fields = field_grid(3, [0.1, 0.3], 64)
    names = ("b_enc", "w_enc", "mean", "scale")
    codes = []
    for hook in ("block01.resid", "block05.resid"):
        a = [(m["kind"], m["hook"]) for m in metrics].index(("patch", hook))
        bias, weights, mean, scale = (stores.array("saes", name)[a].astype(np.float64) for name in names)
        x = stores.array("activations", f"{hook}/patch").astype(np.float64)
        pre = scale * (x - mean) @ weights + bias
        kept = np.sort(pre, axis=-1)[..., -4][..., None]
        codes.append(np.where(pre >= kept, np.maximum(pre, 0), 0))
    units = codes[0].shape[-1]
    for v in np.random.default_rng(0).choice(taken, 12, replace=False):
        scores = {}
        for part in ("select", "held_out"):
            rows, y = brain.part(part)
            seen = [codes[u // units][rows][..., u % units] @ fields.weights_gt.T for u in candidates[v]]
            scores[part] = np.array([[plain_r(a[:, g], y[:, v]) for g in range(len(fields))] for a in seen])
        chosen = list(candidates[v]).index(found["unit"][v]), found["field"][v]
        assert scores["select"][chosen] == pytest.approx(scores["select"].max(), abs=1e-5)
        assert found["in_sample"][v] == pytest.approx(scores["select"].max(), abs=1e-5)
        assert found["held_out"][v] == pytest.approx(scores["held_out"][chosen], abs=1e-5)
        best = np.flatnonzero(scores["select"][:, 0] > scores["select"][:, 0].max() - 1e-6)
        assert np.abs(scores["held_out"][best, 0] - found["uniform_held_out"][v]).min() < 1e-5
        for key, table in (("centre_x", fields.x), ("centre_y", fields.y), ("size", fields.size)):
            np.testing.assert_allclose(found[key][v], table[found["field"][v]], rtol=1e-6)


@pytest.mark.parametrize("subject", ["subj01", "subj02"])
def test_the_tiny_runs_document(stores, subject):
    import json

    path = folder(stores, subject) / "pooling.json"
    document, found = json.loads(path.read_text()), arrays(stores, subject)
    brain = stores.brain(subject)
    rois = {"all responsive": np.ones(len(brain.usable), bool), **stores.rois(subject)}
    reported = {name for name, mask in rois.items() if (mask & brain.responsive).sum() >= 5}
    assert set(document["rois"]) == reported and len(reported) > 3
    for name, record in document["rois"].items():
        inside = rois[name] & brain.responsive
        assert record["voxels"] == inside.sum()
        for key in ("held_out", "uniform_held_out", "shuffled_held_out"):
            assert record[key] == pytest.approx(found[key][inside].mean(dtype=np.float64), abs=1e-6)
        assert record["gain"] == pytest.approx(record["held_out"] - record["uniform_held_out"], abs=1e-6)
        assert record["gain_interval"][0] < record["gain_interval"][1]
        assert record["local_share"] == pytest.approx(np.mean(found["field"][inside] > 0))
    truth = stores.table(f"truth/{subject}.csv")
    known = np.array([np.nan if cell == "" else float(cell) for cell in truth["rf_x"]])
    there = np.isfinite(known) & np.isfinite(found["centre_x"])
    assert document["centres"]["planted"]["voxels"] == there.sum() > 50
    summary = json.loads((stores.run.out / "summary.json").read_text())
    assert summary["pooling"][subject] == document
    page = (stores.run.out / "report.html").read_text()
    assert f"Local pooling, {subject}" in page and "Fitted receptive fields" in page
