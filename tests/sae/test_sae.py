"""Autoencoders: one step and its gradients, stacking, sharding, the token stream, resuming, metrics."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbm_jax.config import TrainConfig
from sbm_jax.errors import StoreError, UserError
from sbm_jax.mesh import make_mesh
from sbm_jax.sae import trainer
from sbm_jax.sae.auxiliary import auxiliary_loss, with_auxiliary
from sbm_jax.sae.checkpoint import Checkpoints
from sbm_jax.sae.metrics import held_out_metrics
from sbm_jax.sae.model import Norm, Params, decode, encode, init_params, normalise, turned, unit_rows, with_points
from sbm_jax.sae.over import ALONE
from sbm_jax.sae.stack import Member, Stack, points
from sbm_jax.sae.start import input_norm
from sbm_jax.sae.step import DATA, SAE, UNITS, init_state, loss_terms, make_step, put_state, schedule
from sbm_jax.sae.stream import TokenStream, batches
from sbm_jax.sae.trainer import Trained
from sbm_jax.store.spec import StoreSpec
from sbm_jax.store.store import Store, StoreWriter

EPS = float(np.finfo(np.float32).eps)
A, B, D, U, K = 4, 32, 12, 48, 3
CONFIG = TrainConfig(
    expansion=4,
    k=K,
    steps=20,
    batch=B,
    lr=3e-3,
    lr_scale="none",
    dead_tokens=10**6,
    checkpoint_every=7,
    pool_tokens=512,
)
HOOKS = ("block00.resid", "block03.resid")


def inputs(a: int = A, b: int = B, steps: int = 1, seed: int = 0) -> np.ndarray:
    """Sparse mixtures of fixed directions plus noise, [steps, a, b, d]; the directions differ between autoencoders."""
    rng = np.random.default_rng([seed, a, b])
    directions = np.random.default_rng(99).normal(size=(a, 30, D))
    amounts = rng.exponential(size=(steps, a, b, 30)) * (rng.random((steps, a, b, 30)) < 0.1)
    x = np.einsum("sabf,afd->sabd", amounts, directions) + 0.1 * rng.normal(size=(steps, a, b, D))
    return x.astype(np.float32)


def params(a: int = A, seed: int = 0) -> Params:
    """Away from the start: biases and an untied encoder."""
    rng = np.random.default_rng(seed)
    start = init_params(np.arange(a), D, U, 0.577)
    noise = lambda *shape: jnp.asarray(0.1 * rng.normal(size=shape), jnp.float32)  # noqa: E731
    return Params(start.w_enc + noise(a, D, U), noise(a, U), start.w_dec, noise(a, D))


UNIT_NORM = Norm(jnp.zeros((A, D)), jnp.ones(A))


def mesh_of(sae: int, data: int, units: int = 1) -> jax.sharding.Mesh:
    return make_mesh({SAE: sae, UNITS: units, DATA: data}, jax.devices())


def train(*args) -> Trained:
    """Training of dictionaries of one size."""
    (trained,) = trainer.train(*args)
    return trained


def run_steps(mesh, config, start: Params, xs: np.ndarray, norm: Norm = UNIT_NORM, silent: np.ndarray | None = None):
    """State and losses [steps, a] after one step per batch of xs."""
    # A copy: the step may reuse the memory of the state that it is given.
    state = init_state(jax.tree.map(lambda w: jnp.array(w, copy=True), start), config, len(xs))
    if silent is not None:
        state = state._replace(silent=jnp.asarray(silent, jnp.int32))
    state = put_state(state, mesh)
    step = make_step(mesh, config, norm, D // 2, 1)
    sharding = jax.NamedSharding(mesh, jax.P(SAE, DATA))
    losses = []
    for x in xs:
        state, mse = step(state, jax.device_put(x, sharding))
        losses.append(np.asarray(mse))
    return state, np.array(losses)


# The model -----------------------------------------------------------------------------------------------------------


def test_a_stack_of_seeds_is_its_members_and_each_its_own():
    stack = init_params(np.array([5, 0, 7]), D, U, 0.5)
    for i, seed in enumerate((5, 0, 7)):
        for whole, alone in zip(stack[:4], init_params(np.array([seed]), D, U, 0.5)[:4], strict=True):
            np.testing.assert_array_equal(whole[i], alone[0])
    assert not np.allclose(stack.w_dec[0], stack.w_dec[1])
    np.testing.assert_allclose(np.linalg.norm(stack.w_dec, axis=2), 1, atol=4 * EPS)
    np.testing.assert_array_equal(stack.w_enc, 0.5 * np.swapaxes(stack.w_dec, 1, 2))
    assert not stack.b_enc.any() and not stack.b_dec.any()


def test_unit_rows_leaves_zero_rows_alone():
    w = np.array([[[3.0, 4.0], [0.0, 0.0]]], np.float32)
    np.testing.assert_allclose(unit_rows(jnp.asarray(w)), [[[0.6, 0.8], [0, 0]]], atol=EPS)


def test_encode_and_decode_of_a_stack_equal_float64():
    p, x = params(), inputs()[0]
    values, units = encode(p, jnp.asarray(x), K)
    x_hat = decode(p, values, units)
    for a in range(A):
        w_enc, b_enc, w_dec, b_dec = (np.asarray(w[a], np.float64) for w in p[:4])
        pre = x[a].astype(np.float64) @ w_enc + b_enc
        top = np.argsort(-pre, axis=1, kind="stable")[:, :K]
        np.testing.assert_array_equal(units[a], top)
        z = np.zeros((B, U))
        np.put_along_axis(z, top, np.maximum(np.take_along_axis(pre, top, axis=1), 0), axis=1)
        # sums of 12 products of numbers below 10, then of 3
        np.testing.assert_allclose(x_hat[a], z @ w_dec + b_dec, atol=64 * EPS * np.abs(pre).max())


def test_normalise_takes_float16():
    x = np.random.default_rng(0).normal(size=(2, 5, D)).astype(np.float16)
    norm = Norm(jnp.full((2, D), 0.5), jnp.asarray([2.0, 4.0]))
    got = normalise(norm, jnp.asarray(x))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, np.array([2, 4])[:, None, None] * (x.astype(np.float32) - 0.5), atol=16 * EPS)


# Losses --------------------------------------------------------------------------------------------------------------


def parts(p: Params, x: np.ndarray, dead: np.ndarray, k: int, aux_k: int):
    """The auxiliary loss [a] alone, and (mean squared error [a], how often each unit fired [a, u])."""
    x, dead = jnp.asarray(x), jnp.asarray(dead)
    config = CONFIG.model_copy(update={"k": k})
    mse, terms = loss_terms(turned(p), x, config, jnp.zeros(len(x)))
    return auxiliary_loss(p, x, terms.residual, dead, aux_k, ALONE), (mse, terms.fired)


loss_jit = jax.jit(parts, static_argnums=(3, 4))


def aux_by_hand(p: Params, x: np.ndarray, dead: np.ndarray, k: int, aux_k: int) -> np.ndarray:
    values, units = encode(p, jnp.asarray(x), k)
    e_all = x - np.asarray(decode(p, values, units), np.float64)
    out = []
    for a in range(len(x)):
        pre = x[a, ::4].astype(np.float64) @ np.asarray(p.w_enc[a], np.float64) + np.asarray(p.b_enc[a], np.float64)
        columns = np.flatnonzero(dead[a])
        if not len(columns):
            out.append(0.0)
            continue
        e_hat = np.zeros((len(pre), D))
        for t in range(len(pre)):
            for u in columns[np.argsort(-pre[t, columns])][:aux_k]:
                e_hat[t] += max(pre[t, u], 0) * np.asarray(p.w_dec[a, u], np.float64)
        e = e_all[a, ::4]
        out.append(np.mean((e - e_hat) ** 2) / np.mean(e**2))
    return np.array(out)


def some_dead() -> np.ndarray:
    """None, one, ten, all units of the four autoencoders."""
    dead = np.zeros((A, U), bool)
    dead[1, 7], dead[2, :10], dead[3] = True, True, True
    return dead


def test_losses_equal_a_direct_computation():
    p, x, dead = params(), inputs()[0], some_dead()
    aux, (mse, fired) = loss_jit(p, x, dead, K, 6)
    values, units = encode(p, jnp.asarray(x), K)
    residual = x - np.asarray(decode(p, values, units), np.float64)
    np.testing.assert_allclose(mse, (residual**2).mean(axis=(1, 2)), rtol=64 * EPS)
    np.testing.assert_allclose(aux, aux_by_hand(p, x, dead, K, 6), rtol=256 * EPS)
    for a in range(A):
        want = np.bincount(np.asarray(units[a])[np.asarray(values[a]) > 0], minlength=U)
        np.testing.assert_array_equal(fired[a], want)
    assert aux[0] == 0 and (np.asarray(aux[1:]) > 0).all()


def test_the_auxiliary_loss_reaches_dead_units_and_nothing_else():
    p, x, dead = params(), inputs()[0], some_dead()
    grads = jax.grad(lambda p: jnp.sum(parts(p, x, dead, K, 6)[0]))(p)
    touched = np.asarray(grads.w_enc != 0).any(axis=1)
    np.testing.assert_array_equal(touched & ~dead, False)
    np.testing.assert_array_equal(np.asarray(grads.b_enc != 0) & ~dead, False)
    np.testing.assert_array_equal(np.asarray(grads.w_dec != 0).any(axis=2) & ~dead, False)
    assert touched[1, 7] and touched[2].sum() >= 5 and touched[3].sum() >= 20
    assert not np.asarray(grads.b_dec).any()  # the residual is a constant to it, and it is without bias


@pytest.mark.parametrize("mixed", [False, True], ids=["learned rows", "archetypal rows"])
@pytest.mark.parametrize("count", [0, 1, 6, 7, U])
def test_the_added_gradient_is_that_of_the_auxiliary_loss(count, mixed):
    """No dead units, as many as take part without selection, and more; in one autoencoder at least."""
    p, x = params(), jnp.asarray(inputs()[0])
    if mixed:
        p = with_points(p, np.arange(A), x[:, :5], 0.5)
    dead = np.zeros((A, U), bool)
    dead[1, U - count :] = True
    dead[2, : min(count, 2)] = True
    residual = jnp.asarray(np.random.default_rng(6).normal(size=x.shape).astype(np.float32))
    before = jax.tree.map(jnp.ones_like, p)
    arrays = x, residual, jnp.asarray(dead)
    added = jax.jit(lambda g: with_auxiliary(g, 2.0, turned(p), *arrays, 6, ALONE))(turned(before))
    want = jax.jit(jax.grad(lambda p: 2 * jnp.sum(auxiliary_loss(p, *arrays, 6, ALONE))))(p)
    for name, got in turned(added)._asdict().items():
        if got is None:
            continue
        change = np.asarray(getattr(want, name))
        assert np.any(change) == (count > 0 and name in {"w_enc", "b_enc", "mix" if mixed else "w_dec"}), name
        if not count:
            np.testing.assert_array_equal(got, 1)
        np.testing.assert_allclose(got, 1 + change, atol=32 * EPS * max(1, np.abs(change).max()), err_msg=name)


def test_without_dead_units_there_is_no_auxiliary_loss():
    p, x = params(), jnp.asarray(inputs()[0])
    dead = jnp.zeros((A, U), bool)
    assert not np.asarray(loss_jit(p, x, dead, K, 6)[0]).any()
    grads = jax.grad(lambda p: jnp.sum(parts(p, x, dead, K, 6)[0]))(p)
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(grads))


def test_a_unit_that_never_wins_learns_only_once_it_counts_as_dead():
    """Unit 5 points at the data but is too weak to be among the k; its only gradient is that of the auxiliary loss."""
    start = params()
    start = start._replace(w_enc=start.w_enc.at[:, :, 5].multiply(1e-3), b_enc=start.b_enc.at[:, 5].set(1e-3))
    x = inputs(steps=2)
    config = CONFIG.model_copy(update={"warmup": 0.0, "dead_tokens": 1000})
    for silent, learns in ((0, False), (1000 - 2 * B, False), (1000, True)):
        counts = np.zeros((A, U), np.int32)
        counts[:, 5] = silent
        state, _ = run_steps(mesh_of(1, 1), config, start, x, silent=counts)
        moved = np.asarray(state.params.w_enc[:, 5] != start.w_enc[:, :, 5]).any(axis=1)
        np.testing.assert_array_equal(moved, learns)
        np.testing.assert_array_equal(state.silent[:, 5], silent + 2 * B)


def test_silence_is_counted_in_tokens_and_ends_with_firing():
    x = inputs(steps=3)
    state, _ = run_steps(mesh_of(1, 1), CONFIG, params(), x[:1])
    fired = np.asarray(loss_jit(params(), x[0], np.zeros((A, U), bool), K, 6)[1][1])
    np.testing.assert_array_equal(state.silent, np.where(fired > 0, 0, B))
    assert (fired == 0).any() and (fired > 0).any()


# Steps ---------------------------------------------------------------------------------------------------------------


def test_decoder_rows_have_norm_1_after_every_step():
    for steps in (1, 5):
        state, _ = run_steps(mesh_of(1, 1), CONFIG, params(), inputs(steps=steps))
        np.testing.assert_allclose(np.linalg.norm(state.params.w_dec, axis=2), 1, atol=8 * EPS)
        assert int(state.step) == steps


def test_the_loss_of_a_batch_seen_again_and_again_falls_and_is_logged():
    config = CONFIG.model_copy(update={"steps": 200, "lr": 1e-2})
    xs = np.repeat(inputs(), 200, axis=0)
    norm = Norm(jnp.asarray(xs[0].mean(axis=1)), jnp.asarray(1 / xs[0].std(axis=(1, 2))))
    state, losses = run_steps(mesh_of(1, 1), config, init_params(np.arange(A), D, U, 0.577), xs, norm)
    np.testing.assert_array_equal(state.losses, losses)
    assert (losses[-1] < 0.5 * losses[0]).all()


def test_schedule():
    config = TrainConfig(steps=100, lr=2.0, warmup=0.1, decay=0.2)
    lr = np.array([config.lr * float(schedule(config)(i)) for i in range(101)])
    np.testing.assert_allclose(lr[:10], np.arange(10) * 0.2, atol=1e-6)
    np.testing.assert_allclose(lr[10:81], 2.0)
    np.testing.assert_allclose(lr[80:], np.linspace(2, 0, 21), atol=1e-6)


def close_training(got, want, steps: int) -> None:
    """Both started equal and saw the same batches; sums were taken in another order.

    Gradients agree to about sqrt(b) eps of their scale, and Adam divides by that scale: each step may add lr times that
    relative error, and feeds it back into the next. 64 covers sqrt(32) and the feedback over 20 steps.
    """
    bound = steps * CONFIG.lr * 64 * EPS * 8
    for name in ("w_enc", "b_enc", "w_dec", "b_dec"):
        np.testing.assert_allclose(
            getattr(got.params, name), getattr(want.params, name), atol=bound, rtol=16 * EPS, err_msg=name
        )


def test_a_stack_trains_like_its_members_alone():
    xs, start = inputs(steps=20), init_params(np.arange(A), D, U, 0.577)
    norm = Norm(jnp.asarray(xs.mean(axis=(0, 2))), jnp.asarray(1 / xs.std(axis=(0, 2, 3))))
    whole, losses = run_steps(mesh_of(1, 1), CONFIG, start, xs, norm)
    for a in (0, 3):
        one = slice(a, a + 1)
        alone, alone_losses = run_steps(
            mesh_of(1, 1),
            CONFIG,
            init_params(np.array([a]), D, U, 0.577),
            xs[:, one],
            Norm(norm.mean[one], norm.scale[one]),
        )
        member = whole._replace(params=jax.tree.map(lambda w, one=one: w[one], whole.params))
        close_training(member, alone, 20)
        np.testing.assert_allclose(losses[:, one], alone_losses, rtol=256 * EPS)
        np.testing.assert_array_equal(whole.silent[one], alone.silent)


def test_one_wild_member_does_not_disturb_the_others():
    """Clipping is by each autoencoder's own norm."""
    xs = inputs(steps=5)
    wild = xs.copy()
    wild[:, 2] *= 1e6
    calm, _ = run_steps(mesh_of(1, 1), CONFIG, params(), xs)
    other, _ = run_steps(mesh_of(1, 1), CONFIG, params(), wild)
    for one, two in zip(calm.params[:4], other.params[:4], strict=True):
        np.testing.assert_array_equal(np.delete(one, 2, axis=0), np.delete(two, 2, axis=0))
    assert not np.allclose(calm.params.w_enc[2], other.params.w_enc[2])


