"""Generic folders that do not fit: every error by name."""

import h5py
import nibabel
import numpy as np
import pytest

from sbm_jax.brain.opening import open_dataset, recognise
from sbm_jax.brain.readers.options import ReadOptions
from sbm_jax.errors import UserError
from tests.brain.layouts import generic as layout


def _subject(root):
    return root / "sub-01"


def _first(root, pattern):
    return sorted(_subject(root).rglob(pattern))[0]


def _edit(pattern, old, new):
    def change(root):
        path = _first(root, pattern) if pattern != "images.csv" else root / pattern
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


def _save(pattern, shape, affine=layout.AFFINE):
    def change(root):
        nibabel.save(nibabel.Nifti1Image(np.ones(shape, np.float32), affine), _first(root, pattern))

    return change


def _copy(pattern, name):
    def change(root):
        path = _first(root, pattern)
        path.with_name(name).write_bytes(path.read_bytes())

    return change


def _rename(pattern, old, new):
    def change(root):
        path = _first(root, pattern)
        path.rename(path.with_name(path.name.replace(old, new)))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: _first(r, "*_trials.tsv").unlink(),
            "no table of its trials found; expected sub-01_ses-01_run-1_trials.tsv",
        ),
        (_copy("*_trials.tsv", "sub-01_ses-01_run-1_task-view_events.tsv"), "may both list its trials; keep one"),
        (_edit("*_trials.tsv", "0\tn/a\n", ""), r"10 rows, but .*run-1_betas.nii.gz holds 11 trials"),
        (_edit("*_trials.tsv", "image_id", "picture"), "expected a column image_id or stimulus"),
        (_edit("*_trials.tsv", "0\t", "0\t0\t"), "row 1: expected 2 cells as in the header, found 3"),
        (_edit("*_trials.tsv", "img0", "cat0"), "is not in .*images.csv"),
        (_edit("images.csv", "img002.png", "gone.png"), "row 3: the image file .*gone.png does not exist"),
        (_edit("images.csv", "img002,", "img001,"), "image_id 'img001' is in rows 2 and 3"),
        (_edit("images.csv", "img002.png,1", "img002.png,2"), "row 3: column 'shared' needs 0 or 1, found 2"),
        (_save("*run-2_betas.nii.gz", (6, 5, 3, 11)), r"the shape is \(6, 5, 3\), but that of .* is \(6, 5, 4\)"),
        (_save("*run-2_betas.nii.gz", (6, 5, 4, 11), np.eye(4)), "another affine than that of"),
        (
            _save("*_mask.nii.gz", (6, 5, 3)),
            r"this mask has the shape \(6, 5, 3\), but the responses lie in \(6, 5, 4\)",
        ),
        (_save("areas.nii.gz", (6, 5, 3)), "this ROI volume has the shape"),
        (_save("areas.nii.gz", (6, 5)), "expected a volume of three dimensions"),
        (_copy("*_mask.nii.gz", "sub-01_label-GM_mask.nii.gz"), "several masks .*; set data.mask"),
        (_copy("*_betas.nii.gz", "sub-01_ses-01_task-view_run-1_desc-b_betas.nii.gz"), "the same trials as in"),
        (_rename("*_betas.nii.gz", "ses-01", "ses-A"), "ses-A has to end in a number"),
        (_edit("areas.tsv", "1\tearly", "one\tearly"), "column 'index' needs whole numbers"),
        (lambda r: _first(r, "*_betas.nii.gz").write_bytes(b"no"), "run-1_betas.nii.gz"),
    ],
)
def test_errors(tmp_path, change, message):
    layout.write_generic(tmp_path, subjects=("sub-01",), runs=2)
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        open_dataset(tmp_path)


def test_errors_of_surfaces_and_grayordinates(tmp_path):
    layout.write_generic(tmp_path / "s", "surface", subjects=("sub-01",))
    label = _first(tmp_path / "s", "hemi-R_areas.label.gii")
    kept = label.read_bytes()
    label.write_bytes(_first(tmp_path / "s", "hemi-L_areas.label.gii").read_bytes())
    with pytest.raises(UserError, match=r"expected 36 vertices as in the responses, found the shape \(40,\)"):
        open_dataset(tmp_path / "s")
    label.write_bytes(b"<gifti")
    with pytest.raises(UserError, match=r"not a readable GIFTI label file"):
        open_dataset(tmp_path / "s")
    label.write_bytes(kept.replace(b"late", b"last"))
    with pytest.raises(UserError, match=r"label 2 is 'last' here and 'late' in the other hemisphere"):
        open_dataset(tmp_path / "s")
    label.write_bytes(kept)
    label.rename(label.with_name("areas.label.gii"))
    with pytest.raises(UserError, match=r"the name has to say the hemisphere"):
        open_dataset(tmp_path / "s")
    _first(tmp_path / "s", "*hemi-R_betas.func.gii").unlink()
    with pytest.raises(UserError, match=r"hemi-R_betas.func.gii: file not found; the other hemisphere is there"):
        open_dataset(tmp_path / "s")
    layout.write_generic(tmp_path / "c", "cifti", subjects=("sub-01",))
    _first(tmp_path / "c", "areas.dlabel.nii").write_bytes(b"no")
    with pytest.raises(UserError, match=r"not a readable CIFTI label file"):
        open_dataset(tmp_path / "c")


