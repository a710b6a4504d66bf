"""Maps in the space of the columns, read back by nibabel and by nilearn: every value at its place, nothing elsewhere."""

import csv

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.cifti2 import BrainModelAxis

from sbm_jax.brain.maps import LabelMap, ScalarMap, write_maps
from sbm_jax.brain.spaces import CiftiSpace, SurfaceSpace, UnplacedSpace, VolumeSpace

# Left-handed with unequal voxels, oblique and sheared (no rotation times zooms), and NSD's kind.
AFFINES = {
    "flipped": [[-1.8, 0, 0, 72.3], [0, 2.5, 0, -90.1], [0, 0, 3.1, -40.7], [0, 0, 0, 1]],
    "sheared": [[1.7, 0.4, 0.1, -60], [-0.2, 1.9, 0.3, 11.5], [0.3, -0.2, 2.2, 0.25], [0, 0, 0, 1]],
    "permuted": [[0, 0, 1.8, -1], [-1.8, 0, 0, 2], [0, 1.8, 0, -3], [0, 0, 0, 1]],
}
SHAPE = (5, 4, 3)
NAMES = {1: "face", 4: "place"}
COLOURS = {4: (1.0, 0.5, 0.0)}


def volume(affine: str = "flipped") -> VolumeSpace:
    index = np.random.default_rng(0).permutation(np.prod(SHAPE))[:20]
    return VolumeSpace("func1pt8mm", SHAPE, np.array(AFFINES[affine], float), index)


def surface(n_left: int = 0, n_right: int = 6, n_vertices: tuple[int, int] = (8, 9)) -> SurfaceSpace:
    hemi = np.repeat(["R", "L"], [n_right, n_left])
    rng = np.random.default_rng(1)
    vertex = np.concatenate([rng.permutation(n_vertices[1])[:n_right], rng.permutation(n_vertices[0])[:n_left]])
    return SurfaceSpace("fsaverage", n_vertices, hemi, vertex)


def cifti() -> CiftiSpace:
    left, right = np.array([0, 2, 3, 7]), np.array([1, 2, 4])
    axis = BrainModelAxis.from_surface(left, 9, "CORTEX_LEFT") + BrainModelAxis.from_surface(right, 9, "CORTEX_RIGHT")
    mask = np.zeros((3, 3, 3), bool)
    mask[0, 1, 2] = mask[2, 1, 0] = True
    axis = axis + BrainModelAxis.from_mask(mask, "THALAMUS_LEFT", np.diag([2.0, 2, 2, 1]))
    return CiftiSpace("fsLR", axis, np.array([8, 0, 5, 3]))


def some_maps(n: int) -> dict:
    values = np.random.default_rng(2).standard_normal(n)
    values[1] = np.nan
    return {
        "held_out": ScalarMap(values, "Held-out similarity"),
        "category": LabelMap(np.array([0, 1, 4] * n)[:n], NAMES, COLOURS, "Category"),
    }


def read_tsv(path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.reader(handle, delimiter="\t"))


@pytest.mark.parametrize("affine", AFFINES)
def test_volume(tmp_path, affine):
    space, maps = volume(affine), some_maps(20)
    files = write_maps(tmp_path, "subj01", space, maps)
    assert [file.name for file in files] == [
        "subj01_space-func1pt8mm_desc-heldout.nii.gz",
        "subj01_space-func1pt8mm_desc-category_dseg.nii.gz",
        "subj01_space-func1pt8mm_desc-category_dseg.tsv",
    ]
    scores, labels = nib.load(files[0]), nib.load(files[1])
    for image in (scores, labels):
        assert image.shape == SHAPE and image.header.get_xyzt_units()[0] == "mm"
        np.testing.assert_allclose(image.affine, AFFINES[affine], rtol=1e-6)
        np.testing.assert_allclose(image.header.get_zooms(), np.linalg.norm(space.affine[:3, :3], axis=0), rtol=1e-6)
    assert scores.get_data_dtype() == np.float32 and labels.get_data_dtype() == np.int32
    expected, expected_labels = np.full(SHAPE, np.nan, np.float32), np.zeros(SHAPE, int)
    for column, (x, y, z) in enumerate(space.ijk):
        expected[x, y, z] = maps["held_out"].values[column]
        expected_labels[x, y, z] = maps["category"].labels[column]
    np.testing.assert_array_equal(scores.get_fdata(dtype=np.float32), expected)
    np.testing.assert_array_equal(np.asarray(labels.dataobj), expected_labels)
    table = read_tsv(files[2])
    assert table[0] == ["index", "name", "color"]
    assert [row[:2] for row in table[1:]] == [["1", "face"], ["4", "place"]] and table[2][2] == "#ff8000"


