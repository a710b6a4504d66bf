"""Downstream fidelity: the backbone run block by block, what is replaced where, and the numbers of the tiny run."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from sbm_jax.backbones import forward, forward_from, load_backbone
from sbm_jax.demo import CLIP_FOLDER
from sbm_jax.demo.zero_shot import concept_embeddings
from sbm_jax.images import to_square
from sbm_jax.sae.model import Norm, Params
from sbm_jax.sae.stack import Point, Stack
from sbm_jax.sae.trainer import Trained
from sbm_jax.stages.fidelity import fidelity
from sbm_jax.stages.readouts import classifier

_SPEC = importlib.util.spec_from_file_location(
    "random_models_for_fidelity", Path(__file__).parents[1] / "backbones" / "random_models.py"
)
assert _SPEC and _SPEC.loader
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)
write_random = _MODULE.write_random

D, N = 16, 5
EPS = float(np.finfo(np.float32).eps)


def run_of(folder: Path, pictures: Path, hooks: tuple[str, ...], kinds: tuple[str, ...], count: int = N):
    """What `fidelity` asks of a run: pictures drawn at random, a backbone folder, settings."""
    rng = np.random.default_rng(0)
    pictures.mkdir()
    for i in range(N + 2):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(pictures / f"{i}.png")
    sources = tuple(pictures / f"{i}.png" for i in range(N + 2))
    shared = np.arange(N + 2) >= 2
    config = SimpleNamespace(
        train=SimpleNamespace(fidelity_images=count),
        backbone=SimpleNamespace(dtype="float32"),
        extract=SimpleNamespace(geometry="square"),
    )
    facts = SimpleNamespace(backbone=SimpleNamespace(path=str(folder), image_size=32))
    images = SimpleNamespace(sources=sources, shared=shared, labels={})
    ctx = SimpleNamespace(config=config, facts=facts, dataset=SimpleNamespace(images=images), devices=jax.devices()[:2])
    stack = Stack(hooks, kinds, (Point("topk", 2 * D, 0.0, 1e-3, 0, 2),))
    return ctx, stack, sources[2:]


def dictionaries(stack: Stack, perfect: bool) -> Trained:
    """+-1 rows that rebuild every input exactly, or an encoder that never fires: reconstructions are b_dec."""
    a, rng = len(stack.members), np.random.default_rng(1)
    eye = np.concatenate([np.eye(D), -np.eye(D)]).astype(np.float32)
    bias = np.zeros((a, 2 * D), np.float32) if perfect else np.full((a, 2 * D), -1e6, np.float32)
    params = Params(*(np.stack([x] * a) for x in (eye.T, bias[0], eye, np.zeros(D, np.float32))))
    norm = Norm(rng.normal(size=(a, D)).astype(np.float32), np.linspace(0.5, 2, a).astype(np.float32))
    nothing = np.zeros((a, 2 * D), np.float32)
    return Trained(norm, params, np.zeros((1, a)), np.zeros(1), nothing, nothing)


# CLS with rotary positions; no CLS, pooled; a text tower without a tokenizer
FAMILIES = {"dinov3_vit": "cls", "siglip": "", "clip": "cls"}


@pytest.mark.parametrize("family", FAMILIES)
def test_perfect_dictionaries_change_nothing(family, tmp_path):
    folder = write_random(tmp_path / "model", family, width=D, layers=2)
    kinds = ("cls", "patch") if FAMILIES[family] else ("patch",)
    ctx, stack, _ = run_of(folder, tmp_path / "pictures", ("embed", "block00.resid"), kinds)
    about, records = fidelity(ctx, stack, [dictionaries(stack, perfect=True)])
    assert about["images"] == N and about["categories"] == []
    assert about["identity"]["cosine"] == pytest.approx(1, abs=1e-6)
    for record in records:
        assert record is not None
        assert (record["together"] is None) == (len(kinds) == 1)
        for part in filter(None, (record["alone"], record["together"])):
            assert part["sae"]["cosine"] == pytest.approx(1, abs=1e-5)
            assert part["sae"]["kl"] is None and part["loss_recovered"] is None
    worst = [(r["together"] or r["alone"])["mean"]["cosine"] for r in records if r]
    assert max(worst) < 0.999, "the mean token everywhere does change the answer"


def test_what_is_replaced_is_one_kind_of_token_at_one_hook(tmp_path):
    """An encoder that never fires puts the mean token in: compared with the same done by hand in the middle of the model."""
    folder = write_random(tmp_path / "model", "dinov2_with_registers", width=D, layers=3)
    hooks = ("block00.resid", "block02.resid", "block01.attn_out")
    ctx, stack, sources = run_of(folder, tmp_path / "pictures", hooks, ("cls", "patch"))
    trained = dictionaries(stack, perfect=False)
    _, records = fidelity(ctx, stack, [trained])
    backbone = load_backbone(folder, 32)
    pixels = np.stack([to_square(Image.open(path), 32) for path in sources]) / 255.0
    x = jnp.asarray((pixels - np.array(backbone.mean)) / np.array(backbone.std), jnp.float32)
    whole = np.asarray(forward(backbone.model, x, ("final_norm",))["final_norm"][:, 0], np.float64)
    for a, (member, record) in enumerate(zip(stack.members, records, strict=True)):
        if member.hook == "block01.attn_out":
            assert record is None, "not the residual stream"
            continue
        assert record is not None
        resid = np.array(forward(backbone.model, x, (member.hook,))[member.hook])
        places = slice(0, 1) if member.kind == "cls" else slice(backbone.prefix_tokens, None)
        resid[:, places] = trained.norm.mean[a]
        after = forward_from(backbone.model, jnp.asarray(resid), int(member.hook[5:7]), ("final_norm",))
        edited = np.asarray(after["final_norm"][:, 0], np.float64)
        cosine = np.sum(whole * edited, axis=1) / np.linalg.norm(whole, axis=1) / np.linalg.norm(edited, axis=1)
        assert record["alone"]["sae"]["cosine"] == pytest.approx(cosine.mean(), abs=1e-5)
        assert record["alone"]["mean"] == pytest.approx(record["alone"]["sae"], abs=1e-6)


def test_a_classifier_answers_where_the_folder_has_one(tmp_path):
    """Logits from the CLS token after the last norm; equal embeddings answer alike."""
    folder = write_random(tmp_path / "model", "vit", width=D, layers=2)
    rng = np.random.default_rng(2)
    head = {"classifier.weight": rng.normal(size=(7, D)), "classifier.bias": rng.normal(size=7)}
    tensors = load_file(folder / "model.safetensors") | {name: x.astype(np.float32) for name, x in head.items()}
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": {"0": "tench", "1": "goldfish"}}))
    ctx, stack, _ = run_of(folder, tmp_path / "pictures", ("block00.resid",), ("cls", "patch"))
    about, records = fidelity(ctx, stack, [dictionaries(stack, perfect=True)])
    assert about["categories"] == ["tench", "goldfish", "2", "3", "4", "5", "6"]
    assert about["original"]["accuracy"] is None, "the dataset has no such labels"
    for record in filter(None, records):
        assert record["together"]["sae"]["kl"] == pytest.approx(0, abs=1e-6)
        assert record["together"]["loss_recovered"] == pytest.approx(1, abs=1e-3)
    readout = classifier(load_backbone(folder, 32))
    assert readout is not None
    x = rng.normal(size=(3, D))
    expected = x @ head["classifier.weight"].T + head["classifier.bias"]
    np.testing.assert_allclose(readout.logits(x), expected, atol=D * 8 * EPS)


# The tiny run ---------------------------------------------------------------------------------------------------------


def test_the_tiny_run_against_a_plain_computation(stores):
    """One member by hand: pictures, residual stream, NumPy codes, the rest of the CLIP, softmax over the six concepts."""
    metrics = stores.document("saes", "metrics.json")
    index, member = next(
        (i, m) for i, m in enumerate(metrics["members"]) if (m["kind"], m["hook"]) == ("patch", "block01.resid")
    )
    table = stores.table("images.csv")
    chosen = np.flatnonzero(table["shared"] == "1")
    assert metrics["fidelity"]["images"] == len(chosen)
    backbone = load_backbone(CLIP_FOLDER)
    side = backbone.image_size
    pixels = np.stack([to_square(Image.open(stores.data / table["file"][row]), side) for row in chosen]) / 255.0
    x = jnp.asarray((pixels - np.array(backbone.mean)) / np.array(backbone.std), jnp.float32)
    out = jax.jit(forward, static_argnums=2)(backbone.model, x, ("block01.resid", "projection"))
    resid = np.array(out["block01.resid"], np.float64)
    mean, scale, w_enc, b_enc, w_dec, b_dec = (
        stores.array("saes", name)[index].astype(np.float64)
        for name in ("mean", "scale", "w_enc", "b_enc", "w_dec", "b_dec")
    )
    tokens = scale * (resid[:, 1:] - mean)
    pre = tokens @ w_enc + b_enc
    kept = pre >= -np.sort(-pre, axis=2)[..., member["k"] - 1 : member["k"]]
    rebuilt = (np.where(kept, np.maximum(pre, 0), 0) @ w_dec + b_dec) / scale + mean
    edited = np.concatenate([resid[:, :1], rebuilt], axis=1).astype(np.float32)
    after = jax.jit(forward_from, static_argnums=(2, 3))(backbone.model, jnp.asarray(edited), 1, ("projection",))
    a, b = (np.asarray(e["projection"], np.float64) for e in (out, after))
    a, b = (e / np.linalg.norm(e, axis=1, keepdims=True) for e in (a, b))
    found = member["fidelity"]["alone"]
    # a token whose k-th code is almost tied may keep another unit
    assert found["sae"]["cosine"] == pytest.approx(np.sum(a * b, axis=1).mean(), abs=1e-3)
    targets = concept_embeddings(backbone).astype(np.float64)
    p, q = (backbone.logit_scale * e @ targets.T for e in (a, b))
    p, q = (np.exp(z - z.max(axis=1, keepdims=True)) for z in (p, q))
    p, q = (z / z.sum(axis=1, keepdims=True) for z in (p, q))
    kl = np.sum(p * np.log(p / q), axis=1).mean()
    assert found["sae"]["kl"] == pytest.approx(kl, rel=0.02)
    assert found["loss_recovered"] == pytest.approx(1 - found["sae"]["kl"] / found["mean"]["kl"], rel=1e-9)
    assert metrics["fidelity"]["categories"] == ["face", "body", "place", "word", "food", "object"]


def test_controls_of_the_tiny_run(stores):
    metrics = stores.document("saes", "metrics.json")
    identity = metrics["fidelity"]["identity"]
    assert identity["cosine"] == pytest.approx(1, abs=1e-6) and identity["agreement"] == 1
    assert identity["kl"] == pytest.approx(0, abs=1e-6)
    assert identity["accuracy"] == metrics["fidelity"]["original"]["accuracy"] > 1 / 6
    last = f"block{max(int(m['hook'][5:7]) for m in metrics['members']):02d}.resid"
    for member in metrics["members"]:
        found = member["fidelity"]
        if (member["kind"], member["hook"]) == ("patch", last):
            # a CLIP reads its answer off the CLS token: patches after the last block change nothing
            assert found["alone"]["mean"]["cosine"] == pytest.approx(1, abs=1e-6)
            assert found["alone"]["loss_recovered"] is None
            continue
        for part in (found["alone"], found["together"]):
            assert part["mean"]["kl"] > identity["kl"] + 1e-4 and part["mean"]["cosine"] < 1
            assert math.isfinite(part["loss_recovered"]) and part["loss_recovered"] < 1
    together = {
        (m["hook"]): [n["fidelity"]["together"] for n in metrics["members"] if n["hook"] == m["hook"]]
        for m in metrics["members"]
    }
    assert all(parts[0] == parts[1] for parts in together.values()), "both kinds at once is one number per layer"


def test_use_of_units_is_stored_beside_the_weights(stores):
    metrics = stores.document("saes", "metrics.json")
    rate, magnitude = stores.array("saes", "rate"), stores.array("saes", "magnitude")
    for a, member in enumerate(metrics["members"]):
        assert member["dead"] == pytest.approx(np.mean(rate[a] == 0), abs=1e-12)
        assert member["l0"] == pytest.approx(rate[a].sum(dtype=np.float64), rel=1e-5)
        assert ((magnitude[a] > 0) == (rate[a] > 0)).all()
        assert sum(member["magnitudes"]) == sum(member["rates"]) == (rate[a] > 0).sum()
        # 12 steps of 64 tokens are fewer than the window: nothing can have been silent for that long
        assert member["dead_in_training"] == 0 and metrics["dead_tokens"] == 20_000
    assert metrics["stability"] == [], "one seed"
