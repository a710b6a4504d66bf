"""The report of the tiny run with its columns said to lie elsewhere: in a volume, on fsaverage, in CIFTI, nowhere."""

from __future__ import annotations

import csv
import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.cifti2 import BrainModelAxis

from sbm_jax.brain.spaces import CiftiSpace, Space, SurfaceSpace, UnplacedSpace, VolumeSpace
from sbm_jax.config import load_config
from sbm_jax.report.encode import decode
from sbm_jax.stages import report
from sbm_jax.stages.context import Context

N5, N7 = 10_242, 163_842
SHAPE = (40, 30, 20)
AFFINE = np.array([[-1.8, 0, 0, 36], [0, 1.8, 0, -27], [0, 0, 1.8, -18], [0, 0, 0, 1]])


def write_transforms(folder: Path, ijk: np.ndarray, vertex: np.ndarray, hemi: np.ndarray) -> Path:
    """NSD's files for a subject whose native surface is fsaverage5 and whose columns are right under their vertices."""

    def save(name: str, data: np.ndarray) -> None:
        shaped = data.reshape(len(data), 1, 1, *data.shape[1:]).astype(np.float32)
        (folder / name).write_bytes(gzip.compress(nib.MGHImage(shaped, np.eye(4)).to_bytes(), 1))

    folder.mkdir()
    for side, letter in (("lh", "L"), ("rh", "R")):
        coords = np.full((N5, 3), 9999.0)
        coords[vertex[hemi == letter]] = ijk[hemi == letter] + 1
        for depth in (1, 2, 3):
            save(f"{side}.func1pt8-to-layerB{depth}.mgz", coords)
        save(f"{side}.white-to-fsaverage.mgz", np.minimum(np.arange(N7) + 1, N5))
    return folder


class Rerun:
    """The report stage again, over the finished stores of the tiny run, with other spaces for its two subjects."""

    def __init__(self, tiny, folder: Path, spaces: dict[str, Space], transforms: dict[str, Path]):
        (folder / "stores").mkdir()
        for store in (tiny.out / "stores").iterdir():
            if not store.name.startswith("report-"):
                (folder / "stores" / store.name).symlink_to(store)
        self.ctx = Context(load_config(tiny.config), folder)
        moved = tuple(
            replace(s, space=spaces[s.name], transforms=transforms.get(s.name)) for s in self.ctx.dataset.subjects
        )
        self.ctx.__dict__["dataset"] = replace(self.ctx.dataset, subjects=moved)
        self.maps = report.run(self.ctx).path / "maps"
        self.page = (self.maps.parent / "report.html").read_text(encoding="utf-8")
        scripts = re.findall(r'<script type="application/json" id="payload">(.*?)</script>', self.page, re.DOTALL)
        self.payload = json.loads(scripts[0])

    def files(self, start: str) -> set[str]:
        return {path.name.removeprefix(start) for path in self.maps.iterdir() if path.name.startswith(start)}


