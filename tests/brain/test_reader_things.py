"""THINGS-fMRI folders as shipped: exact responses, tables, ROIs, and every error by name."""

from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.brain.opening import open_dataset, recognise
from sbm_jax.brain.readers import things
from sbm_jax.brain.readers.options import ReadOptions
from sbm_jax.brain.spaces import UnplacedSpace, VolumeSpace
from sbm_jax.errors import UserError
from tests.brain.layouts import things as layout


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return layout.write_things(tmp_path_factory.mktemp("things"))


def all_trials(responses):
    return np.concatenate(list(responses.iter_trials(0, 1 << 20)))


@pytest.mark.parametrize(("form", "integers"), [("fixed", False), ("fixed", True), ("table", False), ("csv", False)])
def test_every_form_of_the_table_gives_the_same_numbers(tmp_path, form, integers):
    written = layout.write_things(tmp_path, form, integers, subjects=("sub-02",))
    assert recognise(tmp_path) == "things"
    subject = open_dataset(tmp_path).subjects[0]
    made = written.subjects["sub-02"]
    np.testing.assert_array_equal(subject.responses.read_voxels(slice(0, subject.n_voxels)), made.x_tv)
    np.testing.assert_array_equal(subject.responses.read_voxels(slice(5, 12)), made.x_tv[:, 5:12])
    np.testing.assert_array_equal(all_trials(subject.responses), made.x_tv)
    np.testing.assert_array_equal(np.concatenate(list(subject.responses.iter_trials(7, 50_000))), made.x_tv[7:])
    blocks = list(subject.iter_voxels(13))
    np.testing.assert_array_equal(np.concatenate([b for _, b in blocks], axis=1), made.x_tv.astype(np.float32))
    assert subject.responses.by_voxel and subject.responses.dtype == np.float64


def test_trials_images_and_shared_ones(tables):
    dataset = open_dataset(tables.root)
    assert (dataset.format, dataset.space) == ("things", "T1w")
    for subject in dataset.subjects:
        made = tables.subjects[subject.name]
        assert tuple(dataset.images.ids[i] for i in subject.trial_image) == made.image
        np.testing.assert_array_equal(subject.session, made.session)
        np.testing.assert_array_equal(subject.run, made.run)
    shared = [i for i, s in zip(dataset.images.ids, dataset.images.shared, strict=True) if s]
    assert tuple(shared) == tables.test
    counts = np.bincount(dataset.subjects[0].trial_image)
    assert set(counts[dataset.images.shared]) == {12} and set(counts[~dataset.images.shared]) == {1}
    for image_id, source in zip(dataset.images.ids, dataset.images.sources, strict=True):
        assert source == tables.root / "images" / image_id.rsplit("_", 1)[0] / image_id


def test_voxels_rois_and_ceiling(tables):
    subject = open_dataset(tables.root, ReadOptions(subjects=("sub-02",))).subjects[0]
    made = tables.subjects["sub-02"]
    assert isinstance(subject.space, VolumeSpace)
    assert subject.space.shape == layout.SHAPE
    np.testing.assert_array_equal(subject.space.index, made.index)
    np.testing.assert_allclose(subject.space.affine, layout.AFFINE)
    np.testing.assert_allclose(subject.noise_ceiling, made.nc_testset / 100, rtol=1e-12)
    flags = made.flags
    expected = {
        "prf": flags["V1"] | flags["V2"] | flags["LO1 (prf)"],
        "prf/V1": flags["V1"],
        "prf/V2": flags["V2"],
        "prf/LO1": flags["LO1 (prf)"],
        "localizer": flags["lFFA"] | flags["rFFA"],
        "localizer/lFFA": flags["lFFA"],
        "localizer/rFFA": flags["rFFA"],
        "localizer/FFA": flags["lFFA"] | flags["rFFA"],
        "IT": flags["IT"],
        "glasser": flags["glasser-V1"] | flags["glasser-p9-\n46v"],
        "glasser/V1": flags["glasser-V1"],
        "glasser/p9-46v": flags["glasser-p9-\n46v"],
    }
    assert set(subject.rois) == set(expected)
    for name, mask in expected.items():
        np.testing.assert_array_equal(subject.rois[name], mask, err_msg=name)


