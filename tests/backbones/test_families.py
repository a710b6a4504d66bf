"""Every family against what torch computed for the same random weights (see make_golden.py)."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from sbm_jax.backbones import forward, forward_from, image_features, load_backbone, text_features
from sbm_jax.backbones.tables import TABLES
from sbm_jax.errors import UserError
from tests.backbones.compare import RELATIVE, assert_same

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = sorted(path.name for path in GOLDEN.iterdir())
run = jax.jit(forward, static_argnames="hooks")


def golden(family: str, side: int) -> dict[str, np.ndarray]:
    arrays = load_file(GOLDEN / family / "outputs.safetensors")
    return {name.split("/")[1]: value for name, value in arrays.items() if name.startswith(f"{side}/")}


def pixels(side: int) -> np.ndarray:
    return np.random.default_rng(side).standard_normal((2, side, side, 3)).astype(np.float32)


def test_there_is_a_golden_model_of_every_family():
    assert {json.loads((GOLDEN / name / "config.json").read_text())["model_type"] for name in FAMILIES} == set(TABLES)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_hook_matches_torch(family):
    expected = golden(family, 32)
    assert len(expected) == 3 * 3 + (3 if "projection" in expected else 2)
    backbone = load_backbone(GOLDEN / family)
    got = run(backbone.model, pixels(32), hooks=tuple(expected))
    assert_same(got, expected)
    for hook, value in got.items():
        tokens, width = backbone.hook_shape(hook)
        assert value.shape[1:] == ((width,) if tokens is None else (tokens, width)), hook


@pytest.mark.parametrize("side", [24, 56])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "torchvision_vit"])
def test_other_sizes_match_torch(family, side):
    expected = golden(family, side)
    if family != "dinov3_vit":  # whose positions act in every block
        expected = {"embed": expected["embed"]}
    backbone = load_backbone(GOLDEN / family, image_size=side)
    assert (backbone.image_size, backbone.grid) == (side, side // 8)
    assert_same(run(backbone.model, pixels(side), hooks=tuple(expected)), expected)


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov3_vit"])
def test_a_pass_continues_from_any_stream(family):
    expected = golden(family, 32)
    backbone = load_backbone(GOLDEN / family)
    hooks = tuple(h for h in expected if h.startswith(("block02", "final", "proj")))
    got = jax.jit(forward_from, static_argnames=("block", "hooks"))(backbone.model, expected["block01.resid"], 1, hooks)
    assert_same(got, {hook: expected[hook] for hook in hooks})
    last = jax.jit(forward_from, static_argnames=("block", "hooks"))(
        backbone.model, expected["block02.resid"], 2, ("final_norm",)
    )
    assert_same(last, {"final_norm": expected["final_norm"]})
    with pytest.raises(UserError, match="no hook 'embed' here"):
        forward_from(backbone.model, expected["block01.resid"], 1, ("embed",))


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2"])
def test_joint_embeddings_match_torch_and_have_unit_norm(family):
    backbone = load_backbone(GOLDEN / family)
    joint = golden(family, 32)["projection"]
    unit = joint / np.linalg.norm(joint, axis=-1, keepdims=True)
    np.testing.assert_allclose(jax.jit(image_features)(backbone.model, pixels(32)), unit, atol=RELATIVE)
    assert backbone.text is not None
    outputs = load_file(GOLDEN / family / "outputs.safetensors")
    np.testing.assert_allclose(text_features(backbone.text, outputs["ids"]), outputs["text_features"], atol=RELATIVE)
    scale = load_file(GOLDEN / family / "model.safetensors")["logit_scale"]
    assert backbone.logit_scale == pytest.approx(float(np.exp(scale).item()), rel=1e-6)
    assert (backbone.logit_bias != 0) == (family != "clip")
