"""Runs without an activation store: the same names and bytes of what follows, one forward pass per image and pool."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from sbm_jax.cli.main import cli
from sbm_jax.config import load_config
from sbm_jax.errors import UserError
from sbm_jax.plan import plan_lines, steps
from sbm_jax.progress import Task
from sbm_jax.sae.stream import TokenStream, array_name, batches, read_many
from sbm_jax.stages import activations, dataset, encode, extract, rdms, train
from sbm_jax.stages.activations import ForwardPass, OnlineActivations
from sbm_jax.stages.context import Context
from sbm_jax.store.store import Store

HOOKS = ("block01.resid", "block05.resid")
NAMES = [array_name(hook, kind) for hook in HOOKS for kind in ("cls", "patch")]
# Pools of 16 images of 64 patches; batches of 24 images never meet a pool's or a shard's edge.
SETTINGS = (
    "data.demo.n_shared=12",
    "data.demo.n_unique=18",
    "data.demo.n_extra=20",
    "data.demo.n_subjects=1",
    "backbone.layers=[1,5]",
    "extract.batch=24",
    "extract.shard_images=20",
    "train.steps=24",
    "train.batch=16",
    "train.pool_tokens=1024",
    "train.expansion=2",
    "train.k=4",
    "train.checkpoint_every=5",
    "train.fidelity_images=0",
    "devices=2",
)


def context(out: Path, *settings: str) -> Context:
    return Context(load_config(None, (*SETTINGS, *settings)), out)


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Context:
    """A run with an activation store, up to the codes."""
    ctx = context(tmp_path_factory.mktemp("stored"))
    for stage in (dataset, extract, train, encode):
        stage.run(ctx)
    return context(ctx.out)


@pytest.fixture
def online(stored, tmp_path):
    """`online("extract.memory_mb=0")`: a run on the same pictures that keeps no activations."""
    folder = stored.facts.demo.path(tmp_path / "stores")
    shutil.copytree(stored.facts.demo.path(stored.stores), folder)
    return lambda *settings: context(tmp_path, "extract.keep=false", *settings)


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """Images that went through the backbone, one entry per series."""
    counts: list[int] = []
    plain = activations.square_batches

    def counted(sources, *others):
        for pixels in plain(sources, *others):
            counts.append(len(pixels))
            yield pixels

    monkeypatch.setattr(activations, "square_batches", counted)
    return counts


def numbers(folder: Path) -> dict[str, bytes]:
    """Every file of a store but those that repeat the settings."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in ("config.yaml", "manifest.json")]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.mark.parametrize("memory", [0, pytest.param(4096, marks=pytest.mark.slow)])
def test_the_same_names_and_bytes_without_a_store(stored, online, memory, capsys):
    ctx = online(f"extract.memory_mb={memory}")
    assert ctx.specs == stored.specs
    train.run(ctx)
    assert "s waiting for tokens" in capsys.readouterr().err
    encode.run(ctx)
    for spec in (ctx.specs.saes, ctx.specs.codes):
        assert numbers(spec.path(ctx.stores)) == numbers(spec.path(stored.stores))
    assert list(ctx.stores.glob("activations*")) == []