MESHES = [(4, 2), (4, 1), (1, 4), (2, 2, 2), (1, 2, 4)]  # sae, data, units


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_a_mesh_of_devices_trains_like_one_device(shape):
    xs, start = inputs(steps=20), init_params(np.arange(A), D, U, 0.577)
    norm = Norm(jnp.asarray(xs.mean(axis=(0, 2))), jnp.asarray(1 / xs.std(axis=(0, 2, 3))))
    one, losses_one = run_steps(mesh_of(1, 1), CONFIG, start, xs, norm)
    many, losses_many = run_steps(mesh_of(*shape), CONFIG, start, xs, norm)
    close_training(many, one, 20)
    np.testing.assert_allclose(losses_many, losses_one, rtol=256 * EPS)
    np.testing.assert_array_equal(many.silent, one.silent)


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_a_mesh_of_devices_trains_like_one_device_with_dead_units(shape):
    """The auxiliary loss too must not depend on how the batch was cut."""
    xs, start = inputs(steps=3), params()
    config = CONFIG.model_copy(update={"dead_tokens": 1000, "warmup": 0.0, "aux_weight": 1.0})
    silent = 2000 * some_dead()
    one, _ = run_steps(mesh_of(1, 1), config, start, xs, silent=silent)
    many, _ = run_steps(mesh_of(*shape), config, start, xs, silent=silent)
    close_training(many, one, 3)


