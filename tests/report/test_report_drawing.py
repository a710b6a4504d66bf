"""Colour maps, the rasteriser, charts and the static figures."""

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from sbm_jax.report.colormaps import DIVERGING, PALETTES, SEQUENTIAL, colour_values, lookup_table, to_oklab
from sbm_jax.report.curves import curve_svg, nice_ticks
from sbm_jax.report.data import LayerCurve, RoiAtlas
from sbm_jax.report.figures import brain_figure
from sbm_jax.report.raster import camera, majority, rasterise, vertex_normals

# Machado, Oliveira and Fernandes (2009): full deuteranopia and protanopia, linear RGB
BLINDNESS = {
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
}


def luminance(rgb: np.ndarray) -> np.ndarray:
    """Relative luminance (WCAG 2) of uint8 [..., 3]."""
    c = rgb / 255.0
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_sequential_maps_rise_in_luminance(name):
    light = luminance(lookup_table(name))
    assert np.all(np.diff(light) > -0.002), "one rounding step of 8 bits at most"
    assert np.all(np.diff(light[::8]) > 0)
    assert light[-1] - light[0] > 0.6


@pytest.mark.parametrize("name", DIVERGING)
def test_diverging_maps_are_even_and_tell_their_ends_apart(name):
    table = lookup_table(name)
    light = luminance(table)
    assert np.all(np.diff(light[:128:8]) > 0) and np.all(np.diff(light[128::8]) < 0)
    np.testing.assert_allclose(to_oklab(table)[:, 0], to_oklab(table[::-1])[:, 0], atol=0.02)
    linear = np.where(table / 255 <= 0.04045, table / 255 / 12.92, ((table / 255 + 0.055) / 1.055) ** 2.4)
    for matrix in BLINDNESS.values():
        seen = np.clip(linear @ np.array(matrix).T, 0, 1)
        srgb = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055) * 255
        lab = to_oklab(srgb)
        assert np.linalg.norm(lab[64] - lab[191]) > 0.1, "the arms differ for dichromats too"


@pytest.mark.parametrize("name", PALETTES)
def test_maps_have_no_jumps(name):
    steps = np.linalg.norm(np.diff(to_oklab(lookup_table(name)), axis=0), axis=1)
    assert steps.max() < 3 * steps.mean()


def test_values_take_the_ends_of_the_table_and_wrong_ones_are_refused():
    table = lookup_table("ember")
    got = colour_values(np.array([-9.0, 0.0, 1.0, 9.0]), "sequential", 0, 1)
    np.testing.assert_array_equal(got, table[[0, 0, 255, 255]])
    with pytest.raises(ValueError, match="category"):
        colour_values(np.array([2.0]), "categorical", 0, 1, [("a", "#000000")])
    with pytest.raises(ValueError, match="jet"):
        lookup_table("jet")


def test_nearest_triangle_wins_and_back_faces_are_dropped():
    # two front-facing triangles over each other (y down, so clockwise in numbers), and one that faces away
    xy = np.array([[1, 1], [1, 9], [9, 1]] * 3, float)
    faces = np.array([[0, 1, 2], [3, 4, 5], [6, 8, 7]])
    face, weight = rasterise(xy, np.array([0.0] * 3 + [5.0] * 3 + [9.0] * 3), faces, 10, 10)
    assert set(face.ravel()) == {-1, 1}
    assert face[2, 2] == 1 and face[8, 8] == -1
    np.testing.assert_allclose(weight[face >= 0].sum(1), 1, atol=1e-5)
    corner = np.einsum("pk,kc->pc", weight[face >= 0], xy[faces[1]])
    rows, columns = np.nonzero(face >= 0)
    np.testing.assert_allclose(corner, np.column_stack([columns, rows]) + 0.5, atol=1e-4)


