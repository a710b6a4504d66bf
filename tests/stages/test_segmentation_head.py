"""The segmentation head, and edits of patch units where what must happen is known."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from sbm_jax.backbones import load_backbone
from sbm_jax.errors import UserError
from sbm_jax.sae.model import Norm, Params
from sbm_jax.stages.edit_heads import middle
from sbm_jax.stages.edit_segmentation import segmentation_change
from sbm_jax.stages.editing import Editor
from sbm_jax.stages.members import Code, Member
from sbm_jax.stages.segmentation import Head, fit_head, read_head, scores

_SPEC = importlib.util.spec_from_file_location(
    "random_models_for_heads", Path(__file__).parents[1] / "backbones" / "random_models.py"
)
assert _SPEC and _SPEC.loader
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)

D, SIDE = 16, 32
HOOK = "block01.resid"


def test_the_fit_is_the_minimum(rng):
    """The float64 gradient of the penalised cross-entropy over standardised tokens vanishes; with and without scale and offset."""
    x = rng.normal(size=(300, 7)) * np.linspace(0.1, 30, 7) + np.linspace(-5, 50, 7)
    y = (x[:, 1] > np.median(x[:, 1])).astype(int) + (rng.random(300) < 0.2)
    weight, bias = fit_head(x.astype(np.float32), y, 3, 1e-2)
    spread, mean = x.std(axis=0), x.mean(axis=0)
    z, w = (x - mean) / spread, weight * spread[:, None]
    logits = x @ weight + bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    slope = z.T @ (p - np.eye(3)[y]) / len(y) + 1e-2 * w
    assert np.abs(slope).max() < 1e-3 < 0.05 < np.abs(z.T @ (1 / 3 - np.eye(3)[y]) / len(y)).max()


def test_scores_are_those_of_a_loop(rng):
    found, true = rng.integers(0, 3, (5, 4)), rng.integers(0, 3, (5, 4))
    true[2] = -1
    told = scores(found, true, ("none", "a", "b", "c"))
    pairs = [(f, t) for n in range(5) for f, t in zip(found[n], true[n], strict=True) if t >= 0]
    assert told["accuracy"] == pytest.approx(np.mean([f == t for f, t in pairs]))
    for c, name in enumerate(("none", "a", "b")):
        both = sum(f == t == c for f, t in pairs)
        assert told["iou"][name] == pytest.approx(both / sum(c in pair for pair in pairs))
    assert told["iou"]["c"] is None


@pytest.fixture(scope="module")
def editor(tmp_path_factory) -> Editor:
    """A backbone of two blocks; its dictionary at the last one has the coordinates of the stream as units, of either sign."""
    folder = _MODULE.write_random(tmp_path_factory.mktemp("heads") / "clip", "clip", width=D, layers=2)
    eye = np.concatenate([np.eye(D), -np.eye(D)]).astype(np.float32)
    params = Params(eye.T, np.zeros(2 * D, np.float32), eye, np.zeros(D, np.float32))  # pyright: ignore[reportArgumentType]
    norm = Norm(np.zeros((1, D), np.float32), np.ones(1, np.float32))  # pyright: ignore[reportArgumentType]
    member = Member(norm, params, np.zeros(2 * D, np.float32))  # pyright: ignore[reportArgumentType]
    largest = {("patch", HOOK): np.full(2 * D, 1e3)}
    return Editor(load_backbone(folder, SIDE), {("patch", HOOK): member}, Code("topk", D), largest)


def head_of(editor: Editor) -> Head:
    """Class 1 where coordinate 3 stands out among the normed ones, else class 0."""
    norm = editor.backbone.model.post_norm
    assert norm.scale is not None and norm.bias is not None
    scale, bias = np.asarray(norm.scale[...], np.float64), np.asarray(norm.bias[...], np.float64)
    weight = np.zeros((D, 2))
    weight[3, 1] = 1 / scale[3]
    return Head(("none", "a"), weight, np.array([0, -1.5 - bias[3] / scale[3]]), editor.backbone.weights_hash)


def test_edits_of_a_planted_class_meet_its_patches_alone(editor, rng):
    """Driving the coordinate that the head reads gives all chosen patches the class, and no other patch (no block follows); another
    coordinate gives it to none. Removing it takes the class away wherever it was.
    """
    head = head_of(editor)
    pixels = rng.integers(0, 255, (6, SIDE, SIDE, 3), np.uint8)
    tokens = editor.run(pixels, [()], ("final_norm",))["final_norm"][0][:, editor.prefix :]
    true = head.classes(tokens)  # what the head says is the truth here
    assert 0 < true.mean() < 1
    true[0] = 0  # an image without the class by its mask
    units = {"roi": (3,), "control": (7,)}
    found = segmentation_change(editor, head, pixels, true, 1, HOOK, units, 1.0, middle(4))
    assert middle(4) == [5, 6, 9, 10]
    assert found["roi"]["drive"]["on_target"] == 1 and found["roi"]["drive"]["off_target"] == 0
    assert found["control"]["drive"]["on_target"] == 0
    assert found["roi"]["remove"]["on_target"] == 1 and found["roi"]["remove"]["off_target"] == 0
    assert found["roi"]["remove"]["patches"] == (true[1:] == 1).sum()
    assert found["control"]["remove"]["on_target"] < 0.5


def test_a_head_comes_back_from_its_file(editor, tmp_path):
    head = head_of(editor)
    head.save(tmp_path / "deep" / "head.safetensors")
    again = read_head(tmp_path / "deep" / "head.safetensors", editor.backbone)
    assert again.names == head.names
    np.testing.assert_allclose(again.weight_dc, head.weight_dc, rtol=1e-6)
    Head(head.names, head.weight_dc, head.bias_c, "another").save(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="another backbone"):
        read_head(tmp_path / "other.safetensors", editor.backbone)
    (tmp_path / "broken.safetensors").write_bytes(b"no head")
    with pytest.raises(UserError, match="not a segmentation head"):
        read_head(tmp_path / "broken.safetensors", editor.backbone)
