"""What the NSD reader says of pictures elsewhere, of things left out, and of every mistake in a tree."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from PIL import Image

from sbm_jax.brain.opening import open_dataset
from sbm_jax.brain.readers import nsd
from sbm_jax.brain.readers.options import ReadOptions
from sbm_jax.errors import UserError
from tests.brain.layouts import nsd as writer

FUNC = "nsddata/ppdata/subj01/func1pt8mm"
B3 = "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR"


def opened(root, **options):
    return open_dataset(root, ReadOptions(**options), layout="nsd")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """One subject with sessions 1, 2 and 4 in volumes."""
    return writer.write_nsd(tmp_path_factory.mktemp("nsd"), {1: (1, 2, 4)})


@pytest.fixture
def copy(volumes, tmp_path):
    return Path(shutil.copytree(volumes.root, tmp_path / "copy"))


def everything(subject, memory=64 << 20):
    return np.concatenate(list(subject.responses.iter_trials(0, memory)))


# Pictures -------------------------------------------------------------------------------------------------------------


def test_pictures_may_lie_in_a_folder(copy, volumes, tmp_path):
    brick = copy / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
    elsewhere = brick.rename(tmp_path / "stimuli.hdf5")
    with pytest.raises(UserError, match=r"data\.stimuli"):
        opened(copy)
    assert opened(copy, stimuli=elsewhere).images.sources[0].path == elsewhere
    folder = tmp_path / "png"
    folder.mkdir()
    for number, picture in list(volumes.pictures.items())[1:]:
        Image.fromarray(picture).save(folder / f"nsd-{number:05d}.png")
    with pytest.raises(UserError, match=r"1 of \d+ pictures are missing; the first is nsd-"):
        opened(copy, stimuli=folder)
    first = next(iter(volumes.pictures))
    Image.fromarray(volumes.pictures[first]).save(folder / f"{first}.png")
    data = opened(copy, stimuli=folder)
    assert data.images.sources[0] == folder / f"{first}.png"
    (folder / "shared0001_nsd02951.png").write_bytes(b"")
    with pytest.raises(UserError, match="count NSD images from 1"):
        opened(copy, stimuli=folder)


def test_only_the_whole_brick_has_ids_as_rows(copy):
    brick = copy / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
    with h5py.File(brick, "w") as file:
        file.create_dataset("imgBrick", (100, 8, 8, 3), np.uint8)
    with pytest.raises(UserError, match=r"uint8 \[73000, height, width, 3\].*\(100, 8, 8, 3\)"):
        opened(copy)
    brick.write_bytes(b"no HDF5")
    with pytest.raises(UserError, match="not a readable HDF5"):
        opened(copy)


# Mistakes -------------------------------------------------------------------------------------------------------------


def save_betas(path, shape, dtype=np.int16):
    nibabel.save(nibabel.Nifti1Image(np.ones(shape, dtype), writer.AFFINE), path)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeros(path, shape):
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.int16), writer.AFFINE), path)


MISTAKES = {
    "another shape": (lambda r: save_betas(r / B3 / "betas_session02.nii.gz", (9, 8, 6, 750)), "9, 8, 7.*9, 8, 6"),
    "another number of trials": (lambda r: save_betas(r / B3 / "betas_session04.nii.gz", (9, 8, 7, 749)), "750.*749"),
    "floats": (lambda r: save_betas(r / B3 / "betas_session01.nii.gz", (9, 8, 7, 750), np.float32), "int16.*float32"),
    "session 41": (lambda r: save_betas(r / B3 / "betas_session41.nii.gz", (9, 8, 7, 750)), "01 to 40"),
    "a mask of another size": (lambda r: zeros(r / FUNC / "roi/nsdgeneral.nii.gz", (9, 8, 8)), "9x8x7.*9x8x8"),
    "an ROI of another size": (lambda r: zeros(r / FUNC / "roi/streams.nii.gz", (8, 8, 7)), "9x8x7.*8x8x7"),
    "a cut ROI": (lambda r: cut(r / FUNC / "roi/streams.nii.gz"), "streams.*cut short"),
    "a cut ncsnr": (lambda r: cut(r / B3 / "ncsnr.nii.gz"), "ncsnr.*cut short"),
    "half an ROI": (lambda r: (r / FUNC / "roi/rh.floc-faces.nii.gz").unlink(), r"rh\.floc-faces.*not found"),
    "a cut design": (lambda r: cut(r / "nsddata/experiments/nsd/nsd_expdesign.mat"), "nsd_expdesign.*not a readable"),
    "a bad colour table": (
        lambda r: (r / "nsddata/freesurfer/subj01/label/streams.mgz.ctab").write_text("one two\n"),
        "ctab, line 1",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told(copy, name):
    change, words = MISTAKES[name]
    change(copy)
    with pytest.raises(UserError, match=words):
        opened(copy)


def test_both_hemispheres_are_needed(tmp_path):
    writer.write_nsd(tmp_path, {1: (1, 2)}, "nativesurface")
    folder = tmp_path / "nsddata_betas/ppdata/subj01/nativesurface/betas_fithrf_GLMdenoise_RR"
    (folder / "rh.betas_session02.hdf5").unlink()
    with pytest.raises(UserError, match=r"lh\.betas_session02\.hdf5: the other hemisphere, rh\.betas_session02"):
        opened(tmp_path)


def test_hdf5_betas_need_a_nifti_that_places_them(tmp_path):
    writer.write_nsd(tmp_path, {1: (1,)}, suffix="hdf5")
    (tmp_path / B3 / "ncsnr.nii.gz").unlink()
    assert opened(tmp_path).subjects[0].space.affine[0, 0] == pytest.approx(1.8)
    shutil.rmtree(tmp_path / FUNC)
    label = tmp_path / "nsddata/freesurfer/subj01/label"
    assert label.is_dir()
    with pytest.raises(UserError, match="where the brain is"):
        opened(tmp_path)


@pytest.mark.parametrize("suffix", ["nii.gz", "hdf5"])
def test_cut_betas_are_told_when_they_are_read(tmp_path, suffix):
    writer.write_nsd(tmp_path, {1: (1, 2)}, suffix=suffix)
    cut(tmp_path / B3 / f"betas_session02.{suffix}")
    with pytest.raises(UserError, match=rf"betas_session02\.{suffix}"):
        everything(opened(tmp_path).subjects[0])


def test_subjects_without_betas_are_left_out_and_said(copy):
    (copy / "nsddata_betas/ppdata/subj03/func1pt8mm").mkdir(parents=True)
    data = opened(copy)
    assert [s.name for s in data.subjects] == ["subj01"]
    assert [str(d) for d in data.dropped] == ["1 subjects: no betas (subj03)"]
    with pytest.raises(UserError, match=r"subj03.*found subj01"):
        opened(copy, subjects=("subj03",))
    shutil.rmtree(copy / B3)
    with pytest.raises(UserError, match="no betas found"):
        opened(copy)


def test_shared_images_may_be_listed(copy, volumes, tmp_path):
    wanted = sorted(volumes.pictures)[3:9]
    listed = tmp_path / "shared.txt"
    listed.write_text("".join(f"{n}\n" for n in wanted))
    data = opened(copy, shared=listed)
    assert [int(i[4:]) for i, flag in zip(data.images.ids, data.images.shared, strict=True) if flag] == wanted
    listed.write_text(f"{next(n for n in range(73_000) if n not in volumes.pictures)}\n")
    with pytest.raises(UserError, match="none of these images was seen"):
        opened(copy, shared=listed)


def test_a_tree_of_few_images(tmp_path):
    """What whole runs are tried on: the true plan but for the images of the written sessions."""
    plan = writer.few_images(writer.make_plan(), (1, 2), 40)
    writer.write_nsd(tmp_path, {1: (1, 2), 2: (1, 2)}, plan=plan)
    data = opened(tmp_path)
    assert len(data.images.ids) == 60 and data.images.shared.sum() == 20
    for subject in data.subjects:
        ids, times = np.unique(subject.trial_image, return_counts=True)
        assert len(ids) == 40 and times.min() >= 36


def test_the_transforms_are_found(copy):
    assert opened(copy).subjects[0].transforms is None
    folder = copy / "nsddata/ppdata/subj01/transforms"
    folder.mkdir()
    assert opened(copy).subjects[0].transforms == folder


def test_a_folder_one_level_down_is_found(volumes, tmp_path):
    inside = Path(shutil.copytree(volumes.root, tmp_path / "data" / "natural-scenes-dataset"))
    assert nsd.recognise(volumes.root) and nsd.recognise(inside.parent)
    data = opened(inside.parent)
    assert data.subjects[0].n_trials == 2250
    (tmp_path / "empty").mkdir()
    assert not nsd.recognise(tmp_path / "empty")
    with pytest.raises(UserError, match="nsddata_betas"):
        opened(tmp_path / "empty")


def test_maps_that_are_no_rois_are_left_out_and_said(tmp_path):
    writer.write_nsd(tmp_path, {1: (1,)}, "nativesurface")
    label = tmp_path / "nsddata/freesurfer/subj01/label"
    for hemi, n in zip(("lh", "rh"), writer.NATIVE, strict=True):
        values = np.linspace(0, 1, n, dtype=np.float32)[:, None, None]
        nibabel.save(nibabel.MGHImage(values, np.eye(4)), label / f"{hemi}.prfangle.mgz")
    (subject,) = opened(tmp_path).subjects
    assert "prfangle" not in subject.rois
    assert "1 label files: not whole numbers, so no ROIs (prfangle)" in [str(d) for d in subject.dropped]