def test_the_description_survives_any_text(tmp_path):
    (file,) = write_maps(tmp_path, "s", volume(), {"r": ScalarMap(np.zeros(20), "Ähnlichkeit " * 20)})
    assert nib.load(file).header["descrip"].item().startswith(b"?hnlichkeit")


@pytest.mark.parametrize("n_left", [0, 3])
def test_surface_pair(tmp_path, n_left):
    """Both hemispheres are written, also where one has no column."""
    space, maps = surface(n_left), some_maps(6 + n_left)
    files = write_maps(tmp_path, "subj01", space, maps)
    assert [file.name for file in files] == [
        f"subj01_space-fsaverage_hemi-{hemi}_desc-{name}"
        for name in ("heldout.func.gii", "category.label.gii")
        for hemi in "LR"
    ]
    for file, hemi in zip(files[:2], "LR", strict=True):
        (array,) = nib.load(file).darrays
        expected = np.full(8 if hemi == "L" else 9, np.nan, np.float32)
        mine = space.hemi == hemi
        expected[space.vertex[mine]] = maps["held_out"].values[mine]
        np.testing.assert_array_equal(array.data, expected)
        assert array.meta["Name"] == "Held-out similarity"
    labels = nib.load(files[3])
    assert labels.labeltable.get_labels_as_dict() == {0: "???", 1: "face", 4: "place"}
    assert labels.labeltable.labels[2].rgba == (1, 0.5, 0, 1)
    expected = np.zeros(9, int)
    expected[space.vertex[:6]] = maps["category"].labels[:6]
    np.testing.assert_array_equal(labels.agg_data(), expected)


def test_a_hemisphere_without_vertices_has_no_file(tmp_path):
    files = write_maps(tmp_path, "s", surface(n_vertices=(0, 9)), {"r": ScalarMap(np.zeros(6))})
    assert [file.name for file in files] == ["s_space-fsaverage_hemi-R_desc-r.func.gii"]


def test_cifti(tmp_path):
    space, maps = cifti(), some_maps(4)
    files = write_maps(tmp_path, "subj01", space, maps)
    assert [f.name for f in files] == [
        "subj01_space-fsLR_desc-heldout.dscalar.nii",
        "subj01_space-fsLR_desc-category.dlabel.nii",
    ]
    scores, labels = nib.load(files[0]), nib.load(files[1])
    for image, code in ((scores, 3006), (labels, 3007)):
        assert isinstance(image, nib.Cifti2Image) and image.nifti_header["intent_code"] == code
        assert image.header.get_axis(1) == space.axis
    expected = np.full((1, 9), np.nan, np.float32)
    expected[0, space.index] = maps["held_out"].values
    np.testing.assert_array_equal(scores.get_fdata(dtype=np.float32), expected)
    assert scores.header.get_axis(0).name.tolist() == ["Held-out similarity"]
    expected = np.zeros((1, 9), int)
    expected[0, space.index] = maps["category"].labels
    np.testing.assert_array_equal(np.asarray(labels.dataobj), expected)
    (table,) = labels.header.get_axis(0).label
    assert {key: name for key, (name, _) in table.items()} == {0: "???", 1: "face", 4: "place"}
    assert table[4][1] == (1, 0.5, 0, 1) and table[0][1][3] == 0


