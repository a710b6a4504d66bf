"""Reading model directories: file kinds, shards, number types, and every way the weights can fail to fit."""

import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from sbm_jax.backbones import forward, load_backbone
from sbm_jax.backbones.clip import CLIP_RULES, Clip
from sbm_jax.backbones.configs import read_spec
from sbm_jax.backbones.export import save_clip
from sbm_jax.backbones.spec import ClipSpec
from sbm_jax.backbones.weights import MAX_FAULTS, load_weights, save_weights
from sbm_jax.errors import UserError

MODEL = Path(__file__).parent / "golden" / "clip"
run = jax.jit(forward, static_argnames="hooks")
Q_PROJ = "vision_model.encoder.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODEL, tmp_path / "clip"))


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return load_file(MODEL / "model.safetensors")


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def residual(path: Path) -> np.ndarray:
    pixels = np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype(np.float32)
    return np.asarray(run(load_backbone(path).model, pixels, hooks=("block02.resid",))["block02.resid"])


def test_saving_gives_back_every_tensor(tensors):
    spec = read_spec(json.loads((MODEL / "config.json").read_text()), MODEL)
    assert isinstance(spec, ClipSpec)
    clip = load_weights(lambda: Clip(spec, nnx.Rngs(0)), tensors, CLIP_RULES, (), "golden")
    saved = save_weights(clip, CLIP_RULES)
    assert saved.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(saved[name], tensor, strict=True)


def test_an_exported_clip_loads_again(tmp_path, tensors):
    spec = read_spec(json.loads((MODEL / "config.json").read_text()), MODEL)
    assert isinstance(spec, ClipSpec)
    clip = load_weights(lambda: Clip(spec, nnx.Rngs(0)), tensors, CLIP_RULES, (), "golden")
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    save_clip(tmp_path / "out", clip, mean, std, begin_token=56, pad_token=0, dtype=np.float32)
    np.testing.assert_array_equal(residual(tmp_path / "out"), residual(MODEL))
    assert load_backbone(tmp_path / "out").mean == mean
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
    }


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_files_load_as_f32(folder, tensors, dtype):
    half = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    save_file(half, folder / "model.safetensors")
    loaded = load_backbone(folder)
    kernel = np.asarray(loaded.model.blocks[1].attention.query.kernel[...])
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, half[Q_PROJ].astype(np.float32).T)


def test_shards_equal_the_single_file(folder, tensors):
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    np.testing.assert_array_equal(residual(folder), residual(MODEL))
    assert load_backbone(folder).weights_hash != load_backbone(MODEL).weights_hash
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"names 2 files, of which missing: model-00002-of-00002\.safetensors"):
        load_backbone(folder)


def test_position_ids_of_old_files_are_ignored(folder, tensors):
    old = {**tensors, "text_model.embeddings.position_ids": np.arange(10)[None]}
    save_file(old, folder / "model.safetensors")
    np.testing.assert_array_equal(residual(folder), residual(MODEL))


def test_all_differences_come_in_one_error(folder, tensors):
    wrong = dict(tensors)
    del wrong["vision_model.pre_layrnorm.bias"]
    wrong["vision_model.encoder.layers.7.mlp.fc1.bias"] = np.zeros(64, np.float32)
    wrong["adapter.weight"] = np.zeros(3, np.float32)
    wrong[Q_PROJ] = np.zeros((24, 16), np.float32)
    wrong["logit_scale"] = np.array(3, np.int64)
    wrong["vision_model.embeddings.patch_embedding.weight"] = np.zeros((16, 3, 4, 4), np.float32)
    save_file(wrong, folder / "model.safetensors")
    with pytest.raises(UserError) as caught:
        load_backbone(folder)
    message = str(caught.value)
    assert str(folder) in message and "6 differences" in message
    assert "parameter vision.pre_norm.bias: no tensor vision_model.pre_layrnorm.bias in the checkpoint" in message
    assert "layers.7.mlp.fc1.bias: its place would be vision.blocks.7.mlp_in.bias, which this model lacks" in message
    assert "tensor adapter.weight: no rule names it" in message
    assert (
        f"tensor {Q_PROJ} -> parameter vision.blocks.1.attention.query.kernel: shape [24, 16] in the file; "
        "the parameter is [16, 16] and takes [16, 24] from it"
    ) in message
    assert "logit_scale: dtype int64, expected float16, bfloat16 or float32" in message
    assert "vision.patches.kernel: shape [16, 3, 4, 4] in the file; the parameter is [192, 16]" in message


def test_very_many_differences_are_counted_not_listed(folder, tensors):
    save_file({"other": np.zeros(1, np.float32)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=rf"\({len(tensors) + 1} differences\)") as caught:
        load_backbone(folder)
    assert f"... and {len(tensors) + 1 - MAX_FAULTS} more" in str(caught.value)


def test_missing_files_are_named(folder):
    for name in ("preprocessor_config.json", "config.json"):
        (folder / name).rename(folder / "aside")
        with pytest.raises(UserError, match=f"{name}: missing"):
            load_backbone(folder)
        (folder / "aside").rename(folder / name)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: missing; expected"):
        load_backbone(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle.*never opened.*save_pretrained"):
        load_backbone(folder)


def test_a_truncated_weight_file_is_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"model\.safetensors: not a readable safetensors file"):
        load_backbone(folder)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"model_type": "t5"}, "model_type 't5' is not supported; expected one of clip"),
        (
            "config.json",
            {"vision_config": {"image_size": 30, "patch_size": 8}},
            "image_size 30, patch_size 8",
        ),
        (
            "config.json",
            {"vision_config": {"hidden_act": "swish7"}},
            "hidden_act 'swish7' is not one of quick_gelu",
        ),
        (
            "config.json",
            {"text_config": {"num_attention_heads": 5}},
            "multiple of num_attention_heads 5|config",
        ),
        ("preprocessor_config.json", {"image_mean": [0.5]}, "expected image_mean as three numbers, got"),
        ("preprocessor_config.json", {"image_std": [0.5, 0, 0.5]}, "image_std must be positive"),
    ],
)
def test_bad_configurations_say_what_is_wrong(folder, file, changes, message):
    edit_json(folder / file, **changes)
    with pytest.raises(UserError, match=message):
        load_backbone(folder)


def test_broken_json_is_named(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not readable as JSON"):
        load_backbone(folder)


def test_names_that_are_nowhere_are_explained(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_backbone(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"hf download some-lab/no-such-clip"):
        load_backbone("some-lab/no-such-clip")


def test_a_tokenizer_is_needed_only_for_text(folder):
    loaded = load_backbone(folder)
    with pytest.raises(UserError, match=r"no tokenizer here; expected tokenizer\.json"):
        loaded.tokenize(["a face"])
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="no tokenizer that transformers can open"):
        load_backbone(folder).tokenize(["a face"])
