"""`python bench/out_of_core.py [--layers 98] [--voxels 200000] [--images 1000] [--memory-mb 2048]`: `align` at full size.

Codes of layers x 24,576 units (32 fire per image) and betas of one subject are written to disk as the program's own stores.
Then the stage `align` runs on them in a process of its own, whose time and peak memory count; a sample of voxels is searched
again in float64. The projection multiplies what this run needed per entry and voxel, or the dense product at a stated rate.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from sbm_jax.bench.common import gemm_rate, save
from sbm_jax.config import AlignConfig
from sbm_jax.store.spec import StoreSpec
from sbm_jax.store.store import Store, StoreWriter, is_finished

UNITS, K, WIDTH = 24_576, 32, 16
SPECS = SimpleNamespace(
    codes=StoreSpec("codes", 1, {}, {}),
    saes=StoreSpec("saes", 1, {}, {}),
    betas={"subj01": StoreSpec("betas", 1, {}, {})},
    align={"subj01": StoreSpec("align", 3, {}, {})},
)
_SHARD_VOXELS = 10_000


def hooks(layers: int) -> tuple[str, ...]:
    return tuple(f"block{layer:02d}.resid" for layer in range(layers))


def write(folder: Path, layers: int, voxels: int, images: int) -> None:
    """The three stores that `align` reads. A tenth of the voxels follows a unit (r about .5); a quarter is responsive."""
    rng = np.random.default_rng(0)
    weight = np.log(1.0 / (1.0 + np.arange(UNITS)) ** 0.7).astype(np.float32)
    codes = StoreWriter(folder, SPECS.codes)
    first = None
    for hook in hooks(layers):
        units = np.stack(
            [np.argpartition(-(rng.gumbel(size=UNITS).astype(np.float32) + weight), K)[:K] for _ in range(images)]
        )
        values = rng.gamma(2.0, size=units.shape).astype(np.float32)
        for part, value in (
            ("values", values),
            ("units", units.astype(np.int32)),
            ("active", np.full(images, K, np.int32)),
        ):
            codes.put(f"cls/{hook}/{part}", value)
        first = (values, units) if first is None else first
    codes.commit()
    saes = StoreWriter(folder, SPECS.saes)
    saes.put("b_enc", np.zeros((layers, UNITS), np.float32))
    saes.put("scale", np.ones(layers, np.float32))
    saes.create("w_dec", (layers, UNITS, WIDTH), "float32", shard_rows=1)
    for layer in range(layers):
        saes.write("w_dec", layer, rng.standard_normal((1, UNITS, WIDTH), np.float32))
    saes.put_json("metrics.json", {"members": [{"kind": "cls", "hook": hook} for hook in hooks(layers)]})
    saes.commit()
    betas = StoreWriter(folder, SPECS.betas["subj01"])
    betas.create("betas", (voxels, images), "float32", shard_rows=_SHARD_VOXELS, compress=False)
    values, units = first
    for start in range(0, voxels, _SHARD_VOXELS):
        y = rng.standard_normal((min(_SHARD_VOXELS, voxels - start), images), np.float32)
        for v in range(0, len(y), 10):
            column = (values * (units == rng.integers(0, 500))).sum(axis=1)
            y[v] += 0.6 * (column - column.mean()) / max(column.std(), 1e-6)
        betas.write("betas", start, y)
    betas.put("image_rows", np.arange(images))
    betas.put("shared", np.zeros(images, bool))
    betas.put("usable", np.ones(voxels, bool))
    betas.put("ncsnr", np.where(np.arange(voxels) % 4, 0.1, 0.5).astype(np.float32))
    betas.commit()


class Run:
    """As much of a run's context as `align` asks for."""

    def __init__(self, folder: Path, layers: int, voxels: int, memory_mb: int, shuffles: int, k_unit: int):
        self.folder, self.specs = folder, SPECS
        # a run refuses k_unit 0, since `assign` needs the units' lists; here it times one direction
        align = AlignConfig(select="none", memory_mb=memory_mb, shuffles=shuffles).model_copy(update={"k_unit": k_unit})
        self.config = SimpleNamespace(align=align, encode=SimpleNamespace(modes=["cls"]))
        subject = SimpleNamespace(name="subj01", n_voxels=voxels)
        self.facts = SimpleNamespace(subjects=[subject], hooks=hooks(layers))

    @property
    def devices(self) -> list[Any]:
        import jax

        return jax.devices()

    def has(self, spec: StoreSpec) -> bool:
        return is_finished(spec.path(self.folder))

    def open(self, spec: StoreSpec) -> Store:
        return Store(spec.path(self.folder))

    def writer(self, spec: StoreSpec) -> StoreWriter:
        return StoreWriter(self.folder, spec)


