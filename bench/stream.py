"""`python bench/stream.py`: tokens per second that training batches are made at, from a store, beside the copy rate.

Batches are taken as fast as they come, so this is what the reader could feed; `sae_step.py` says what a step uses.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from sbm_jax.bench.common import copy_rate, median, save
from sbm_jax.sae.stream import TokenStream, batches
from sbm_jax.store.spec import StoreSpec
from sbm_jax.store.store import Store, StoreWriter

BATCH, TOKENS, REPEATS = 4096, 196, 3
CASES = ((192, 2, 2000), (768, 1, 2000), (768, 4, 1000))  # width, layers, images


def make(folder: Path, width: int, layers: int, images: int) -> Store:
    writer = StoreWriter(folder, StoreSpec("activations", 1, {}, {}))
    rng = np.random.default_rng(0)
    for layer in range(layers):
        name = f"block{layer:02d}.resid/patch"
        writer.create(name, (images, TOKENS, width), "float16", shard_rows=256, dimensions=("n", "t", "d"))
        for start in range(0, images, 256):
            count = min(256, images - start)
            writer.write(name, start, rng.standard_normal((count, TOKENS, width), np.float32).astype(np.float16))
    return writer.commit()


def rate(store: Store, width: int, layers: int, images: int) -> dict[str, Any]:
    """One epoch per sample, pools as by default; the store is in the page cache after the first."""
    hooks, taken = tuple(f"block{layer:02d}.resid" for layer in range(layers)), []
    for repeat in range(REPEATS):
        stream = TokenStream(store, hooks, "patch", np.arange(images), BATCH, 131_072, repeat)
        steps = sum(stream.batches)
        start = time.perf_counter()
        for _ in batches([stream], 0, steps):
            pass
        taken.append(steps * BATCH / (time.perf_counter() - start))
    return {
        "case": f"d={width}, {layers} layers, {images} images of {TOKENS} tokens, batches of {BATCH}",
        "tokens_per_s": median(taken),
        "megabytes_per_s": median(taken) * layers * width * 2 / 1e6,
        "samples_tokens_per_s": taken,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, help="in every store, at least 21, the tokens of one batch")
    options = parser.parse_args(argv)
    rows, ceiling = [], copy_rate()
    for width, layers, images in CASES:
        case = width, layers, options.images or images
        with tempfile.TemporaryDirectory() as folder:
            rows.append(rate(make(Path(folder) / "acts", *case), *case))
    for row in rows:
        row["of_copy_rate"] = row["megabytes_per_s"] * 1e6 / ceiling
    save("stream", {"copy_bytes_per_s": ceiling, "rows": rows})


if __name__ == "__main__":
    main()