def test_a_mask_chooses_columns(tables):
    subject = open_dataset(tables.root, ReadOptions(subjects=("sub-01",), mask="IT")).subjects[0]
    made = tables.subjects["sub-01"]
    keep = np.flatnonzero(made.flags["IT"])
    np.testing.assert_array_equal(subject.responses.read_voxels(slice(0, len(keep))), made.x_tv[:, keep])
    np.testing.assert_array_equal(all_trials(subject.responses), made.x_tv[:, keep])
    np.testing.assert_array_equal(subject.space.index, made.index[keep])
    np.testing.assert_array_equal(subject.rois["prf/V1"], made.flags["V1"][keep])
    assert subject.responses.where(3, 1).endswith(f"trial 4, voxel {keep[1] + 1}")


def test_a_mask_file_chooses_columns(tables, tmp_path):
    made = tables.subjects["sub-01"]
    volume = np.zeros(int(np.prod(layout.SHAPE)), np.uint8)
    volume[made.index[::3]] = 1
    nibabel.save(nibabel.Nifti1Image(volume.reshape(layout.SHAPE, order="F"), layout.AFFINE), tmp_path / "m.nii.gz")
    options = ReadOptions(subjects=("sub-01",), mask=str(tmp_path / "m.nii.gz"))
    subject = open_dataset(tables.root, options).subjects[0]
    np.testing.assert_array_equal(subject.space.index, made.index[::3])


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_columns_are_those_of_the_whole(tables, data):
    made = tables.subjects["sub-01"]
    n = made.x_tv.shape[1]
    keep = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1))))
    file = things.Hdf5Frame(tables.root / "betas_csv" / "sub-01_ResponseData.h5", len(made.image), np.arange(n))
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, len(made.image) - 1), min_size=1))))
    responses = things.VoxelMajorResponses(((file, rows),), keep)
    start = data.draw(st.integers(0, len(keep) - 1))
    expected = made.x_tv[np.ix_(rows, keep)]
    np.testing.assert_array_equal(responses.read_voxels(slice(start, len(keep))), expected[:, start:])
    memory = data.draw(st.integers(1, 1 << 16))
    np.testing.assert_array_equal(np.concatenate(list(responses.iter_trials(0, memory))), expected)


def test_without_a_brain_mask_places_are_unknown(tmp_path):
    layout.write_things(tmp_path, subjects=("sub-01",), brainmask=False)
    dataset = open_dataset(tmp_path)
    assert isinstance(dataset.subjects[0].space, UnplacedSpace)
    assert any("no brain mask" in note for note in dataset.notes)


@pytest.mark.parametrize("inside", ["derivatives/betas_csv", "betas_csv/betas_csv", "."])
def test_the_folder_may_lie_elsewhere(tables, tmp_path, inside):
    (tmp_path / inside).parent.mkdir(parents=True, exist_ok=True)
    root = tmp_path
    if inside == ".":
        root = tables.root / "betas_csv"
    else:
        (tmp_path / inside).symlink_to(tables.root / "betas_csv", target_is_directory=True)
    assert recognise(root) == "things"
    options = ReadOptions(subjects=("sub-01",), stimuli=tables.root / "images")
    assert open_dataset(root, options).subjects[0].n_trials == len(tables.subjects["sub-01"].image)


def test_shared_images_from_a_list(tables, tmp_path):
    (tmp_path / "shared.txt").write_text("concept000_01s.jpg\n")
    dataset = open_dataset(tables.root, ReadOptions(shared=tmp_path / "shared.txt"))
    assert [i for i, s in zip(dataset.images.ids, dataset.images.shared, strict=True) if s] == ["concept000_01s.jpg"]


def test_flat_folder_of_pictures_and_the_first_missing_one(tables, tmp_path):
    for path in (tables.root / "images").glob("*/*.jpg"):
        (tmp_path / path.name).symlink_to(path)
    options = ReadOptions(stimuli=tmp_path)
    assert open_dataset(tables.root, options).images.sources[0] == tmp_path / "concept000_01s.jpg"
    (tmp_path / "concept003_02s.jpg").unlink()
    with pytest.raises(UserError, match=r"concept003_02s.jpg.*1 of 54"):
        open_dataset(tables.root, options)


