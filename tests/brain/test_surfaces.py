"""fsaverage5 from nilearn's files, mesh geometry, and GIFTI files that other programs open."""

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from sbm_jax.brain import geometry, surfaces
from sbm_jax.errors import UserError


@pytest.mark.parametrize("hemi", ["L", "R"])
def test_surface_is_fsaverage5(hemi):
    surface = surfaces.load_surface(hemi)
    assert surface.hemi == hemi
    assert surface.faces.shape == (20_480, 3)
    for kind in surfaces.KINDS:
        assert surface.coords(kind).shape == (10_242, 3)
        assert surface.faces_of(kind).max() == 10_241
    assert len(surface.flat_faces) < len(surface.faces)
    assert (surface.pial[:, 0].mean() < 0) == (hemi == "L")
    # a sphere of radius 100, and every edge shared by two triangles
    np.testing.assert_allclose(np.linalg.norm(surface.sphere, axis=1), 100, rtol=1e-3)
    assert len(geometry.mesh_edges(surface.faces)) == 3 * 20_480 // 2
    assert surface.sulc.shape == surface.curv.shape == (10_242,)
    with pytest.raises(ValueError, match="read-only"):
        surface.pial[0] = 0


def test_missing_nilearn_is_a_user_error(monkeypatch):
    monkeypatch.setattr(surfaces.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="nilearn"):
        surfaces.fsaverage_folder()


def test_unknown_hemisphere_and_kind():
    with pytest.raises(ValueError, match="hemi"):
        surfaces.load_surface("left")
    with pytest.raises(ValueError, match="kind"):
        surfaces.load_surface("L").coords("midthickness")


def test_func_gii_opens_elsewhere_and_is_deterministic(tmp_path):
    data = np.random.default_rng(0).standard_normal((10_242, 2))
    data[3, 1] = np.nan
    first, second = tmp_path / "a.func.gii", tmp_path / "b.func.gii"
    surfaces.write_func_gii(first, data, "R", ["best", "held out"])
    surfaces.write_func_gii(second, data, "R", ["best", "held out"])
    assert first.read_bytes() == second.read_bytes()
    image = nib.load(first)
    assert image.meta["AnatomicalStructurePrimary"] == "CortexRight"
    assert [a.meta["Name"] for a in image.darrays] == ["best", "held out"]
    assert all(a.data.dtype == np.float32 for a in image.darrays)
    np.testing.assert_array_equal(np.stack(image.agg_data(), axis=1), data.astype(np.float32))
    with pytest.raises(ValueError, match="map names"):
        surfaces.write_func_gii(first, data, "R", "one name")


def test_label_gii_round_trip(tmp_path):
    labels = np.zeros(10_242, dtype=int)
    labels[:5], labels[5:9] = 2, 7
    path = tmp_path / "x.label.gii"
    surfaces.write_label_gii(path, labels, "L", {2: "face", 7: "place"}, colours={2: (1.0, 0.0, 0.0)})
    image = nib.load(path)
    assert image.labeltable.get_labels_as_dict() == {0: "???", 2: "face", 7: "place"}
    np.testing.assert_array_equal(image.agg_data(), labels)
    with pytest.raises(ValueError, match="without a name"):
        surfaces.write_label_gii(path, labels, "L", {2: "face"})


def test_geometry_on_a_flat_grid():
    side = 12
    y, x = np.mgrid[:side, :side]
    coords = np.stack([x.ravel(), y.ravel(), np.zeros(side * side)], axis=1).astype(float)
    corner = (y[:-1, :-1] * side + x[:-1, :-1]).ravel()
    faces = np.concatenate([
        np.stack([corner, corner + 1, corner + side], axis=1),
        np.stack([corner + 1, corner + side + 1, corner + side], axis=1),
    ])  # fmt: skip
    areas = geometry.vertex_areas(coords, faces)
    assert areas.sum() == pytest.approx((side - 1) ** 2)
    assert areas.reshape(side, side)[5, 5] == pytest.approx(1)
    graph = geometry.mesh_graph(coords, faces)
    distance = geometry.geodesic(graph, [0])[0]
    assert distance[side - 1] == pytest.approx(side - 1)
    # both diagonals of a square are edges
    assert distance[-1] == pytest.approx(np.sqrt(2) * (side - 1))
    assert geometry.nearest_vertex(coords, (3.2, 4.1, 0.5)) == 4 * side + 3


def test_reading_a_surface_does_not_import_nilearn():
    code = (
        "import sys; from sbm_jax.brain.surfaces import load_surface; load_surface('L'); "
        "print('nilearn' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
