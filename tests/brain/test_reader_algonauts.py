"""The Algonauts 2023 reader: rows are sorted pictures, columns the flagged vertices, and every mismatch is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.brain.opening import open_dataset
from sbm_jax.brain.readers import algonauts
from sbm_jax.brain.readers.options import ReadOptions
from sbm_jax.errors import UserError
from tests.brain.layouts import algonauts as writer
from tests.brain.layouts import nsd as nsd_writer


def opened(root, **options):
    return open_dataset(root, ReadOptions(**options), layout="algonauts")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return writer.write_algonauts(tmp_path_factory.mktemp("algonauts"))


@pytest.fixture
def copy(written, tmp_path):
    """A copy to damage; pictures and responses included, they are small."""
    return Path(shutil.copytree(written.root, tmp_path / "copy"))


def everything(subject, memory=1 << 20):
    return np.concatenate(list(subject.responses.iter_trials(0, memory)))


def numbers(data, subject):
    return np.array([int(data.images.ids[i].removeprefix("nsd-")) for i in subject.trial_image])


def test_what_was_written_is_read(written):
    data = opened(written.root)
    assert (data.format, data.space) == ("algonauts", "fsaverage")
    assert [s.name for s in data.subjects] == ["subj01", "subj02"]
    for k, subject in enumerate(data.subjects, start=1):
        planted = written.subjects[k]
        np.testing.assert_array_equal(numbers(data, subject), planted.train)
        np.testing.assert_array_equal(everything(subject), planted.x_train)
        assert subject.averaged and subject.responses.divisor == 1 and not subject.responses.zero_is_missing
        np.testing.assert_array_equal(subject.session, 1)
        np.testing.assert_array_equal(subject.run, 1)
        np.testing.assert_array_equal(subject.hemi, np.repeat(["L", "R"], [30, 24]))
        np.testing.assert_array_equal(subject.vertex, np.concatenate(planted.vertices))
        assert subject.space.n_vertices == (163_842, 163_842)
        assert subject.noise_ceiling is None
        assert [str(d) for d in subject.dropped] == [
            f"6 test pictures: no responses to them in {written.root / subject.name / 'test_split/test_fmri'}"
        ]
    assert all(source.is_file() for source in data.images.sources)
    assert all(source.stem.endswith(i) for source, i in zip(data.images.sources, data.images.ids, strict=True))


def test_columns_are_read_on_their_own(written):
    for subject in opened(written.root).subjects:
        x = everything(subject)
        assert subject.responses.by_voxel
        for voxels in (slice(0, 5), slice(28, 33), slice(30, 54), slice(0, 54), slice(53, 54)):
            np.testing.assert_array_equal(subject.responses.read_voxels(voxels), x[:, voxels])


def test_rois_have_their_names_and_empty_ones_stay(written):
    data = opened(written.root)
    for k, subject in enumerate(data.subjects, start=1):
        for atlas, table in writer.MAPPINGS.items():
            labels = written.subjects[k].labels[atlas]
            np.testing.assert_array_equal(subject.rois[atlas], labels >= 1)
            for number, name in table.items():
                if number:
                    np.testing.assert_array_equal(subject.rois[f"{atlas}/{name}"], labels == number)
            assert f"{atlas}/Unknown" not in subject.rois
        visual = written.subjects[k].labels["prf-visualrois"]
        np.testing.assert_array_equal(subject.rois["prf-visualrois/V1"], (visual == 1) | (visual == 2))
        assert not subject.rois["prf-visualrois/hV4"].any() and not subject.rois["floc-faces/aTL-faces"].any()


def test_a_mask_chooses_columns(written):
    planted = written.subjects[1]
    subject = opened(written.root, mask="streams/ventral").subject("subj01")
    columns = np.flatnonzero(planted.labels["streams"] == 5)
    np.testing.assert_array_equal(everything(subject), planted.x_train[:, columns])
    np.testing.assert_array_equal(subject.vertex, np.concatenate(planted.vertices)[columns])
    assert subject.rois["streams/ventral"].all()
    with pytest.raises(UserError, match=r"data\.mask is 'V1'.*floc-faces, prf-visualrois, streams"):
        opened(written.root, mask="V1")
    with pytest.raises(UserError, match="no vertex in subj01"):
        opened(written.root, mask="prf-visualrois/hV4")


def test_test_pictures_with_responses_are_further_rows(tmp_path):
    written = writer.write_algonauts(tmp_path, test_fmri=True)
    data = opened(tmp_path)
    for k, subject in enumerate(data.subjects, start=1):
        planted = written.subjects[k]
        np.testing.assert_array_equal(numbers(data, subject), np.concatenate([planted.train, planted.test]))
        x = np.concatenate([planted.x_train, planted.x_test])
        np.testing.assert_array_equal(everything(subject), x)
        np.testing.assert_array_equal(subject.responses.read_voxels(slice(20, 40)), x[:, 20:40])
        np.testing.assert_array_equal(subject.noise_ceiling, planted.ceiling)
        assert subject.dropped == ()


def test_shared_pictures_are_those_of_all_subjects(written):
    data = opened(written.root)
    shared = [int(i[4:]) for i, flag in zip(data.images.ids, data.images.shared, strict=True) if flag]
    assert shared == written.shared.tolist()
    assert any("24 that all 2 subjects of the folder saw" in note for note in data.notes)
    # also when one subject is chosen: the names of the others tell
    one = opened(written.root, subjects=("subj02",))
    assert one.images.shared.sum() == 24 and len(one.images.ids) == 60


def test_one_subject_needs_a_list(written, tmp_path):
    root = Path(shutil.copytree(written.root / "subj01", tmp_path / "only" / "subj01"))
    for folder in (root, root.parent):
        assert algonauts.recognise(folder)
        with pytest.raises(UserError, match=r"data\.shared"):
            opened(folder)
    text = tmp_path / "shared.txt"
    text.write_text("\n".join(f"nsd-{n:05d}" if n % 2 else str(n) for n in written.shared) + "\n")
    data = opened(root, shared=text)
    assert data.images.shared.sum() == 24 and [s.name for s in data.subjects] == ["subj01"]
    text.write_text("72999\n") if 72_999 not in written.subjects[1].train else text.write_text("72998\n")
    with pytest.raises(UserError, match="none of the 60 pictures is a shared one"):
        opened(root, shared=text)
    text.write_text("0\n73000\n")
    with pytest.raises(UserError, match=r"shared\.txt, line 2.*73000"):
        opened(root, shared=text)


@pytest.mark.parametrize("beside", [True, False])
def test_the_nsd_design_says_which_are_shared_and_counts_from_1(copy, written, beside):
    plan = nsd_writer.make_plan()
    wanted = written.shared[:5]
    others = np.setdiff1d(np.arange(73_000), np.concatenate([s.train for s in written.subjects.values()]))
    sharedix = np.sort(np.concatenate([wanted, others[:995]])) + 1
    place = copy if beside else copy.parent / "elsewhere"
    place.mkdir(exist_ok=True)
    nsd_writer.write_mat(place / "nsd_expdesign.mat", plan, sharedix=sharedix[None].astype(float))
    data = opened(copy) if beside else opened(copy, shared=place / "nsd_expdesign.mat")
    shared = [int(i[4:]) for i, flag in zip(data.images.ids, data.images.shared, strict=True) if flag]
    assert shared == wanted.tolist()
    assert any("nsd_expdesign.mat" in note for note in data.notes)


@settings(deadline=None, max_examples=25)
@given(ids=st.lists(st.integers(0, 72_999), min_size=1, max_size=12, unique=True), seed=st.integers(0, 99))
def test_names_carry_ids_from_0_and_rows_follow_the_names(tmp_path_factory, ids, seed):
    folder = tmp_path_factory.mktemp("names")
    images = folder / "training_split/training_images"
    images.mkdir(parents=True)
    for counter in np.random.default_rng(seed).permutation(len(ids)):  # the order on disk does not matter
        (images / f"train-{counter + 1:04d}_nsd-{ids[counter]:05d}.png").write_bytes(b"")
    assert algonauts._split(folder, "training").ids.tolist() == ids


ERRORS = {
    "rows": ("training_split/training_fmri/lh_training_fmri.npy", lambda x: x[:-1], ["60 rows", "59 x 30"]),
    "columns": ("training_split/training_fmri/rh_training_fmri.npy", lambda x: x[:, 1:], ["24 columns", "60 x 23"]),
    "integers": ("training_split/training_fmri/lh_training_fmri.npy", lambda x: x.astype("i2"), ["float32", "int16"]),
    "flags": ("roi_masks/lh.all-vertices_fsaverage_space.npy", lambda x: x[1:], ["163842", "163841"]),
    "flag value": ("roi_masks/lh.all-vertices_fsaverage_space.npy", lambda x: x * 2, ["0 and 1 only"]),
    "flag count": ("roi_masks/rh.all-vertices_fsaverage_space.npy", lambda x: x * 0, ["0 numbers", "(24,)"]),
    "mask length": ("roi_masks/lh.streams_challenge_space.npy", lambda x: x[:-1], ["expected 30", "(29,)"]),
    "masks differ": ("roi_masks/lh.streams_fsaverage_space.npy", lambda x: x + 1, ["not those of"]),
}


@pytest.mark.parametrize("name", ERRORS)
def test_mismatches_name_both_numbers(copy, name):
    file, change, words = ERRORS[name]
    path = copy / "subj01" / file
    np.save(path, change(np.load(path)))
    with pytest.raises(UserError) as error:
        opened(copy)
    message = str(error.value)
    assert all(word in message for word in words), message
    assert str(path.parent) in message


def test_other_mistakes_are_told(copy):
    with pytest.raises(UserError, match="only fsaverage"):
        opened(copy, space="func1pt8mm")
    with pytest.raises(UserError, match=r"data\.stimuli"):
        opened(copy, stimuli=copy)
    with pytest.raises(UserError, match=r"subj09.*found subj01, subj02"):
        opened(copy, subjects=("subj09",))
    mapping = copy / "subj02/roi_masks/mapping_streams.npy"
    np.save(mapping, np.array({1: ["a"]}, dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"mapping_streams\.npy: expected a table of ROI names"):
        opened(copy)
    mapping.unlink()
    with pytest.raises(UserError, match=r"mapping_streams\.npy: file not found"):
        opened(copy)
    shutil.copy(copy / "subj01/roi_masks/mapping_streams.npy", mapping)
    images = copy / "subj01/training_split/training_images"
    first = sorted(images.iterdir())[0]
    twin = images / f"train-9999_{first.stem[-9:]}.png"
    shutil.copy(first, twin)
    with pytest.raises(UserError, match="are both NSD image"):
        opened(copy)
    twin.rename(images / "train-9999.png")
    with pytest.raises(UserError, match=r"train-9999\.png: expected a name"):
        opened(copy)
    (images / "train-9999.png").unlink()
    responses = copy / "subj02/training_split/training_fmri/rh_training_fmri.npy"
    responses.write_bytes(responses.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"rh_training_fmri\.npy"):
        opened(copy)


def test_masks_and_responses_of_different_subjects_do_not_pass_without_rois(copy):
    """Without challenge masks it is the responses that tell."""
    masks = copy / "subj01/roi_masks"
    for file in masks.glob("*_challenge_space.npy"):
        file.unlink()
    assert opened(copy).subject("subj01").rois == {}
    flags = np.load(masks / "rh.all-vertices_fsaverage_space.npy")
    flags[np.flatnonzero(flags == 0)[0]] = 1
    np.save(masks / "rh.all-vertices_fsaverage_space.npy", flags)
    with pytest.raises(UserError, match=r"rh_training_fmri\.npy: expected 60 rows .* x 25 columns .*found 60 x 24"):
        opened(copy)


def test_only_its_own_folders_are_recognised(written, tmp_path):
    assert algonauts.recognise(written.root)
    (tmp_path / "subj01").mkdir()
    assert not algonauts.recognise(tmp_path)
    with pytest.raises(UserError, match="training_split"):
        opened(tmp_path)
