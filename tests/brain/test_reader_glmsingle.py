"""GLMsingle's output in every file format: exact responses and places, tables of trials, and every error by name."""

import h5py
import nibabel
import numpy as np
import pytest
import scipy.io

from sbm_jax.brain.opening import open_dataset, recognise
from sbm_jax.brain.readers.options import ReadOptions
from sbm_jax.brain.spaces import UnplacedSpace, VolumeSpace
from sbm_jax.errors import UserError
from tests.brain.layouts import glmsingle as layout


def all_trials(responses, memory=1 << 20):
    return np.concatenate(list(responses.iter_trials(0, memory)))


def check(subject, made):
    """Responses and places agree, whatever order the columns are in."""
    order = np.argsort(subject.space.index)
    np.testing.assert_array_equal(subject.space.index[order], made.places)
    expected = made.x_tp[np.ix_(made.rows, subject.space.index)]
    np.testing.assert_array_equal(all_trials(subject.responses), expected)
    np.testing.assert_array_equal(all_trials(subject.responses, 3000), expected)
    if subject.responses.by_voxel:
        np.testing.assert_array_equal(subject.responses.read_voxels(slice(3, 20)), expected[:, 3:20])
    np.testing.assert_array_equal(subject.session, made.session)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("form", layout.FORMS)
def test_every_format_gives_the_same_numbers_and_places(tmp_path, form, flat):
    written = layout.write_glmsingle(tmp_path, form, flat=flat)
    assert recognise(tmp_path) == "glmsingle"
    dataset = open_dataset(tmp_path)
    assert [s.name for s in dataset.subjects] == ["sub-01", "sub-02"]
    for subject in dataset.subjects:
        made = written.subjects[subject.name]
        check(subject, made)
        assert isinstance(subject.space, VolumeSpace) and subject.space.shape == layout.SHAPE
        np.testing.assert_array_equal(subject.space.affine, layout.AFFINE)
        assert tuple(dataset.images.ids[i] for i in subject.trial_image) == made.image
        assert str(subject.dropped[0]) == "4 trials: blank (n/a in the table of trials)"
        if not flat:
            n = int(np.prod(layout.SHAPE)) - len(made.places)
            assert str(subject.dropped[1]).startswith(f"{n} voxels: outside the mask")
    assert any("read whole" in note for note in dataset.notes) == (form in ("npy", "mat5"))
    assert any("running fastest" in note for note in dataset.notes) == flat
    assert dataset.images.sources[7] == tmp_path / "stimuli" / "0007.png"


@pytest.mark.parametrize("form", ["hdf5", "mat73"])
def test_a_folder_per_session(tmp_path, form):
    written = layout.write_glmsingle(tmp_path, form, subjects=("s1",), by_session=True, table="trials.csv")
    subject = open_dataset(tmp_path).subjects[0]
    check(subject, written.subjects["s1"])
    assert len(subject.responses.files) == 2
    last = subject.n_trials - 1
    assert "ses-02" in subject.responses.where(last, 0) and "trial 26" in subject.responses.where(last, 0)


def test_one_table_above_the_sessions(tmp_path):
    written = layout.write_glmsingle(tmp_path, subjects=("s1",), by_session=True)
    tables = [tmp_path / "s1" / f"ses-0{s}" / "trials.tsv" for s in (1, 2)]
    lines = [path.read_text().splitlines() for path in tables]
    (tmp_path / "s1" / "trials.tsv").write_text("\n".join([*lines[0], *lines[1][1:]]))
    for path in tables:
        path.unlink()
    check(open_dataset(tmp_path).subjects[0], written.subjects["s1"])


def test_the_root_itself_may_be_the_subject(tmp_path):
    written = layout.write_glmsingle(tmp_path / "study", subjects=())
    dataset = open_dataset(tmp_path / "study")
    check(dataset.subjects[0], written.subjects["study"])
    assert dataset.subjects[0].name == "study"


