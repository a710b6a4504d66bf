"""The geometry that a Hugging Face image processor applies, read from its preprocessor_config.json."""

from collections.abc import Mapping
from typing import Any

from PIL.Image import Resampling

from sbm_jax.errors import UserError
from sbm_jax.images.geometry import Geometry

# What transformers' processor classes assume for keys that the file leaves out or sets to null: published files of
# CLIP and ViT have a bare "size": 224, which means the shortest edge to one class and both edges to the other.
_CROPPING: dict[str, Any] = {
    "resample": Resampling.BICUBIC,
    "size": {"shortest_edge": 224},
    "default_to_square": False,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
}
_STRETCHING: dict[str, Any] = {
    "resample": Resampling.BILINEAR,
    "size": {"height": 224, "width": 224},
    "default_to_square": True,
    "do_center_crop": False,
    "crop_size": None,
}
_CLASSES: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": _CROPPING,
    "BitImageProcessor": _CROPPING,
    "ViTImageProcessor": _STRETCHING,
    "DINOv3ViTImageProcessor": _STRETCHING,
    "SiglipImageProcessor": {**_STRETCHING, "resample": Resampling.BICUBIC, "default_to_square": False},
}
# The class of files without a type, by `model_type` of config.json.
_MODELS = {
    "clip": "CLIPImageProcessor",
    "dinov2": "BitImageProcessor",
    "dinov2_with_registers": "BitImageProcessor",
    "dinov3_vit": "DINOv3ViTImageProcessor",
    "siglip": "SiglipImageProcessor",
    "vit": "ViTImageProcessor",
    "vit_mae": "ViTImageProcessor",
}


def processor(config: Mapping[str, Any], side: int, model_type: str | None = None) -> Geometry:
    """The resizing and cropping of a preprocessor_config.json, giving uint8 [side, side, 3].

    Equal in every pixel to transformers' Pillow processors (`CLIPImageProcessorPil` and so on), before rescaling and
    normalising, which stay with the backbone. DINOv3's has no Pillow form: transformers resizes floats with torch,
    ours rounds to uint8 after resizing and differs by at most 1 of 255. `model_type` (config.json) serves old files
    that do not name their class. Raises UserError for a class or a size that is not known, or pictures of
    another size than `side`.
    """
    kind = _kind(config, model_type)
    values = {"do_resize": True, **_CLASSES[kind]}
    values |= {key: config[key] for key in values if config.get(key) is not None}
    if config.get("do_pad"):
        raise UserError("preprocessor_config.json: do_pad is not supported; use the geometry square or stretch")
    resize = _size(values["size"], values["default_to_square"], "size") if values["do_resize"] else None
    crop = bool(values["do_center_crop"])
    made = _size(values["crop_size"], True, "crop_size") if crop else resize
    if made != (side, side):
        raise UserError(
            f"preprocessor_config.json: expected pictures of {side} x {side} pixels for the backbone, found "
            f"{_said(made)}; use the geometry square or stretch, or the backbone at the processor's size"
        )
    return Geometry("processor", side, resize=resize, resample=_resample(values["resample"]), crop=crop)


def _kind(config: Mapping[str, Any], model_type: str | None) -> str:
    named = config.get("image_processor_type") or config.get("feature_extractor_type") or _MODELS.get(model_type or "")
    kind = str(named).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if kind not in _CLASSES:
        raise UserError(
            f"preprocessor_config.json: expected image_processor_type to be one of {sorted(_CLASSES)}, found {named} "
            f"(model type {model_type}); use the geometry square or stretch"
        )
    return kind


def _size(size: Any, default_to_square: bool, key: str) -> int | tuple[int, int]:
    """The shortest edge, or (height, width)."""
    if isinstance(size, int) and not isinstance(size, bool):
        found = (size, size) if default_to_square else size
    elif isinstance(size, list | tuple) and len(size) == 2:
        found = (size[0], size[1])
    elif isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        found = size["shortest_edge"]
    elif isinstance(size, Mapping) and set(size) == {"height", "width"}:
        found = (size["height"], size["width"])
    else:
        found = None
    edges = found if isinstance(found, tuple) else (found,)
    if found is None or not all(isinstance(edge, int) and edge > 0 for edge in edges):
        raise UserError(
            f"preprocessor_config.json: expected {key} to give height and width, or the shortest_edge, found {size}"
        )
    return found


def _resample(value: Any) -> Resampling:
    try:
        return Resampling(value)
    except ValueError as error:
        known = ", ".join(f"{r.value} ({r.name.lower()})" for r in Resampling)
        raise UserError(f"preprocessor_config.json: expected resample to be one of {known}, found {value}") from error


def _said(made: int | tuple[int, int] | None) -> str:
    if made is None:
        return "pictures that are neither resized nor cropped"
    return f"{made[0]} x {made[1]}" if isinstance(made, tuple) else f"a shortest edge of {made} and no crop"
