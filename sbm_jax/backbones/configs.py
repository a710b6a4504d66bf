"""config.json of each family -> sizes of its towers, checked. Imports neither JAX nor transformers.

Keys that a file leaves out take the defaults of transformers' configuration classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sbm_jax.backbones.spec import DTYPES, BlockSpec, ClipSpec, ModelSpec, TextSpec, VisionSpec
from sbm_jax.errors import UserError

ACTIVATION_NAMES = ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "silu")

_VIT = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
}
_DINOV2 = {**_VIT, "patch_size": 14, "mlp_ratio": 4, "layer_norm_eps": 1e-6, "use_swiglu_ffn": False}
_DINOV3 = {
    **_VIT,
    "hidden_size": 384,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "layer_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "num_register_tokens": 0,
    "query_bias": True,
    "key_bias": False,
    "value_bias": True,
    "proj_bias": True,
    "mlp_bias": True,
    "use_gated_mlp": False,
}
_CLIP_VISION = {**_VIT, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_CLIP_TEXT = {
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
_SIGLIP_VISION = {**_VIT, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "vision_use_head": True}
_SIGLIP_TEXT = {
    **{key: _SIGLIP_VISION[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
    **{key: _SIGLIP_VISION[key] for key in ("intermediate_size", "hidden_act", "layer_norm_eps")},
    "vocab_size": 32000,
    "max_position_embeddings": 64,
    "eos_token_id": 49407,
}
# hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, patch_size of torchvision's models
_TORCHVISION = {
    "vit_b_16": (768, 12, 12, 3072, 16),
    "vit_b_32": (768, 12, 12, 3072, 32),
    "vit_l_16": (1024, 24, 16, 4096, 16),
    "vit_l_32": (1024, 24, 16, 4096, 32),
    "vit_h_14": (1280, 32, 16, 5120, 14),
}


class _Sizes:
    """The keys of one (part of a) config.json over their defaults; every value is checked when it is taken."""

    def __init__(self, defaults: dict[str, Any], given: dict[str, Any], where: str):
        self.values = {**defaults, **{key: value for key, value in given.items() if value is not None}}
        self.where = where

    def count(self, key: str, least: int = 1) -> int:
        value = self.values[key]
        if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
            value = value[0]  # [height, width] of a square
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{self.where}: expected {key} as a whole number of at least {least}, got {value!r}")
        return value

    def number(self, key: str) -> float:
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise UserError(f"{self.where}: expected {key} as a positive number, got {value!r}")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.values[key]
        if not isinstance(value, bool):
            raise UserError(f"{self.where}: expected {key} as true or false, got {value!r}")
        return value

    def block(self, **options: Any) -> BlockSpec:
        """The block these sizes describe; options replace fields of BlockSpec."""
        width, heads, activation = (
            self.count("hidden_size"),
            self.count("num_attention_heads"),
            self.values["hidden_act"],
        )
        if width % heads:
            raise UserError(f"{self.where}: hidden_size {width} is not a multiple of num_attention_heads {heads}")
        if activation not in ACTIVATION_NAMES:
            raise UserError(f"{self.where}: hidden_act {activation!r} is not one of {', '.join(ACTIVATION_NAMES)}")
        biased = self.values.get("qkv_bias", True)
        fields = {
            "width": width,
            "heads": heads,
            "activation": activation,
            "eps": self.number("layer_norm_eps"),
            **dict.fromkeys(("query_bias", "key_bias", "value_bias"), biased),
            **options,
        }
        if "mlp_width" not in fields:
            fields["mlp_width"] = self.count("intermediate_size")
        return BlockSpec(**fields)

    def vision(self, block: BlockSpec, **options: Any) -> VisionSpec:
        """The vision tower these sizes describe; options replace fields of VisionSpec."""
        size, patch, channels = self.count("image_size"), self.count("patch_size"), self.values["num_channels"]
        if size % patch or channels != 3:
            raise UserError(
                f"{self.where}: expected an RGB image cut into whole patches; got image_size {size}, "
                f"patch_size {patch}, num_channels {channels}"
            )
        return VisionSpec(block, self.count("num_hidden_layers"), size, patch, **options)


def _vit(config: dict[str, Any], where: str) -> VisionSpec:
    sizes = _Sizes(_VIT, config, where)
    return sizes.vision(sizes.block())


def _dinov2(config: dict[str, Any], where: str) -> VisionSpec:
    sizes = _Sizes(_DINOV2, config, where)
    return _dinov2_tower(sizes)


def _dinov2_with_registers(config: dict[str, Any], where: str) -> VisionSpec:
    sizes = _Sizes({**_DINOV2, "patch_size": 16, "num_register_tokens": 4}, config, where)
    registers = sizes.count("num_register_tokens", least=0)
    return replace(_dinov2_tower(sizes), registers=registers, resize="bicubic_antialias")


def _dinov2_tower(sizes: _Sizes) -> VisionSpec:
    gated = sizes.flag("use_swiglu_ffn")
    mlp_width = int(sizes.count("hidden_size") * sizes.number("mlp_ratio"))
    if gated:  # two thirds, rounded up to a multiple of 8, as in the released model
        mlp_width = (int(mlp_width * 2 / 3) + 7) // 8 * 8
        sizes.values["hidden_act"] = "silu"
    return sizes.vision(sizes.block(mlp_width=mlp_width, layer_scale=True, gated=gated))


def _dinov3(config: dict[str, Any], where: str) -> VisionSpec:
    sizes = _Sizes(_DINOV3, config, where)
    biases = {f"{name}_bias": sizes.flag(f"{name}_bias") for name in ("query", "key", "value", "mlp")}
    gated = sizes.flag("use_gated_mlp")
    block = sizes.block(**biases, out_bias=sizes.flag("proj_bias"), layer_scale=True, gated=gated)
    if block.width // block.heads % 4:
        raise UserError(f"{where}: rotary positions need heads of a multiple of 4; got {block.width // block.heads}")
    registers = sizes.count("num_register_tokens", least=0)
    return sizes.vision(block, registers=registers, rope_theta=sizes.number("rope_theta"))


def _torchvision(config: dict[str, Any], where: str) -> VisionSpec:
    name = config.get("architecture")
    if name not in _TORCHVISION:
        raise UserError(f"{where}: architecture {name!r} is not one of {', '.join(_TORCHVISION)}")
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")
    known = dict(zip(keys, _TORCHVISION[name], strict=True))
    sizes = _Sizes({**_VIT, "layer_norm_eps": 1e-6, **known}, config, where)
    return sizes.vision(sizes.block())


def _part(config: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    """A tower's section; old files repeat keys in `<name>_dict`, which then hold."""
    sections = [config.get(key) or {} for key in (name, f"{name}_dict")]
    if not all(isinstance(section, dict) for section in sections):
        raise UserError(f"{where}: expected {name} as an object, got {sections[0]!r}")
    return {**sections[0], **sections[1]}


