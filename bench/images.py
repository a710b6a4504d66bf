"""`python bench/images.py`: pictures to uint8 batches per second, by kind of file and geometry.

Ours against the obvious loop, transformers' Pillow processor, and ours in processes instead of threads. The files
are photograph-like noise, lie in the page cache, and take the bytes per picture that each row states.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
from PIL import Image
from transformers import BitImageProcessorPil, CLIPImageProcessorPil

from sbm_jax.bench.common import interleaved, median, save
from sbm_jax.images import BrickImage, Geometry, open_image, processor, square, square_batches
from sbm_jax.images.batches import available_cores

Source: TypeAlias = Path | BrickImage
COUNT, BATCH, SIDE, REPEATS = 128, 32, 224, 5
CLIP = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIDE}, "resample": 3}
DINOV2 = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "resample": 3}


def photograph(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise at several scales, stronger at the coarse ones as in photographs: uint8 [height, width, 3]."""
    total = np.zeros((height, width, 3), np.float32)
    for octave, cell in enumerate((200, 50, 12, 3)):
        coarse = rng.integers(0, 256, (height // cell + 2, width // cell + 2, 3), np.uint8)
        total += np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)) / (1 + octave)
    return ((total - total.min()) / np.ptp(total) * 255).astype(np.uint8)


def write(folder: Path) -> dict[str, list[Source]]:
    """The same number of pictures in each kind of file."""
    rng = np.random.default_rng(0)
    square_pictures = [photograph(rng, 425, 425) for _ in range(COUNT)]
    kinds: dict[str, list[Source]] = {"PNG 425x425": [], "JPEG 500x375": [], "brick 425x425": []}
    for i, picture in enumerate(square_pictures):
        Image.fromarray(picture).save(folder / f"{i}.png")
        Image.fromarray(photograph(rng, 375, 500)).save(folder / f"{i}.jpg", quality=90)
        kinds["PNG 425x425"].append(folder / f"{i}.png")
        kinds["JPEG 500x375"].append(folder / f"{i}.jpg")
        kinds["brick 425x425"].append(BrickImage(folder / "stimuli.hdf5", "imgBrick", i))
    with h5py.File(folder / "stimuli.hdf5", "w") as file:
        file["imgBrick"] = np.stack(square_pictures)
    return kinds


def bytes_per_picture(sources: Sequence[Source]) -> float:
    """On disk."""
    files = {s.path if isinstance(s, BrickImage) else s for s in sources}
    return sum(file.stat().st_size for file in files) / len(sources)


def opened(source: Source, brick: h5py.Dataset) -> Image.Image:
    """How a script would open it."""
    return Image.fromarray(brick[source.row]) if isinstance(source, BrickImage) else Image.open(source).convert("RGB")


def loop(sources: Sequence[Source], brick: h5py.Dataset) -> np.ndarray:
    """The obvious script: one picture after the other, cut to a square and resized."""
    out = []
    for source in sources:
        image = opened(source, brick)
        short = min(image.size)
        left, top = (image.width - short) // 2, (image.height - short) // 2
        image = image.crop((left, top, left + short, top + short))
        out.append(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
    return np.stack(out)


def official(made: Any, sources: Sequence[Source], brick: h5py.Dataset) -> np.ndarray:
    """transformers' processor, picture by picture, without the float arithmetic that follows the resizing."""
    pixels = [made(opened(s, brick), do_rescale=False, do_normalize=False)["pixel_values"][0] for s in sources]
    return np.stack(pixels).transpose(0, 2, 3, 1)


def ours(sources: Sequence[Source], geometry: Geometry, workers: int | None = None) -> np.ndarray:
    return np.concatenate(list(square_batches(sources, geometry, BATCH, workers)))


def one(source: Source, geometry: Geometry) -> np.ndarray:
    return geometry(open_image(source))


def row(kind: str, sources: Sequence[Source], calls: dict[str, Callable[[], np.ndarray]]) -> dict[str, Any]:
    """Pictures per second of all calls, whose results must be the same."""
    results = [call() for call in calls.values()]
    assert all(np.array_equal(result, results[0]) for result in results)
    taken = interleaved(calls, REPEATS)
    return {
        "case": kind,
        "bytes_per_picture_on_disk": round(bytes_per_picture(sources)),
        "images_per_second": {key: COUNT / median(value) for key, value in taken.items()},
        "samples": taken,
    }


def main() -> None:
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(available_cores(), get_context("spawn")) as pool:
        kinds = write(Path(name))
        rows = []
        with h5py.File(Path(name) / "stimuli.hdf5", "r") as file:
            brick: Any = file["imgBrick"]
            for kind, sources in kinds.items():
                default = square(SIDE)
                in_processes = partial(pool.map, partial(one, geometry=default), sources, chunksize=8)
                calls: dict[str, Callable[[], np.ndarray]] = {
                    "ours": partial(ours, sources, default),
                    "ours, one thread": partial(ours, sources, default, 1),
                    "ours, in processes": lambda run=in_processes: np.stack(list(run())),
                    "loop": partial(loop, sources, brick),
                }
                rows.append(row(f"{kind}, square", sources, calls))
                for title, config, made in (
                    ("CLIP's processor", CLIP, CLIPImageProcessorPil.from_dict(CLIP)),
                    ("DINOv2's processor", DINOV2, BitImageProcessorPil.from_dict(DINOV2)),
                ):
                    calls = {
                        "ours": partial(ours, sources, processor(config, SIDE)),
                        "transformers": partial(official, made, sources, brick),
                    }
                    rows.append(row(f"{kind}, {title}", sources, calls))
    sizes = {"decoded 425x425": 425 * 425 * 3, "decoded 500x375": 500 * 375 * 3, "in the batch": SIDE * SIDE * 3}
    save("images", {"workers": available_cores(), "load_before": before, "bytes_per_picture": sizes, "rows": rows})


if __name__ == "__main__":
    main()
