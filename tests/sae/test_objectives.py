"""Every objective against its formula in float64, thresholds and cuts, grids in one program, and resuming them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.config import SweepConfig, TrainConfig
from sbm_jax.errors import UserError
from sbm_jax.mesh import make_mesh
from sbm_jax.sae.metrics import held_out_metrics
from sbm_jax.sae.model import Params, decoder_rows, init_params, with_points, with_threshold
from sbm_jax.sae.objectives import BANDWIDTH, OBJECTIVES, batch_cut, final_codes, prefix_ends
from sbm_jax.sae.over import ALONE, Over, product
from sbm_jax.sae.stack import Stack, points
from sbm_jax.sae.trainer import train

EPS = float(np.finfo(np.float32).eps)
B, D, U, K, LAM = 24, 10, 32, 3, 0.05


def one(name: str, seed: int = 0) -> Params:
    """Parameters of one autoencoder away from the start."""
    rng = np.random.default_rng(seed)
    start = init_params(np.array([seed]), D, U, 0.577)
    if name == "jumprelu":
        start = with_threshold(start)
        start = start._replace(threshold=jnp.asarray(rng.normal(-1, 0.3, (1, U)), jnp.float32))
    if name == "archetypal":
        start = with_points(start, np.array([seed]), jnp.asarray(rng.normal(size=(1, 7, D)), jnp.float32), 0.577)
    start = start._replace(b_enc=jnp.asarray(0.1 * rng.normal(size=(1, U)), jnp.float32))
    start = start._replace(b_dec=jnp.asarray(0.1 * rng.normal(size=(1, D)), jnp.float32))
    return jax.tree.map(lambda x: x[0], start)


def tokens(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(B, D)).astype(np.float32)


def kept(pre: np.ndarray, k: int) -> np.ndarray:
    top = np.argsort(-pre, axis=1, kind="stable")[:, :k]
    z = np.zeros_like(pre)
    np.put_along_axis(z, top, np.maximum(np.take_along_axis(pre, top, axis=1), 0), axis=1)
    return z


def by_hand(name: str, params: Params, x: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Residual, loss and codes in float64."""
    w_enc, b_enc, w_dec, b_dec = (np.asarray(w, np.float64) for w in params[:4])
    x = x.astype(np.float64)
    pre = x @ (w_dec.T if name == "tied_relu" else w_enc) + b_enc
    if name in ("topk", "matryoshka", "archetypal"):
        z = kept(pre, K)
    elif name == "batch_topk":
        z = np.maximum(pre, 0)
        cut = np.sort(z.ravel())[::-1][K * B]
        z = np.where(z > cut, z, 0)
    elif name == "jumprelu":
        z = np.where(pre > np.exp(np.asarray(params.threshold, np.float64)), pre, 0)
    else:
        z = np.maximum(pre, 0)
    residual = x - z @ w_dec - b_dec
    mse, size = np.mean(residual**2), np.sqrt((x**2).sum(axis=1))
    losses = {
        "relu": mse + LAM * z.sum(axis=1).mean() / D,
        "jumprelu": mse + LAM * (z > 0).sum(axis=1).mean() / D,
        "tied_relu": ((residual**2).sum(axis=1) / size**2).mean() + LAM * (z.sum(axis=1) / size).mean(),
        "matryoshka": np.mean([np.mean((x - z[:, :u] @ w_dec[:u] - b_dec) ** 2) for u in (2, 4, 8, 16, 32)]),
    }
    return residual, losses.get(name, mse), z


@pytest.mark.parametrize("name", OBJECTIVES)
def test_terms_equal_the_formula(name):
    params, x = one(name), tokens()
    terms = jax.jit(lambda p, x: OBJECTIVES[name].terms(p, x, K, jnp.float32(LAM), ALONE))(params, x)
    residual, loss, z = by_hand(name, params, x)
    np.testing.assert_allclose(terms.residual, residual, atol=128 * EPS * np.abs(x).max())
    assert float(terms.loss) == pytest.approx(loss, rel=256 * EPS)
    np.testing.assert_array_equal(terms.fired, (z > 0).sum(axis=0))
    if name == "batch_topk":
        assert (z > 0).sum() == K * B and 0 < float(terms.cut) < z[z > 0].min()
    threshold = {
        "jumprelu": jnp.exp(params.threshold) if params.threshold is not None else None,
        "batch_topk": terms.cut,
    }
    least = jnp.broadcast_to(jnp.asarray(threshold.get(name, 0.0)), (U,))
    codes = final_codes(name, K, params._replace(w_enc=params.w_dec.T) if name == "tied_relu" else params, least, x)
    np.testing.assert_allclose(codes, z, atol=128 * EPS * np.abs(z).max())


