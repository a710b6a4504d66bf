"""What a model folder says about itself, without loading the model or JAX."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sbm_jax.backbones.configs import read_spec
from sbm_jax.backbones.folder import (
    find_folder,
    hash_files,
    pixel_statistics,
    processed_size,
    read_json,
    read_preprocessor,
    weight_files,
)
from sbm_jax.backbones.spec import ClipSpec, ModelSpec, VisionSpec, hook_shape


@dataclass(frozen=True)
class BackboneFacts:
    """Sizes and identity of a vision backbone; `path` is its folder, `spec` all that its config.json says."""

    path: str
    family: str
    spec: VisionSpec
    weights_hash: str

    @property
    def n_layers(self) -> int:
        return self.spec.n_layers

    @property
    def d_model(self) -> int:
        return self.spec.block.width

    @property
    def mlp_width(self) -> int:
        return self.spec.block.mlp_width

    @property
    def image_size(self) -> int:
        return self.spec.image_size

    @property
    def patch_size(self) -> int:
        return self.spec.patch_size

    @property
    def n_patches(self) -> int:
        """Patches of one image; CLS and registers are not counted."""
        return self.spec.grid**2

    @property
    def has_cls(self) -> bool:
        return self.spec.has_cls

    @property
    def registers(self) -> int:
        return self.spec.registers

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the first patch: CLS (if any) and registers."""
        return self.spec.prefix_tokens

    def hook_shape(self, hook: str) -> tuple[int | None, int]:
        """(tokens, width) per image of a hook; tokens is None for `projection`. Raises UserError if unknown."""
        return hook_shape(self.spec, hook)

    def flops_per_image(self, layers: int) -> float:
        """Multiply-adds times 2 of the first `layers` blocks and the patch embedding."""
        return self.spec.flops(layers)


@dataclass(frozen=True)
class ModelFolder:
    """A folder whose JSON files have been read and checked; mean and std are of pixels in 0..1."""

    path: Path
    family: str
    config: dict[str, Any]
    preprocessor: dict[str, Any]
    spec: ModelSpec
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def vision(self) -> VisionSpec:
        return self.spec.vision if isinstance(self.spec, ClipSpec) else self.spec


def read_folder(path_or_id: str, image_size: int | None = None, dtype: str = "float32") -> ModelFolder:
    """Find a model folder and read its JSON files.

    image_size: None for what its preprocessor makes. Raises UserError for an unsupported or inconsistent model.
    """
    folder = find_folder(path_or_id)
    config = read_json(folder / "config.json")
    read_spec(config, folder / "config.json")  # an unsupported family is the first thing to say
    preprocessor = read_preprocessor(folder, config["model_type"])
    mean, std = pixel_statistics(folder, preprocessor)
    side = image_size if image_size is not None else processed_size(folder, preprocessor)
    spec = read_spec(config, folder / "config.json", side, dtype)
    return ModelFolder(folder, config["model_type"], config, preprocessor, spec, mean, std)


def describe_backbone(path_or_id: str, image_size: int | None = None) -> BackboneFacts:
    """Read config.json and hash the configuration and the weights. Raises UserError for an unsupported folder."""
    folder = read_folder(path_or_id, image_size)
    pixels = {key: folder.preprocessor.get(key) for key in ("image_mean", "image_std")}
    identity: list[Any] = [folder.config, pixels, hash_files(weight_files(folder.path))]
    if folder.vision.trained_size is not None:
        identity.append(folder.vision.image_size)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return BackboneFacts(str(folder.path), folder.family, folder.vision, digest[:16])
