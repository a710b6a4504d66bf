"""What a model folder says about itself, without loading the model or JAX."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from sbm_jax.backbones.folder import find_folder, hash_files, read_json, weight_files
from sbm_jax.errors import UserError

# transformers' defaults of CLIPVisionConfig, for keys that old configurations leave out
_CLIP_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "image_size": 224,
    "patch_size": 32,
    "intermediate_size": 3072,
}


@dataclass(frozen=True)
class BackboneFacts:
    """Sizes and identity of a vision backbone; `path` is its folder, `n_patches` excludes the CLS token."""

    path: str
    family: str
    n_layers: int
    d_model: int
    mlp_width: int
    image_size: int
    patch_size: int
    weights_hash: str

    @property
    def n_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    def flops_per_image(self, layers: int) -> float:
        """Multiply-adds times 2 of the first `layers` blocks and the patch embedding."""
        t, d = self.n_patches + 1, self.d_model
        block = 2 * t * (4 * d * d + 2 * d * self.mlp_width) + 4 * t * t * d
        return layers * block + 2 * self.n_patches * 3 * self.patch_size**2 * d


def describe_backbone(path_or_id: str) -> BackboneFacts:
    """Read config.json and hash the configuration and the weights. Raises UserError for a folder that is no CLIP model."""
    folder = find_folder(path_or_id)
    config = read_json(folder / "config.json")
    family = config.get("model_type")
    if family != "clip":
        raise UserError(f"{folder / 'config.json'}: model_type {family!r} is not supported; expected clip")
    vision: dict[str, Any] = {**_CLIP_DEFAULTS, **(config.get("vision_config") or {})}
    preprocessor = read_json(folder / "preprocessor_config.json")
    pixels = {key: preprocessor.get(key) for key in ("image_mean", "image_std")}
    identity = json.dumps([config, pixels, hash_files(weight_files(folder))], sort_keys=True)
    return BackboneFacts(
        path=str(folder),
        family=family,
        n_layers=int(vision["num_hidden_layers"]),
        d_model=int(vision["hidden_size"]),
        mlp_width=int(vision["intermediate_size"]),
        image_size=int(vision["image_size"]),
        patch_size=int(vision["patch_size"]),
        weights_hash=hashlib.sha256(identity.encode()).hexdigest()[:16],
    )
