"""A Hugging Face model folder: where it is, its JSON files, its safetensors files. Imports neither JAX nor transformers."""

import hashlib
import json
from pathlib import Path
from typing import Any

from sbm_jax.errors import UserError


def find_folder(path_or_id: str) -> Path:
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path.resolve()
    name, _, revision = path_or_id.partition("@")
    if path.is_absolute() or name.count("/") > 1 or name.startswith((".", "~")):
        raise UserError(
            f"{path_or_id}: no such folder; expected a Hugging Face model directory with config.json and "
            "model.safetensors"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision or None, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise UserError(
            f"{path_or_id}: neither a folder here nor a model in the local Hugging Face cache (nothing is "
            f"downloaded by itself); fetch it once with `hf download {name}`, or give a model directory"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
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


# torchvision's own weights use these; its folders need no preprocessor_config.json
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def read_preprocessor(folder: Path, family: str) -> dict[str, Any]:
    """preprocessor_config.json; ImageNet's mean and std for a torchvision model without one."""
    path = folder / "preprocessor_config.json"
    if family == "torchvision_vit" and not path.is_file():
        return _IMAGENET
    return read_json(path)


def pixel_statistics(
    folder: Path, config: dict[str, Any]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """image_mean and image_std of a preprocessor's configuration, of pixels in 0..1."""
    path = folder / "preprocessor_config.json"
    found = []
    for key in ("image_mean", "image_std"):
        value = config.get(key)
        if not isinstance(value, list) or len(value) != 3 or not all(isinstance(x, int | float) for x in value):
            raise UserError(f"{path}: expected {key} as three numbers, got {value!r}")
        found.append((float(value[0]), float(value[1]), float(value[2])))
    if min(found[1]) <= 0:
        raise UserError(f"{path}: image_std must be positive, got {list(found[1])}")
    return found[0], found[1]


def processed_size(folder: Path, config: dict[str, Any]) -> int | None:
    """Side in pixels of the square pictures that a preprocessor makes, None if its configuration does not say.

    That is the crop, if it crops, otherwise the size it resizes to. Raises UserError if it is not a square.
    """
    crop, size = config.get("crop_size"), config.get("size")
    made = crop if crop is not None and config.get("do_center_crop") is not False else size
    if isinstance(made, dict):
        sides = {made[key] for key in ("height", "width", "shortest_edge") if made.get(key) is not None}
    else:
        sides = set() if made is None else {made}
    if not sides:
        return None
    side = sides.pop()
    if sides or not isinstance(side, int):
        raise UserError(f"{folder / 'preprocessor_config.json'}: expected square pictures, got {made!r}")
    return side


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model directory, in the order of their names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        shards = read_json(index).get("weight_map")
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
            f"; {', '.join(pickled)} is a pickle, which can run code and is never opened. Convert it "
            "once, with torch: AutoModel.from_pretrained(folder).save_pretrained(new_folder)"
            if pickled
            else "; expected model.safetensors or model.safetensors.index.json with its shards"
        )
    )


def hash_files(files: list[Path]) -> str:
    digests = []
    for path in files:
        with path.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