@given(k=st.integers(1, 40), seed=st.integers(0, 20), levels=st.sampled_from([0, 3, 50]))
@settings(max_examples=40, deadline=None)
def test_the_cut_leaves_at_most_k_codes_a_token(k, seed, levels):
    """levels: codes rounded to so few values that many are equal; those equal to the cut are left out together."""
    z = np.maximum(np.random.default_rng(seed).normal(size=(16, 40)), 0)
    z = (np.round(z * levels) / levels if levels else z).astype(np.float32)
    cut = float(batch_cut(jnp.asarray(z), k, ALONE))
    above = (z > cut).sum()
    assert above <= 16 * k
    if (z > 0).sum() <= 16 * k:
        assert cut == 0
    else:
        # the next smaller value would be too many, or lies within the search's resolution of the cut
        next_ = z[z <= cut * (1 + 1e-5)].max()
        assert (z >= next_ * (1 - 1e-5)).sum() > 16 * k


def test_the_cut_is_the_same_on_eight_devices():
    assert len(jax.devices()) == 8
    z = np.maximum(np.random.default_rng(0).normal(size=(64, 50)), 0).astype(np.float32)
    mesh = make_mesh({"data": 8}, jax.devices())
    over = Over(lambda v: jax.lax.pmean(v, "data"), lambda v: jax.lax.pmax(v, "data"))
    split = jax.shard_map(
        lambda z: batch_cut(z, 5, over)[None],
        mesh=mesh,
        in_specs=jax.P("data"),
        out_specs=jax.P("data"),
        check_vma=False,
    )
    np.testing.assert_array_equal(jax.jit(split)(z), np.full(8, float(batch_cut(jnp.asarray(z), 5, ALONE)), np.float32))


def test_gradients_of_jumprelu_are_the_papers_pseudo_derivatives():
    params, x = one("jumprelu"), tokens()
    threshold = np.exp(np.asarray(params.threshold, np.float64))
    pre = x.astype(np.float64) @ np.asarray(params.w_enc, np.float64) + np.asarray(params.b_enc, np.float64)
    # Some pre-activations must lie within the kernel, which is a thousandth wide.
    rng = np.random.default_rng(5)
    units = rng.integers(0, U, 6)
    shift = threshold[units] - pre[np.arange(6), units] + BANDWIDTH * rng.uniform(-0.3, 0.3, 6)
    b_enc = np.asarray(params.b_enc, np.float64)
    b_enc[units] += shift
    params = params._replace(b_enc=jnp.asarray(b_enc, jnp.float32))

    def loss(log_threshold):
        return (
            OBJECTIVES["jumprelu"].terms(params._replace(threshold=log_threshold), x, K, jnp.float32(LAM), ALONE).loss
        )

    got = jax.grad(loss)(params.threshold)
    pre = x.astype(np.float64) @ np.asarray(params.w_enc, np.float64) + np.asarray(params.b_enc, np.float64)
    near = np.abs(np.maximum(pre, 0) - threshold) < BANDWIDTH / 2
    residual, _, _ = by_hand("jumprelu", params, x)
    to_codes = -2 * residual @ np.asarray(params.w_dec, np.float64).T / residual.size
    per_pair = -(threshold * to_codes + LAM / (D * B)) * near / BANDWIDTH
    expected = per_pair.sum(axis=0) * threshold
    assert near.any() and np.abs(expected).max() > 0
    np.testing.assert_allclose(got, expected, atol=512 * EPS * np.abs(expected).max())


def test_archetypal_rows_lie_in_the_convex_hull_and_learn_through_the_mixture():
    params = one("archetypal")
    assert params.mix is not None and params.points is not None
    weights = np.asarray(jax.nn.softmax(params.mix, axis=-1), np.float64)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=8 * EPS)
    np.testing.assert_allclose(decoder_rows(params), weights @ np.asarray(params.points, np.float64), atol=32 * EPS)

    def loss(p):
        return OBJECTIVES["archetypal"].terms(p, tokens(), K, jnp.float32(0), ALONE).loss

    grads = jax.grad(loss)(params)
    assert np.abs(grads.mix).max() > 0 and not np.asarray(grads.points).any() and not np.asarray(grads.w_dec).any()


def test_prefixes_end_with_the_whole_dictionary():
    assert prefix_ends(32) == (2, 4, 8, 16, 32) and prefix_ends(3) == (1, 2, 3)


# Grids -----------------------------------------------------------------------------------------------------------------

HOOKS = ("block00.resid", "block03.resid")
BASE = TrainConfig(
    expansion=3, k=K, steps=12, batch=16, lr=3e-3, lr_scale="none", checkpoint_every=5, pool_tokens=512, points=20
)


