"""What is CLIP's own, and a block's laws; test_families.py compares with torch."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from sbm_jax.backbones import (
    Backbone,
    forward,
    forward_from,
    hook_name,
    load_backbone,
    text_features,
)
from sbm_jax.backbones.clip import TextTower
from sbm_jax.backbones.spec import BlockSpec, TextSpec
from sbm_jax.backbones.vit import Block
from sbm_jax.errors import UserError

GOLDEN = Path(__file__).parent / "golden" / "clip"
run = jax.jit(forward, static_argnames="hooks")
encode_text = jax.jit(text_features)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(GOLDEN)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return load_file(GOLDEN / "outputs.safetensors")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(32).standard_normal((2, 32, 32, 3)).astype(np.float32)


def test_tokens_after_the_end_change_nothing(backbone, golden):
    ids = golden["ids"].copy()
    ids[1, 5:] = 7
    np.testing.assert_array_equal(encode_text(backbone.text, ids), encode_text(backbone.text, golden["ids"]))


def test_old_configurations_pool_at_the_highest_token_id(backbone, golden):
    graph, state = nnx.split(backbone.text)
    old = nnx.merge(graph, state)
    spec = backbone.text.spec
    old.spec = TextSpec(**{**spec.__dict__, "end_token": 2})
    ids = np.where(golden["ids"] == 2, 3, golden["ids"])
    np.testing.assert_array_equal(encode_text(old, ids), encode_text(backbone.text, ids))


def test_facts_of_the_backbone(backbone):
    assert (backbone.family, backbone.name, backbone.n_layers, backbone.d_model) == ("clip", "clip", 3, 16)
    assert (backbone.image_size, backbone.patch_size, backbone.grid) == (32, 8, 4)
    assert backbone.mean == (0.48, 0.46, 0.41) and backbone.std == (0.27, 0.26, 0.28)
    assert len(backbone.weights_hash) == 64
    assert backbone.logit_scale == pytest.approx(np.exp(2.6592), rel=1e-6)


def test_patch_tokens_are_row_major(backbone):
    blank = np.zeros((1, 32, 32, 3), np.float32)
    touched = blank.copy()
    touched[0, 8:16, 24:32] = 1  # row 1, column 3 of the 4 x 4 grid
    changed = np.abs(backbone.model.embed(touched) - backbone.model.embed(blank)).max(axis=(0, 2)) > 0
    assert np.flatnonzero(changed).tolist() == [1 + 1 * 4 + 3]


def test_blocks_after_the_last_hook_are_not_run(backbone, pixels):
    lowered = [run.lower(backbone.model, pixels, hooks=(hook_name(i),)) for i in range(3)]
    products = [text.as_text().count("dot_general") for text in lowered]
    # Four projections, two attention products and two of the MLP per block.
    assert products[1] - products[0] == products[2] - products[1] == 8


@pytest.mark.parametrize("hook", ["block03.resid", "block0.resid", "block00.mlp", "block000.resid"])
def test_unknown_hook_names_the_known_ones(backbone, pixels, hook):
    with pytest.raises(UserError, match=r"block00\.resid \.\.\. block02\.resid"):
        forward(backbone.model, pixels, (hook,))


def test_hooks_before_the_start_of_forward_from_are_refused(backbone, golden):
    with pytest.raises(UserError, match=r"block02\.resid \.\.\. block02\.resid"):
        forward_from(backbone.model, golden["32/block01.resid"], 1, ("block01.resid",))


def test_wrong_sizes_are_refused(backbone):
    with pytest.raises(ValueError, match=r"\[b, 32, 32, 3\], not \[1, 24, 32, 3\]"):
        forward(backbone.model, jnp.zeros((1, 24, 32, 3)), ())
    with pytest.raises(ValueError, match="at most 10 tokens, not 11"):
        text_features(backbone.text, jnp.zeros((1, 11), jnp.int32))


def test_a_text_tower_has_gradients_for_every_parameter():
    block = BlockSpec(width=8, heads=2, mlp_width=16)
    tower = TextTower(TextSpec(block, 2, vocabulary=5, max_tokens=4, end_token=4, projection=6), nnx.Rngs(0))
    ids = jnp.array([[1, 2, 3, 4]])
    grads = jax.jit(jax.grad(lambda t: t(ids)[0, 0]))(tower)
    for path, grad in nnx.to_flat_state(nnx.state(grads)):
        if path[-2:] != ("key", "bias"):  # softmax is blind to it
            assert np.abs(grad[...]).max() > 0, path


def test_layer_scale_scales_both_branches():
    x = jax.random.normal(jax.random.key(0), (1, 3, 8))
    plain = Block(BlockSpec(width=8, heads=2, mlp_width=16), nnx.Rngs(0))
    scaled = Block(BlockSpec(width=8, heads=2, mlp_width=16, layer_scale=True), nnx.Rngs(0))
    np.testing.assert_array_equal(scaled(x), plain(x))
    scaled.scale1.set_value(jnp.zeros(8))
    expected = x + plain.mlp_out(jax.nn.gelu(plain.mlp_in(plain.norm2(x)), approximate=False))
    np.testing.assert_allclose(scaled(x), expected, rtol=1e-6, atol=1e-6)
    scaled.scale2.set_value(jnp.zeros(8))
    np.testing.assert_array_equal(scaled(x), x)
