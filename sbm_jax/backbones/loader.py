"""Pretrained backbones from Hugging Face model directories (config, safetensors, preprocessor, tokenizer)."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from sbm_jax.backbones.clip import Clip, TextTower
from sbm_jax.backbones.describe import read_folder
from sbm_jax.backbones.folder import hash_files, weight_files
from sbm_jax.backbones.spec import hook_shape
from sbm_jax.backbones.tables import build, table
from sbm_jax.backbones.vit import VisionTransformer
from sbm_jax.backbones.weights import load_weights
from sbm_jax.errors import UserError


@dataclass(frozen=True)
class Backbone:
    """A loaded model: the vision tower, what its images must look like, and the text tower if it has one.

    mean, std: per channel, of pixels in 0..1. grid: patches along one side. weights_hash: sha256 of the
    safetensors file (of the shards' digests, in the order of their names, if there are several).
    """

    name: str
    family: str
    model: VisionTransformer
    n_layers: int
    d_model: int
    image_size: int
    patch_size: int
    grid: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights_hash: str
    folder: Path
    text: TextTower | None = None
    logit_scale: float = field(default=1.0)  # exp of the trained parameter: 1 / temperature
    logit_bias: float = 0.0

    @property
    def has_cls(self) -> bool:
        return self.model.spec.has_cls

    @property
    def registers(self) -> int:
        return self.model.spec.registers

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the first patch: CLS (if any) and registers."""
        return self.model.spec.prefix_tokens

    def hook_shape(self, hook: str) -> tuple[int | None, int]:
        """(tokens, width) per image of a hook; tokens is None for `projection`. Raises UserError if unknown."""
        return hook_shape(self.model.spec, hook)

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's own tokenizer, opened by transformers. Raises UserError if there is none."""
        # Without these files transformers quietly makes a CLIP tokenizer that knows no words.
        if not any((self.folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise UserError(f"{self.folder}: no tokenizer here; expected tokenizer.json (or vocab.json, merges.txt)")
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that torch is missing: it is not needed
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except Exception as error:  # damaged files surface as KeyError, TypeError and others
            raise UserError(f"{self.folder}: no tokenizer that transformers can open: {error}") from error

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids int32 [b, t], padded to the text tower's full length (one shape, so one compilation).

        Raises UserError if the backbone has no text tower. Longer texts are cut.
        """
        if self.text is None:
            raise UserError(f"{self.name}: this backbone has no text tower")
        length = self.text.spec.max_tokens
        ids = self.tokenizer(list(texts), padding="max_length", truncation=True, max_length=length)["input_ids"]
        return np.asarray(ids, np.int32)


def load_backbone(
    path_or_id: str | Path, image_size: int | None = None, dtype: Literal["float32", "bfloat16"] = "float32"
) -> Backbone:
    """Load a vision backbone from a Hugging Face model directory.

    path_or_id: a folder, or a hub name such as "openai/clip-vit-base-patch16" (or "name@revision") that is
    already in the local Hugging Face cache; nothing is downloaded. image_size: side of the pictures in pixels, a
    multiple of the patch; None for what the folder's preprocessor makes. Learned positions for another size are
    stretched as transformers does for that family. dtype: of parameters and products; LayerNorm, softmax and the
    residual stream stay f32. Raises UserError for a missing, unsupported or inconsistent model.
    """
    folder = read_folder(str(path_or_id), image_size, dtype)
    rows = table(folder.family, folder.spec)
    files = weight_files(folder.path)
    with _open_tensors(files) as tensors:
        model = load_weights(
            build(folder.spec), tensors, rows.rules, rows.ignored, str(folder.path), prefix=rows.prefix
        )
    both = model if isinstance(model, Clip) else None
    vision = folder.vision
    return Backbone(
        name=str(path_or_id) if not Path(path_or_id).is_dir() else folder.path.name,
        family=folder.family,
        model=model.vision if isinstance(model, Clip) else model,
        n_layers=vision.n_layers,
        d_model=vision.block.width,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        grid=vision.grid,
        mean=folder.mean,
        std=folder.std,
        weights_hash=hash_files(files),
        folder=folder.path,
        text=both.text if both else None,
        logit_scale=float(np.exp(jax.device_get(both.logit_scale[...]))) if both else 1.0,
        logit_bias=float(jax.device_get(both.logit_bias[...])) if both and both.logit_bias is not None else 0.0,
    )


class _Tensors(dict[str, Any]):
    """Tensor name -> array, read from its file when asked for, so that one tensor at a time is in memory."""

    def __getitem__(self, name: str) -> np.ndarray:
        return super().__getitem__(name).get_tensor(name)


@contextmanager
def _open_tensors(files: list[Path]) -> Iterator[_Tensors]:
    from safetensors import SafetensorError, safe_open

    tensors = _Tensors()
    with ExitStack() as stack:
        for path in files:
            try:
                opened = stack.enter_context(safe_open(path, framework="numpy"))
            except (OSError, SafetensorError) as error:
                raise UserError(f"{path}: not a readable safetensors file (truncated?): {error}") from error
            for name in opened.keys():  # noqa: SIM118 (safe_open is not a mapping)
                tensors[name] = opened
        yield tensors
