"""`python bench/exemplars.py [--units 10240] [--images 50000] [--side 7] [--width 128] [--top 20]`: the pass of `exemplars`.

Activations are made as they are needed, in the order of the rows. All units of one dictionary are wanted. After every tenth of
the pass some of the same activations are pooled as `encode` does it for `patch_max`, in its own batches and in those of the pass,
so that all meet the same machine; the time to make activations is in none of them.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from sbm_jax.bench.common import gemm_rate, median, save
from sbm_jax.config import EncodeConfig
from sbm_jax.config_meaning import ExemplarsConfig
from sbm_jax.mesh import make_mesh, use_cpu_cores
from sbm_jax.progress import log
from sbm_jax.sae.model import Norm, Params
from sbm_jax.stages.encode import pooled_codes
from sbm_jax.stages.exemplar_search import TopLists
from sbm_jax.stages.exemplars import Dictionary, batch_images, everywhere, search
from sbm_jax.stages.members import Code, Member

SEGMENTS = 10
ENCODED = 400  # images of a segment


def member(width: int, units: int) -> Member:
    """Random unit rows, decoder and encoder the same."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((units, width)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    zeros = np.zeros
    norm = Norm(zeros((1, width), np.float32), np.ones(1, np.float32))  # pyright: ignore
    params = Params(rows.T.copy(), zeros(units, np.float32), rows, zeros(width, np.float32))  # pyright: ignore
    return Member(norm, params, zeros(units, np.float32))  # pyright: ignore