def test_a_column_that_is_no_roi_is_said(tmp_path):
    layout.write_things(tmp_path, subjects=("sub-01",))
    path = tmp_path / "betas_csv" / "sub-01_VoxelMetadata.csv"
    lines = path.read_text().replace(",prf-size,", ",thickness,")
    path.write_text(lines)
    subject = open_dataset(tmp_path).subjects[0]
    assert [str(d) for d in subject.dropped] == [
        "1 columns of the voxel table: neither numbers that are used nor ROI flags of 0 and 1: thickness"
    ]


def test_catch_trials_in_the_table_are_dropped(tmp_path):
    written = layout.write_things(tmp_path, subjects=("sub-01",))
    path = tmp_path / "betas_csv" / "sub-01_StimulusMetadata.csv"
    lines = path.read_text().splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("train"))
    lines[row] = lines[row].replace("train", "catch", 1)
    path.write_text("\n".join(lines))
    subject = open_dataset(tmp_path).subjects[0]
    expected = np.delete(written.subjects["sub-01"].x_tv, row - 1, axis=0)
    np.testing.assert_array_equal(subject.responses.read_voxels(slice(0, 3)), expected[:, :3])
    assert str(subject.dropped[0]) == "1 trials: catch trials"


def _edit(name, old, new, count=1):
    def change(folder):
        path = folder / f"sub-01_{name}"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, count))

    return change


def _frame(x_vt, form="fixed", **changes):
    def change(folder):
        layout.write_frame(folder / "sub-01_ResponseData.h5", x_vt, form, False)
        if changes:
            with h5py.File(folder / "sub-01_ResponseData.h5", "r+") as file:
                for name, value in changes.items():
                    del file["ResponseData"][name]
                    file["ResponseData"][name] = value

    return change


def _truncate(folder):
    path = folder / "sub-01_ResponseData.h5"
    path.write_bytes(path.read_bytes()[:5000])


def _no_frame(folder):
    with h5py.File(folder / "sub-01_ResponseData.h5", "w") as file:
        file["x"] = np.zeros(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "sub-01_ResponseData.h5").unlink(), "ResponseData.h5: file not found"),
        (lambda f: (f / "sub-01_VoxelMetadata.csv").unlink(), "VoxelMetadata.csv: file not found"),
        (_truncate, "not a readable HDF5 file"),
        (_no_frame, "expected a data frame of voxels x trials"),
        (_frame(np.zeros((5, 120))), r"voxels \(rows of the voxel table\), found an array of 5 x 120"),
        (_edit("StimulusMetadata.csv", "trial_type", "kind"), "missing trial_type"),
        (_edit("StimulusMetadata.csv", "train", "rest"), "holds train, test or catch, found 'rest'"),
        (_edit("VoxelMetadata.csv", "voxel_id", "voxel"), "expected the column voxel_id"),
        (_edit("VoxelMetadata.csv", "\n1,1,", "\n7,1,"), "row 2 is voxel 1, but the voxel table has 7"),
        (_edit("VoxelMetadata.csv", "\n1,1,", "\nx,1,"), r"row 2: column 'voxel_id' needs numbers, found 'x'"),
        (_edit("VoxelMetadata.csv", "\n1,1,", "\n1,"), "row 2: expected 19 cells as in the header, found 18"),
        (_edit("VoxelMetadata.csv", "\n1,1,", "\n1,1,9"), "row 2: .*lies outside the brain mask"),
    ],
)
def test_errors(tmp_path, change, message):
    layout.write_things(tmp_path, subjects=("sub-01",), n_train=24, n_test=8)
    change(tmp_path / "betas_csv")
    with pytest.raises(UserError, match=message):
        open_dataset(tmp_path)


