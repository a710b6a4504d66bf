"""Each family built by transformers or torchvision with random weights, and its activations under our hook names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from safetensors.torch import save_file

MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
FAMILIES = (
    "clip",
    "siglip",
    "siglip2",
    "vit",
    "vit_mae",
    "dinov2",
    "dinov2_with_registers",
    "dinov2_gated",
    "dinov3_vit",
    "torchvision_vit",
)
END = 57  # of the text towers' 58 words


@dataclass(frozen=True)
class Sizes:
    """Sizes of the vision tower; text towers are as wide and have two layers."""

    width: int = 16
    layers: int = 3
    heads: int = 2
    mlp: int = 40
    image: int = 32
    patch: int = 8


@dataclass
class Reference:
    """A torch model, its blocks and final norm, and how to run and pool it."""

    model: torch.nn.Module
    blocks: Any
    norm: torch.nn.Module
    attention: str
    mlp_out: str
    run: Callable[[torch.Tensor], Any]
    pool: Callable[[torch.Tensor], torch.Tensor] | None = None

    def activations(self, pixels_bhwc: np.ndarray) -> dict[str, np.ndarray]:
        """Every hook of the vision tower for normalised f32 pixels [b, side, side, 3]."""
        out: dict[str, torch.Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            return lambda *a: out.__setitem__(name, a[-1][0] if isinstance(a[-1], tuple) else a[-1])

        handles = [self.blocks[0].register_forward_pre_hook(keep("embed"))]
        for i, block in enumerate(self.blocks):
            attention, mlp_out = block.get_submodule(self.attention), block.get_submodule(self.mlp_out)
            handles.append(attention.register_forward_hook(keep(f"block{i:02d}.attn_out")))
            handles.append(mlp_out.register_forward_pre_hook(keep(f"block{i:02d}.mlp_hidden")))
            handles.append(block.register_forward_hook(keep(f"block{i:02d}.resid")))
        with torch.no_grad():
            self.run(torch.from_numpy(pixels_bhwc.transpose(0, 3, 1, 2).copy()))
            for handle in handles:
                handle.remove()
            last = self.norm(out[f"block{len(self.blocks) - 1:02d}.resid"])
            out["final_norm"] = last
            if self.pool is not None:
                out["projection"] = self.pool(last)
        return {name: value.numpy() for name, value in out.items()}

    def text(self, ids_bt: np.ndarray) -> np.ndarray:
        """Unit-norm text embeddings of an image-text model."""
        with torch.no_grad():
            pooled: Any = self.model.get_text_features(input_ids=torch.from_numpy(ids_bt).long())
        pooled = pooled.pooler_output
        return (pooled / pooled.norm(dim=-1, keepdim=True)).numpy()


def perturb(model: torch.nn.Module, seed: int, width: int) -> None:
    """Random additions to every parameter: the default start leaves biases zero and activations near linear."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, param in model.named_parameters():
            scale = 1.5 * width**-0.5 if param.ndim > 1 else 0.4
            if name != "logit_scale":
                param.add_(torch.randn(param.shape, generator=generator) * scale)


def make(family: str, sizes: Sizes, seed: int = 0) -> Reference:
    """The family's model with random weights of a seed."""
    torch.manual_seed(seed)
    reference = _MAKERS[family](sizes)
    perturb(reference.model, seed, sizes.width)
    reference.model.eval()
    return reference


def _common(s: Sizes) -> dict[str, Any]:
    return {
        "hidden_size": s.width,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "image_size": s.image,
        "patch_size": s.patch,
    }


def _text(s: Sizes) -> dict[str, Any]:
    return {
        "hidden_size": s.width,
        "num_hidden_layers": 2,
        "num_attention_heads": s.heads,
        "intermediate_size": s.mlp,
        "vocab_size": 58,
        "max_position_embeddings": 10,
        "bos_token_id": 56,
        "eos_token_id": END,
        "pad_token_id": 0,
    }


def _clip(s: Sizes) -> Reference:
    vision = {**_common(s), "intermediate_size": s.mlp}
    m: Any = hf.CLIPModel(
        hf.CLIPConfig(vision_config=vision, text_config={**_text(s), "hidden_act": "gelu"}, projection_dim=16)
    )
    v = m.vision_model

    def pool(last: torch.Tensor) -> torch.Tensor:
        return m.visual_projection(last[:, 0])

    def run(x: torch.Tensor) -> Any:
        return v(pixel_values=x, interpolate_pos_encoding=True)

    return Reference(m, v.encoder.layers, v.post_layernorm, "self_attn", "mlp.fc2", run, pool)


