"""config.json of the released models and of wrong ones, and the picture sizes that preprocessors make."""

import json
from pathlib import Path

import jax
import pytest
from flax import nnx

from sbm_jax.backbones.configs import ACTIVATION_NAMES, READERS, read_spec
from sbm_jax.backbones.describe import read_folder
from sbm_jax.backbones.folder import processed_size
from sbm_jax.backbones.spec import ClipSpec
from sbm_jax.backbones.tables import TABLES, build
from sbm_jax.backbones.vit import ACTIVATIONS
from sbm_jax.errors import UserError

L14 = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
TEXT_L = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
SMALL = {"hidden_size": 384, "num_attention_heads": 6}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}

# What the hub's config.json files say, and the released models' parameters without class heads and mask tokens.
# Counted with transformers 5.23 and torchvision 0.28.
PUBLISHED = {
    "clip-vit-base-patch16": ({"model_type": "clip", "vision_config": {"patch_size": 16}}, 149_620_737),
    "clip-vit-base-patch32": ({"model_type": "clip"}, 151_277_313),
    "clip-vit-large-patch14": (
        {
            "model_type": "clip",
            "projection_dim": 768,
            "vision_config": {**L14, "patch_size": 14},
            "text_config_dict": TEXT_L,
            "text_config": {"eos_token_id": 2},
        },
        427_616_513,
    ),
    "dinov2-small": ({"model_type": "dinov2", "image_size": 518, **SMALL}, 22_056_192),
    "dinov2-base": ({"model_type": "dinov2", "image_size": 518}, 86_579_712),
    "dinov2-large": ({"model_type": "dinov2", "image_size": 518, **LARGE}, 304_367_616),
    "dinov2-giant": (
        {
            "model_type": "dinov2",
            "image_size": 518,
            "hidden_size": 1536,
            "num_hidden_layers": 40,
            "num_attention_heads": 24,
            "use_swiglu_ffn": True,
        },
        1_136_479_232,
    ),
    "dinov2-with-registers-base": (
        {"model_type": "dinov2_with_registers", "image_size": 518, "patch_size": 14},
        86_582_784,
    ),
    "vit-mae-base": ({"model_type": "vit_mae"}, 85_798_656),
    "vit-base-patch16-224": ({"model_type": "vit"}, 85_798_656),
    "torchvision vit_b_16": ({"model_type": "torchvision_vit", "architecture": "vit_b_16"}, 85_798_656),
    "dinov3-vits16": ({"model_type": "dinov3_vit", "num_register_tokens": 4}, 21_596_160),
    "dinov3-vitb16": (
        {
            "model_type": "dinov3_vit",
            "num_register_tokens": 4,
            "hidden_size": 768,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
        },
        85_659_648,
    ),
    "siglip2-base-patch16-224": ({"model_type": "siglip", "text_config": {"vocab_size": 256000}}, 375_187_970),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_released_models_have_their_number_of_parameters(name):
    config, expected = PUBLISHED[name]
    state = nnx.state(nnx.eval_shape(build(read_spec(config, name))))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == expected


def test_every_family_has_a_table_and_every_activation_a_function():
    assert set(READERS) == set(TABLES)
    assert set(ACTIVATION_NAMES) == set(ACTIVATIONS)


def test_sizes_of_clip_l14_come_from_both_of_its_sections():
    spec = read_spec(PUBLISHED["clip-vit-large-patch14"][0], "here")
    assert isinstance(spec, ClipSpec)
    assert (spec.text.block.width, spec.text.block.heads, spec.text.end_token) == (768, 12, 2)
    assert (spec.vision.grid, spec.vision.tokens, spec.vision.embedding_width) == (16, 257, 768)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "swin"}, "model_type 'swin' is not supported; expected one of clip, dinov2"),
        ({"model_type": "vit", "hidden_act": "relu"}, "hidden_act 'relu' is not one of quick_gelu, gelu"),
        ({"model_type": "vit", "hidden_size": 100}, "hidden_size 100 is not a multiple of num_attention_heads 12"),
        ({"model_type": "vit", "num_channels": 1}, "image_size 224, patch_size 16, num_channels 1"),
        ({"model_type": "vit_mae", "image_size": 230}, "image_size 230, patch_size 16"),
        ({"model_type": "vit", "image_size": [224, 192]}, r"image_size as a whole number .* got \[224, 192\]"),
        ({"model_type": "vit", "num_hidden_layers": 0}, "num_hidden_layers as a whole number of at least 1, got 0"),
        ({"model_type": "vit", "layer_norm_eps": "small"}, "layer_norm_eps as a positive number, got 'small'"),
        ({"model_type": "dinov2", "use_swiglu_ffn": 1}, "use_swiglu_ffn as true or false, got 1"),
        ({"model_type": "dinov3_vit", "hidden_size": 36, "num_attention_heads": 6}, "heads of a multiple of 4; got 6"),
        ({"model_type": "torchvision_vit"}, "architecture None is not one of vit_b_16"),
        ({"model_type": "siglip", "vision_config": {"vision_use_head": False}}, "without its pooling head"),
        ({"model_type": "siglip", "text_config": {"projection_size": 5}}, "width 5 do not fit images' of 768"),
        ({"model_type": "siglip2", "vision_config": {"num_patches": 250}}, "num_patches 250 is not a square number"),
        ({"model_type": "clip", "vision_config": [1]}, r"expected vision_config as an object, got \[1\]"),
    ],
)
def test_what_is_not_supported_is_named(config, message):
    with pytest.raises(UserError, match=message) as caught:
        read_spec(config, Path("somewhere/config.json"))
    assert "somewhere/config.json" in str(caught.value)


def test_wrong_picture_sizes_and_dtypes_are_named():
    with pytest.raises(UserError, match="image_size 225 is not a multiple of the patch size 16"):
        read_spec({"model_type": "vit"}, "here", 225)
    with pytest.raises(UserError, match="dtype 'float16' is not one of float32, bfloat16"):
        read_spec({"model_type": "vit"}, "here", dtype="float16")


@pytest.mark.parametrize(
    ("preprocessor", "size"),
    [
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}, 224),
        ({"size": {"height": 384, "width": 384}}, 384),
        ({"size": 224, "crop_size": None}, 224),
        ({"size": 256, "crop_size": 224}, 224),
        ({"size": {"height": 256, "width": 256}, "crop_size": 224, "do_center_crop": False}, 256),
        ({"max_num_patches": 256}, None),
    ],
)
def test_the_picture_size_is_what_the_preprocessor_makes(preprocessor, size):
    assert processed_size(Path("here"), preprocessor) == size


def test_pictures_that_are_not_square_are_refused():
    with pytest.raises(UserError, match=r"preprocessor_config.json: expected square pictures"):
        processed_size(Path("here"), {"size": {"height": 224, "width": 192}})


def test_dinov2_runs_at_its_preprocessors_size(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2", "image_size": 518}))
    preprocessor = {"crop_size": {"height": 224, "width": 224}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    assert (vision := read_folder(str(tmp_path)).vision).grid == 16 and vision.trained_size == 518
    assert read_folder(str(tmp_path), 518).vision.trained_size is None


def test_a_torchvision_folder_needs_no_preprocessor(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "torchvision_vit", "architecture": "vit_l_32"}')
    folder = read_folder(str(tmp_path))
    assert (folder.mean[0], folder.std[0], folder.vision.n_layers, folder.vision.grid) == (0.485, 0.229, 24, 7)
