"""Model folders with random weights and a family's full architecture, written without torch.

`write_random(folder, "dinov2", width=64, layers=2)`, then use `folder` as backbone.path.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from sbm_jax.backbones.configs import read_spec
from sbm_jax.backbones.spec import ClipSpec
from sbm_jax.backbones.tables import build, table
from sbm_jax.backbones.weights import save_weights

_TOWERS = ("clip", "siglip", "siglip2")
_REGISTERS = {"dinov2_with_registers": 4, "dinov3_vit": 4}


def random_config(
    family: str, width: int = 64, layers: int = 2, heads: int = 2, image_size: int = 32, patch_size: int = 8
) -> dict[str, Any]:
    """A config.json of the family, with an MLP of 4 x width."""
    vision: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "image_size": image_size,
        "patch_size": patch_size,
    }
    if family in _TOWERS:
        text = {**vision, "vocab_size": 58, "max_position_embeddings": 10, "eos_token_id": 57}
        vision["num_patches"] = (image_size // patch_size) ** 2
        return {"model_type": family, "vision_config": vision, "text_config": text, "projection_dim": width}
    if family in _REGISTERS:
        vision["num_register_tokens"] = _REGISTERS[family]
    if family == "torchvision_vit":
        vision["architecture"] = "vit_b_16"
    return {"model_type": family, **vision}


def write_random(folder: Path, family: str, seed: int = 0, config: dict[str, Any] | None = None, **sizes: int) -> Path:
    """Write config.json, preprocessor_config.json and model.safetensors; returns the folder.

    sizes: width, layers, heads, image_size, patch_size of random_config, unless a whole `config` is given. Kernels are
    drawn so that activations stay of order 1, biases, norms and scales are perturbed too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = config or random_config(family, **sizes)
    spec = read_spec(config, folder / "config.json")
    graph, state = nnx.split(nnx.eval_shape(build(spec)))
    rng = np.random.default_rng(seed)
    for path, leaf in nnx.to_flat_state(state):
        leaf.set_value(_draw(rng, str(path[-1]), leaf.shape))
    model = nnx.merge(graph, state)
    vision = spec.vision if isinstance(spec, ClipSpec) else spec
    preprocessor = {
        "size": {"height": vision.image_size, "width": vision.image_size},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.25, 0.25],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor) + "\n", encoding="utf-8")
    save_file(save_weights(model, table(family, spec).rules), folder / "model.safetensors", {"format": "pt"})
    return folder


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> jax.Array:
    """Kernels that keep the size of what they multiply, gains near 1, all else near 0."""
    gain, spread = 0.0, 0.1
    if name == "kernel":
        spread = shape[0] ** -0.5
    elif name.startswith("scale"):
        gain = 1.0
    elif name in ("tokens", "cls", "registers", "positions", "probe"):
        spread = 0.5
    return jnp.asarray(gain + spread * rng.standard_normal(shape), jnp.float32)
