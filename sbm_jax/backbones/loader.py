"""Pretrained backbones from Hugging Face model directories: config.json, safetensors weights, preprocessor, tokenizer."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from sbm_jax.backbones.clip import CLIP_IGNORED, CLIP_RULES, Clip, TextTower, clip_spec
from sbm_jax.backbones.vit import VisionTransformer
from sbm_jax.backbones.weights import load_weights
from sbm_jax.errors import UserError

FAMILIES = ("clip",)


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

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's own tokenizer, opened by transformers. Raises UserError if there is none."""
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder}: no tokenizer that transformers can open: {error}") from error

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids int32 [b, t], padded to the text tower's full length (one shape, so one compilation).

        Raises UserError if the backbone has no text tower. Longer texts are cut.
        """
        if self.text is None:
            raise UserError(f"{self.name}: this backbone has no text tower")
        length = self.text.spec.max_tokens
        ids = self.tokenizer(list(texts), padding="max_length", truncation=True, max_length=length)[
            "input_ids"
        ]
        return np.asarray(ids, np.int32)


def load_backbone(path_or_id: str | Path) -> Backbone:
    """Load a vision backbone from a Hugging Face model directory, in f32.

    path_or_id: a folder, or a hub name such as "openai/clip-vit-base-patch16" (or "name@revision") that is
    already in the local Hugging Face cache; nothing is downloaded. Raises UserError for a missing, unsupported
    or inconsistent model.
    """
    folder = _find_folder(str(path_or_id))
    config = _read_json(folder / "config.json")
    family = config.get("model_type")
    if family not in FAMILIES:
        raise UserError(
            f"{folder / 'config.json'}: model_type {family!r} is not supported; expected one of {', '.join(FAMILIES)}"
        )
    mean, std = _pixel_statistics(folder)
    spec = clip_spec(config, folder / "config.json")
    files = _weight_files(folder)
    with _open_tensors(files) as tensors:
        clip = load_weights(lambda: Clip(spec, nnx.Rngs(0)), tensors, CLIP_RULES, CLIP_IGNORED, str(folder))
    vision = spec.vision
    return Backbone(
        name=str(path_or_id) if not Path(path_or_id).is_dir() else folder.name,
        family=family,
        model=clip.vision,
        n_layers=vision.n_layers,
        d_model=vision.block.width,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        grid=vision.grid,
        mean=mean,
        std=std,
        weights_hash=_hash_files(files),
        folder=folder,
        text=clip.text,
        logit_scale=float(np.exp(jax.device_get(clip.logit_scale[...]))),
    )


def _find_folder(path_or_id: str) -> Path:
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path.resolve()
    name, _, revision = path_or_id.partition("@")
    if path.is_absolute() or name.count("/") > 1 or name.startswith((".", "~")):
        raise UserError(
            f"{path_or_id}: no such folder; expected a Hugging Face model directory with config.json and model.safetensors"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision or None, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise UserError(
            f"{path_or_id}: neither a folder here nor a model in the local Hugging Face cache; nothing is downloaded "
            f"by itself. Fetch it once with `hf download {name}`, or give the path of a model directory."
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: missing; a Hugging Face model directory has config.json, preprocessor_config.json and "
            "model.safetensors"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got a {type(value).__name__}")
    return value


def _pixel_statistics(folder: Path) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    path = folder / "preprocessor_config.json"
    config = _read_json(path)
    found = []
    for key in ("image_mean", "image_std"):
        value = config.get(key)
        if (
            not isinstance(value, list)
            or len(value) != 3
            or not all(isinstance(x, int | float) for x in value)
        ):
            raise UserError(f"{path}: expected {key} as three numbers, got {value!r}")
        found.append((float(value[0]), float(value[1]), float(value[2])))
    if min(found[1]) <= 0:
        raise UserError(f"{path}: image_std must be positive, got {list(found[1])}")
    return found[0], found[1]


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model directory, in the order of their names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        shards = _read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise UserError(f"{index}: expected a weight_map from tensor names to file names")
        files = [folder / Path(name).name for name in sorted(set(map(str, shards.values())))]
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise UserError(f"{index}: names {len(files)} files, of which missing: {', '.join(missing)}")
        return files
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    raise UserError(
        f"{single}: missing"
        + (
            f"; {', '.join(pickled)} is a pickle, which can run code and is never opened. Convert it once, with torch: "
            "CLIPModel.from_pretrained(folder).save_pretrained(new_folder)"
            if pickled
            else "; expected model.safetensors or model.safetensors.index.json with its shards"
        )
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


def _hash_files(files: list[Path]) -> str:
    digests = []
    for path in files:
        with path.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
