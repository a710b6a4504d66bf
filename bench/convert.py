"""Sessions of single trials -> one z-scored average per image: the project's conversion beside the obvious script.

    python bench/convert.py [--sessions 10] [--formats nii.gz hdf5 mgh] [--folder FOLDER] [--memory-mb 512]

Writes one format at a time (bench/nsd_folder.py; 10 sessions of mgh with both results need 20 GB), runs each way in a process
of its own, compares the results, deletes all of it. Files are read right after they were written, so mostly from
the page cache. Kept are 120,000 columns or a few more: an inner ellipsoid of the volume, 60,000 vertices per hemisphere.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nsd_folder
import numpy as np
from nsd_folder import FORMATS, FSAVERAGE, FUNC1PT8MM, TRIALS

HERE = Path(__file__).parent
KEPT_RADIUS = 0.346
KEPT_VERTICES = 60_000
REPEATS = 3


def kept_places(form: str) -> tuple[np.ndarray, ...]:
    """Places that are kept of every file of a session, ascending."""
    if form != "mgh":
        return (nsd_folder.mask_places(FUNC1PT8MM, KEPT_RADIUS),)
    rng = np.random.default_rng(0)
    return tuple(np.sort(rng.choice(FSAVERAGE, KEPT_VERTICES, replace=False)) for _ in range(2))


def image_of_trial(n_sessions: int) -> np.ndarray:
    """int64 [trials]: every image three times, in random order."""
    images = np.repeat(np.arange(n_sessions * TRIALS // REPEATS), REPEATS)
    return np.random.default_rng(1).permutation(images)


def project(folder: Path, out: Path, form: str, n_sessions: int, memory_bytes: int) -> dict[str, Any]:
    """The way of the betas stage: trials brought into an order of voxels where needed, then z-scored averages, in stores."""
    from sbm_jax.brain.betas import stream_betas
    from sbm_jax.brain.convert import StoredTrials, convert_trials
    from sbm_jax.brain.dataset import Subject
    from sbm_jax.brain.sessions import Piece, SessionResponses
    from sbm_jax.brain.spaces import UnplacedSpace
    from sbm_jax.brain.trialfiles import Hdf5Volumes, MghTrials, NiftiTrials
    from sbm_jax.store.buffer import ShardBuffer
    from sbm_jax.store.spec import StoreSpec
    from sbm_jax.store.store import StoreWriter

    start = time.perf_counter()
    opened = {"nii.gz": NiftiTrials, "hdf5": Hdf5Volumes, "mgh": MghTrials}[form]
    places, rows = kept_places(form), np.arange(TRIALS)
    pieces = tuple(
        Piece(rows, tuple(zip(map(opened, nsd_folder.session_files(folder, form, session)), places, strict=True)))
        for session in range(1, n_sessions + 1)
    )
    volume = form != "mgh"
    responses = SessionResponses(pieces, divisor=300 if volume else 1, zero_is_missing=volume)
    if not responses.by_voxel:
        writer = StoreWriter(out, StoreSpec("trials", 1, {}, {}))
        convert_trials(responses, writer, memory_bytes)
        responses = StoredTrials(writer.commit(), responses)
    converted = time.perf_counter()
    image_t, session_t = image_of_trial(n_sessions), np.repeat(np.arange(n_sessions) + 1, TRIALS)
    space = UnplacedSpace(form, responses.n_voxels)
    subject = Subject("subj01", responses, image_t, session_t, np.ones_like(session_t), space, {})
    writer = StoreWriter(out, StoreSpec("betas", 1, {}, {}))
    shard = 4096
    writer.create("betas", (subject.n_voxels, image_t.max() + 1), "float32", shard_rows=shard, compress=False)
    buffer = ShardBuffer(writer, shard, subject.n_voxels, resumable=True)
    for block in stream_betas(subject, memory_bytes=min(memory_bytes, 1 << 28)):
        buffer.add({"betas": np.ascontiguousarray(block.betas_nv.T)})
    buffer.close()
    store = writer.commit()
    end = time.perf_counter()
    return {
        "seconds": end - start,
        "seconds_reorder": converted - start,
        "seconds_betas": end - converted,
        "probe": store.read("betas", slice(0, 4096))[::500, :5].tolist(),
    }


def plain_read(folder: Path, form: str, n_sessions: int) -> Iterator[np.ndarray]:
    """[kept columns, trials] of each session, as one writes it at first."""
    import h5py
    import nibabel as nib

    places = kept_places(form)
    for session in range(1, n_sessions + 1):
        files = nsd_folder.session_files(folder, form, session)
        if form == "hdf5":
            with h5py.File(files[0], "r") as file:
                betas = file["betas"][:]  # pyright: ignore
            yield betas.reshape(TRIALS, -1)[:, places[0]].T / 300  # pyright: ignore
        elif form == "nii.gz":
            betas = nib.load(files[0]).get_fdata()  # pyright: ignore
            yield betas.reshape(-1, TRIALS, order="F")[places[0]] / 300
        else:
            halves = [nib.load(path).get_fdata()[:, 0, 0] for path in files]  # pyright: ignore
            yield np.concatenate([half[kept] for half, kept in zip(halves, places, strict=True)])


def plain(folder: Path, out: Path, form: str, n_sessions: int, memory_bytes: int) -> dict[str, Any]:
    """Whole sessions in memory, z-scored, added up per image, saved."""
    del memory_bytes
    start = time.perf_counter()
    image_t = image_of_trial(n_sessions)
    sums = np.zeros((image_t.max() + 1, sum(map(len, kept_places(form)))), dtype=np.float32)
    for session, betas_vt in enumerate(plain_read(folder, form, n_sessions)):
        z_vt = (betas_vt - betas_vt.mean(axis=1, keepdims=True)) / betas_vt.std(axis=1, keepdims=True)
        for trial in range(TRIALS):
            sums[image_t[session * TRIALS + trial]] += z_vt[:, trial]
    sums /= REPEATS
    np.save(out / "betas.npy", sums)
    return {"seconds": time.perf_counter() - start, "probe": sums[:5, :4096:500].T.tolist()}


WAYS = {"project": project, "plain": plain}


def measure(folder: Path, form: str, way: str, n_sessions: int, memory_mb: int) -> dict[str, Any]:
    """One way in a fresh process: seconds, MB/s, peak resident memory."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [sys.executable, __file__, "--worker", way, "--formats", form, "--folder", str(folder)]
        command += ["--out", out, "--sessions", str(n_sessions), "--memory-mb", str(memory_mb)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path, form: str, n_sessions: int, memory_mb: int, ways: list[str]) -> list[dict[str, Any]]:
    """Write one format, run the ways on it, compare what they give, delete it."""
    subprocess.run(
        [sys.executable, str(HERE / "nsd_folder.py"), str(folder), "--format", form, "--sessions", str(n_sessions)],
        check=True,
    )
    files = [path for s in range(n_sessions) for path in nsd_folder.session_files(folder, form, s + 1)]
    source = sum(path.stat().st_size for path in files)
    decoded = n_sessions * TRIALS * (2 * FSAVERAGE * 4 if form == "mgh" else int(np.prod(FUNC1PT8MM)) * 2)
    results = {way: measure(folder, form, way, n_sessions, memory_mb) for way in ways}
    probes = [np.array(result.pop("probe")) for result in results.values()]
    for probe in probes[1:]:
        # float32 sums of three z-scores
        np.testing.assert_allclose(probe, probes[0], rtol=1e-5, atol=1e-5)
    shutil.rmtree(folder / "nsddata_betas")
    return [
        {
            "format": form,
            "way": way,
            "sessions": n_sessions,
            "columns": sum(map(len, kept_places(form))),
            "source_gb": source / 1e9,
            "source_mb_per_s": source / 1e6 / result["seconds"],
            "decoded_mb_per_s": decoded / 1e6 / result["seconds"],
            **result,
        }
        for way, result in results.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=10)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--folder", type=Path, help="where the files go; by default the system's folder for such")
    parser.add_argument("--memory-mb", type=int, default=512)
    parser.add_argument("--worker", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        way, form = WAYS[options.worker], options.formats[0]
        result = way(options.folder, options.out, form, options.sessions, options.memory_mb << 20)
        print(json.dumps({**result, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="nsd-") as folder:
        rows = []
        for form in options.formats:
            rows += compare(Path(folder), form, options.sessions, options.memory_mb, options.ways)
    # jax comes in only here: a child's peak memory counts that of the process it was forked from
    from sbm_jax.bench.common import save

    save("convert", {"memory_mb": options.memory_mb, "trials_per_session": TRIALS, "rows": rows})


if __name__ == "__main__":
    main()