def test_files_that_do_not_fit_each_other(tmp_path):
    layout.write_generic(tmp_path / "s", "surface", subjects=("sub-01",))
    right = _first(tmp_path / "s", "*hemi-R_betas.func.gii")
    image = nibabel.load(right)
    image.remove_gifti_data_array(0)
    nibabel.save(image, right)
    with pytest.raises(UserError, match=r"holds 11 trials, but .*hemi-R_betas.func.gii 10"):
        open_dataset(tmp_path / "s")
    layout.write_generic(tmp_path / "c", "cifti", subjects=("sub-01",))
    path = _first(tmp_path / "c", "*_betas.dtseries.nii")
    axis = layout.grayordinates()
    axis.vertex[0] = 1
    data = np.asanyarray(nibabel.load(path).dataobj)
    axes = (nibabel.cifti2.SeriesAxis(0, 1, len(data)), axis)
    nibabel.save(nibabel.Cifti2Image(data, nibabel.cifti2.Cifti2Header.from_axes(axes)), path)
    with pytest.raises(UserError, match=r"other grayordinates than those of"):
        open_dataset(tmp_path / "c")


def test_subjects_in_different_spaces_and_blank_files(tmp_path):
    layout.write_generic(tmp_path, "volume", runs=1)
    for path in (tmp_path / "sub-02").rglob("*_betas.nii.gz"):
        path.rename(path.with_name(path.name.replace("_betas", "_space-MNI_betas")))
    with pytest.raises(UserError, match=r"subjects in different spaces \(sub-01 in VolumeSpace volume"):
        open_dataset(tmp_path)
    tables = sorted((tmp_path / "sub-01").rglob("*_trials.tsv"))
    tables[0].write_text("image_id\n" + "n/a\n" * 21)
    subject = open_dataset(tmp_path, ReadOptions(subjects=("sub-01",))).subjects[0]
    assert set(subject.session) == {2} and len(subject.responses.files) == 1
    tables[1].write_text("image_id\n" + "n/a\n" * 21)
    with pytest.raises(UserError, match=r"no trial with a picture"):
        open_dataset(tmp_path, ReadOptions(subjects=("sub-01",)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_edit("trials.csv", "n/a,1,1\n", ""), "44 trials, but .*trials.csv has 43 rows"),
        (_edit("voxels.csv", "L,0,", "X,0,"), "row 1: column 'hemi' needs L or R, found 'X'"),
        (_edit("voxels.csv", "L,1,", "L,0,"), "row 3: vertex 0 of hemisphere L is listed twice"),
        (_edit("voxels.csv", "0.01", "x"), "column 'ncsnr' needs numbers"),
        (_edit("trials.csv", ",1,1\n", ",0,1\n"), "column 'session' needs whole numbers from 1"),
        (lambda r: np.save(_first(r, "responses.npy"), np.zeros((44, 29))), "29 voxels, but .*voxels.csv has 30 rows"),
        (lambda r: np.save(_first(r, "responses.npy"), np.zeros((44, 2, 2, 2, 2))), "responses.npy"),
    ],
)
def test_errors_of_arrays(tmp_path, change, message):
    layout.write_generic(tmp_path, "arrays", subjects=("sub-01",))
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        open_dataset(tmp_path)


def test_errors_of_hdf5_arrays_and_choices(tmp_path):
    layout.write_generic(tmp_path, "arrays", subjects=("sub-02",))
    for options, message in (
        (ReadOptions(mask="areas"), "arrays with tables have no masks"),
        (ReadOptions(betas="b3"), "data.betas is 'b3'"),
        (ReadOptions(stimuli=tmp_path / "sub-02"), "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            open_dataset(tmp_path, options)
    path = tmp_path / "sub-02" / "responses.h5"
    with h5py.File(path, "w") as file:
        file["a"], file["b"] = np.zeros((44, 30)), np.zeros(3)
    with pytest.raises(UserError, match=r"expected the dataset 'responses' \[trials, voxels\]; found a, b"):
        open_dataset(tmp_path)
    path.write_bytes(b"no")
    with pytest.raises(UserError, match=r"not a readable HDF5 file"):
        open_dataset(tmp_path)


def test_a_folder_that_is_nothing(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "sub-01_bold.nii.gz").write_bytes(b"")
    assert recognise(tmp_path) is None
    with pytest.raises(UserError, match=r"not a dataset folder that is known here"):
        open_dataset(tmp_path)