def trained(store, config, folder, kinds=("patch",), devices=None):
    stack = Stack(HOOKS, kinds, points(config))
    (result,) = train(store, stack, np.arange(50), config, devices or jax.devices()[:1], folder)
    return stack, result


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_and_keeps_its_constraint(store, tmp_path, name):
    config = BASE.model_copy(update={"objective": name, "steps": 60, "lr": 1e-2, "sparsity": 0.01})
    stack, result = trained(store, config, tmp_path)
    # batches of 16 tokens differ much: ten logs at either end
    assert np.isfinite(result.losses).all()
    assert (result.losses[-10:].mean(axis=0) < 0.9 * result.losses[:10].mean(axis=0)).all()
    norm = np.linalg.norm(result.params.w_dec, axis=2)
    if OBJECTIVES[name].unit_rows:
        np.testing.assert_allclose(norm, 1, atol=8 * EPS)
    if OBJECTIVES[name].tied:
        np.testing.assert_array_equal(result.params.w_enc, np.swapaxes(result.params.w_dec, 1, 2))
    records = held_out_metrics(store, stack, np.arange(50, 60), result)
    assert [r["objective"] for r in records] == [name] * 2
    if OBJECTIVES[name].uses_k:
        assert all(0 < r["l0"] <= (2.5 if OBJECTIVES[name].dense else 1) * K for r in records)
    assert (result.threshold > 0).all() == (name in ("jumprelu", "batch_topk"))


def test_a_grid_is_trained_on_one_stream_and_comes_back_in_order(store, tmp_path):
    """Points with a learning rate of almost nothing stay where their seed put them; the others are as when alone."""
    sweep = SweepConfig(k=[5], lr=[1e-20], seed=[3])
    config = BASE.model_copy(update={"sweep": sweep})
    stack, result = trained(store, config, tmp_path / "grid", ("cls", "patch"))
    assert len(stack.points) == 8 and len(stack.members) == 32 == len(result.params.w_enc)
    assert len(stack.groups(config)) == 2
    assert stack.points[0].k == K and stack.points[0].lr == BASE.lr and stack.points[0].seed == 0
    for a, member in enumerate(stack.members):
        token = stack.tokens.index((member.kind, member.hook))
        start = init_params(np.array([token + 1000 * member.point.seed]), D, 3 * D, BASE.encoder_scale)
        moved = not np.allclose(result.params.w_enc[a], start.w_enc[0], atol=1e-7)
        assert moved == (member.point.lr > 1e-10), str(member)
    for k in (K, 5):
        alone_config = BASE.model_copy(update={"k": k})
        _, alone = trained(store, alone_config, tmp_path / f"alone{k}", ("cls", "patch"))
        mine = [a for a, m in enumerate(stack.members) if (m.point.k, m.point.lr, m.point.seed) == (k, BASE.lr, 0)]
        bound = BASE.steps * BASE.lr * 512 * EPS  # as in test_sae.close_training
        np.testing.assert_allclose(result.params.w_enc[mine], alone.params.w_enc, atol=bound, rtol=16 * EPS)
        np.testing.assert_allclose(result.losses[:, mine], alone.losses, rtol=256 * EPS)


def test_a_grid_resumes_to_the_same_bits(store, tmp_path, monkeypatch):
    sweep = SweepConfig(objective=["jumprelu", "batch_topk", "archetypal"])
    config = BASE.model_copy(update={"sweep": sweep})
    _, whole = trained(store, config, tmp_path / "whole")

    class Stop(Exception):
        pass

    def advance(self, count=1):
        self.done += count
        if self.label == "train" and self.done == 8:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr("sbm_jax.progress.Task.advance", advance)
        with pytest.raises(Stop):
            trained(store, config, tmp_path / "stopped")
    _, resumed = trained(store, config, tmp_path / "stopped")
    for field in dataclasses.fields(whole):
        for a, b in zip(
            jax.tree.leaves(getattr(whole, field.name)), jax.tree.leaves(getattr(resumed, field.name)), strict=True
        ):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), field.name


