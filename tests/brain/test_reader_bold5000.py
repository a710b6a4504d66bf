"""BOLD5000 folders as shipped: exact responses, order of trials, ROIs, and every error by name."""

import nibabel
import numpy as np
import pytest

from sbm_jax.brain.opening import open_dataset, recognise
from sbm_jax.brain.readers.options import ReadOptions
from sbm_jax.brain.spaces import UnplacedSpace, VolumeSpace
from sbm_jax.errors import UserError
from tests.brain.layouts import bold5000 as layout


def all_trials(responses):
    return np.concatenate(list(responses.iter_trials(0, 1 << 20)))


def session_file(root, session, subject="CSI1"):
    return root / f"{subject}_{layout.HEAD}_ses-{session:02d}.nii.gz"


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    return layout.write_bold5000(tmp_path_factory.mktemp("bold5000"))


def test_volumes(volumes):
    assert recognise(volumes.root) == "bold5000"
    dataset = open_dataset(volumes.root)
    assert (dataset.space, [s.name for s in dataset.subjects]) == ("native", ["CSI1", "CSI4"])
    for subject in dataset.subjects:
        made = volumes.subjects[subject.name]
        assert isinstance(subject.space, VolumeSpace) and subject.space.shape == layout.SHAPE
        np.testing.assert_array_equal(subject.space.index, made.places)
        np.testing.assert_array_equal(all_trials(subject.responses), made.x_tv)
        assert tuple(dataset.images.ids[i] for i in subject.trial_image) == made.image
        np.testing.assert_array_equal(subject.session, made.session)
        np.testing.assert_array_equal(subject.run, made.run)
        outside = np.prod(layout.SHAPE) - len(made.places)
        assert str(subject.dropped[0]).startswith(f"{outside} voxels: NaN or 0 in the first trial")
    assert dataset.subjects[0].sessions_missing == tuple(range(3, 16))
    assert dataset.subjects[1].sessions_missing == tuple(range(3, 10))
    shared = [i for i, s in zip(dataset.images.ids, dataset.images.shared, strict=True) if s]
    assert set(shared) == set(volumes.repeated)
    for image_id, source in zip(dataset.images.ids, dataset.images.sources, strict=True):
        assert source.name == image_id and source.parent.name in ("COCO", "ImageNet", "Scene")


def test_rois_of_volumes_and_a_misspelt_one(tmp_path):
    written = layout.write_bold5000(tmp_path, subjects=("CSI1",))
    folder = tmp_path / "derivatives" / "sub-CSI1"
    (folder / "sub-CSI1_mask-RHPPA.nii.gz").rename(folder / "sub-CSI1_mask-RHRRSC.nii.gz")
    subject, made = open_dataset(tmp_path).subjects[0], written.subjects["CSI1"]

    def mask(*rois):
        return np.isin(made.places, np.concatenate([made.rois[roi] for roi in rois]))

    expected = {
        "EarlyVis": mask("LHEarlyVis", "RHEarlyVis"),
        "EarlyVis/LH": mask("LHEarlyVis"),
        "EarlyVis/RH": mask("RHEarlyVis"),
        "PPA": mask("LHPPA"),
        "PPA/LH": mask("LHPPA"),
        "RSC": mask("RHPPA"),
        "RSC/RH": mask("RHPPA"),
    }
    assert set(subject.rois) == set(expected)
    for name, where in expected.items():
        np.testing.assert_array_equal(subject.rois[name], where, err_msg=name)


@pytest.mark.parametrize("mask", ["brainmask", "PPA/LH", "CSI1_brainmask.nii.gz", "{subject}_brainmask.nii.gz"])
def test_masks(volumes, mask):
    subject = open_dataset(volumes.root, ReadOptions(subjects=("CSI1",), mask=mask)).subjects[0]
    made = volumes.subjects["CSI1"]
    places = made.rois["LHPPA"] if mask == "PPA/LH" else made.places
    np.testing.assert_array_equal(subject.space.index, places)
    np.testing.assert_array_equal(all_trials(subject.responses), made.x_tv[:, np.isin(made.places, places)])


@pytest.mark.parametrize("lists", [True, False])
def test_roi_arrays(tmp_path, lists):
    written = layout.write_bold5000(tmp_path, "arrays" if lists else "both", subjects=("CSI1",), lists=lists)
    dataset = open_dataset(tmp_path, ReadOptions(space="rois"))
    subject, made = dataset.subjects[0], written.subjects["CSI1"]
    assert isinstance(subject.space, UnplacedSpace) and dataset.space == "rois"
    names = sorted(made.rois)
    expected = np.concatenate([made.x_tv[:, np.isin(made.places, made.rois[name])] for name in names], axis=1)
    np.testing.assert_array_equal(all_trials(subject.responses), expected)
    np.testing.assert_array_equal(subject.session, made.session)
    np.testing.assert_array_equal(subject.run, made.run)
    assert names == ["LHEarlyVis", "LHPPA", "RHEarlyVis", "RHPPA"]
    np.testing.assert_array_equal(np.flatnonzero(subject.rois["PPA"]), [*range(6, 12), *range(18, 24)])
    np.testing.assert_array_equal(np.flatnonzero(subject.rois["EarlyVis/RH"]), range(12, 18))


def test_names_from_the_lists_of_runs(tmp_path):
    written = layout.write_bold5000(tmp_path, subjects=("CSI1",), lists=True)
    (tmp_path / "CSI1_imgnames.txt").unlink()
    dataset = open_dataset(tmp_path)
    made = written.subjects["CSI1"]
    assert tuple(dataset.images.ids[i] for i in dataset.subjects[0].trial_image) == made.image