class Stop(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(stored, online, monkeypatch):
    def advance(self, count: int = 1) -> None:
        self.done += count
        if self.label == "train" and self.done == 13:
            raise Stop

    ctx = online("extract.memory_mb=0")
    with monkeypatch.context() as patch:
        patch.setattr(Task, "advance", advance)
        with pytest.raises(Stop):
            train.run(ctx)
    train.run(online("extract.memory_mb=1"))
    assert numbers(ctx.specs.saes.path(ctx.stores)) == numbers(ctx.specs.saes.path(stored.stores))


@pytest.mark.parametrize(("devices", "dtype"), [(8, "float16"), (1, "float32")])
def test_numbers_do_not_depend_on_the_other_images_of_a_batch(online, devices, dtype, rng):
    forward = ForwardPass(online(f"devices={devices}", f"extract.dtype={dtype}"))
    n = forward.arrays[NAMES[0]].shape[0]

    def rows(rows_n) -> dict[str, np.ndarray]:
        parts = [values for _, values in forward.blocks(rows_n, NAMES)]
        return {name: np.concatenate([part[name] for part in parts]) for name in NAMES}

    whole = rows(range(n))
    assert whole[NAMES[0]].dtype == dtype and len(whole[NAMES[0]]) == n
    for count in (1, 23, 24, n):
        chosen = rng.permutation(n)[:count]
        for name, x in rows(chosen).items():
            np.testing.assert_array_equal(x, whole[name][chosen])


@pytest.mark.parametrize("memory", [0, 1, 4096])
def test_reads_like_the_store(stored, online, memory, rng):
    store, ctx = stored.activations, online(f"extract.memory_mb={memory}")
    acts = ctx.activations
    assert isinstance(acts, OnlineActivations)
    n = ctx.facts.n_images
    for rows in (slice(3, 9), np.array([40, 2, 2, 7]), None, rng.permutation(n), slice(5, 5), np.array([40, 2, 2, 7])):
        for name in NAMES:
            assert (acts.array(name).shape, acts.array(name).dtype) == (
                store.array(name).shape,
                store.array(name).dtype.numpy_dtype,
            )
            x = acts.read(name, rows)
            assert x.dtype == acts.array(name).dtype
            np.testing.assert_array_equal(x, store.read(name, rows))
    many = read_many(acts, NAMES, np.array([4, 30, 31]))
    for name in NAMES:
        np.testing.assert_array_equal(many[name], store.read(name, np.array([4, 30, 31])))


def test_rdm_features_are_those_of_the_store(stored, online, computed):
    ctx = online()
    got, want = rdms._features(ctx), rdms._features(stored)
    assert sum(computed) == ctx.facts.n_images
    for kind, arrays in want.items():
        np.testing.assert_array_equal(np.stack(got[kind]), np.stack(arrays))


def test_one_forward_pass_per_image_for_all_hooks(online, computed):
    acts = online("extract.memory_mb=0").activations
    images = np.arange(2, 50)
    stream = TokenStream(acts, HOOKS, "patch", images, 16, 1024, 0)
    assert len(stream.batches) == 3
    per_epoch = sum(stream.batches)
    assert len(list(batches([stream], 0, per_epoch))) == per_epoch
    assert sum(computed) == len(images)
    acts.read(NAMES[0], slice(0, 10))
    acts.read(NAMES[3], np.arange(10))
    assert sum(computed) == len(images) + 10


def test_a_pool_of_all_images_is_computed_once(online, computed):
    stream = TokenStream(online("extract.memory_mb=0").activations, HOOKS, "cls", np.arange(50), 16, 1024, 0)
    assert len(stream.batches) == 1
    assert len({x.tobytes() for x in batches([stream], 0, 12)}) == 12
    assert sum(computed) == 50


def test_kept_tokens_are_not_computed_again(online, computed):
    """1 MiB holds the CLS tokens of all images; more holds all: no image is then computed twice for any kind."""
    images = np.arange(2, 50)
    for memory, again in ((1, True), (4096, False)):
        computed.clear()
        acts = online(f"extract.memory_mb={memory}").activations
        patch, cls = (TokenStream(acts, HOOKS, kind, images, 16, 1024, 0) for kind in ("patch", "cls"))
        list(batches([patch], 0, sum(patch.batches)))
        assert sum(computed) == len(images)
        list(batches([cls], 0, 3 * sum(cls.batches)))
        assert sum(computed) == len(images)
        list(batches([patch], sum(patch.batches), 2 * sum(patch.batches)))
        assert (sum(computed) > len(images)) == again


def test_a_bad_picture_stops_the_training_by_name(online):
    ctx = online()
    source = ctx.dataset.images.sources[20]
    Path(str(source)).write_bytes(b"not a picture")
    with pytest.raises(UserError, match=Path(str(source)).name):
        train.run(ctx)


def test_extract_is_refused(online, stored, tmp_path):
    words = [word for setting in (*SETTINGS, "extract.keep=false") for word in ("--set", setting)]
    for command in (["extract"], ["run", "--stages", "extract"]):
        with pytest.raises(UserError, match=r"extract\.keep is false"):
            cli([*command, *words, "--out", str(tmp_path)], standalone_mode=False)
    # A store that is there already is used.
    assert cli(["extract", *words, "--out", str(stored.out)], standalone_mode=False) is None
    assert isinstance(context(stored.out, "extract.keep=false").activations, Store)


def test_the_plan_counts_the_passes_that_are_repeated(online, tmp_path):
    with_store, without = context(tmp_path / "new"), online("extract.memory_mb=0")
    before, after = ({step.stage: step for step in steps(ctx)} for ctx in (with_store, without))
    assert set(before) - set(after) == {"extract"}
    assert not any("activations-" in line for line in plan_lines(without, tuple(after)))
    per_image = before["extract"].flops / without.facts.n_images
    passes = (after["train"].flops - before["train"].flops) / per_image
    # statistics, held-out images, one pool of CLS tokens; 24 steps of 16 tokens are the patches of 6 images
    assert passes == pytest.approx(38 + 12 + 38 + 6)
    # every image, and before that those the controls are fitted to
    assert (after["encode"].flops - before["encode"].flops) / per_image == pytest.approx(50 + 38)
    assert after["train"].memory > before["train"].memory and after["train"].reads == 0
    # Smaller pools than the set: 384 CLS tokens are 384 images, or none where those of the statistics are kept,
    # with some of the patch tokens.
    for memory, low, high in ((0, 440, 440), (1, 50, 56)):
        ctx = online(f"extract.memory_mb={memory}", "train.pool_tokens=32")
        (train_step,) = (step for step in steps(ctx) if step.stage == "train")
        passes = (train_step.flops - before["train"].flops) / per_image
        assert low - 1e-6 < passes < high + 1e-6
    everything = {step.stage: step for step in steps(online())}
    assert everything["encode"].flops == before["encode"].flops
    assert (everything["train"].flops - before["train"].flops) / per_image == pytest.approx(50)


def test_results_of_the_forward_pass_stay_where_they_are_computed(online):
    """What is gathered would have devices wait for each other, and for a training step that another thread started."""
    forward = ForwardPass(online("devices=8"))
    side = forward.geometry.side
    out, finite = forward._compute(np.zeros((forward.batch, side, side, 3), np.uint8))
    for x in (*out.values(), finite):
        assert len(x.sharding.device_set) == 8
        assert x.addressable_shards[0].data.shape[0] == forward.batch // 8
