"""Generic folders in every file format, and arrays with tables: exact responses and columns, names, and every error."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbm_jax.brain.opening import open_dataset, recognise
from sbm_jax.brain.readers.generic_files import entities_of, suffix_of
from sbm_jax.brain.readers.generic_stimuli import PictureFolder
from sbm_jax.brain.readers.generic_tables import label_number, read_columns, read_trials
from sbm_jax.brain.readers.options import ReadOptions
from sbm_jax.brain.spaces import CiftiSpace, SurfaceSpace, UnplacedSpace, VolumeSpace
from sbm_jax.errors import UserError
from tests.brain.layouts import generic as layout


def all_trials(responses, memory=1 << 20):
    return np.concatenate(list(responses.iter_trials(0, memory)))


def columns_of(space):
    """Places of the columns among all places of a file (left surface before right)."""
    if isinstance(space, SurfaceSpace):
        return space.vertex + np.where(space.hemi == "R", space.n_vertices[0], 0)
    return space.index if isinstance(space, VolumeSpace | CiftiSpace) else np.arange(space.n_columns)


@pytest.mark.parametrize("form", layout.FORMS)
def test_every_form(tmp_path, form):
    written = layout.write_generic(tmp_path, form)
    assert recognise(tmp_path) == "generic"
    dataset = open_dataset(tmp_path)
    assert [s.name for s in dataset.subjects] == ["sub-01", "sub-02"]
    kind = {"volume": VolumeSpace, "cifti": CiftiSpace, "surface": SurfaceSpace, "arrays": SurfaceSpace}[form]
    for subject in dataset.subjects:
        made = written.subjects[subject.name]
        assert isinstance(subject.space, kind)
        places = made.places if form != "arrays" else np.arange(30)
        if form != "arrays":
            np.testing.assert_array_equal(columns_of(subject.space), places)
        expected = made.x_tp[np.ix_(made.rows, places)]
        np.testing.assert_array_equal(all_trials(subject.responses), expected)
        np.testing.assert_array_equal(all_trials(subject.responses, 700), expected)
        assert tuple(dataset.images.ids[i] for i in subject.trial_image) == made.image
        np.testing.assert_array_equal(subject.session, made.session)
        np.testing.assert_array_equal(subject.run, made.run)
        blank = "4 trials: blank (n/a in the table of trials)"
        assert str(subject.dropped[0]) == blank
        if form != "arrays":
            assert subject.dropped[1].count == made.x_tp.shape[1] - len(places)
        for number, name in layout.LABELS.items():
            if form == "arrays" and name == "empty":
                continue  # a table of names has no name for what is nowhere
            np.testing.assert_array_equal(subject.rois[f"areas/{name}"], made.labels[places] == number)
        np.testing.assert_array_equal(subject.rois["areas"], made.labels[places] > 0)
    assert [i for i, s in zip(dataset.images.ids, dataset.images.shared, strict=True) if s] == list(
        dataset.images.ids[:4]
    )
    assert dataset.images.sources[3] == tmp_path / "stimuli" / "img003.png"
    assert "shared images: the column 'shared' of images.csv" in dataset.notes


def test_spaces_know_their_places(tmp_path):
    layout.write_generic(tmp_path / "v", "volume")
    space = open_dataset(tmp_path / "v").subjects[0].space
    assert (space.name, space.shape) == ("volume", layout.SHAPE)
    np.testing.assert_allclose(space.affine, layout.AFFINE)
    layout.write_generic(tmp_path / "s", "surface")
    subject = open_dataset(tmp_path / "s").subjects[0]
    assert (subject.space.name, subject.space.n_vertices) == ("surface", layout.VERTICES)
    layout.write_generic(tmp_path / "c", "cifti")
    subject = open_dataset(tmp_path / "c").subjects[0]
    assert subject.space.axis == layout.grayordinates()
    assert set(subject.hemi) == {"L", "R", ""}
    assert (subject.vertex[subject.hemi == "L"] % 2 == 0).all()


def test_arrays_are_read_where_they_lie(tmp_path):
    written = layout.write_generic(tmp_path, "arrays", subjects=("sub-01",))
    path = tmp_path / "sub-01" / "trials.csv"
    path.write_text(path.read_text().replace("n/a", "img000"))
    subject = open_dataset(tmp_path).subjects[0]
    assert subject.responses.by_voxel and not subject.dropped
    np.testing.assert_array_equal(subject.responses.read_voxels(slice(0, 30)), written.subjects["sub-01"].x_tp)
    np.testing.assert_allclose(subject.ncsnr, np.arange(30) / 100)
    (tmp_path / "sub-01" / "voxels.csv").unlink()
    bare = open_dataset(tmp_path).subjects[0]
    assert isinstance(bare.space, UnplacedSpace) and bare.n_voxels == 30 and not bare.rois


def test_template_surfaces_are_known_by_their_size(tmp_path):
    layout.write_generic(tmp_path, "arrays", subjects=("sub-01",))
    assert open_dataset(tmp_path, ReadOptions(space="fsaverage5")).subjects[0].space.n_vertices == (10242, 10242)
    folder = tmp_path / "sub-01"
    folder.joinpath("responses.npy").unlink()
    x_tp = np.random.default_rng(0).normal(1, 0.1, (2, 20484)).astype(np.float32)
    old = layout.VERTICES
    layout.VERTICES = (10242, 10242)
    try:
        layout.write_betas(folder / "sub-01_ses-01", x_tp, "surface")
    finally:
        layout.VERTICES = old
    (folder / "sub-01_ses-01_trials.tsv").write_text("image_id\nimg001\nimg002\n")
    assert open_dataset(tmp_path).space == "fsaverage5"


def test_dscalar_and_one_table_for_all_files(tmp_path):
    written = layout.write_generic(tmp_path, "cifti", subjects=("sub-01",), runs=1)
    made = written.subjects["sub-01"]
    lines = ["stim_file\tsession"]
    for path in sorted((tmp_path / "sub-01").rglob("*_trials.tsv")):
        session = int(path.parent.name[-2:])
        lines += [f"{line.split()[1]}\tses-{session:02d}" for line in path.read_text().splitlines()[1:]]
        path.unlink()
    (tmp_path / "sub-01" / "sub-01_events.tsv").write_text("\n".join(lines))
    second = next((tmp_path / "sub-01" / "ses-02").iterdir())
    base = Path(str(second).removesuffix("_betas.dtseries.nii"))
    layout.write_scalars(base, np.asanyarray(nibabel.load(second).dataobj))
    second.unlink()
    subject = open_dataset(tmp_path).subjects[0]
    np.testing.assert_array_equal(all_trials(subject.responses), made.x_tp[np.ix_(made.rows, made.places)])
    np.testing.assert_array_equal(subject.session, made.session)


@pytest.mark.parametrize("form", ["volume", "cifti", "surface"])
def test_without_a_mask_or_by_an_roi(tmp_path, form):
    written = layout.write_generic(tmp_path, form, subjects=("sub-01",), mask=False)
    made = written.subjects["sub-01"]
    dataset = open_dataset(tmp_path)
    np.testing.assert_array_equal(columns_of(dataset.subjects[0].space), made.places)
    assert any("no mask" in note for note in dataset.notes)
    subject = open_dataset(tmp_path, ReadOptions(mask="areas/late")).subjects[0]
    places = made.places[made.labels[made.places] == 2]
    np.testing.assert_array_equal(columns_of(subject.space), places)
    np.testing.assert_array_equal(all_trials(subject.responses), made.x_tp[np.ix_(made.rows, places)])
    assert subject.rois["areas/late"].all() and not subject.rois["areas/early"].any()
    with pytest.raises(UserError, match=r"data.mask 'areas/empty' leaves no column"):
        open_dataset(tmp_path, ReadOptions(mask="areas/empty"))
    with pytest.raises(UserError, match=r"data.mask is 'V1'; expected a NIfTI file or an ROI"):
        open_dataset(tmp_path, ReadOptions(mask="V1"))


def test_integer_volumes_keep_their_zeros(tmp_path):
    layout.write_generic(tmp_path, subjects=("sub-01",), mask=False, rois=False)
    for path in (tmp_path / "sub-01").rglob("*_betas.nii.gz"):
        volume = np.nan_to_num(np.asanyarray(nibabel.load(path).dataobj) * 100).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(volume, layout.AFFINE), path)
    subject = open_dataset(tmp_path).subjects[0]
    assert subject.n_voxels == np.prod(layout.SHAPE) and subject.responses.dtype == np.int16


def test_two_spaces_are_a_choice(tmp_path):
    written = layout.write_generic(tmp_path, subjects=("sub-01",))
    for path in sorted((tmp_path / "sub-01").rglob("*_betas.nii.gz")):
        image = nibabel.load(path)
        doubled = nibabel.Nifti1Image(2 * np.asanyarray(image.dataobj), image.affine)
        nibabel.save(doubled, str(path).replace("_betas", "_space-MNI_betas"))
        path.rename(str(path).replace("_betas", "_space-T1w_betas"))
    with pytest.raises(UserError, match=r"several spaces, MNI, T1w; set data.space"):
        open_dataset(tmp_path)
    made = written.subjects["sub-01"]
    dataset = open_dataset(tmp_path, ReadOptions(space="MNI"))
    assert dataset.space == "MNI"
    np.testing.assert_array_equal(
        all_trials(dataset.subjects[0].responses), 2 * made.x_tp[np.ix_(made.rows, made.places)]
    )
    with pytest.raises(UserError, match=r"data.space is 'fsLR'; found MNI, T1w"):
        open_dataset(tmp_path, ReadOptions(space="fsLR"))


def test_pictures_by_name_and_default_shared_images(tmp_path):
    layout.write_generic(tmp_path, "arrays", images_table=False)
    path = tmp_path / "sub-02" / "trials.csv"
    path.write_text(path.read_text().replace("img005", "img006.png"))
    with pytest.raises(UserError, match=r"'img006.*' may be"):
        (tmp_path / "stimuli" / "again").mkdir()
        (tmp_path / "stimuli" / "again" / "img006.png").write_bytes(b"")
        open_dataset(tmp_path)
    (tmp_path / "stimuli" / "again" / "img006.png").unlink()
    path.write_text(path.read_text().replace("img006.png", "img006"))
    images = open_dataset(tmp_path).images
    assert [i for i, s in zip(images.ids, images.shared, strict=True) if not s] == ["img005"]
    assert images.sources[6] == tmp_path / "stimuli" / "img006.png"


def test_names_of_labels_from_a_colour_table_or_none(tmp_path):
    written = layout.write_generic(tmp_path, subjects=("sub-01",))
    made = written.subjects["sub-01"]
    rois = tmp_path / "sub-01" / "rois"
    (rois / "areas.tsv").unlink()
    (rois / "areas.ctab").write_text("0 Unknown\t0 0 0\n1 near\t1 2 3\n")
    binary = (made.labels.reshape(layout.SHAPE, order="F") == 2).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(binary, layout.AFFINE), rois / "blob.nii.gz")
    subject = open_dataset(tmp_path).subjects[0]
    assert set(subject.rois) == {"areas", "areas/near", "areas/2", "blob"}
    np.testing.assert_array_equal(subject.rois["blob"], made.labels[made.places] == 2)
    np.testing.assert_array_equal(subject.rois["areas/near"], made.labels[made.places] == 1)


def test_the_mask_that_is_named(tmp_path):
    written = layout.write_generic(tmp_path, subjects=("sub-01",))
    made = written.subjects["sub-01"]
    volume = np.zeros(made.x_tp.shape[1], np.uint8)
    volume[made.places[::2]] = 1
    image = nibabel.Nifti1Image(volume.reshape(layout.SHAPE, order="F"), layout.AFFINE)
    nibabel.save(image, tmp_path / "group.nii.gz")
    subject = open_dataset(tmp_path, ReadOptions(mask="group.nii.gz")).subjects[0]
    np.testing.assert_array_equal(subject.space.index, made.places[::2])
    with pytest.raises(UserError, match=r"none.nii: file not found; data.mask has to name a NIfTI file"):
        open_dataset(tmp_path, ReadOptions(mask="none.nii"))


@given(st.integers(1, 10**6), st.text("abcdefgh", max_size=8), st.integers(0, 3))
def test_labels_end_in_their_number(number, text, zeros):
    assert label_number(text + "0" * zeros + str(number)) == number


def test_names_of_files():
    assert suffix_of(Path("sub-01_ses-02_betas.nii.gz")) == ".nii.gz"
    assert suffix_of(Path("betas.dtseries.nii")) == ".dtseries.nii"
    assert suffix_of(Path("sub-01_hemi-L_betas.func.gii")) == ".func.gii"
    for other in ("sub-01_bold.nii.gz", "alphabetas.nii", "sub-01_betas.txt", "sub-01_desc-betas_mask.nii.gz"):
        assert suffix_of(Path(other)) is None
    assert entities_of("sub-01_ses-02_run-3_betas") == {"sub": "01", "ses": "02", "run": "3"}
    assert label_number("rest") is None


def test_pictures_are_told_apart_by_their_folders(tmp_path):
    for name in ("a/x.png", "b/x.png", "b/y.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    pictures = PictureFolder(tmp_path)
    assert pictures.find("b/x.png") == tmp_path / "b" / "x.png"
    assert pictures.find("stimuli/a/x.png") == tmp_path / "a" / "x.png"
    assert pictures.find("y") == pictures.find("c/y.jpg") == tmp_path / "b" / "y.jpg"
    assert pictures.find("z.png") is None
    (tmp_path / "b" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert PictureFolder(tmp_path).find("b/x.png") == tmp_path / "b" / "x.png"
    with pytest.raises(UserError, match=r"'x.png' may be .*a/x.png or .*b/x.png"):
        pictures.find("x.png")
    with pytest.raises(UserError, match=r"folder not found"):
        PictureFolder(tmp_path / "none")


def test_tables(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text('stim_file\trun\n"a".png\t1\nN/A\t2\n')
    table = read_trials(path)
    assert table.images == ('"a".png', "") and table.session is None
    np.testing.assert_array_equal(table.run, [1, 2])
    for text, message in (
        ("a\ta\n", "same name"),
        ("", "expected a column|empty"),
        ("a\tb\n1\n", "row 1: expected 2 cells"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_trials(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"UTF-8"):
        read_columns(path)
    with pytest.raises(UserError, match=r"file not found"):
        read_columns(tmp_path / "none.tsv")
    path.write_text("a\n1\n")
    with pytest.raises(UserError, match=r"missing column b; found a"):
        read_columns(path, ("b",))