def test_a_hole_in_the_sessions(tmp_path):
    written = layout.write_bold5000(tmp_path, subjects=("CSI1",), runs_of_session=(1, 2, 1), lists=True)
    session_file(tmp_path, 2).unlink()
    subject, made = open_dataset(tmp_path).subjects[0], written.subjects["CSI1"]
    keep = made.session != 2
    np.testing.assert_array_equal(all_trials(subject.responses), made.x_tv[keep])
    np.testing.assert_array_equal(subject.session, made.session[keep])
    assert subject.sessions_missing[:2] == (2, 4)
    assert str(subject.dropped[0]) == "74 trials: of sessions whose files are not there"
    for path in (tmp_path / "BOLD5000_Stimuli" / "Stimuli_Presentation_Lists").glob("*/*/*.txt"):
        path.unlink()
    with pytest.raises(UserError, match=r"the sessions 1, 3 are there; which names belong to them"):
        open_dataset(tmp_path)


def test_a_missing_tail_needs_no_lists(tmp_path):
    written = layout.write_bold5000(tmp_path, subjects=("CSI1",))
    session_file(tmp_path, 2).unlink()
    subject, made = open_dataset(tmp_path).subjects[0], written.subjects["CSI1"]
    np.testing.assert_array_equal(all_trials(subject.responses), made.x_tv[made.session == 1])
    assert subject.sessions_missing[0] == 2


def test_the_version_of_betas(tmp_path):
    layout.write_bold5000(tmp_path, subjects=("CSI1",))
    for session in (1, 2):
        image = nibabel.load(session_file(tmp_path, session))
        doubled = nibabel.Nifti1Image(2 * np.asanyarray(image.dataobj), image.affine)
        nibabel.save(doubled, tmp_path / f"CSI1_GLMbetas-TYBEB-FITHRF_ses-{session:02d}.nii.gz")
    first = open_dataset(tmp_path).subjects[0].responses
    second = open_dataset(tmp_path, ReadOptions(betas="TYPEB")).subjects[0].responses
    np.testing.assert_array_equal(all_trials(second), 2 * all_trials(first))


def _other_grid(root):
    path = root / "derivatives" / "sub-CSI1" / "sub-CSI1_mask-LHPPA.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.eye(4)), path)


def _other_shape(root):
    nibabel.save(nibabel.Nifti1Image(np.ones((6, 7, 6, 37), np.float32), layout.AFFINE), session_file(root, 2))


def _names(change):
    def edit(root):
        path = root / "CSI1_imgnames.txt"
        path.write_text("\n".join(change(path.read_text().splitlines())))

    return edit


def _empty_volumes(root):
    for session, n in ((1, 74), (2, 37)):
        nibabel.save(
            nibabel.Nifti1Image(np.full((*layout.SHAPE, n), np.nan, np.float32), layout.AFFINE),
            session_file(root, session),
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: (r / "CSI1_imgnames.txt").unlink(), "CSI1_imgnames.txt not found"),
        (_names(lambda lines: lines[:-1]), "110 names, but the sessions on disk hold 111 trials"),
        (_names(lambda lines: []), "expected names of images, one per line; found none"),
        (_names(lambda lines: ["gone.jpg", *lines[1:]]), "there is no picture 'gone.jpg'"),
        (_other_grid, r"this ROI mask has the shape \(3, 3, 3\), but the responses lie in \(6, 7, 5\)"),
        (_other_shape, r"the shape \(6, 7, 6\) or the affine is not that of"),
        (_empty_volumes, "no voxel carries numbers"),
        (lambda r: session_file(r, 1).write_bytes(b"x"), "ses-01.nii.gz"),
    ],
)
def test_errors(tmp_path, change, message):
    layout.write_bold5000(tmp_path, subjects=("CSI1",))
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        open_dataset(tmp_path)


def test_arrays_that_do_not_fit(tmp_path):
    layout.write_bold5000(tmp_path, "arrays", subjects=("CSI1",))
    with pytest.raises(UserError, match=r"it does not say where sessions begin"):
        open_dataset(tmp_path)
    path = next(tmp_path.glob("*/py/*LHPPA.npy"))
    np.save(path, np.load(path)[:-1])
    with pytest.raises(UserError, match=r"110 trials, but .* holds 111|111 trials, but .* holds 110"):
        open_dataset(tmp_path)


def test_choices_that_are_not_there(volumes):
    for options, message in (
        (ReadOptions(subjects=("CSI2",)), "data.subjects names"),
        (ReadOptions(betas="TYPEA"), "this folder offers TYPED"),
        (ReadOptions(space="rois"), "this folder offers native"),
        (ReadOptions(mask="nothing"), r"expected brainmask .* an ROI \(EarlyVis"),
    ):
        with pytest.raises(UserError, match=message):
            open_dataset(volumes.root, options)


def test_shared_from_a_list_of_ids(volumes, tmp_path):
    (tmp_path / "ids.txt").write_text(volumes.repeated[0] + "\n")
    images = open_dataset(volumes.root, ReadOptions(subjects=("CSI1",), shared=tmp_path / "ids.txt")).images
    assert [i for i, s in zip(images.ids, images.shared, strict=True) if s] == [volumes.repeated[0]]
    (tmp_path / "ids.txt").write_text("other\n")
    with pytest.raises(UserError, match=r"names none of the"):
        open_dataset(volumes.root, ReadOptions(subjects=("CSI1",), shared=tmp_path / "ids.txt"))
