"""`python bench/config_headers.py [--write]`: the costs in the headers of configs/*.yaml, from the dry run on folders of true size.

The folders hold the real tables' shapes and sparse files of the real sizes (a few megabytes on disk), no data of any study.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel
import numpy as np
from scipy.io import savemat

sys.path.insert(0, str(Path(__file__).parents[1]))
from sbm_jax.config import load_config
from sbm_jax.plan import H100, duration, short, steps
from sbm_jax.stages.context import Context
from tests.brain.layouts import nsd

CONFIGS = Path(__file__).parents[1] / "configs"
SUBJ01, NSDGENERAL = (81, 104, 83), 15_724
NII_GZ_BYTES = 467_000_000  # of one session of subj01 at 1.8 mm
_B = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_CLIP = {"model_type": "clip", "vision_config": {**_B, "image_size": 224, "patch_size": 16}, "text_config": {}}
BACKBONES = {
    "openai/clip-vit-base-patch16": {**_CLIP, "projection_dim": 512},
    "facebook/dinov2-base": {"model_type": "dinov2", **_B, "image_size": 518, "patch_size": 14},
    "facebook/vit-mae-base": {"model_type": "vit_mae", **_B, "image_size": 224, "patch_size": 16},
    "google/vit-base-patch16-224": {"model_type": "vit", **_B, "image_size": 224, "patch_size": 16},
}


def write_backbone(folder: Path, name: str) -> Path:
    """A model folder of which only the configuration is read."""
    path = folder / name.replace("/", "--")
    path.mkdir()
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 224, "crop_size": 224, "do_center_crop": True}
    (path / "config.json").write_text(json.dumps(BACKBONES[name]))
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    (path / "model.safetensors").write_bytes(b"")
    return path


def write_nsd(root: Path) -> None:
    """subj01 as NSD ships it: 40 sessions of func1pt8mm in compressed volumes, nsdgeneral, the design, the pictures."""
    design = root / "nsddata/experiments/nsd"
    design.mkdir(parents=True)
    nsd.write_mat(design / "nsd_expdesign.mat", nsd.make_plan())
    nsd.write_brick(root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5", np.empty(0), np.empty((0, 425, 425, 3)))
    roi = root / "nsddata/ppdata/subj01/func1pt8mm/roi"
    roi.mkdir(parents=True)
    mask = np.zeros(np.prod(SUBJ01), np.int16)
    mask[300_000 : 300_000 + NSDGENERAL] = 1
    nibabel.save(nibabel.Nifti1Image(mask.reshape(SUBJ01, order="F"), np.eye(4)), roi / "nsdgeneral.nii.gz")
    betas = root / "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR"
    betas.mkdir(parents=True)
    header = nibabel.Nifti1Header()
    header.set_data_shape((*SUBJ01, 750))
    header.set_data_dtype(np.int16)
    # readers of the header must not come to the end of the stream, behind which the file is empty
    start = gzip.compress(header.binaryblock + bytes(1 << 20))
    for session in range(1, 41):
        with (betas / f"betas_session{session:02d}.nii.gz").open("wb") as handle:
            handle.write(start)
            handle.truncate(NII_GZ_BYTES)


def write_algonauts(root: Path) -> None:
    """Subjects 1 and 2: 9,841 training pictures each, of which 1,000 in both, 39,548 vertices."""
    for subject in (1, 2):
        folder = root / f"subj{subject:02d}"
        pictures, fmri, masks = (
            folder / part for part in ("training_split/training_images", "training_split/training_fmri", "roi_masks")
        )
        for path in (pictures, fmri, masks):
            path.mkdir(parents=True)
        ids = [*range(1000), *(1000 + subject * 9000 + i for i in range(8841))]
        for counter, number in enumerate(ids, start=1):
            (pictures / f"train-{counter:04d}_nsd-{number:05d}.png").touch()
        for hemi, width in (("lh", 19_004), ("rh", 20_544)):
            np.lib.format.open_memmap(fmri / f"{hemi}_training_fmri.npy", "w+", np.float32, (9841, width)).flush()
            np.save(masks / f"{hemi}.all-vertices_fsaverage_space.npy", (np.arange(163_842) < width).astype(float))


def write_things(root: Path) -> None:
    """sub-01: 211,339 voxels, 8,640 training and 1,200 test trials."""
    folder, images = root / "betas_csv", root / "images"
    folder.mkdir()
    images.mkdir()
    train, test = [f"c{i // 12}_{i % 12}.jpg" for i in range(8640)], [f"t{i}_test.jpg" for i in range(100)]
    for name in (*train, *test):
        (images / name).touch()
    with (folder / "sub-01_StimulusMetadata.csv").open("w", newline="") as handle:
        out = csv.writer(handle)
        out.writerow(["trial_type", "session", "run", "subject_id", "trial_id", "stimulus", "concept"])
        for session in range(12):
            shown = [("train", name) for name in train[session * 720 : session * 720 + 720]] + [
                ("test", n) for n in test
            ]
            out.writerows([kind, session + 1, i // 82 + 1, 1, i, name, ""] for i, (kind, name) in enumerate(shown))
    with (folder / "sub-01_VoxelMetadata.csv").open("w", newline="") as handle:
        out = csv.writer(handle)
        out.writerow(["voxel_id", "subject_id", "voxel_x", "voxel_y", "voxel_z", "nc_singletrial", "nc_testset", "IT"])
        out.writerows([v, 1, v % 80, v // 80 % 80, v // 6400, 1, 10, 0] for v in range(211_339))
    with h5py.File(folder / "sub-01_ResponseData.h5", "w") as file:
        group = file.create_group("ResponseData")
        group.attrs["pandas_type"] = np.bytes_("frame")
        group["axis1"] = np.arange(211_339)
        # early allocation gives the file its true size without a byte written
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((211_339, 9840))
        h5py.h5d.create(group.id, b"block0_values", h5py.h5t.IEEE_F64LE, space, plist)
        group["block1_values"] = np.arange(211_339)[:, None]
        group["block0_items"] = np.array([str(t).encode() for t in range(9840)])
        group["block1_items"] = np.array([b"voxel_id"])
        group["axis0"] = np.array([b"voxel_id", *(str(t).encode() for t in range(9840))])


def write_objects92(root: Path) -> None:
    """92 blank photographs and the RDMs of four people in two sessions."""

    def struct(**fields: list) -> np.ndarray:
        out = np.empty(len(next(iter(fields.values()))), dtype=[(name, object) for name in fields])
        for name, values in fields.items():
            for i, value in enumerate(values):
                out[name][i] = value
        return out

    pictures = struct(image=[np.zeros((175, 175, 3), np.uint8)] * 92, category=["face"] * 92)
    rdms = struct(RDM=[np.zeros((92, 92))] * 8, name=[f"hIT | S{i % 4} | Session: {i // 4 + 1}" for i in range(8)])
    savemat(root / "Kriegeskorte_Neuron2008_supplementalData.mat", {"stimuli_92objs": pictures[None]})
    savemat(root / "92_brainRDMs.mat", {"RDMs": rdms.reshape(4, 2)})


WRITERS: dict[str, tuple[Callable[[Path], None], str, dict[str, str]]] = {
    "nsd": (write_nsd, "", {}),
    "algonauts2023": (write_algonauts, "", {}),
    "things": (write_things, "betas_csv", {"data.stimuli": "images"}),
    "kriegeskorte92": (write_objects92, "", {}),
}


def header(name: str, root: Path, extra: dict[str, str], scratch: Path) -> list[str]:
    """The lines that head one configuration."""
    path = CONFIGS / f"{name}.yaml"
    backbone = scratch / load_config(path).backbone.path.replace("/", "--")
    settings = [f"data.root={root}", f"backbone.path={backbone}", *(f"{k}={v}" for k, v in extra.items())]
    context = Context(load_config(path, settings), scratch / "out")
    todo = steps(context)
    disk, memory = sum(step.bytes for step in todo), max(step.memory for step in todo)
    seconds = sum(step.seconds(H100) for step in todo)
    facts = context.facts
    columns = ", ".join(f"{s.name} {s.n_voxels:,} columns, {s.n_trials:,} trials" for s in facts.subjects)
    return [
        f"#   sbm-jax run --config configs/{name}.yaml --out runs/{name}",
        "#",
        f"# Inputs: {facts.n_images:,} images ({facts.n_shared:,} score)" + (f"; {columns}" if columns else ""),
        f"# Expected: {short(disk, 'B')} of disk, {short(memory, 'B')} of arrays in memory, {duration(seconds)} on {H100.name}.",
        "# An estimate by --dry-run (formulas in docs/performance.md), not a measurement; python bench/config_headers.py.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the headers in configs/")
    write = parser.parse_args().write
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for backbone in BACKBONES:
            write_backbone(scratch, backbone)
        for start, (make, inner, extra) in WRITERS.items():
            root = scratch / start
            root.mkdir()
            make(root)
            for path in sorted(CONFIGS.glob(f"{start}*.yaml")):
                lines = header(path.stem, root / inner, {k: str(root / v) for k, v in extra.items()}, scratch)
                print(path.name, *lines, sep="\n")
                if write:
                    old = path.read_text().splitlines()
                    body = [line for line in old[1:] if not line.startswith(("#", "@"))]
                    path.write_text("\n".join([old[0], "#", *lines, *body]) + "\n")


if __name__ == "__main__":
    main()