def test_table_of_columns_without_a_place(tmp_path):
    maps = some_maps(3)
    (file,) = write_maps(tmp_path, "subj01", UnplacedSpace("roi-columns", 3), maps)
    assert file.name == "subj01_space-roicolumns_maps.tsv"
    table = read_tsv(file)
    assert table[0] == ["held_out", "category"] and [row[1] for row in table[1:]] == ["n/a", "face", "place"]
    assert table[2][0] == "n/a"
    assert np.float32(table[1][0]) == np.float32(maps["held_out"].values[0])


@pytest.mark.parametrize(
    "space", [volume(), surface(3, 17, (30, 40)), cifti(), UnplacedSpace("x", 20)], ids=lambda s: s.name
)
def test_same_arguments_same_bytes(tmp_path, space, monkeypatch):
    maps = some_maps(space.n_columns)
    bytes_of = []
    for part, clock in (("a", 1e9), ("b", 2e9)):
        monkeypatch.setattr("time.time", lambda clock=clock: clock)
        (tmp_path / part).mkdir()
        bytes_of.append([file.read_bytes() for file in write_maps(tmp_path / part, "s", space, maps)])
    assert bytes_of[0] == bytes_of[1]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_every_value_comes_back_from_its_voxel(tmp_path_factory, data):
    shape = data.draw(st.tuples(*[st.integers(1, 5)] * 3))
    index = np.array(data.draw(st.lists(st.integers(0, int(np.prod(shape)) - 1), unique=True)), dtype=np.int64)
    values = np.array(data.draw(st.lists(st.floats(width=32), min_size=len(index), max_size=len(index))))
    space = VolumeSpace("x", shape, np.eye(4), index)
    (file,) = write_maps(tmp_path_factory.mktemp("v"), "s", space, {"r": ScalarMap(values)})
    found = nib.load(file).get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(found[tuple(space.ijk.T)], values.astype(np.float32))
    assert np.isnan(np.delete(found.ravel(order="F"), index)).all()


def test_maps_that_do_not_fit_are_refused(tmp_path):
    space = UnplacedSpace("x", 3)
    for maps, message in [
        ({"r": ScalarMap(np.zeros(4))}, "3 columns"),
        ({"r": ScalarMap(np.zeros((3, 1)))}, "3 columns"),
        ({"c": LabelMap(np.array([0, 1, 2]), {1: "a"})}, r"without one: \[2\]"),
        ({"c": LabelMap(np.array([0, 1, 1.0]), {1: "a"})}, "integers"),
        ({"a_b": ScalarMap(np.zeros(3)), "ab": ScalarMap(np.zeros(3))}, "two names"),
    ]:
        with pytest.raises(ValueError, match=message):
            write_maps(tmp_path, "s", space, maps)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_nilearn_reads_volumes_and_surfaces(tmp_path):
    """nilearn's own loaders give the values at the voxels and vertices of the columns (importing it takes seconds)."""
    from nilearn.image import get_data, load_img
    from nilearn.surface import PolyData, load_surf_data

    space, maps = volume("sheared"), some_maps(20)
    scores, labels, _ = write_maps(tmp_path, "s", space, maps)
    image = load_img(scores)
    np.testing.assert_allclose(image.affine, AFFINES["sheared"], rtol=1e-6)
    np.testing.assert_array_equal(get_data(image)[tuple(space.ijk.T)], maps["held_out"].values.astype(np.float32))
    np.testing.assert_array_equal(get_data(load_img(labels))[tuple(space.ijk.T)], maps["category"].labels)
    pair = surface(0, 6)
    left, right, _, right_labels = write_maps(tmp_path, "s", pair, some_maps(6))
    data = PolyData(left=left, right=right)
    assert data.shape == (17,) and np.isnan(data.parts["left"]).all()
    expected = some_maps(6)
    np.testing.assert_array_equal(data.parts["right"][pair.vertex], expected["held_out"].values.astype(np.float32))
    np.testing.assert_array_equal(load_surf_data(right_labels)[pair.vertex], expected["category"].labels)
