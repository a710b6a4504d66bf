"""The NSD reader on written trees: exact values in every space and format, index bases, holes, masks, and clear errors."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest

from sbm_jax.brain.opening import open_dataset
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


def numbers(data, subject):
    return np.array([int(data.images.ids[i].removeprefix("nsd-")) for i in subject.trial_image])


def same_trials(data, subject, planted):
    np.testing.assert_array_equal(numbers(data, subject), planted.image)
    np.testing.assert_array_equal(subject.session, planted.session)
    np.testing.assert_array_equal(subject.run, planted.run)


CASES = [
    ("func1pt8mm", "nii.gz", "b3"),
    ("func1pt8mm", "hdf5", "b2"),
    ("func1mm", "hdf5", "b3"),
    ("func1mm", "nii.gz", "b3"),
    ("fsaverage", "mgh", "b1"),
    ("nativesurface", "hdf5", "b3"),
    ("MNI", "nii.gz", "b2"),
]


@pytest.mark.parametrize(("space", "suffix", "betas"), CASES)
def test_every_space_and_format_gives_what_was_written(tmp_path, space, suffix, betas):
    written = writer.write_nsd(tmp_path, {1: (1, 2), 6: (1, 3)}, space, suffix, betas)
    data = opened(tmp_path)
    assert (data.format, data.space) == ("nsd", space)
    for subject in data.subjects:
        planted = written.subjects[int(subject.name[-1])]
        columns = np.ones(len(planted.places), bool) if space == "MNI" else planted.general
        same_trials(data, subject, planted)
        found = everything(subject)
        np.testing.assert_array_equal(found, planted.stored[:, columns])
        whole = space != "fsaverage"
        later = np.concatenate(list(subject.responses.iter_trials(751, 64 << 20)))
        np.testing.assert_array_equal(later, found[751:])
        assert found.dtype == subject.responses.dtype == (np.int16 if whole else np.float32)
        assert subject.responses.divisor == (300 if whole else 1)
        assert subject.responses.zero_is_missing == whole
        last = found[subject.session == planted.sessions[-1]]
        gone = (last == 0).all(axis=0) if whole else np.isnan(last).all(axis=0)
        np.testing.assert_array_equal(gone, planted.missing[columns])
        np.testing.assert_array_equal(subject.ncsnr, planted.ncsnr[columns].astype(np.float64))
        places = planted.places[columns]
        if len(planted.n_places) == 2:
            left = planted.n_places[0]
            assert subject.space.n_vertices == planted.n_places
            np.testing.assert_array_equal(subject.hemi, np.where(places < left, "L", "R"))
            np.testing.assert_array_equal(subject.vertex, np.where(places < left, places, places - left))
        else:
            assert subject.space.shape == writer.SHAPE
            np.testing.assert_array_equal(subject.space.index, places)
            np.testing.assert_allclose(subject.space.affine, writer.AFFINE, rtol=1e-6)
    row = data.subjects[1].trial_image[7]
    assert data.images.sources[row].row == written.subjects[6].image[7]
    shared = np.isin([int(i[4:]) + 1 for i in data.images.ids], written.plan.sharedix)
    np.testing.assert_array_equal(data.images.shared, shared)
    assert 0.03 < shared.mean() < 0.4


def test_a_value_has_its_voxel_and_trial(volumes):
    """Read once more with nibabel alone: x, y, z of a column and the trial of its session."""
    (subject,) = opened(volumes.root).subjects
    x = everything(subject)
    image = nibabel.load(volumes.root / B3 / "betas_session04.nii.gz")
    stored = np.asarray(image.dataobj)
    assert stored.dtype == np.int16 and stored.shape == (*writer.SHAPE, 750)
    for column in (0, 17, 59):
        i, j, k = subject.space.ijk[column]
        np.testing.assert_array_equal(x[1500:, column], stored[i, j, k])
    general = np.asarray(nibabel.load(volumes.root / FUNC / "roi/nsdgeneral.nii.gz").dataobj)
    assert general[tuple(subject.space.ijk.T)].tolist() == [1] * 60


def test_hdf5_volumes_are_stored_as_matlab_wrote_them(tmp_path):
    written = writer.write_nsd(tmp_path, {1: (1,)}, suffix="hdf5")
    with h5py.File(tmp_path / B3 / "betas_session01.hdf5") as file:
        betas = file["betas"]
        x, y, z = writer.SHAPE
        assert (betas.shape, betas.chunks, betas.dtype) == ((750, z, y, x), (750, 1, 1, 1), np.int16)
        place = int(written.subjects[1].places[0])
        i, j, k = place % x, place // x % y, place // (x * y)
        np.testing.assert_array_equal(betas[:, k, j, i], written.subjects[1].stored[:, 0])


def test_sessions_may_have_holes_and_what_is_not_there_is_said(volumes):
    (subject,) = opened(volumes.root).subjects
    planted = volumes.subjects[1]
    same_trials(opened(volumes.root), subject, planted)
    assert sorted(set(subject.session)) == [1, 2, 4]
    assert subject.sessions_missing == (3, *range(5, 41))
    said = {d.what: (d.count, d.why) for d in subject.dropped}
    assert said["sessions"][0] == 37 and "(3, 5-40)" in said["sessions"][1]
    assert said["trials"][0] == 37 * 750
    every = writer.trial_images(volumes.plan, 1, tuple(range(1, 41)))
    assert said["images"][0] == len(set(every.tolist())) - len(set(planted.image.tolist()))
    assert said["voxels"] == (3, "without data in session 4 (valid_session04.nii.gz): missing there")


def test_runs_have_their_true_lengths(volumes):
    (subject,) = opened(volumes.root).subjects
    lengths = [int(((subject.session == 2) & (subject.run == r)).sum()) for r in range(1, 13)]
    assert lengths == [63, 62] * 6
    assert (np.diff(subject.run[:750]) >= 0).all()


@pytest.mark.parametrize("space", ["func1pt8mm", "nativesurface", "fsaverage"])
def test_rois_have_their_names_and_empty_ones_stay(tmp_path, space):
    written = writer.write_nsd(tmp_path, {1: (1,)}, space)
    data = opened(tmp_path)
    (subject,) = data.subjects
    planted = written.subjects[1]
    atlases = {"prf-visualrois": writer.VISUAL, "floc-faces": writer.FACES, "streams": writer.STREAMS}
    for atlas, names in atlases.items():
        if space == "fsaverage" and atlas != "streams":
            assert atlas not in subject.rois
            continue
        labels = planted.labels[atlas][planted.general]
        np.testing.assert_array_equal(subject.rois[atlas], labels >= 1)
        for number, name in enumerate(names, start=1):
            np.testing.assert_array_equal(subject.rois[f"{atlas}/{name}"], labels == number)
        assert not subject.rois[f"{atlas}/{names[-1]}"].any()
    assert subject.rois["nsdgeneral/nsdgeneral"].all()
    assert any("not shipped on fsaverage" in note for note in data.notes) == (space == "fsaverage")


def test_masks_choose_the_columns(volumes):
    planted = volumes.subjects[1]
    streams = planted.labels["streams"]
    for mask, columns in {
        "brain": np.ones(300, bool),
        "streams": streams >= 1,
        "streams/ventral": streams == 5,
        "floc-faces": planted.labels["floc-faces"] >= 1,  # there by hemisphere only
    }.items():
        (subject,) = opened(volumes.root, mask=mask).subjects
        np.testing.assert_array_equal(subject.space.index, planted.places[columns])
        np.testing.assert_array_equal(everything(subject), planted.stored[:, columns])
    with pytest.raises(UserError, match=r"data\.mask is 'V1'.*brain.*streams"):
        opened(volumes.root, mask="V1")
    with pytest.raises(UserError, match="mask of subj01 has no voxel"):
        opened(volumes.root, mask="prf-visualrois/hV4")


def test_the_brain_is_found_without_a_brain_mask(copy, volumes):
    planted = volumes.subjects[1]
    (copy / FUNC / "brainmask.nii.gz").unlink()
    (subject,) = opened(copy, mask="brain").subjects
    np.testing.assert_array_equal(subject.space.index, planted.places)
    for file in (copy / FUNC).glob("valid_session*"):
        file.unlink()
    (subject,) = opened(copy, mask="brain").subjects
    np.testing.assert_array_equal(subject.space.index, planted.places[planted.ncsnr != 0])
    (copy / B3 / "ncsnr.nii.gz").unlink()
    with pytest.raises(UserError, match="where the brain is"):
        opened(copy, mask="brain")
    (subject,) = opened(copy).subjects
    assert subject.ncsnr is None and subject.n_voxels == 60
    shutil.rmtree(copy / FUNC / "roi")
    with pytest.raises(UserError, match="where the brain is"):
        opened(copy)


def test_all_vertices_of_a_surface(tmp_path):
    written = writer.write_nsd(tmp_path, {1: (1,)}, "nativesurface")
    (subject,) = opened(tmp_path, mask="all").subjects
    np.testing.assert_array_equal(everything(subject), written.subjects[1].stored)
    with pytest.raises(UserError, match=r"data\.mask is 'brain'"):
        opened(tmp_path, mask="brain")


def test_space_and_betas_are_chosen(tmp_path):
    for space, suffix, betas in (
        ("nativesurface", "", "b3"),
        ("func1pt8mm", "nii.gz", "b2"),
        ("func1pt8mm", "hdf5", "b1"),
    ):
        written = writer.write_nsd(tmp_path, {1: (1,)}, space, suffix, betas)
    data = opened(tmp_path)
    assert data.space == "func1pt8mm" and "betas b2" in data.notes[0]
    for name in ("b1", "betas_assumehrf"):
        data = opened(tmp_path, betas=name)
        np.testing.assert_array_equal(
            everything(data.subjects[0]), written.subjects[1].stored[:, written.subjects[1].general]
        )
    assert opened(tmp_path, space="nativesurface").subjects[0].space.n_vertices == writer.NATIVE
    with pytest.raises(UserError, match=r"data\.space is 'fsaverage'.*func1pt8mm, nativesurface"):
        opened(tmp_path, space="fsaverage")
    with pytest.raises(UserError, match=r"data\.betas is 'b3'.*b2, b1"):
        opened(tmp_path, betas="b3")
    with pytest.raises(UserError, match=r"subj02.*found subj01"):
        opened(tmp_path, subjects=("subj02",))
    writer.write_nsd(tmp_path, {2: (1,)}, "fsaverage")
    with pytest.raises(UserError, match=r"in common.*subj02: fsaverage"):
        opened(tmp_path)


def test_of_two_files_of_a_session_the_hdf5_is_read(copy, volumes):
    extra = writer.write_nsd(copy.parent / "other", {1: (1, 2, 4)}, suffix="hdf5")
    shutil.copy(extra.root / B3 / "betas_session02.hdf5", copy / B3)
    data = opened(copy)
    assert [f.name[13:] for f in data.subjects[0].responses.files] == ["01.nii.gz", "02.hdf5", "04.nii.gz"]
    np.testing.assert_array_equal(
        everything(data.subjects[0]), volumes.subjects[1].stored[:, volumes.subjects[1].general]
    )
    assert any("read from .hdf5" in note for note in data.notes)


def test_a_tree_with_the_table_alone_reads_the_same(copy, volumes):
    experiment = copy / "nsddata/experiments/nsd"
    (experiment / "nsd_expdesign.mat").unlink()
    with pytest.raises(UserError, match=r"nsd_expdesign\.mat or nsd_stim_info_merged\.csv"):
        opened(copy)
    writer.write_table(experiment / "nsd_stim_info_merged.csv", volumes.plan)
    data = opened(copy)
    same_trials(data, data.subjects[0], volumes.subjects[1])
    np.testing.assert_array_equal(data.images.shared, opened(volumes.root).images.shared)
    assert any("does not say where runs end" in note for note in data.notes)


def test_sessions_never_scanned_are_told_from_those_not_on_disk(tmp_path):
    writer.write_nsd(tmp_path, {4: (1, 2)})
    (subject,) = opened(tmp_path).subjects
    said = [str(d) for d in subject.dropped if d.what == "sessions"]
    assert said[0] == "10 sessions: planned but never scanned (31-40)"
    assert said[1].startswith("28 sessions: no beta files in") and said[1].endswith("(3-30)")