def _siglip(s: Sizes) -> Reference:
    vision = {**_common(s), "intermediate_size": s.mlp}
    m: Any = hf.SiglipModel(hf.SiglipConfig(vision_config=vision, text_config=_text(s)))
    v = m.vision_model

    def run(x: torch.Tensor) -> Any:
        return v(pixel_values=x, interpolate_pos_encoding=True)

    return Reference(m, v.encoder.layers, v.post_layernorm, "self_attn", "mlp.fc2", run, v.head)


def _siglip2(s: Sizes) -> Reference:
    vision = {**_common(s), "intermediate_size": s.mlp, "num_patches": (s.image // s.patch) ** 2}
    del vision["image_size"]
    m: Any = hf.Siglip2Model(hf.Siglip2Config(vision_config=vision, text_config=_text(s)))
    v = m.vision_model

    def run(x: torch.Tensor) -> Any:
        b, c, side, _ = x.shape
        g, p = side // s.patch, s.patch
        patches = x.reshape(b, c, g, p, g, p).permute(0, 2, 4, 3, 5, 1).reshape(b, g * g, p * p * c)
        mask = torch.ones(b, g * g, dtype=torch.int64)
        return v(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=torch.full((b, 2), g))

    def pool(last: torch.Tensor) -> torch.Tensor:
        return v.head(last, None)

    return Reference(m, v.encoder.layers, v.post_layernorm, "self_attn", "mlp.fc2", run, pool)


def _vit(s: Sizes) -> Reference:
    m: Any = hf.ViTForImageClassification(hf.ViTConfig(**_common(s), intermediate_size=s.mlp))

    def run(x: torch.Tensor) -> Any:
        return m(pixel_values=x, interpolate_pos_encoding=True)

    return Reference(m, m.vit.layers, m.vit.layernorm, "attention", "mlp.fc2", run)


def _mae(s: Sizes) -> Reference:
    decoder: dict[str, Any] = {
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 16,
    }
    config = hf.ViTMAEConfig(**_common(s), intermediate_size=s.mlp, mask_ratio=0.0, **decoder)
    m: Any = hf.ViTMAEForPreTraining(config)

    def run(x: torch.Tensor) -> Any:
        patches = (x.shape[-1] // s.patch) ** 2
        order = torch.arange(patches).float().expand(len(x), -1)  # without it the patches come shuffled
        return m.vit(pixel_values=x, noise=order, interpolate_pos_encoding=True)

    return Reference(m, m.vit.layers, m.vit.layernorm, "attention", "mlp.fc2", run)


def _dinov2(s: Sizes) -> Reference:
    m: Any = hf.Dinov2Model(hf.Dinov2Config(**_common(s), mlp_ratio=2))
    return Reference(m, m.encoder.layer, m.layernorm, "attention", "mlp.fc2", m)


def _dinov2_gated(s: Sizes) -> Reference:
    m: Any = hf.Dinov2Model(hf.Dinov2Config(**_common(s), mlp_ratio=2, use_swiglu_ffn=True))
    return Reference(m, m.encoder.layer, m.layernorm, "attention", "mlp.down_proj", m)


def _registers(s: Sizes) -> Reference:
    m: Any = hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**_common(s), mlp_ratio=2))
    return Reference(m, m.encoder.layer, m.layernorm, "attention", "mlp.fc2", m)


def _dinov3(s: Sizes) -> Reference:
    config = hf.DINOv3ViTConfig(**_common(s), intermediate_size=s.mlp, num_register_tokens=4)
    m: Any = hf.DINOv3ViTModel(config)
    return Reference(m, m.model.layer, m.norm, "attention", "mlp.down_proj", m)


def _torchvision(s: Sizes) -> Reference:
    from torchvision.models.vision_transformer import VisionTransformer

    m: Any = VisionTransformer(s.image, s.patch, s.layers, s.heads, s.width, s.mlp, num_classes=3)
    return Reference(m, m.encoder.layers, m.encoder.ln, "self_attention", "mlp.3", m)


_MAKERS: dict[str, Callable[[Sizes], Reference]] = {
    "clip": _clip,
    "siglip": _siglip,
    "siglip2": _siglip2,
    "vit": _vit,
    "vit_mae": _mae,
    "dinov2": _dinov2,
    "dinov2_gated": _dinov2_gated,
    "dinov2_with_registers": _registers,
    "dinov3_vit": _dinov3,
    "torchvision_vit": _torchvision,
}


def save(reference: Reference, folder: Path, sizes: Sizes, side: int) -> None:
    """Write the model's folder; its preprocessor makes pictures of `side` pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    model: Any = reference.model
    if isinstance(model, hf.PreTrainedModel):
        model.save_pretrained(folder)
    else:
        save_file(model.state_dict(), folder / "model.safetensors")
        config = {"model_type": "torchvision_vit", "architecture": "vit_b_16", **_common(sizes)}
        (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": sizes.mlp}, indent=1) + "\n")
    size = {"height": side, "width": side}
    preprocessor = {"crop_size": size, "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor) + "\n")
