"""Write a CLIP as an ordinary Hugging Face model directory, through the table of names that reads one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from sbm_jax.backbones.clip import CLIP_RULES, Clip
from sbm_jax.backbones.spec import BlockSpec, ClipSpec
from sbm_jax.backbones.weights import save_weights


def save_clip(
    folder: Path,
    clip: Clip,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    begin_token: int,
    pad_token: int,
    dtype: np.typing.DTypeLike = np.float16,
) -> None:
    """Write config.json, preprocessor_config.json and model.safetensors; each file replaces an old one whole.

    mean, std: per channel, of pixels in 0..1. The tokenizer's files are the caller's. The end token is in the
    model's own spec. Old transformers read an end token of 2 as "the highest id", so choose another number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokens = {"bos_token_id": begin_token, "pad_token_id": pad_token}
    _write_json(folder / "config.json", _config(clip.spec, tokens, np.dtype(dtype).name))
    side = clip.spec.vision.image_size
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    _write_json(folder / "preprocessor_config.json", preprocessor)
    partial = folder / "model.safetensors.partial"
    # The key "format" is what transformers asks of a safetensors file.
    partial.write_bytes(save(save_weights(clip, CLIP_RULES, dtype), metadata={"format": "pt"}))
    partial.replace(folder / "model.safetensors")


def _config(spec: ClipSpec, tokens: dict[str, int], dtype: str) -> dict[str, Any]:
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "dtype": dtype,
        "projection_dim": spec.text.projection,
        "logit_scale_init_value": spec.logit_scale,
        "vision_config": {
            "model_type": "clip_vision_model",
            **_tower(spec.vision.block, spec.vision.n_layers),
            "image_size": spec.vision.image_size,
            "patch_size": spec.vision.patch_size,
            "num_channels": 3,
            "projection_dim": spec.vision.projection,
        },
        "text_config": {
            "model_type": "clip_text_model",
            **_tower(spec.text.block, spec.text.n_layers),
            "vocab_size": spec.text.vocabulary,
            "max_position_embeddings": spec.text.max_tokens,
            "eos_token_id": spec.text.end_token,
            **tokens,
            "projection_dim": spec.text.projection,
        },
    }


def _tower(block: BlockSpec, n_layers: int) -> dict[str, Any]:
    return {
        "hidden_size": block.width,
        "intermediate_size": block.mlp_width,
        "num_hidden_layers": n_layers,
        "num_attention_heads": block.heads,
        "hidden_act": block.activation,
        "layer_norm_eps": block.eps,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