def test_a_sphere_is_covered_without_holes(cortex):
    hemi = cortex.hemis["left"]
    xyz, faces = hemi.coords["inflated"].astype(float), hemi.faces
    seen = xyz @ camera("lateral", "left").T
    face, _ = rasterise(np.column_stack([seen[:, 0], -seen[:, 1]]) + 110, seen[:, 2], faces, 220, 220)
    radius = np.hypot(*(np.mgrid[:220, :220] + 0.5 - 110))
    assert (face[radius < 97] >= 0).all() and (face[radius > 101] < 0).all()
    assert (seen[faces[face[radius < 90]]].mean(1)[:, 2] > 0).all(), "only the near side is drawn"
    towards = (vertex_normals(xyz, faces) * xyz / 100).sum(1)
    assert towards.min() > 0.97


def test_right_camera_is_the_mirror_image():
    point = np.array([3.0, 5.0, 7.0])
    for view in ("lateral", "medial", "ventral", "posterior"):
        left, right = camera(view, "left") @ point, camera(view, "right") @ (point * [-1, 1, 1])
        np.testing.assert_allclose(right, left * [-1, 1, 1])
        assert np.linalg.det(camera(view, "right")) == pytest.approx(1)


def test_majority_joins_equal_labels():
    faces, labels = np.array([[0, 1, 2]]), np.array([4, 4, 7])
    speak = majority(labels, faces, np.zeros((1, 3), int), np.array([[[0.3, 0.3, 0.4], [0.2, 0.2, 0.6], [1, 0, 0]]]))
    assert [labels[v] for v in speak[0]] == [4, 7, 4]


def test_ticks_are_round():
    assert nice_ticks(0, 0.5, 6) == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert nice_ticks(-1, 1) == [-1, -0.5, 0, 0.5, 1]
    assert nice_ticks(2, 2) == [2]


def test_chart_breaks_at_nan_and_is_well_formed():
    curve = LayerCurve("t", ["0", "1", "2", "3"], {"s": ([1, math.nan, 2, 3], None, None)}, "y")
    text = str(curve_svg(curve))
    ElementTree.fromstring(text)
    line = re.search(r'class="line"[^>]* d="([^"]*)"', text)
    assert line and line.group(1).count("M") == 2 and line.group(1).count("L") == 1
    assert text.count('class="dot"') == 3
    assert "nan" not in text.lower() and " id=" not in text and "style=" not in text


def test_chart_survives_emptiness_and_refuses_misfits():
    ElementTree.fromstring(str(curve_svg(LayerCurve("t", ["0"], {"s": ([math.nan], None, None)}, "y"))))
    with pytest.raises(ValueError, match="2 values for 1"):
        curve_svg(LayerCurve("t", ["0"], {"s": ([1, 2], None, None)}, "y"))


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_figure_bytes_depend_on_the_data_alone(cortex, tmp_path, suffix):
    n = cortex.n_vertices
    values = np.where(np.arange(n) % 3 == 0, np.nan, np.linspace(-1, 1, n))
    atlas = RoiAtlas("floc", (np.arange(n) < 60).astype(int), ["FFA"])
    paths = [tmp_path / f"{i}.{suffix}" for i in range(3)]
    for path, data in zip(paths, (values, values, -values), strict=True):
        brain_figure(path, cortex, data, "diverging", -1, 1, "t", [atlas], label="Δr", threshold=0.2, dpi=50)
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()


def test_figure_shows_the_categories_and_not_the_hidden(cortex, tmp_path):
    n = cortex.n_vertices
    path = tmp_path / "f.png"
    values = np.where(np.arange(n) < n // 2, 0.0, np.nan)  # the left hemisphere alone
    brain_figure(path, cortex, values, "categorical", 0, 1, "t", categories=[("face", "#ff0000")], dpi=50)
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    flat = pixels[:, pixels.shape[1] // 2 :][: int(pixels.shape[0] * 0.85)]
    red = (flat[..., 0] > 200) & (flat[..., 1] < 60)
    half = flat.shape[1] * 58 // 100
    assert red[:, :half].sum() > 2000 and red[:, half:].sum() == 0


def test_figure_refuses_the_wrong_number_of_values(cortex, tmp_path):
    with pytest.raises(ValueError, match="left then right"):
        brain_figure(tmp_path / "f.png", cortex, np.zeros(3), "sequential", 0, 1, "t")