def test_a_subject_with_session_folders_may_be_the_root(tmp_path):
    written = layout.write_glmsingle(tmp_path, subjects=("s1",), by_session=True)
    (tmp_path / "stimuli").rename(tmp_path / "s1" / "stimuli")
    dataset = open_dataset(tmp_path / "s1")
    assert [s.name for s in dataset.subjects] == ["s1"]
    check(dataset.subjects[0], written.subjects["s1"])


def test_without_a_mask_every_voxel_is_a_column(tmp_path):
    written = layout.write_glmsingle(tmp_path, subjects=("s1",), mask=False)
    dataset = open_dataset(tmp_path)
    subject, made = dataset.subjects[0], written.subjects["s1"]
    assert isinstance(subject.space, UnplacedSpace) and subject.n_voxels == np.prod(layout.SHAPE)
    file_order = np.arange(np.prod(layout.SHAPE)).reshape(layout.SHAPE, order="F").ravel()
    np.testing.assert_array_equal(all_trials(subject.responses), made.x_tp[np.ix_(made.rows, file_order)])
    assert any("no mask.nii.gz" in note for note in dataset.notes)


def test_the_best_betas_are_taken_and_others_on_request(tmp_path):
    written = layout.write_glmsingle(tmp_path, subjects=("s1",))
    source = tmp_path / "s1" / "TYPED_FITHRF_GLMDENOISE_RR.hdf5"
    with h5py.File(source) as file, h5py.File(tmp_path / "s1" / "TYPEB_FITHRF.hdf5", "w") as other:
        other["betasmd"] = file["betasmd"][:] * 2
    check(open_dataset(tmp_path).subjects[0], written.subjects["s1"])
    doubled = open_dataset(tmp_path, ReadOptions(betas="TYPEB")).subjects[0]
    made = written.subjects["s1"]
    np.testing.assert_array_equal(all_trials(doubled.responses), 2 * made.x_tp[np.ix_(made.rows, doubled.space.index)])
    with pytest.raises(UserError, match=r"offers TYPED, TYPEB"):
        open_dataset(tmp_path, ReadOptions(betas="TYPEC"))


def test_repeated_images_are_shared_for_one_subject_and_common_ones_for_several(tmp_path):
    layout.write_glmsingle(tmp_path)
    path = tmp_path / "sub-02" / "trials.tsv"
    path.write_text(path.read_text().replace("0003\t", "0004\t").replace("0005\t1", "0006\t1"))
    ids = open_dataset(tmp_path).images
    assert [i for i, s in zip(ids.ids, ids.shared, strict=True) if not s] == ["0003"]
    dataset = open_dataset(tmp_path, ReadOptions(subjects=("sub-02",)))
    assert [i for i, s in zip(dataset.images.ids, dataset.images.shared, strict=True) if not s] == ["0005"]
    assert "shared images: those shown more than once" in dataset.notes


def test_a_table_without_sessions_is_one_session_and_said(tmp_path):
    layout.write_glmsingle(tmp_path, subjects=("s1",))
    path = tmp_path / "s1" / "trials.tsv"
    path.write_text("".join(line.split("\t")[0] + "\n" for line in path.read_text().splitlines()))
    dataset = open_dataset(tmp_path)
    assert set(dataset.subjects[0].session) == {1}
    assert "trials.tsv has no column session: all trials count as one session" in dataset.notes


def _betas(key, shape, dtype=np.float32):
    def change(folder):
        with h5py.File(folder / f"{layout.FILE}.hdf5", "w") as file:
            file[key] = np.zeros(shape, dtype)

    return change


def _cut(folder):
    path = folder / f"{layout.FILE}.hdf5"
    path.write_bytes(path.read_bytes()[:900])


def _mask(volume):
    return lambda folder: nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / "mask.nii.gz")


def _replace(old, new):
    def change(folder):
        path = folder / "trials.tsv"
        path.write_text(path.read_text().replace(old, new))

    return change


def _old_mat(folder):
    (folder / f"{layout.FILE}.hdf5").unlink()
    scipy.io.savemat(folder / f"{layout.FILE}.mat", {"R2": np.zeros(3)})