class Stream:
    """Images of tokens around a direction of their own, made when asked for; `others` is called with the activations of every
    segment when the device has nothing else to do. seconds: per segment of the search, per segment of making.
    """

    def __init__(self, images: int, tokens: int, width: int, block: int, others: Any):
        self.ids, self.block, self.others = range(images), block, others
        self.shape = (tokens, width)
        self.seconds: dict[str, list[float]] = {"search": [], "made": []}

    def make(self, start: int) -> np.ndarray:
        """float16 [b, t, d] of the images from `start`, the same at every call."""
        rng = np.random.default_rng([1, start])
        n = min(self.block, len(self.ids) - start)
        x = rng.standard_normal((n, *self.shape), np.float32)
        x += rng.standard_normal((n, 1, self.shape[1]), np.float32)
        return x.astype(np.float16)

    def blocks(self, names: Sequence[str]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        starts = range(0, len(self.ids), self.block)
        edges = {starts[i] for i in np.linspace(0, len(starts), SEGMENTS + 1).astype(int)[1:-1]}
        making, waited, since, segment = 0.0, 0.0, time.perf_counter(), []

        def end_segment() -> None:
            nonlocal making, waited, since, segment
            jax.block_until_ready(jax.live_arrays())
            self.seconds["search"].append(time.perf_counter() - since - making - waited)
            self.seconds["made"].append(making)
            log(
                f"exemplars: {segment[-1]:,} images, {len(segment) * self.block / self.seconds['search'][-1]:,.0f} images/s"
            )
            self.others(self, segment)
            making, waited, since, segment = 0.0, 0.0, time.perf_counter(), []

        for start in starts:
            if start in edges and segment:
                end_segment()
            begun = time.perf_counter()
            x = self.make(start)
            making += time.perf_counter() - begun
            segment.append(start)
            yield start, {names[0]: x}
        end_segment()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in {"units": 10_240, "images": 50_000, "side": 7, "width": 128, "k": 16, "top": 20}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--memory-mb", type=int, default=ExemplarsConfig().memory_mb)
    options = parser.parse_args(argv)
    use_cpu_cores()
    devices = jax.devices()
    mesh = make_mesh({"data": len(devices)}, devices)
    code, tokens, u = Code("topk", options.k), options.side**2, options.units
    sae = everywhere(member(options.width, u), mesh)
    step = batch_images(ExemplarsConfig().batch, options.memory_mb << 20, tokens, u, mesh.size)
    pool = pooled_codes(mesh, code, u, ("patch_max",))
    batches = {
        "encode patch_max": -(-EncodeConfig().batch // mesh.size) * mesh.size,
        "encode, batches of exemplars": step,
    }
    pooled: dict[str, list[float]] = {name: [] for name in batches}

    def encode(stream: Stream, starts: list[int]) -> None:
        """What `encode` does for the mode without its files: pool, and find what fires. Seconds per image."""
        x = np.concatenate([stream.make(start) for start in starts[: -(-ENCODED // stream.block)]])
        for name, batch in batches.items():
            begun = time.perf_counter()
            for first in range(0, len(x), batch):
                part = x[first : first + batch]
                np.nonzero(np.asarray(pool(sae, np.pad(part, [(0, batch - len(part)), (0, 0), (0, 0)]))["patch_max"]))
            pooled[name].append((time.perf_counter() - begun) / len(x))

    d = Dictionary("patch", "h", 0, np.ones(u, np.uint8), tokens)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    # one batch each, which compiles
    warm = Stream(step, tokens, options.width, step, lambda *_: None)
    search(warm, [d], {0: sae}, code, mesh, step, options.top, "max")  # pyright: ignore
    encode(Stream(step, tokens, options.width, step, None), [0])
    pooled = {name: [] for name in batches}
    stream = Stream(options.images, tokens, options.width, step, encode)
    [(lists, firing)] = search(stream, [d], {0: sae}, code, mesh, step, options.top, "max")  # pyright: ignore
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    per_image = [x * SEGMENTS / options.images for x in stream.seconds["search"]]
    rows = [row(name, x, tokens) for name, x in {"exemplars": per_image, **pooled}.items()]
    save(
        "exemplars",
        {
            "case": f"{u:,} units x {options.images:,} images of {options.side} x {options.side} patches, d={options.width}, "
            f"k={options.k}, top {options.top}",
            "batch": {"exemplars": step, **batches},
            "devices": len(devices),
            "budget_mb": options.memory_mb,
            "lists_mb": d.bytes(options.top) / 2**20,
            "memory_before_mb": before,
            "peak_memory_mb": peak,
            "seconds": sum(stream.seconds["search"]),
            "time_of_encode": {name: sum(per_image) / sum(x) for name, x in pooled.items()},
            "making_activations_s": sum(stream.seconds["made"]),
            "gemm_flops": gemm_rate(),
            "firing_images": float(firing.image_rate.mean()),
            "wrong": wrong(stream, sae, code, lists, options.images),
            "rows": rows,
        },
    )


def row(name: str, seconds: list[float], tokens: int) -> dict[str, Any]:
    """Rates from seconds per image of every segment."""
    mean = sum(seconds) / len(seconds)
    return {
        "case": name,
        "images_per_s": 1 / mean,
        "tokens_per_s": tokens / mean,
        "median_images_per_s": 1 / median(seconds),
        "samples_s_per_image": seconds,
    }


def wrong(stream: Stream, sae: Member, code: Code, lists: TopLists, images: int, units: int = 3) -> float:
    """Share of places in the lists of some units that differ from all images in float64 by more than 1e-4 of the score."""
    chosen = np.linspace(0, len(lists.scores) - 1, units).astype(int)
    scores = np.zeros((images, units))
    w = np.asarray(sae.params.w_enc, np.float64)
    for start in range(0, images, stream.block):
        x = stream.make(start).astype(np.float64)
        own = x @ w[:, chosen]
        # the k-th largest code of a token decides whether these are kept; only tokens where one of them is large matter
        least = lists.scores[chosen].min(axis=1)
        for i, t in np.argwhere((own >= least * (1 - 1e-6)).any(axis=2)):
            pre = x[i, t] @ w
            kept = np.where(own[i, t] >= np.partition(pre, -code.k)[-code.k], np.maximum(own[i, t], 0), 0)
            scores[start + i] = np.maximum(scores[start + i], kept)
    best = -np.sort(-scores, axis=0)[: lists.scores.shape[1]].T
    return float(np.mean(np.abs(best - lists.scores[chosen]) > 1e-4 * best))


if __name__ == "__main__":
    main()
