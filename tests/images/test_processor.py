"""Each processor's geometry: equal in every pixel to transformers' Pillow processors for the published files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sbm_jax.errors import UserError
from sbm_jax.images import normalise, processor, square, stretch

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
HALF = [0.5, 0.5, 0.5]
SQUARE_224 = {"height": 224, "width": 224}

# The preprocessor_config.json of the named models as published on the hub, the old spellings among them.
PUBLISHED: dict[str, dict[str, Any]] = {
    "openai/clip-vit-base-patch32": {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "resample": 3,
        "size": 224,
    },
    "facebook/dinov2-base": {
        "crop_size": SQUARE_224,
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": IMAGENET_MEAN,
        "image_processor_type": "BitImageProcessor",
        "image_std": IMAGENET_STD,
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 256},
    },
    "google/vit-base-patch16-224": {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": HALF,
        "image_processor_type": "ViTFeatureExtractor",
        "image_std": HALF,
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": SQUARE_224,
    },
    "facebook/vit-mae-base": {
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "ViTFeatureExtractor",
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
        "resample": 2,
        "size": 224,
    },
    "google/siglip-base-patch16-224": {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": HALF,
        "image_processor_type": "SiglipImageProcessor",
        "image_std": HALF,
        "processor_class": "SiglipProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": SQUARE_224,
    },
    "google/siglip2-base-patch16-224": {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": HALF,
        "image_processor_type": "SiglipImageProcessor",
        "image_std": HALF,
        "processor_class": "SiglipProcessor",
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": SQUARE_224,
    },
    "facebook/dinov3-vitb16-pretrain-lvd1689m": {
        "crop_size": None,
        "data_format": "channels_first",
        "default_to_square": True,
        "do_center_crop": None,
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": IMAGENET_MEAN,
        "image_processor_type": "DINOv3ViTImageProcessorFast",
        "image_std": IMAGENET_STD,
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": SQUARE_224,
    },
}
# DINOv3 has no Pillow class; its values in ViT's, which resizes as it does.
PIL_CLASS = {"clip": "CLIP", "dinov2": "Bit", "vit": "ViT", "siglip": "Siglip", "siglip2": "Siglip", "dinov3": "ViT"}
SIZES = [(425, 425), (224, 224), (375, 500), (500, 375), (223, 225), (1, 1), (1, 40), (37, 5), (801, 1203), (640, 131)]


def official(config: dict[str, Any]) -> Any:
    """transformers' processor of a file, giving bytes."""
    model = next(name for name, c in PUBLISHED.items() if c is config).split("/")[1].split("-")[0]
    made = getattr(transformers, f"{PIL_CLASS[model]}ImageProcessorPil").from_dict(config)

    def call(picture: Image.Image) -> np.ndarray:
        pixels = np.asarray(made(picture, do_rescale=False, do_normalize=False)["pixel_values"][0])
        return pixels.transpose(1, 2, 0)

    return call


def noise(seed: int, height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_processors_pixel_for_pixel(model):
    theirs, ours = official(PUBLISHED[model]), processor(PUBLISHED[model], 224)
    for height, width in SIZES:
        picture = noise(height, height, width)
        expected = theirs(picture)
        assert expected.dtype == np.uint8 and expected.shape == (224, 224, 3)
        np.testing.assert_array_equal(ours(picture), expected, err_msg=f"{model} of {height} x {width}")


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from(["shortest_edge", "height and width", "none"]),
    st.integers(1, 50),
    st.integers(1, 50),
    st.sampled_from(list(Image.Resampling)),
)
def test_any_size_crop_and_filter_pixel_for_pixel(height, width, how, edge, side, resample):
    config = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": how != "none",
        "size": {"shortest_edge": edge} if how == "shortest_edge" else {"height": edge, "width": edge + 3},
        "crop_size": {"height": side, "width": side},
        "resample": int(resample),
    }
    picture = noise(edge, height, width)
    made = transformers.CLIPImageProcessorPil.from_dict(config)
    pixels = np.asarray(made(picture, do_rescale=False, do_normalize=False)["pixel_values"][0])
    np.testing.assert_array_equal(processor(config, side)(picture), pixels.transpose(1, 2, 0))