def _align(arguments: tuple[Any, ...], found: Any) -> None:
    from sbm_jax.stages import align

    start = time.perf_counter()
    align.run(Run(*arguments), ["subj01"])  # type: ignore[arg-type]
    found.put((time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def wrong(folder: Path, layers: int, voxels: int, count: int) -> float:
    """Share of some voxels whose best similarity differs from every unit x these voxels in float64 by more than 2e-6."""
    store, codes = Store(SPECS.align["subj01"].path(folder)), Store(SPECS.codes.path(folder))
    some = np.unique(np.linspace(0, voxels - 1, count).astype(int))
    y = Store(SPECS.betas["subj01"].path(folder)).read("betas", some).astype(np.float64)
    y -= y.mean(axis=1, keepdims=True)
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    best = np.full(len(some), -2.0)
    for hook in hooks(layers):
        values, units = codes.read(f"cls/{hook}/values"), codes.read(f"cls/{hook}/units")
        a = np.zeros((len(values), UNITS))
        np.add.at(a, (np.arange(len(values))[:, None], units), values)
        a -= a.mean(axis=0)
        norm = np.linalg.norm(a, axis=0)
        best = np.maximum(best, (y @ (a / np.where(norm > 0, norm, np.inf))).max(axis=1))
    return float(np.mean(np.abs(best - store.read("cls/voxel_values", some)[:, 0]) > 2e-6))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=98)
    parser.add_argument("--voxels", type=int, default=200_000)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--memory-mb", type=int, default=2048)
    parser.add_argument("--shuffles", type=int, default=1, help="permutations of the responsive quarter of the voxels")
    parser.add_argument("--k-unit", type=int, default=0, help="best voxels kept per unit")
    parser.add_argument("--folder", type=Path, help="for the stores (default: a temporary one)")
    args = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        write(folder, args.layers, args.voxels, args.images)
        context = multiprocessing.get_context("spawn")
        found = context.Queue()
        arguments = (folder, args.layers, args.voxels, args.memory_mb, args.shuffles, args.k_unit)
        process = context.Process(target=_align, args=(arguments, found))
        process.start()
        seconds, peak_mb = found.get()
        process.join()
        share_wrong = wrong(folder, args.layers, args.voxels, 200)
        disk = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    finally:
        shutil.rmtree(folder)
    n_units, searched = args.layers * UNITS, args.voxels * (1 + args.shuffles / 4)
    per_entry = seconds / (args.layers * args.images * K * searched)
    # 96 layers of 24,576 units, 8 subjects of 200,000 voxels, 10,000 images each
    entries, pairs = 96 * 10_000 * K * 1.6e6, 96 * UNITS * 1.6e6
    record = {
        "shape": {"units": n_units, "voxels": args.voxels, "images": args.images, "k": K, **vars(args), "folder": None},
        "seconds": seconds,
        "align_peak_mb": peak_mb,
        "stores_mb": disk / 1e6,
        "pairs_per_second": n_units * searched / seconds,
        "dense_seconds_at_gemm_rate": 2 * args.images * n_units * searched / gemm_rate(),
        "share_wrong_of_200_voxels": share_wrong,
        "projection_2.36M_units_8x200k_voxels_10k_images": {
            "this_machine_by_entries_hours": entries * per_entry / 3600,
            "dense_flops": 2 * 10_000 * pairs,
            "h100_dense_bf16_hours_at_assumed_672_tflops": 2 * 10_000 * pairs / 672e12 / 3600,
            "h100_dense_f32_hours_at_assumed_33_tflops": 2 * 10_000 * pairs / 33e12 / 3600,
        },
    }
    save("out_of_core", {"rows": [record]})
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
