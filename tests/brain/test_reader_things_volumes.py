"""THINGS-fMRI's betas_vol: exact responses of every run, catch trials left out, and every error by name."""

import nibabel
import numpy as np
import pytest

from sbm_jax.brain.opening import open_dataset, recognise
from sbm_jax.brain.readers.options import ReadOptions
from sbm_jax.errors import UserError
from tests.brain.layouts import things as layout


def all_trials(responses):
    return np.concatenate(list(responses.iter_trials(0, 1 << 20)))


def test_volumes(tmp_path):
    written = layout.write_things(tmp_path, "volumes", subjects=("sub-01",))
    assert recognise(tmp_path) == "things"
    dataset = open_dataset(tmp_path)
    subject, made = dataset.subjects[0], written.subjects["sub-01"]
    order = np.argsort(made.index)
    np.testing.assert_array_equal(subject.space.index, made.index[order])
    np.testing.assert_array_equal(all_trials(subject.responses), made.x_tv[:, order].astype(np.float32))
    assert tuple(dataset.images.ids[i] for i in subject.trial_image) == made.image
    np.testing.assert_array_equal(subject.session, made.session)
    np.testing.assert_array_equal(subject.run, made.run)
    assert {i for i, s in zip(dataset.images.ids, dataset.images.shared, strict=True) if s} == set(written.test)
    assert "24 trials: catch trials" in [str(d) for d in subject.dropped]


def test_volumes_without_a_brain_mask_or_with_another(tmp_path):
    written = layout.write_things(tmp_path, "volumes", subjects=("sub-01",), brainmask=False)
    made = written.subjects["sub-01"]
    subject = open_dataset(tmp_path).subjects[0]
    np.testing.assert_array_equal(subject.space.index, np.sort(made.index))
    volume = np.zeros(int(np.prod(layout.SHAPE)), np.uint8)
    volume[made.index[::4]] = 1
    image = nibabel.Nifti1Image(volume.reshape(layout.SHAPE, order="F"), layout.AFFINE)
    nibabel.save(image, tmp_path / "betas_vol" / "sub-01" / "own.nii.gz")
    subject = open_dataset(tmp_path, ReadOptions(mask="own.nii.gz")).subjects[0]
    np.testing.assert_array_equal(subject.space.index, np.sort(made.index[::4]))
    with pytest.raises(UserError, match=r"IT: file not found; for betas_vol data.mask has to name a NIfTI file"):
        open_dataset(tmp_path, ReadOptions(mask="IT"))


def test_errors_of_volumes(tmp_path):
    layout.write_things(tmp_path, "volumes", subjects=("sub-01",), n_train=24, n_test=2)
    folder = tmp_path / "betas_vol" / "sub-01" / "ses-things03"
    table = folder / "sub-01_ses-things03_run-01_conditions.tsv"
    kept = table.read_text()
    table.write_text(kept + "9\timages/probe00_14s.jpg\n")
    with pytest.raises(UserError, match=r"4 rows, but .* holds 3 trials"):
        open_dataset(tmp_path)
    table.write_text(kept)
    (folder / "sub-01_ses-things03_run-02_betas.nii.gz").unlink()
    with pytest.raises(UserError, match=r"run-02_betas.nii.gz not found"):
        open_dataset(tmp_path)