def test_normalised_values_are_those_of_the_processor():
    config = PUBLISHED["openai/clip-vit-base-patch32"]
    picture = noise(0, 300, 425)
    pixels = np.asarray(transformers.CLIPImageProcessorPil.from_dict(config)(picture)["pixel_values"][0])
    ours = normalise(processor(config, 224)(picture)[None], tuple(CLIP_MEAN), tuple(CLIP_STD))[0]
    np.testing.assert_allclose(ours, pixels.transpose(1, 2, 0), atol=1e-6)


def test_dinov3_is_within_one_level_of_the_float_processor():
    """Golden file of make_dinov3_golden.py: transformers resizes floats and clips nothing; ours rounds to bytes."""
    with np.load(Path(__file__).parent / "golden" / "dinov3.npz", allow_pickle=False) as golden:
        arrays = dict(golden)
    config = {**PUBLISHED["facebook/dinov3-vitb16-pretrain-lvd1689m"], "size": {"height": 32, "width": 32}}
    for i in range(len(arrays) // 2):
        ours = processor(config, 32)(Image.fromarray(arrays[f"picture_{i}"]))
        difference = np.abs(ours - arrays[f"pixels_{i}"])
        assert difference.max() <= 1.0 and difference.mean() < 0.4


def agreeing(height: int, width: int) -> set[str]:
    picture = noise(1, height, width)
    expected = square(224)(picture)
    return {m for m, config in PUBLISHED.items() if np.array_equal(processor(config, 224)(picture), expected)}


def test_where_the_default_geometry_is_the_processors_own():
    bicubic = {"openai/clip-vit-base-patch32", "google/siglip-base-patch16-224"}
    assert agreeing(425, 425) == bicubic  # a square picture: the bicubic processors without a margin
    assert agreeing(96, 96) == bicubic
    assert agreeing(224, 224) == set(PUBLISHED) - {"facebook/dinov2-base"}  # nothing to resize; DINOv2 cuts a margin
    assert agreeing(224, 301) == {"openai/clip-vit-base-patch32"}  # the short edge fits: a crop alone
    assert agreeing(375, 500) == set()


def test_stretch_is_the_vit_processor():
    picture = noise(2, 375, 500)
    expected = processor(PUBLISHED["google/vit-base-patch16-224"], 224)(picture)
    np.testing.assert_array_equal(stretch(224, Image.Resampling.BILINEAR)(picture), expected)


def test_a_file_without_a_class_takes_that_of_the_model_type():
    bare = {"do_normalize": True, "do_resize": True, "image_mean": HALF, "image_std": HALF, "size": 224}
    assert processor(bare, 224, "vit") == processor(PUBLISHED["google/vit-base-patch16-224"], 224)
    assert processor({}, 224, "clip") == processor(PUBLISHED["openai/clip-vit-base-patch32"], 224)
    with pytest.raises(UserError, match=r"image_processor_type to be one of .*found None \(model type None\)"):
        processor(bare, 224)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_processor_type": "Siglip2ImageProcessor"}, "found Siglip2ImageProcessor"),
        ({"crop_size": 336}, "expected pictures of 224 x 224 .*found 336 x 336"),
        ({"do_center_crop": False}, "found a shortest edge of 256 and no crop"),
        ({"do_center_crop": False, "do_resize": False}, "neither resized nor cropped"),
        ({"do_center_crop": False, "size": [224, 200]}, "found 224 x 200"),
        ({"size": {"shortest_edge": 256, "longest_edge": 512}}, "expected size to give height and width"),
        ({"size": {"height": 0, "width": 224}}, "expected size to give height and width"),
        ({"crop_size": "224"}, "expected crop_size to give height and width"),
        ({"resample": 9}, r"one of 0 \(nearest\).*found 9"),
        ({"do_pad": True}, "do_pad is not supported"),
    ],
)
def test_what_cannot_be_reproduced_is_refused(change, message):
    with pytest.raises(UserError, match=f"preprocessor_config.json: .*{message}"):
        processor({**PUBLISHED["facebook/dinov2-base"], **change}, 224)
