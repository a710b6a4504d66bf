"""Population receptive fields that datasets bring: NSD's maps, and columns of a table of voxels."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from sbm_jax.brain.opening import open_dataset
from sbm_jax.brain.prf import from_table
from sbm_jax.brain.readers.options import ReadOptions
from sbm_jax.errors import UserError
from tests.brain.layouts import nsd as writer


def test_maps_of_nsd_volumes_and_native_surfaces(tmp_path):
    rng = np.random.default_rng(0)
    for space, suffix in (("func1pt8mm", "nii.gz"), ("nativesurface", "hdf5")):
        root = tmp_path / space
        written = writer.write_nsd(root, {1: (1,)}, space, suffix, "b3").subjects[1]
        assert open_dataset(root, ReadOptions(), "nsd").subjects[0].prf is None
        shape = writer.SHAPE if suffix == "nii.gz" else (sum(writer.NATIVE),)
        maps = {
            "angle": rng.uniform(0, 360, shape),
            "eccentricity": rng.uniform(0, 5, shape),
            "size": rng.uniform(0.1, 2, shape),
        }
        flat = {name: values.ravel(order="F") for name, values in maps.items()}
        columns = written.places[written.general]
        flat["angle"][columns[0]], flat["eccentricity"][columns[0]] = np.nan, 0  # fixation
        flat["size"][columns[1]] = 0
        flat["eccentricity"][columns[2]] = np.nan
        before = open_dataset(root, ReadOptions(), "nsd").subjects[0].files()
        for name, values in flat.items():
            if suffix == "nii.gz":
                image = nibabel.Nifti1Image(values.reshape(shape, order="F").astype(np.float32), writer.AFFINE)
                nibabel.save(image, root / f"nsddata/ppdata/subj01/func1pt8mm/prf_{name}.nii.gz")
                continue
            parts = np.split(values.astype(np.float32), [writer.NATIVE[0]])
            for hemi, part in zip(("lh", "rh"), parts, strict=True):
                image = nibabel.MGHImage(part[:, None, None], np.eye(4))  # pyright: ignore[reportArgumentType]
                nibabel.save(image, root / f"nsddata/freesurfer/subj01/label/{hemi}.prf{name}.mgz")
        (subject,) = open_dataset(root, ReadOptions(), "nsd").subjects
        prf = subject.prf
        assert prf is not None and len(prf.x) == subject.n_voxels
        assert len(subject.files()) > len(before), "the maps decide the subject's data"
        angle, eccentricity, size = (flat[name][columns].astype(np.float32) for name in maps)
        assert [prf.x[0], prf.y[0]] == [0, 0] and prf.sigma[0] == pytest.approx(size[0])
        assert np.isnan([prf.x[1:3], prf.y[1:3], prf.sigma[1:3]]).all()
        np.testing.assert_allclose(prf.x[3:], (eccentricity * np.cos(np.radians(angle)))[3:], atol=1e-5)
        np.testing.assert_allclose(prf.y[3:], (eccentricity * np.sin(np.radians(angle)))[3:], atol=1e-5)


def test_columns_of_a_table_of_voxels(tmp_path):
    path = tmp_path / "voxels.csv"
    columns = {"prf_x": ["1", "", "3"], "prf_y": ["-1", "2", "0"], "prf_sigma": ["0.5", "1", "0"], "V1": ["a", "b", ""]}
    prf = from_table(path, columns)
    assert prf is not None
    np.testing.assert_array_equal(
        [prf.x, prf.y, prf.sigma], [[1, np.nan, np.nan], [-1, np.nan, np.nan], [0.5, np.nan, np.nan]]
    )
    assert from_table(path, {"V1": ["a"]}) is None
    with pytest.raises(UserError, match="prf_x, prf_y, prf_sigma together; found prf_x"):
        from_table(path, {"prf_x": ["1"]})
    with pytest.raises(UserError, match="row 2: column 'prf_y' needs numbers, found 'up'"):
        from_table(path, {**columns, "prf_y": ["1", "up", "2"]})


def test_folders_of_tables_bring_prfs_and_no_atlas_of_them(tmp_path):
    subject = tmp_path / "sub-01"
    subject.mkdir()
    np.save(subject / "responses.npy", np.ones((4, 2), np.float32))
    (subject / "trials.csv").write_text("image_id,session,run\n" + "".join(f"p{i},1,1\n" for i in range(4)))
    (subject / "voxels.csv").write_text("prf_x,prf_y,prf_sigma,area\n1,2,0.5,V1\n,,,V2\n")
    (tmp_path / "stimuli").mkdir()
    from PIL import Image

    for i in range(4):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / "stimuli" / f"p{i}.png")
    (found,) = open_dataset(tmp_path, ReadOptions(), "generic").subjects
    assert found.prf is not None and found.prf.x[0] == 1 and np.isnan(found.prf.x[1])
    assert sorted(found.rois) == ["area", "area/V1", "area/V2"]
    head = '{"format": "sbm-tables", "version": 1, "name": "toy", "space": "voxels"}'
    (tmp_path / "dataset.json").write_text(head)
    (tmp_path / "images.csv").write_text("image_id,file\n" + "".join(f"p{i},stimuli/p{i}.png\n" for i in range(4)))
    (found,) = open_dataset(tmp_path, ReadOptions(), "tables").subjects
    assert found.prf is not None and found.prf.sigma[0] == 0.5
    assert sorted(found.rois) == ["area", "area/V1", "area/V2"]