def test_state_and_batch_span_all_eight_devices():
    mesh = mesh_of(4, 2)
    state, _ = run_steps(mesh, CONFIG, params(), inputs())
    x = jax.device_put(inputs()[0], jax.NamedSharding(mesh, jax.P(SAE, DATA)))
    assert {s.data.shape for s in x.addressable_shards} == {(A // 4, B // 2, D)}
    assert len({str(s.index) for s in x.addressable_shards}) == 8
    whole = [*jax.tree.leaves(state.params), *jax.tree.leaves(state.adam), state.silent]
    assert len(whole) > 12
    for leaf in whole:
        assert len(leaf.sharding.device_set) == 8
        assert {s.data.shape[0] for s in leaf.addressable_shards} == {A // 4}
    for held in (state.params, state.adam[0].mu, state.adam[0].nu):  # each device of a pair has half of the units
        for name in ("w_enc", "b_enc", "w_dec"):
            assert {s.data.shape[1] for s in getattr(held, name).addressable_shards} == {U // 2}
    assert {s.data.shape for s in state.losses.addressable_shards} == {(1, A // 4)}


def groups_of(line: str) -> list[list[int]]:
    """Replica groups of one collective in compiled HLO: `{{0,1},{2,3}}`, or the iota form `[4,2]<=[8]` with T(...)."""
    if found := re.search(r"replica_groups=\{(\{.*?\})\}", line):
        return [[int(i) for i in group.split(",") if i] for group in re.findall(r"\{([\d,]*)\}", found[1])]
    found = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    assert found, line
    shape, dims = ([int(i) for i in found[i].split(",")] for i in (1, 2))
    ids = np.arange(np.prod(dims)).reshape(dims)
    if found[3]:
        ids = ids.transpose([int(i) for i in found[3].split(",")])
    return ids.reshape(shape).tolist()


def collectives(shape: tuple[int, ...]) -> list[str]:
    mesh = mesh_of(*shape)
    state = put_state(init_state(params(8), CONFIG, 1), mesh)
    x = jax.device_put(inputs(8)[0], jax.NamedSharding(mesh, jax.P(SAE, DATA)))
    norm = Norm(jnp.zeros((8, D)), jnp.ones(8))
    text = make_step(mesh, CONFIG, norm, D // 2, 1).lower(state, x).compile().as_text()
    names = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
    return [line for line in text.splitlines() if re.search(rf" = .*\b({names})(-start)?\(", line)]


@pytest.mark.parametrize("shape", [(4, 2), (2, 2, 2), (2, 1, 4)], ids=str)
def test_nothing_is_communicated_along_the_autoencoders(shape):
    """In the compiled step every collective stays within the devices that hold the same autoencoders."""
    found = collectives(shape)
    assert found
    for line in found:
        for group in groups_of(line):
            assert len({device // (8 // shape[0]) for device in group}) == 1, line


def test_with_one_device_per_autoencoder_nothing_is_communicated_at_all():
    for line in collectives((8, 1)):
        assert all(len(group) == 1 for group in groups_of(line)), line


# Token streams -------------------------------------------------------------------------------------------------------


def write_store(folder: Path, arrays: dict[str, np.ndarray]) -> Store:
    writer = StoreWriter(folder, StoreSpec("activations", 1, {}, {}))
    for name, value in arrays.items():
        writer.create(name, value.shape, value.dtype.name, shard_rows=16, compress=False)
        for start in range(0, len(value), 16):
            writer.write(name, start, value[start : start + 16])
    return writer.commit()


N, T = 40, 6


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Store:
    """Tokens that say who they are: (layer, image, token) in place of activations."""
    arrays = {}
    for layer, hook in enumerate(HOOKS):
        image, token = np.meshgrid(np.arange(N), np.arange(T), indexing="ij")
        patch = np.stack([np.full((N, T), layer), image, token], axis=-1)
        arrays[f"{hook}/patch"] = patch.astype(np.float32)
        arrays[f"{hook}/cls"] = patch[:, 0].astype(np.float32)
    return write_store(tmp_path_factory.mktemp("labelled"), arrays)


def stream(
    store: Store, kind: str = "patch", images=None, batch: int = 8, pool: int = 60, seed: int = 0
) -> TokenStream:
    return TokenStream(store, HOOKS, kind, np.arange(N) if images is None else images, batch, pool, seed)


def seen(s: TokenStream, steps) -> list[tuple[int, int]]:
    """(image, token) of every token of some steps; all layers must agree."""
    out = []
    for step in steps:
        x = s.at(step)
        assert x.shape == (len(HOOKS), s.batch, 3)
        for layer in range(len(HOOKS)):
            np.testing.assert_array_equal(x[layer, :, 0], layer)
            np.testing.assert_array_equal(x[layer, :, 1:], x[0, :, 1:])
        out += [(int(i), int(t)) for _, i, t in x[0]]
    return out


@pytest.mark.parametrize(
    ("kind", "batch", "pool"), [("patch", 6, 60), ("patch", 8, 240), ("patch", 12, 12), ("cls", 4, 8)]
)
def test_every_token_once_per_epoch(labelled, kind, batch, pool):
    s = stream(labelled, kind, batch=batch, pool=pool)
    per_epoch = sum(s.batches)
    everything = set(itertools.product(range(N), range(T if kind == "patch" else 1)))
    assert per_epoch * batch == len(everything)
    epochs = [seen(s, range(e * per_epoch, (e + 1) * per_epoch)) for e in range(3)]
    for epoch in epochs:
        assert len(epoch) == len(everything) and set(epoch) == everything
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("images", [np.array([3]), np.arange(7), np.arange(39)[::-1], np.arange(1, 40, 3)], ids=len)
def test_no_token_twice_and_only_chosen_images_when_nothing_divides(labelled, images):
    s = stream(labelled, images=images, batch=5, pool=60)
    epoch = seen(s, range(sum(s.batches)))
    assert len(set(epoch)) == len(epoch)
    assert {i for i, _ in epoch} <= set(images.tolist())
    # Each pool leaves less than a batch behind.
    assert len(epoch) > len(images) * T - 5 * len(s.batches)


def test_a_step_is_a_function_of_the_seed_and_the_step_alone(labelled):
    one, two = stream(labelled), stream(labelled)
    forwards = [one.at(step) for step in range(45)]
    for step in (44, 3, 29, 30, 3, 0, 17):
        np.testing.assert_array_equal(two.at(step), forwards[step])
    np.testing.assert_array_equal(stream(labelled).at(31), forwards[31])
    assert not np.array_equal(stream(labelled, seed=1).at(0), forwards[0])


def test_kinds_have_orders_of_their_own(labelled):
    cls, patch = stream(labelled, "cls", batch=40, pool=999), stream(labelled, batch=40, pool=999)
    assert cls.at(0)[0, :, 1].tolist() != list(range(N))
    first = list(dict.fromkeys(patch.at(0)[0, :, 1].tolist()))
    assert cls.at(0)[0, : len(first), 1].tolist() != first


@pytest.mark.parametrize("pool", [60, 240])
def test_tokens_of_one_image_meet_no_more_often_than_by_chance(labelled, pool):
    """Pairs of one image in a batch: chance within a pool of p tokens is (t - 1) / (p - 1) per pair."""
    s = stream(labelled, batch=12, pool=pool)
    same = pairs = 0
    for step in range(200):
        image = s.at(step)[0, :, 1]
        same += int((image[:, None] == image[None]).sum() - 12) // 2
        pairs += 66
    chance = (T - 1) / (pool - 1)
    # Pairs are nearly independent: 4 standard deviations of a binomial count.
    assert abs(same - pairs * chance) <= 4 * np.sqrt(pairs * chance * (1 - chance))


@pytest.mark.parametrize("start", [0, 1, 9, 19])
def test_batches_made_ahead_are_those_of_the_streams(labelled, start):
    streams = [stream(labelled, "cls"), stream(labelled)]
    again = [stream(labelled, "cls"), stream(labelled)]
    got = list(batches(streams, start, 20))
    assert len(got) == 20 - start
    for step, x in enumerate(got, start=start):
        np.testing.assert_array_equal(x, np.concatenate([s.at(step) for s in again]))
    assert list(batches(streams, 20, 20)) == []


def test_stream_errors(labelled):
    with pytest.raises(UserError, match=r"train.batch is 99 tokens, but 10 training images have only 60 patch tokens"):
        stream(labelled, images=np.arange(10), batch=99)
    with pytest.raises(UserError, match=r"train.batch is 41 tokens, but 40 training images have only 40 cls tokens"):
        stream(labelled, "cls", batch=41)
    with pytest.raises(UserError, match=r"pool of 2 images holds fewer patch tokens than train.batch \(20\)"):
        stream(labelled, batch=20, pool=12)


def test_a_corrupt_shard_stops_the_stream(tmp_path, rng):
    store = write_store(tmp_path, {f"{h}/patch": rng.normal(size=(20, 3, 4)).astype(np.float32) for h in HOOKS})
    shard = store.path / HOOKS[1] / "patch" / "c" / "0" / "0" / "0"
    body = bytearray(shard.read_bytes())
    body[100] ^= 1
    shard.write_bytes(body)
    s = TokenStream(store, HOOKS, "patch", np.arange(20), 6, 60, 0)
    with pytest.raises(StoreError, match=f"{HOOKS[1]}/patch"):
        list(batches([s], 0, 10))


# Training ------------------------------------------------------------------------------------------------------------


def stack_of(config: TrainConfig) -> Stack:
    return Stack(HOOKS, ("cls", "patch"), points(config))


STACK = stack_of(CONFIG)
IMAGES = np.arange(0, 100, 2)
ONE = jax.devices()[:1]


def activations(seed: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    out = {}
    for layer, hook in enumerate(HOOKS):
        directions = rng.normal(size=(30, D))
        amounts = rng.exponential(size=(100, 5, 30)) * (rng.random((100, 5, 30)) < 0.1)
        x = (layer + 1) * (amounts @ directions + 0.1 * rng.normal(size=(100, 5, D))) + rng.normal(size=D)
        out[f"{hook}/cls"], out[f"{hook}/patch"] = x[:, 0].astype(np.float16), x[:, 1:].astype(np.float16)
    return out


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return write_store(tmp_path_factory.mktemp("activations"), activations())


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory) -> Trained:
    return train(store, STACK, IMAGES, CONFIG, ONE, tmp_path_factory.mktemp("whole") / "checkpoints")


def assert_identical(one: Trained, two: Trained) -> None:
    for a, b in zip(jax.tree.leaves(one.__dict__), jax.tree.leaves(two.__dict__), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_members_are_kinds_times_hooks():
    assert STACK.tokens == [(k, h) for k in ("cls", "patch") for h in HOOKS]
    assert STACK.members == [Member(k, h, STACK.points[0]) for k, h in STACK.tokens]


def test_input_norm_gives_mean_zero_and_mean_square_one(store):
    norm = input_norm(store, STACK, IMAGES, 0)
    for a, (kind, hook) in enumerate(STACK.tokens):
        x = store.read(f"{hook}/{kind}").astype(np.float64)[IMAGES].reshape(-1, D)
        np.testing.assert_allclose(norm.mean[a], x.mean(axis=0), atol=4 * EPS * np.abs(x).max())
        np.testing.assert_allclose(norm.scale[a], 1 / np.sqrt(x.var(axis=0).mean()), rtol=4 * EPS)


def test_training_gives_finite_unit_norm_results(finished):
    assert finished.params.w_enc.shape == (4, D, U) and finished.losses.shape == (20, 4)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(finished.__dict__))
    np.testing.assert_allclose(np.linalg.norm(finished.params.w_dec, axis=2), 1, atol=8 * EPS)
    assert (finished.losses[-1] < finished.losses[0]).all()
    np.testing.assert_array_equal(finished.loss_steps, np.arange(20))


def test_training_twice_gives_the_same_bits(store, finished, tmp_path):
    assert_identical(train(store, STACK, IMAGES, CONFIG, ONE, tmp_path), finished)


class Stop(Exception):
    """Stands for whatever ends a process."""


def stop_at(monkeypatch, step: int) -> None:
    advance = trainer.progress("x", 1, "x").__enter__().__class__.advance

    def counted(self, count: int = 1) -> None:
        advance(self, count)
        if self.label == "train" and self.done == step:
            raise Stop

    monkeypatch.setattr("sbm_jax.progress.Task.advance", counted)


@pytest.mark.parametrize("stop", [3, 7, 12, 19])
def test_an_interrupted_run_goes_on_and_ends_with_the_same_bits(store, finished, tmp_path, monkeypatch, stop):
    with monkeypatch.context() as patch:
        stop_at(patch, stop)
        with pytest.raises(Stop):
            train(store, STACK, IMAGES, CONFIG, ONE, tmp_path)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() == (stop // 7 * 7 or None)
    checkpoints.close()
    assert_identical(train(store, STACK, IMAGES, CONFIG, ONE, tmp_path), finished)
    # Finished: nothing is left to do, and the result is the same once more.
    with monkeypatch.context() as patch:
        stop_at(patch, 20)
        assert_identical(train(store, STACK, IMAGES, CONFIG, ONE, tmp_path), finished)


KILLED = """
import os, signal, sys
from pathlib import Path
import jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
import sbm_jax.progress
from sbm_jax.config import TrainConfig
from sbm_jax.sae.stack import Stack, points
from sbm_jax.sae.trainer import train
from sbm_jax.store.store import Store

def advance(self, count=1):
    self.done += count
    if self.done == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)

sbm_jax.progress.Task.advance = advance
config = TrainConfig.model_validate_json(sys.argv[3])
stack = Stack(("block00.resid", "block03.resid"), ("cls", "patch"), points(config))
train(Store(Path(sys.argv[1])), stack, np.arange(0, 100, 2), config, jax.devices()[:1], Path(sys.argv[2]))
"""


def alone(*words: object) -> subprocess.CompletedProcess:
    """A Python process that shares the compilation cache of the tests."""
    cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or ""}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5", **cache}
    return subprocess.run(
        [sys.executable, "-c", *map(str, words)], capture_output=True, text=True, timeout=100, env=environment
    )


@pytest.mark.parametrize("step", [10, 14], ids=["between checkpoints", "while one is written in the background"])
def test_kill_9(store, finished, tmp_path, step):
    done = alone(KILLED, store.path, tmp_path, CONFIG.model_dump_json(), step)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert_identical(train(store, STACK, IMAGES, CONFIG, ONE, tmp_path), finished)


def test_eight_devices_train_like_one_and_take_over_its_checkpoint(store, finished, tmp_path, monkeypatch):
    eight = train(store, STACK, IMAGES, CONFIG, jax.devices(), tmp_path / "eight")
    close_training(eight, finished, 20)
    np.testing.assert_allclose(eight.losses, finished.losses, rtol=256 * EPS)
    with monkeypatch.context() as patch:
        stop_at(patch, 15)
        with pytest.raises(Stop):
            train(store, STACK, IMAGES, CONFIG, ONE, tmp_path / "moved")
    close_training(train(store, STACK, IMAGES, CONFIG, jax.devices(), tmp_path / "moved"), finished, 20)


RESTORED = """
import sys
from pathlib import Path
import jax
from sbm_jax.config import TrainConfig
from sbm_jax.errors import UserError
from sbm_jax.mesh import training_mesh
from sbm_jax.sae.checkpoint import Checkpoints
from sbm_jax.sae.auxiliary import auxiliary_loss, with_auxiliary
from sbm_jax.sae.model import init_params
from sbm_jax.sae.step import init_state, put_state

state = init_state(init_params(range(4), 12, int(sys.argv[2]), 0.5), TrainConfig(), 20)
checkpoints = Checkpoints(Path(sys.argv[1]))
try:
    checkpoints.restore((put_state(state, training_mesh(1, 1, 1, jax.devices())),))
except UserError as error:
    print(error)
checkpoints.close()
"""


@pytest.mark.parametrize("damage", ["another dictionary size", "truncated files"])
def test_a_checkpoint_that_cannot_be_restored(store, tmp_path, damage):
    """In a process of its own: Orbax leaves coroutines behind, whose complaints would end up in other tests."""
    train(
        store,
        stack_of(CONFIG.model_copy(update={"steps": 2, "checkpoint_every": 2})),
        IMAGES,
        CONFIG.model_copy(update={"steps": 2, "checkpoint_every": 2}),
        ONE,
        tmp_path,
    )
    files = sorted((p for p in tmp_path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    if damage == "truncated files":
        for path in files[-3:]:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = alone(RESTORED, tmp_path, 36 if damage == "another dictionary size" else U)
    assert done.returncode == 0, done.stderr
    assert "checkpoint of step 2 in " in done.stdout and "Delete that folder and rerun" in done.stdout


def test_a_loss_that_is_not_finite_stops_the_run(store, tmp_path):
    wild = CONFIG.model_copy(update={"lr": 1e30, "steps": 200, "warmup": 0.0})
    with pytest.raises(
        UserError, match=r"autoencoders \[0, 1, 2, 3\] became non-finite between steps \d+ and \d+"
    ) as error:
        train(store, stack_of(wild), IMAGES, wild, ONE, tmp_path)
    first, last = map(int, re.findall(r"between steps (\d+) and (\d+)", str(error.value))[0])
    assert last - first == 4 and last <= 20  # 200 steps are logged 50 times
    assert "Lower train.lr" in str(error.value) and str(tmp_path) in str(error.value)


def test_no_checkpoint_is_made_of_a_state_that_went_wrong(store, tmp_path):
    """Between two looks at the loss (every 4 steps) a checkpoint may fall due; a rerun would start from its NaN."""
    wild = CONFIG.model_copy(update={"lr": 1e30, "steps": 200, "warmup": 0.0, "checkpoint_every": 3})
    with pytest.raises(UserError, match="non-finite"):
        train(store, stack_of(wild), IMAGES, wild, ONE, tmp_path)
    checkpoints = Checkpoints(tmp_path)
    try:
        assert checkpoints.latest() is None
    finally:
        checkpoints.close()


@pytest.mark.parametrize("value", [0.0, 3.0, 1000.1])
def test_inputs_that_do_not_vary_are_an_error(tmp_path, value):
    arrays = {name: x.astype(np.float32) for name, x in activations().items()}
    arrays[f"{HOOKS[1]}/patch"][:] = value
    with pytest.raises(UserError, match=rf"{HOOKS[1]}: the patch tokens of 50 images do not vary"):
        train(write_store(tmp_path, arrays), STACK, IMAGES, CONFIG, ONE, tmp_path / "checkpoints")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_not_finite_are_an_error(tmp_path, value):
    arrays = {name: x.astype(np.float32) for name, x in activations().items()}
    arrays[f"{HOOKS[1]}/patch"][20, 1, 3] = value
    with pytest.raises(UserError, match=rf"{HOOKS[1]}: the patch tokens hold NaN or infinity \(channel 3\)"):
        train(write_store(tmp_path, arrays), STACK, IMAGES, CONFIG, ONE, tmp_path / "checkpoints")


def test_more_kept_than_there_are(store, tmp_path):
    with pytest.raises(
        UserError, match=r"train.k is 49, but the dictionary has only 48 units \(expansion x width 12\)"
    ):
        train(
            store,
            stack_of(CONFIG.model_copy(update={"k": 49})),
            IMAGES,
            CONFIG.model_copy(update={"k": 49}),
            ONE,
            tmp_path,
        )
    everything = CONFIG.model_copy(update={"k": 48, "steps": 2})
    assert np.isfinite(train(store, stack_of(everything), IMAGES, everything, ONE, tmp_path).losses).all()


def test_too_few_tokens_is_an_error(store, tmp_path):
    with pytest.raises(UserError, match="training images have only 20 cls tokens"):
        train(store, STACK, np.arange(20), CONFIG, ONE, tmp_path)


# Metrics -------------------------------------------------------------------------------------------------------------


def test_metrics_equal_a_direct_computation(store, finished):
    """70 images: one block of 64 and one of 6."""
    images = np.arange(1, 71)
    records = held_out_metrics(store, STACK, images, finished)
    assert [(r["kind"], r["hook"]) for r in records] == STACK.tokens
    for a, record in enumerate(records):
        raw = store.read(f"{record['hook']}/{record['kind']}", images).reshape(-1, D).astype(np.float64)
        x = float(finished.norm.scale[a]) * (raw - finished.norm.mean[a].astype(np.float64))
        w_enc, b_enc, w_dec, b_dec = (np.asarray(w[a], np.float64) for w in finished.params[:4])
        pre = x @ w_enc + b_enc
        top = np.argsort(-pre, axis=1, kind="stable")[:, :K]
        z = np.zeros_like(pre)
        np.put_along_axis(z, top, np.maximum(np.take_along_axis(pre, top, axis=1), 0), axis=1)
        residual = x - (z @ w_dec + b_dec)
        explained = 1 - (residual**2).sum() / ((x - x.mean(axis=0)) ** 2).sum()
        rate = (z > 0).mean(axis=0)
        assert record["tokens"] == len(x) == 70 * (1 if record["kind"] == "cls" else 4)
        assert record["explained_variance"] == pytest.approx(explained, abs=512 * EPS)
        assert record["l0"] == pytest.approx((z > 0).sum(axis=1).mean(), abs=1e-12)
        assert record["dead"] == pytest.approx((rate == 0).mean(), abs=1e-12)
        assert record["dense"] == pytest.approx((rate > 0.01).mean(), abs=1e-12)
        assert record["final_loss"] == finished.losses[-1, a]


def test_metrics_of_a_perfect_and_of_an_empty_dictionary(store):
    """+-1 rows and k = 2 d rebuild every input exactly; an encoder that never fires explains nothing."""
    eye = np.concatenate([np.eye(D), -np.eye(D)]).astype(np.float32)
    one = Stack(HOOKS[:1], ("patch",), points(CONFIG.model_copy(update={"k": 2 * D})))
    norm = input_norm(store, one, np.arange(100), 0)
    perfect = Params(eye.T[None], np.zeros((1, 2 * D)), eye[None], np.zeros((1, D)))
    empty = perfect._replace(b_enc=np.full((1, 2 * D), -1e3))
    results = []
    for weights in (perfect, empty):
        params_ = Params(*(np.asarray(w, np.float32) for w in weights[:4]))
        nothing = np.zeros((1, 2 * D), np.float32)
        trained = Trained(norm, params_, np.zeros((1, 1)), np.zeros(1), nothing, nothing)
        results += held_out_metrics(store, one, np.arange(100), trained)
    assert results[0]["explained_variance"] == pytest.approx(1, abs=64 * EPS)
    assert results[0]["l0"] == pytest.approx(D, abs=0.01) and results[0]["dead"] == 0
    # its mean is that of all tokens, which is what the spread is measured around
    assert results[1]["explained_variance"] == pytest.approx(0, abs=512 * EPS)
    assert results[1]["l0"] == 0 and results[1]["dead"] == 1 and results[1]["dense"] == 0