def _text(sizes: _Sizes, **options: Any) -> TextSpec:
    return TextSpec(
        block=sizes.block(),
        n_layers=sizes.count("num_hidden_layers"),
        vocabulary=sizes.count("vocab_size"),
        max_tokens=sizes.count("max_position_embeddings"),
        **options,
    )


def _clip(config: dict[str, Any], where: str) -> ClipSpec:
    top = _Sizes({"projection_dim": 512, "logit_scale_init_value": 2.6592}, config, where)
    vision = _Sizes(_CLIP_VISION, _part(config, "vision_config", where), f"{where}: vision_config")
    text = _Sizes(_CLIP_TEXT, _part(config, "text_config", where), f"{where}: text_config")
    joint = top.count("projection_dim")
    return ClipSpec(
        vision=vision.vision(vision.block(), pre_norm=True, patch_bias=False, projection=joint),
        text=_text(text, end_token=text.count("eos_token_id", least=0), projection=joint),
        logit_scale=top.number("logit_scale_init_value"),
    )


def _siglip(config: dict[str, Any], where: str) -> ClipSpec:
    return _siglip_towers(config, where, _part(config, "vision_config", where))


def _siglip2(config: dict[str, Any], where: str) -> ClipSpec:
    """The checkpoints for any aspect ratio (NaFlex), used here on squares of num_patches patches."""
    vision = _part(config, "vision_config", where)
    sizes = _Sizes({"num_patches": 256, "patch_size": 16}, vision, f"{where}: vision_config")
    patches, patch = sizes.count("num_patches"), sizes.count("patch_size")
    grid = round(patches**0.5)
    if grid**2 != patches:
        raise UserError(f"{where}: vision_config: num_patches {patches} is not a square number")
    spec = _siglip_towers(config, where, {**vision, "image_size": grid * patch})
    return replace(spec, vision=replace(spec.vision, resize="bilinear_antialias"))


def _siglip_towers(config: dict[str, Any], where: str, given: dict[str, Any]) -> ClipSpec:
    vision = _Sizes(_SIGLIP_VISION, given, f"{where}: vision_config")
    text = _Sizes(_SIGLIP_TEXT, _part(config, "text_config", where), f"{where}: text_config")
    if not vision.flag("vision_use_head"):
        raise UserError(f"{where}: vision_config: a SigLIP without its pooling head is not supported")
    width = text.values.get("projection_size") or text.values["hidden_size"]
    if width != vision.values["hidden_size"]:
        raise UserError(
            f"{where}: text embeddings of width {width} do not fit images' of {vision.values['hidden_size']}"
        )
    return ClipSpec(
        vision=vision.vision(vision.block(), has_cls=False, pooled=True),
        text=_text(text, end_token=-1, projection=width, causal=False, projection_bias=True),
        logit_bias=True,
    )


READERS: dict[str, Callable[[dict[str, Any], str], ModelSpec]] = {
    "clip": _clip,
    "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2_with_registers,
    "dinov3_vit": _dinov3,
    "siglip": _siglip,
    "siglip2": _siglip2,
    "torchvision_vit": _torchvision,
    "vit": _vit,
    "vit_mae": _vit,
}


def read_spec(
    config: dict[str, Any], path: Path | str, image_size: int | None = None, dtype: str = "float32"
) -> ModelSpec:
    """The towers that a config.json describes, for pictures of image_size pixels (None: as trained).

    path: named in errors. dtype: of parameters and products, "float32" or "bfloat16". Raises UserError for an
    unsupported family or option, sizes that do not fit together, or an image_size that is no multiple of the patch.
    """
    family = config.get("model_type")
    if family not in READERS:
        raise UserError(f"{path}: model_type {family!r} is not supported; expected one of {', '.join(READERS)}")
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    spec = READERS[family](config, str(path))
    vision = spec.vision if isinstance(spec, ClipSpec) else spec
    if image_size is not None and image_size != vision.image_size:
        if image_size < 1 or image_size % vision.patch_size:
            raise UserError(
                f"{path}: image_size {image_size} is not a multiple of the patch size {vision.patch_size}; "
                "give load_backbone (setting backbone.image_size) one that is"
            )
        vision = replace(vision, image_size=image_size, trained_size=vision.image_size)
    vision = replace(vision, block=replace(vision.block, dtype=dtype))
    if isinstance(spec, ClipSpec):
        text = replace(spec.text, block=replace(spec.text.block, dtype=dtype))
        return replace(spec, vision=vision, text=text)
    return vision