@pytest.mark.parametrize(("name", "parts"), [("batch_topk", 1), ("archetypal", 1), *((name, 2) for name in OBJECTIVES)])
def test_eight_devices_train_like_one(store, tmp_path, name, parts):
    """parts: blocks of units into which every dictionary is cut. Dead units there are: they count as such after a batch."""
    config = BASE.model_copy(update={"objective": name, "sparsity": 0.01, "expansion": 4, "dead_tokens": 16})
    _, one_ = trained(store, config, tmp_path / "one")
    config = config.model_copy(update={"split_units": parts})
    _, eight = trained(store, config, tmp_path / "eight", devices=jax.devices())
    bound = BASE.steps * BASE.lr * 512 * EPS
    np.testing.assert_allclose(eight.losses, one_.losses, rtol=512 * EPS)
    np.testing.assert_allclose(eight.params.w_dec, one_.params.w_dec, atol=bound, rtol=16 * EPS)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_bfloat16_rounds_the_factors_alone(store, tmp_path, name):
    """Products of 10 terms with two factors of relative error 2^-9: the loss is that of float32 to within a few percent."""
    config = BASE.model_copy(update={"objective": name, "sparsity": 0.01})
    _, full = trained(store, config, tmp_path / "f32")
    _, half = trained(store, config.model_copy(update={"dtype": "bfloat16"}), tmp_path / "bf16")
    assert all(x.dtype == np.float32 for x in half.params[:4])
    assert not np.array_equal(half.params.w_dec, full.params.w_dec)
    np.testing.assert_allclose(half.losses, full.losses, rtol=0.05)


def test_gradients_in_bfloat16_have_float32_sums():
    """10,000 equal terms: a bfloat16 sum would stop growing at 256."""
    x, w = jnp.ones((10_000, 3)), jnp.ones((3, 2))
    dx, dw = jax.grad(lambda x, w: product("bfloat16", x, w).sum(), argnums=(0, 1))(x, w)
    assert dw.dtype == dx.dtype == jnp.float32
    np.testing.assert_array_equal(dw, 10_000.0)
    np.testing.assert_array_equal(dx, 2.0)


def test_dictionaries_of_several_sizes_are_trained_together(store, tmp_path):
    """Each as when alone, at the rate that its size asks for."""
    config = BASE.model_copy(update={"sweep": SweepConfig(expansion=[6], seed=[1]), "lr_scale": "sqrt"})
    stack = Stack(HOOKS, ("patch",), points(config))
    small, large = train(store, stack, np.arange(50), config, jax.devices()[:1], tmp_path / "both")
    assert small.params.w_enc.shape == (4, D, 3 * D) and large.params.w_enc.shape == (4, D, 6 * D)
    assert [m.point.expansion for part in stack.by_size() for m in part.members] == [3] * 4 + [6] * 4
    rate = BASE.lr * (4096 / (6 * D)) ** 0.5
    alone_config = BASE.model_copy(update={"expansion": 6, "lr": rate, "sweep": SweepConfig(seed=[1])})
    _, alone = trained(store, alone_config, tmp_path / "alone")
    np.testing.assert_allclose(large.losses, alone.losses, rtol=256 * EPS)


def test_the_decoder_bias_starts_at_the_geometric_median(store, tmp_path):
    config = BASE.model_copy(update={"centre": "geometric_median", "lr": 1e-20})
    stack, result = trained(store, config, tmp_path)
    for a, (kind, hook) in enumerate(stack.tokens):
        x = store.read(f"{hook}/{kind}")[:50].reshape(-1, D)  # fewer than are sampled: all of them
        x = (x - result.norm.mean[a]) * result.norm.scale[a]

        def total(point: np.ndarray, x: np.ndarray = x) -> float:
            return float(np.linalg.norm(x - point, axis=1).sum())

        best = total(result.params.b_dec[a])
        assert best < total(np.zeros(D))
        rng = np.random.default_rng(a)
        assert all(best <= total(result.params.b_dec[a] + 1e-2 * rng.normal(size=D)) for _ in range(20))


@pytest.mark.parametrize(
    ("update", "devices", "message"),
    [
        ({"split_units": 3}, 2, "train.split_units is 3, but there are 2 devices"),
        ({"split_units": 4}, 4, "train.split_units is 4, which does not divide the 30 units"),
    ],
)
def test_dictionaries_that_cannot_be_cut(store, tmp_path, update, devices, message):
    with pytest.raises(UserError, match=message):
        trained(store, BASE.model_copy(update=update), tmp_path, devices=jax.devices()[:devices])


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"objective": "relu", "sweep": SweepConfig(k=[4])}, "does not use k; sweep train.sparsity"),
        ({"sweep": SweepConfig(sparsity=[0.1])}, "uses k; sweep train.k"),
    ],
)
def test_a_sweep_over_what_is_not_used_is_refused(update, message):
    with pytest.raises(UserError, match=message):
        points(BASE.model_copy(update=update))


def test_equal_points_are_trained_once():
    config = BASE.model_copy(update={"sweep": SweepConfig(objective=["relu"], k=[K, 5], sparsity=[BASE.sparsity])})
    assert [str(p) for p in points(config)] == [
        "topk k=3 lr=0.003 seed=0 expansion=3",
        "topk k=5 lr=0.003 seed=0 expansion=3",
        "relu sparsity=0.00086 lr=0.003 seed=0 expansion=3",
    ]
