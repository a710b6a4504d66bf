"""Backbones before their training: what each family draws, that a seed repeats, and that nothing trained is left."""

from __future__ import annotations

import numpy as np
import pytest
from flax import nnx

from sbm_jax.backbones import forward, load_backbone
from sbm_jax.backbones.tables import TABLES
from sbm_jax.backbones.untrained import SCHEMES, untrained_twin
from tests.backbones.random_models import write_random

WIDTH, LAYERS = 64, 2


def parameters(backbone) -> dict[str, np.ndarray]:
    _, state = nnx.split(backbone.model)
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def test_every_family_has_a_scheme():
    assert set(SCHEMES) == set(TABLES)


@pytest.mark.parametrize("family", sorted(SCHEMES))
def test_a_seed_repeats_and_nothing_trained_is_left(family, tmp_path, rng):
    trained = load_backbone(write_random(tmp_path / family, family, width=WIDTH, layers=LAYERS))
    before = parameters(trained)
    one, again, other = (parameters(untrained_twin(trained, seed)) for seed in (3, 3, 4))
    assert set(one) == set(before)
    for name, x in one.items():
        assert x.shape == before[name].shape and x.dtype == before[name].dtype
        np.testing.assert_array_equal(x, again[name])
        last = name.rsplit(".", 1)[-1]
        if last == "bias" or (last == "cls" and family in ("vit", "torchvision_vit")):
            assert not x.any()
        elif last.startswith("scale"):
            assert (x == 1).all()
        elif last == "positions" and family == "vit_mae":  # fixed sines and cosines in the papers' model
            np.testing.assert_array_equal(x, before[name])
        else:
            assert not np.array_equal(x, other[name]) and not np.array_equal(x, before[name])
            assert abs(np.corrcoef(x.ravel(), before[name].ravel())[0, 1]) < 6 / np.sqrt(x.size)
    for name, x in parameters(trained).items():
        np.testing.assert_array_equal(x, before[name])  # the trained one is left alone
    if family not in ("clip", "dinov3_vit"):  # one of each kind of positions is enough to compile
        return
    side = trained.image_size
    pixels = rng.standard_normal((2, side, side, 3)).astype(np.float32)
    hook = ("block00.resid",)
    x, y = (np.asarray(forward(b.model, pixels, hook)[hook[0]]) for b in (trained, untrained_twin(trained, 3)))
    assert x.shape == y.shape and np.isfinite(y).all() and y.std(axis=(0, 1)).min() > 0
    assert np.abs(x - y).mean() > 0.1 * x.std()


# Standard deviations from the papers' code, for width 64 and two layers: kernels [64, 64], [64, 256] and patches [192, 64].
GLOROT = {"query": (2 / 128) ** 0.5, "out": (2 / 128) ** 0.5, "mlp_in": (2 / 320) ** 0.5, "mlp_out": (2 / 320) ** 0.5}
EXPECTED = {
    "clip": {"query": 1 / 16, "out": 1 / 8, "mlp_in": 128**-0.5, "mlp_out": 1 / 16, "patches": 0.02, "positions": 0.02},
    "siglip": {**GLOROT, "patches": 192**-0.5, "positions": 1 / 8},
    "vit": {**GLOROT, "patches": 192**-0.5, "positions": 0.02},
    "vit_mae": {**GLOROT, "patches": (2 / 256) ** 0.5},
    "dinov2": dict.fromkeys(("query", "out", "mlp_in", "mlp_out", "patches", "positions"), 0.02),
}


@pytest.mark.parametrize("family", sorted(EXPECTED))
def test_spreads_are_those_of_the_family(family, tmp_path):
    found = parameters(
        untrained_twin(load_backbone(write_random(tmp_path / family, family, width=WIDTH, layers=LAYERS)), 0)
    )
    for layer, sd in EXPECTED[family].items():
        if layer == "positions":
            x = found["positions"]
        else:
            (name,) = (
                n for n in found if f".{n}".endswith(f".{layer}.kernel") and ("blocks.1" in n or layer == "patches")
            )
            x = found[name]
        # the standard error of a standard deviation is at most sd / sqrt(2 n)
        assert abs(x.std() / sd - 1) < 5 / np.sqrt(2 * x.size)
        assert abs(x.mean()) < 5 * sd / np.sqrt(x.size)
        uniform = family == "vit_mae" or (family in ("siglip", "vit") and layer in GLOROT)
        assert (np.abs(x).max() <= 3**0.5 * sd * (1 + 1e-6)) == uniform