def test_trial_count_and_names_of_columns(tmp_path):
    written = layout.write_things(tmp_path, subjects=("sub-01",))
    x_vt = written.subjects["sub-01"].x_tv.T
    for changed, message in (
        (_frame(x_vt[:, :-1]), "expected 120 columns named 0 to 119 .* found 119"),
        (_frame(x_vt[:, :-1], "table"), "expected 120 trials .* found an array of"),
        (_frame(np.pad(x_vt, ((0, 0), (0, 2)))), "expected 120 columns named 0 to 119"),
    ):
        changed(tmp_path / "betas_csv")
        with pytest.raises(UserError, match=message):
            open_dataset(tmp_path)
    order = np.arange(120)[::-1]
    names = np.array([str(t).encode() for t in order])
    _frame(x_vt[:, order], block0_items=names)(tmp_path / "betas_csv")
    subject = open_dataset(tmp_path).subjects[0]
    np.testing.assert_array_equal(subject.responses.read_voxels(slice(0, 4)).T, x_vt[:4])


def test_voxel_ids_are_compared_in_every_form(tmp_path):
    written = layout.write_things(tmp_path, "table", subjects=("sub-01",))
    x_vt = written.subjects["sub-01"].x_tv.T
    folder = tmp_path / "betas_csv"
    _edit("VoxelMetadata.csv", "\n1,1,", "\n7,1,")(folder)
    with pytest.raises(UserError, match=r"row 2 is voxel 1, but the voxel table has 7"):
        open_dataset(tmp_path)
    # all columns of one kind lie in one block, voxel_id first
    joined = np.concatenate([np.arange(len(x_vt))[:, None], x_vt], axis=1)
    with h5py.File(folder / "sub-01_ResponseData.h5", "w") as file:
        file["frame/block0_values"] = joined
    with pytest.raises(UserError, match=r"row 2 is voxel 1, but the voxel table has 7"):
        open_dataset(tmp_path)
    _edit("VoxelMetadata.csv", "\n7,1,", "\n1,1,")(folder)
    subject = open_dataset(tmp_path).subjects[0]
    np.testing.assert_array_equal(subject.responses.read_voxels(slice(0, 5)).T, x_vt[:5])


def test_damaged_csv(tmp_path):
    layout.write_things(tmp_path, "csv", subjects=("sub-01",), n_train=24, n_test=2)
    path = tmp_path / "betas_csv" / "sub-01_ResponseData.csv"
    lines = path.read_text().splitlines()

    def read(changed):
        path.write_text("\n".join(changed))
        return open_dataset(tmp_path).subjects[0].responses.read_voxels(slice(0, 2))

    assert read(lines).shape == (48, 2)
    with pytest.raises(UserError, match=r"lines below the header"):
        read(lines[:-1])
    with pytest.raises(UserError, match=r"voxel 2: expected 49 cells as in the header, found 48"):
        read([*lines[:2], lines[2].rsplit(",", 1)[0], *lines[3:]])
    with pytest.raises(UserError, match=r"voxel 1: a cell is not a number"):
        read([lines[0], lines[1] + "x", *lines[2:]])
    with pytest.raises(UserError, match=r"expected 48 columns named 0 to 47"):
        read([lines[0].rsplit(",", 1)[0], *lines[1:]])


def test_an_image_in_training_and_test_is_refused(tmp_path):
    written = layout.write_things(tmp_path, subjects=("sub-01",))
    path = tmp_path / "betas_csv" / "sub-01_StimulusMetadata.csv"
    text = path.read_text()
    train = next(image for image in written.subjects["sub-01"].image if image not in written.test)
    path.write_text(text.replace(f"{train},", f"{written.test[0]},"))
    with pytest.raises(UserError, match=r"is in a training and in a test trial"):
        open_dataset(tmp_path)


def test_choices_that_are_not_there(tables):
    for options, message in (
        (ReadOptions(subjects=("sub-09",)), "data.subjects names"),
        (ReadOptions(space="fsaverage"), "data.space is 'fsaverage'"),
        (ReadOptions(betas="b3"), "this folder offers betas_csv"),
        (ReadOptions(mask="V9"), r"data.mask is 'V9'; expected an ROI \(prf"),
        (ReadOptions(stimuli=Path("nowhere")), "data.stimuli has to be a folder"),
    ):
        with pytest.raises(UserError, match=message):
            open_dataset(tables.root, options)