@pytest.fixture(scope="module")
def places(tiny) -> tuple[np.ndarray, np.ndarray]:
    """Hemisphere and vertex of the columns, as in voxels.csv."""
    with (tiny.store("dataset") / "data" / "subj01" / "voxels.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    return np.array([row["hemi"] for row in rows]), np.array([int(row["vertex"]) for row in rows])


@pytest.fixture(scope="module")
def volumes(tiny, places, tmp_path_factory) -> Rerun:
    """subj01 with transforms, subj02 without."""
    hemi, vertex = places
    index = np.random.default_rng(3).permutation(np.prod(SHAPE))[: len(vertex)]
    space = VolumeSpace("func1pt8mm", SHAPE, AFFINE, index)
    transforms = write_transforms(tmp_path_factory.mktemp("ppdata") / "transforms", space.ijk, vertex, hemi)
    folder = tmp_path_factory.mktemp("volumes")
    return Rerun(tiny, folder, {"subj01": space, "subj02": space}, {"subj01": transforms})


@pytest.fixture(scope="module")
def surfaces(tiny, places, tmp_path_factory) -> Rerun:
    """subj01 on fsaverage, subj02 in grayordinates."""
    hemi, vertex = places
    cortex = [BrainModelAxis.from_surface(np.arange(N5), 32_492, f"CORTEX_{side}") for side in ("LEFT", "RIGHT")]
    spaces: dict[str, Space] = {
        "subj01": SurfaceSpace("fsaverage", (N7, N7), hemi, vertex),
        "subj02": CiftiSpace("fsLR", cortex[0] + cortex[1], vertex + N5 * (hemi == "R")),
    }
    return Rerun(tiny, tmp_path_factory.mktemp("surfaces"), spaces, {})


NAMES = {"heldout", "insample", "bestlayer", "depth", "ncsnr"}
ON_FSAVERAGE5 = {f"hemi-{h}_desc-{n}.func.gii" for h in "LR" for n in NAMES} | {
    f"hemi-{h}_desc-category.label.gii" for h in "LR"
}


@pytest.mark.parametrize("run", ["volumes", "surfaces"])
def test_maps_on_fsaverage5_are_those_of_the_columns_themselves(tiny, run, request):
    """Every vertex has its column right under it, so all maps must be those of the run on fsaverage5."""
    rerun, original = request.getfixturevalue(run), tiny.store("report") / "maps"
    assert rerun.files("subj01_space-fsaverage5_") == ON_FSAVERAGE5
    for name in ON_FSAVERAGE5:
        found, expected = (
            nib.load(folder / f"subj01_space-fsaverage5_{name}").agg_data() for folder in (rerun.maps, original)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=name)
    assert rerun.files("subj02_space-fsaverage5_") == set()


@pytest.mark.parametrize("run", ["volumes", "surfaces"])
def test_the_page_draws_who_can_be_drawn_and_says_who_cannot(run, request):
    rerun = request.getfixturevalue(run)
    assert [subject["name"] for subject in rerun.payload["cortex"]["subjects"]] == ["subj01"]
    section = rerun.page.split('<section id="cortex">')[1].split("</section>")[0]
    reason = "func1pt8mm needs NSD&#39;s transform files" if run == "volumes" else "there is no transform from fsLR"
    assert f"<p>Not drawn on fsaverage5: subj02, because {reason}" in section and "<canvas" in section
    assert len(list((rerun.maps.parent / "figures").glob("subj01_*.png"))) == 3


def test_region_borders_lie_where_the_regions_are(volumes, surfaces):
    """Labels of every atlas on fsaverage5, left hemisphere first, are those of the columns at their vertices."""
    for rerun in (volumes, surfaces):
        subject = rerun.ctx.subjects[0]
        hemi, vertex = surfaces.ctx.subjects[0].hemi, surfaces.ctx.subjects[0].vertex
        shown = {atlas["name"]: atlas for atlas in rerun.payload["cortex"]["subjects"][0]["atlases"]}
        assert set(shown) == {name for name in subject.rois if "/" not in name}
        for name, atlas in shown.items():
            inside = np.zeros(2 * N5, bool)
            inside[vertex + N5 * (hemi == "R")] = subject.rois[name]
            np.testing.assert_array_equal(decode(atlas["labels"], rerun.payload["blobs"]) > 0, inside)


def test_volumes_hold_every_voxels_own_value(volumes, stores):
    assert volumes.files("subj02_space-func1pt8mm_") == {f"desc-{name}.nii.gz" for name in NAMES} | {
        "desc-category_dseg.nii.gz",
        "desc-category_dseg.tsv",
    }
    i, j, k = volumes.ctx.subjects[0].space.ijk.T
    for subject in ("subj01", "subj02"):
        image = nib.load(volumes.maps / f"{subject}_space-func1pt8mm_desc-heldout.nii.gz")
        np.testing.assert_allclose(image.affine, AFFINE, rtol=1e-6)
        held_out = stores.array("align", "patch_mean/held_out", subject)[:, 0]
        np.testing.assert_array_equal(image.get_fdata(dtype=np.float32)[i, j, k], held_out)
        best = nib.load(volumes.maps / f"{subject}_space-func1pt8mm_desc-bestlayer.nii.gz").get_fdata()[i, j, k]
        layer = stores.array("layers", f"patch_mean/{subject}/best_layer")
        known = np.isfinite(best)
        np.testing.assert_array_equal(best[known], layer[known])
        assert known.any() and not known.all()


def test_grayordinates_and_fsaverage_keep_their_places(surfaces, stores):
    image = nib.load(surfaces.maps / "subj02_space-fsLR_desc-heldout.dscalar.nii")
    space = surfaces.ctx.subjects[1].space
    assert image.header.get_axis(1) == space.axis
    held_out = stores.array("align", "patch_mean/held_out", "subj02")[:, 0]
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32)[0, space.index], held_out)
    subject = surfaces.ctx.subjects[0]
    for hemi in "LR":
        (array,) = nib.load(surfaces.maps / f"subj01_space-fsaverage_hemi-{hemi}_desc-heldout.func.gii").darrays
        assert array.data.shape == (N7,) and np.isnan(array.data[N5:]).all()
        mine = subject.hemi == hemi
        expected = stores.array("align", "patch_mean/held_out", "subj01")[mine, 0]
        np.testing.assert_array_equal(array.data[subject.vertex[mine]], expected)


def test_without_any_cortex_the_page_has_the_rest(tiny, places, tmp_path):
    space = UnplacedSpace("roi", len(places[0]))
    rerun = Rerun(tiny, tmp_path, {"subj01": space, "subj02": space}, {})
    assert rerun.payload["cortex"] is None
    assert "Not drawn on fsaverage5: subj01, subj02, because the columns (roi) come without places" in rerun.page
    assert all(f'<section id="{name}">' in rerun.page for name in ("summary", "cortex", "layers", "rois", "rsa"))
    assert {path.name for path in rerun.maps.iterdir()} == {f"subj0{i}_space-roi_maps.tsv" for i in (1, 2)}
    assert not (rerun.maps.parent / "figures").exists()
