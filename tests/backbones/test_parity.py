"""ViT-B at 224 pixels beside torch: random weights built in memory, saved, loaded by us, every hook compared."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from sbm_jax.backbones import forward, load_backbone
from tests.backbones.compare import assert_same

pytestmark = pytest.mark.parity
pytest.importorskip("torch")

PATCH = {"dinov2": 14, "dinov2_with_registers": 14}
FAMILIES = (
    "clip",
    "siglip",
    "vit",
    "vit_mae",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "torchvision_vit",
)


@pytest.mark.filterwarnings("ignore")  # torch's and transformers' own
@pytest.mark.parametrize("family", FAMILIES)
def test_vit_b_matches_torch_at_every_hook(tmp_path: Path, family: str):
    if family == "torchvision_vit" and importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    from tests.backbones.torch_models import Sizes, make, save

    patch = PATCH.get(family, 16)
    # DINOv2 as released: positions of 518 pixels, stretched to 224.
    trained = 518 if patch == 14 else 224
    sizes = Sizes(width=768, layers=12, heads=12, mlp=3072, image=trained, patch=patch)
    reference = make(family, sizes)
    save(reference, tmp_path, sizes, side=224)
    pixels = np.random.default_rng(0).standard_normal((2, 224, 224, 3)).astype(np.float32)
    expected = reference.activations(pixels)
    assert len(expected) >= 12 * 3 + 2
    del reference
    backbone = load_backbone(tmp_path)
    assert (backbone.n_layers, backbone.d_model, backbone.image_size) == (12, 768, 224)
    got = jax.jit(forward, static_argnames="hooks")(backbone.model, pixels, hooks=tuple(expected))
    assert_same(got, expected)
