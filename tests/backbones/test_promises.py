"""What every family promises beside its values: saving, facts, dtypes, cost, tokens, errors, random models."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from sbm_jax.backbones import forward, forward_from, load_backbone
from sbm_jax.backbones.configs import read_spec
from sbm_jax.backbones.describe import describe_backbone
from sbm_jax.backbones.spec import ClipSpec
from sbm_jax.backbones.tables import TABLES, build, table
from sbm_jax.backbones.weights import load_weights, save_weights
from sbm_jax.errors import UserError
from tests.backbones.compare import assert_same
from tests.backbones.random_models import write_random

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = sorted(path.name for path in GOLDEN.iterdir())
run = jax.jit(forward, static_argnames="hooks")


def golden(family: str, side: int) -> dict[str, np.ndarray]:
    arrays = load_file(GOLDEN / family / "outputs.safetensors")
    return {name.split("/")[1]: value for name, value in arrays.items() if name.startswith(f"{side}/")}


def pixels(side: int) -> np.ndarray:
    return np.random.default_rng(side).standard_normal((2, side, side, 3)).astype(np.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_saving_gives_back_every_tensor_that_was_not_ignored(family):
    tensors = load_file(GOLDEN / family / "model.safetensors")
    config = json.loads((GOLDEN / family / "config.json").read_text())
    spec = read_spec(config, family)
    rows = table(config["model_type"], spec)
    model = load_weights(build(spec), tensors, rows.rules, rows.ignored, family, rows.prefix)
    saved = save_weights(model, rows.rules)
    left_out = {name for name in tensors if name not in saved and name.removeprefix("vit.") not in saved}
    assert all("mask_token" in n or n.split(".")[0] in ("decoder", "classifier", "heads") for n in left_out)
    for name, tensor in saved.items():
        np.testing.assert_array_equal(tensor, tensors.get(name, tensors.get(f"vit.{name}")), strict=True)


@pytest.mark.parametrize("family", ["clip", "dinov2_gated", "dinov3_vit"])
def test_bfloat16_is_near_f32_and_keeps_the_stream_in_f32(family):
    exact = golden(family, 32)
    backbone = load_backbone(GOLDEN / family, dtype="bfloat16")
    got = run(backbone.model, pixels(32), hooks=tuple(exact))
    assert backbone.model.blocks[0].mlp_in.kernel.dtype == "bfloat16"
    assert backbone.model.blocks[0].norm1.scale.dtype == got["block00.resid"].dtype == got["embed"].dtype == "float32"
    # 2^-8 per rounding to 8 bits; some roundings per block, three blocks, and a gated MLP multiplies two rounded values.
    assert_same(got, exact, relative=0.06)
    with pytest.raises(AssertionError, match="first difference at embed"):
        assert_same(got, exact, relative=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_described_facts_are_those_of_the_loaded_model(family):
    facts, backbone = describe_backbone(str(GOLDEN / family), 32), load_backbone(GOLDEN / family)
    for name in ("family", "n_layers", "d_model", "image_size", "patch_size", "has_cls", "registers", "prefix_tokens"):
        assert getattr(facts, name) == getattr(backbone, name), name
    for hook in golden(family, 32):
        assert facts.hook_shape(hook) == backbone.hook_shape(hook)
    assert facts.has_cls == ("siglip" not in family)
    assert facts.registers == (4 if family in ("dinov2_with_registers", "dinov3_vit") else 0)
    assert facts.n_patches == 16 and facts.hook_shape("embed")[0] == facts.prefix_tokens + 16


@pytest.mark.parametrize("family", ["dinov2_gated", "dinov3_vit"])
def test_described_cost_is_what_the_compiler_counts(family):
    facts, backbone = describe_backbone(str(GOLDEN / family), 32), load_backbone(GOLDEN / family)
    compiled = run.lower(backbone.model, pixels(32)[:1], hooks=("block01.resid",)).compile()
    # XLA also counts norms, softmax and activations, which weigh much in so narrow a model.
    assert 1 <= compiled.cost_analysis()["flops"] / facts.flops_per_image(2) <= 2


def test_another_picture_size_is_another_identity():
    family = str(GOLDEN / "dinov2")
    assert describe_backbone(family).weights_hash == describe_backbone(family, 32).weights_hash
    assert describe_backbone(family, 24).weights_hash != describe_backbone(family).weights_hash
    assert describe_backbone(family, 24).n_patches == 9


def test_describing_needs_neither_jax_nor_transformers():
    code = (
        "import sys\nfrom sbm_jax.backbones.describe import describe_backbone\n"
        f"print(describe_backbone({str(GOLDEN / 'dinov3_vit')!r}).hook_shape('block01.mlp_hidden'))\n"
        "print({'jax', 'flax', 'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n")[:2] == ["(21, 40)", "set()"]


def test_registers_stand_between_cls_and_patches():
    backbone = load_backbone(GOLDEN / "dinov2_with_registers")
    x = np.asarray(backbone.model.embed(pixels(32)))
    np.testing.assert_array_equal(x[0, :5], x[1, :5])
    assert (np.abs(x[0, 5:] - x[1, 5:]).max(axis=1) > 0).all()
    np.testing.assert_array_equal(x[0, 1:5], backbone.model.registers[...])


def test_only_what_is_asked_for_is_computed():
    backbone = load_backbone(GOLDEN / "dinov3_vit")

    def flops(*hooks: str) -> float:
        return run.lower(backbone.model, pixels(32), hooks=hooks).compile().cost_analysis()["flops"]

    assert flops("block00.attn_out") < flops("block00.mlp_hidden") < flops("block00.resid") < flops("block01.attn_out")


def test_rotary_positions_need_every_token():
    backbone = load_backbone(GOLDEN / "dinov3_vit")
    with pytest.raises(ValueError, match="need all 21 tokens, not 20"):
        forward_from(backbone.model, np.zeros((1, 20, 16), np.float32), 0, ("block01.resid",))


@pytest.mark.parametrize(
    "hook", ["projection", "block03.attn_out", "block00.mlp", "block1.resid", "block000.mlp_hidden"]
)
def test_unknown_hooks_name_the_known_ones(hook):
    facts = describe_backbone(str(GOLDEN / "dinov2"))
    known = r"embed, block00\.resid \.\.\. block02\.resid \(and \.attn_out, \.mlp_hidden\), final_norm$"
    with pytest.raises(UserError, match=f"no hook '{hook}' here; the hooks are: {known}"):
        facts.hook_shape(hook)


@pytest.mark.parametrize("family", sorted(TABLES))
def test_random_models_of_every_family_load(tmp_path, family):
    folder = write_random(tmp_path / family, family, width=32, layers=2, image_size=24)
    backbone = load_backbone(folder)
    assert (backbone.family, backbone.d_model, backbone.n_layers, backbone.grid) == (family, 32, 2, 3)
    out = run(backbone.model, pixels(24), hooks=("embed", "block00.resid"))
    for value in out.values():
        assert np.isfinite(value).all() and 0.05 < np.std(value) < 30
    assert write_random(tmp_path / "again", family, width=32, layers=2, image_size=24)
    assert load_backbone(tmp_path / "again").weights_hash == backbone.weights_hash


def test_a_model_of_another_family_is_refused_with_all_differences(tmp_path):
    shutil.copytree(GOLDEN / "vit", tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors["decoder.mask_token"] = np.zeros((1, 1, 4), np.float32)
    tensors["pooler.dense.weight"] = np.zeros((4, 4), np.float32)
    del tensors["vit.layernorm.bias"]
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(UserError) as caught:
        load_backbone(tmp_path / "m")
    assert "2 differences" in str(caught.value)
    assert "tensor decoder.mask_token: no rule names it" in str(caught.value)
    assert "parameter post_norm.bias: no tensor layernorm.bias in the checkpoint" in str(caught.value)


def test_fused_tensors_are_checked_in_thirds(tmp_path):
    shutil.copytree(GOLDEN / "torchvision_vit", tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    name = "encoder.layers.encoder_layer_1.self_attention.in_proj_bias"
    tensors[name] = np.zeros(47, np.float32)
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(UserError, match=rf"tensor {name} -> parameter blocks\.1\.attention\.key\.bias: shape \[47\]"):
        load_backbone(tmp_path / "m")


def test_a_tensor_given_twice_is_refused(tmp_path):
    shutil.copytree(GOLDEN / "vit", tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors["layernorm.bias"] = tensors["vit.layernorm.bias"]
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(UserError, match=r"parameter post_norm\.bias has another tensor already"):
        load_backbone(tmp_path / "m")


def test_a_spec_of_two_towers_has_both():
    spec = read_spec({"model_type": "siglip"}, "here")
    assert isinstance(spec, ClipSpec) and not spec.text.causal and spec.vision.pooled
    assert nnx.eval_shape(build(spec)).logit_bias.shape == ()