def _no_mat(folder):
    (folder / f"{layout.FILE}.hdf5").unlink()
    (folder / f"{layout.FILE}.mat").write_bytes(b"MATLAB 5.0 MAT-file" + b"\0" * 300)


def _npy(content):
    def change(folder):
        (folder / f"{layout.FILE}.hdf5").unlink()
        np.save(folder / f"{layout.FILE}.npy", np.array(content, dtype=object), allow_pickle=True)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "trials.tsv").unlink(), "trials.tsv or trials.csv with one row per trial"),
        (_replace("image_id", "picture"), "expected a column image_id or stimulus or image_filename or stim_file"),
        (_replace("0007\t1\n", ""), r"51 rows for .*TYPED_FITHRF_GLMDENOISE_RR.hdf5, which holds 52 trials"),
        (_replace("0007\t", "cat\t"), "there is no picture 'cat'"),
        (_replace("\t1\n", "\tone\n"), "column 'session' needs whole numbers"),
        (_cut, "not a readable HDF5 file, or cut short"),
        (_betas("R2", (5, 4, 6)), r"expected betasmd or modelmd \(betas of single trials\); found R2"),
        (_betas("betasmd", (5, 4, 6)), r"expected betas \[X, Y, Z, trials\].*found the shape \(5, 4, 6\)"),
        (_betas("betasmd", (5, 4, 6, 52), np.complex64), "real numbers, found complex64"),
        (
            _betas("betasmd", (5, 4, 7, 52)),
            r"this mask has the shape \(5, 4, 6\), but the responses lie in \(5, 4, 7\)",
        ),
        (_betas("betasmd", (9, 1, 1, 52)), "voxels above 0, but .* holds 9 voxels"),
        (_mask(np.zeros(layout.SHAPE, np.uint8)), "the mask is empty"),
        (lambda f: (f / "mask.nii.gz").write_bytes(b"no"), "not a readable NIfTI volume"),
        (_old_mat, "expected betasmd or modelmd .*found R2"),
        (_no_mat, "not a readable MATLAB file|expected betasmd or modelmd"),
        (_npy([1, 2]), "expected a dict of results|found .*list|found ndarray"),
        (_npy({"R2": 1}), "expected betasmd or modelmd .*found R2"),
        (_npy({"betasmd": 1}), "expected an array under the key of the betas"),
    ],
)
def test_errors(tmp_path, change, message):
    layout.write_glmsingle(tmp_path, subjects=("s1",))
    change(tmp_path / "s1")
    with pytest.raises(UserError, match=message):
        open_dataset(tmp_path)


def test_damage_found_while_reading(tmp_path):
    layout.write_glmsingle(tmp_path, subjects=("s1",))
    subject = open_dataset(tmp_path).subjects[0]
    (tmp_path / "s1" / f"{layout.FILE}.hdf5").write_bytes(b"gone")
    with pytest.raises(UserError, match=r"cannot be read at voxel"):
        subject.responses.read_voxels(slice(0, 2))


def test_sessions_that_do_not_fit(tmp_path):
    layout.write_glmsingle(tmp_path, subjects=("s1",), by_session=True)
    _betas("betasmd", (5, 4, 7, 26))(tmp_path / "s1" / "ses-02")
    with pytest.raises(UserError, match=r"voxels of the shape \(5, 4, 7\), but .* has \(5, 4, 6\)"):
        open_dataset(tmp_path)
    (tmp_path / "s1" / "ses-02" / f"{layout.FILE}.hdf5").rename(tmp_path / "s1" / "ses-02" / "TYPEB_FITHRF.hdf5")
    with pytest.raises(UserError, match=r"no TYPED file; found TYPEB"):
        open_dataset(tmp_path)


def test_choices_that_are_not_there(tmp_path):
    layout.write_glmsingle(tmp_path)
    for options, message in (
        (ReadOptions(space="MNI"), "data.space is 'MNI'"),
        (ReadOptions(mask="gm.nii.gz"), "gm.nii.gz: file not found"),
        (ReadOptions(subjects=("sub-07",)), "data.subjects names"),
    ):
        with pytest.raises(UserError, match=message):
            open_dataset(tmp_path, options)
