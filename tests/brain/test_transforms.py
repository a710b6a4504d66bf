"""Columns to fsaverage by NSD's transform files: interpolation against plain loops, index bases, holes, and refusals."""

import gzip
import shutil
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from sbm_jax.brain.geometry import mesh_edges
from sbm_jax.brain.spaces import CiftiSpace, SurfaceSpace, UnplacedSpace, VolumeSpace
from sbm_jax.brain.surfaces import load_surface
from sbm_jax.brain.transforms import argmax_after, to_template, transform_files, trilinear, why_not
from sbm_jax.errors import UserError

N5, N7 = 10_242, 163_842
SHAPE = (7, 6, 5)
NATIVE = {"lh": 10_500, "rh": 10_300}
# The first vertices of each hemisphere of fsaverage get coordinates; all others point at an invalid native vertex.
PLANTED = 250


def save_mgz(path: Path, data: np.ndarray) -> None:
    """As nsd_savemgz does: vertices x 1 x 1 x frames, float32."""
    shape = (len(data), 1, 1, *data.shape[1:])
    path.write_bytes(nib.MGHImage(np.reshape(data, shape).astype(np.float32), np.eye(4)).to_bytes())
    path.write_bytes(gzip.compress(path.read_bytes(), 1))


def write_transforms(folder: Path, rng: np.random.Generator, stem: str = "func1pt8") -> dict:
    """NSD's files for both hemispheres; returns per hemisphere white [N7] (1-based) and coords [3 depths, native, 3]."""
    folder.mkdir(exist_ok=True)
    planted = {}
    for side, native in NATIVE.items():
        white = np.full(N7, native)
        white[:PLANTED] = rng.permutation(native - 1)[:PLANTED] + 1
        white[0] = 9999  # a vertex like any other: only coordinates have 9999 for invalid
        coords = rng.uniform(0.3, np.array(SHAPE) + 0.7, size=(3, native, 3)).astype(np.float32)
        coords[:, ::7, :] = np.round(coords[:, ::7, :])
        coords[0, ::5] = 9999
        coords[:, native - 1] = 9999
        coords[:, 9998] = [[1, 1, 1], SHAPE, [2.5, 3, 3]]  # the first and the last voxel themselves
        for depth in range(3):
            save_mgz(folder / f"{side}.{stem}-to-layerB{depth + 1}.mgz", coords[depth])
        save_mgz(folder / f"{side}.white-to-fsaverage.mgz", white)
        planted[side] = (white, coords.astype(np.float64))
    return planted


def volume(index: np.ndarray, name: str = "func1pt8mm") -> VolumeSpace:
    return VolumeSpace(name, SHAPE, np.eye(4), index)


def samples(planted: dict) -> np.ndarray:
    """1-based coordinates float64 [3 depths, 2 * N5, 3] of the vertices of fsaverage5."""
    return np.concatenate([coords[:, white[:N5] - 1] for white, coords in planted.values()], axis=1)


@pytest.fixture(scope="module")
def nsd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nsd") / "transforms"
    return folder, write_transforms(folder, np.random.default_rng(5))


def reference_scores(points: np.ndarray, values: dict[tuple[int, int, int], float]) -> float:
    """Mean of trilinear interpolations at 1-based points [3, 3], renormalised; NaN below half of the weight."""
    total = share = 0.0
    for point in points:
        if (point == 9999).any() or (point < 1).any() or (point > SHAPE).any():
            continue
        base = np.floor(point).astype(int)
        for corner in product((0, 1), repeat=3):
            weight = 1.0
            for axis in range(3):
                part = point[axis] - base[axis]
                weight *= part if corner[axis] else 1 - part
            value = values.get(tuple(int(i) for i in base + corner - 1), np.nan)
            if weight and not np.isnan(value):
                total, share = total + weight * value / 3, share + weight / 3
    return total / share if share >= 0.5 - 1e-6 else np.nan


@pytest.mark.parametrize(("name", "stem"), [("func1pt8mm", "func1pt8"), ("func1mm", "func1pt0")])
def test_scores_are_those_of_plain_loops(tmp_path, rng, name, stem):
    planted = write_transforms(tmp_path, rng, stem)
    index = rng.permutation(np.prod(SHAPE))[:140]  # a mask with holes, in no order
    values = rng.standard_normal(140)
    values[::9] = np.nan
    space = volume(index, name)
    found = to_template(space, tmp_path).scores(values.astype(np.float32))
    by_voxel = {tuple(map(int, place)): float(np.float32(x)) for place, x in zip(space.ijk, values, strict=True)}
    points = samples(planted)
    rows = [*range(PLANTED), *range(N5, N5 + PLANTED)]
    expected = np.array([reference_scores(points[:, row], by_voxel) for row in rows])
    np.testing.assert_allclose(found[rows], expected, rtol=1e-12, atol=1e-12)
    assert 30 < np.isfinite(expected).sum() < len(rows) - 30
    assert np.isnan(np.delete(found, rows)).all()


def test_a_full_volume_gives_scipys_interpolation(nsd, rng):
    folder, planted = nsd
    filled = rng.standard_normal(SHAPE)
    resampler = to_template(volume(np.arange(filled.size)), folder)
    found = resampler.scores(filled.ravel(order="F"))
    points = samples(planted)
    inside = ((points >= 1) & (points <= SHAPE)).all(axis=2)
    each = np.stack([map_coordinates(filled, depth.T - 1, order=1, mode="nearest") for depth in points])
    n_inside = inside.sum(axis=0)
    expected = np.where(n_inside >= 2, np.where(inside, each, 0).sum(axis=0) / np.maximum(n_inside, 1), np.nan)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    # fsaverage vertex 0 lies on native vertex 9999 (from 1): first voxel, last voxel, and halfway between two
    assert found[0] == pytest.approx((filled[0, 0, 0] + filled[-1, -1, -1] + filled[1:3, 2, 2].mean()) / 3)


def test_several_rows_of_scores_are_one_product(nsd, rng):
    resampler = to_template(volume(np.arange(np.prod(SHAPE))), nsd[0])
    values = rng.standard_normal((2, 3, np.prod(SHAPE)))
    values[0, 1, :50] = np.nan
    found = resampler.scores(values)
    assert found.shape == (2, 3, 2 * N5) and resampler.n_vertices == 2 * N5
    for i, j in np.ndindex(2, 3):
        np.testing.assert_array_equal(found[i, j], resampler.scores(values[i, j]))


def reference_label(points: np.ndarray, labels: dict[tuple[int, int, int], int]) -> int:
    votes: list[int | None] = []
    for point in points:
        valid = (point != 9999).all() and (point >= 1).all() and (point <= SHAPE).all()
        votes.append(labels.get(tuple(int(np.floor(x - 0.5)) for x in point)) if valid else None)
    first, middle, last = votes
    if first is not None and first == last:
        return first
    return next((vote for vote in (middle, first, last) if vote is not None), -1)


def test_labels_are_the_majority_of_the_nearest_voxels(nsd, rng):
    folder, planted = nsd
    space = volume(np.sort(rng.permutation(np.prod(SHAPE))[:170]))
    labels = rng.integers(-1, 3, 170)
    resampler = to_template(space, folder)
    found = resampler.labels(labels, empty=-1)
    by_voxel = {tuple(map(int, place)): int(x) for place, x in zip(space.ijk, labels, strict=True)}
    points = samples(planted)
    covered = np.isfinite(resampler.scores(np.ones(170)))
    rows = [*range(PLANTED), *range(N5, N5 + PLANTED)]
    expected = [reference_label(points[:, row], by_voxel) if covered[row] else -1 for row in rows]
    np.testing.assert_array_equal(found[rows], expected)
    assert set(found.tolist()) == {-1, 0, 1, 2}
    assert (found[~covered] == -1).all()


def test_argmax_is_taken_after_mapping(tmp_path, rng):
    """Between a voxel of layer 0 and one of layer 2, layer 1 wins where both rank it second; labels would say 0 or 2."""
    folder = tmp_path / "transforms"
    write_transforms(folder, rng)
    for side, native in NATIVE.items():
        for depth in (1, 2, 3):
            save_mgz(folder / f"{side}.func1pt8-to-layerB{depth}.mgz", np.tile([1.5, 1, 1], (native, 1)))
    resampler = to_template(volume(np.array([0, 1])), folder)
    scores_lv = np.array([[1.0, 0.0], [0.9, 0.9], [0.0, 1.0]])
    assert set(argmax_after(resampler, scores_lv)) == {1}
    assert set(resampler.labels(scores_lv.argmax(axis=0))) <= {0, 2}
    scores_lv[:, 0] = np.nan  # half of the weight is enough
    assert set(argmax_after(resampler, scores_lv)) == {2}
    scores_lv[:, 1] = np.nan, -0.9, -0.1
    assert set(argmax_after(resampler, scores_lv)) == {2}
    scores_lv[:, 1] = np.nan
    assert set(argmax_after(resampler, scores_lv)) == {-1}


@given(
    st.lists(st.tuples(*(st.floats(1, n, width=32) for n in SHAPE)), min_size=1, max_size=20),
    st.lists(st.integers(-8, 8), min_size=4, max_size=4),
)
def test_linear_functions_of_one_based_places_are_kept(points, slope):
    """The value at coordinate c of f(voxel from 0) = a + b . voxel is a + b . (c - 1), for every c inside."""
    xyz = np.array(points)
    place = np.array(np.unravel_index(np.arange(np.prod(SHAPE)), SHAPE, order="F")).T
    values = slope[0] + place @ slope[1:]
    nearest, row, voxel, weight = trilinear(xyz, SHAPE)
    found = np.bincount(row, weight * values[voxel], minlength=len(xyz))
    np.testing.assert_allclose(found, slope[0] + (xyz - 1) @ slope[1:], rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(np.bincount(row, weight, minlength=len(xyz)), 1, rtol=1e-12)
    assert (np.abs(place[nearest] - (xyz - 1)) <= 0.5).all()


@given(st.sampled_from([9999.0, 0.999, 0.0, -3.0, float("nan"), float("inf")]), st.integers(0, 2), st.booleans())
def test_points_outside_the_volume_have_no_voxel(wrong, axis, beyond):
    xyz = np.array([[2.0, 3.0, 4.0], [2.0, 3.0, 4.0]])
    xyz[1, axis] = SHAPE[axis] + 0.001 if beyond else wrong
    nearest, row, _, _ = trilinear(xyz, SHAPE)
    assert nearest[1] == -1 and nearest[0] >= 0 and set(row) == {0}


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_native_vertices_are_counted_from_one(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("native")
    white = {}
    for side, native in NATIVE.items():
        white[side] = rng.integers(1, native + 1, N7)
        white[side][:2] = 1, native
        save_mgz(folder / f"{side}.white-to-fsaverage.mgz", white[side])
    hemi = np.repeat(["R", "L"], [200, 9000])
    vertex = np.concatenate([rng.permutation(NATIVE["rh"])[:200], rng.permutation(NATIVE["lh"])[:9000]])
    resampler = to_template(SurfaceSpace("nativesurface", tuple(NATIVE.values()), hemi, vertex), folder)
    values = rng.standard_normal(9200)
    on_native = {side: np.full(native, np.nan) for side, native in NATIVE.items()}
    on_native["rh"][vertex[:200]], on_native["lh"][vertex[200:]] = values[:200], values[200:]
    expected = np.concatenate([on_native[side][white[side][:N5] - 1] for side in ("lh", "rh")])
    np.testing.assert_array_equal(resampler.scores(values), expected)
    np.testing.assert_array_equal(resampler.labels(np.arange(9200)) >= 0, np.isfinite(expected))


@pytest.mark.parametrize("name", ["fsaverage5", "fsaverage6", "fsaverage"])
def test_template_surfaces_need_no_files(name, rng):
    count = {"fsaverage5": N5, "fsaverage6": 40_962, "fsaverage": N7}[name]
    vertex = np.concatenate([rng.permutation(count)[:3000], rng.permutation(count)[:500]])
    space = SurfaceSpace(name, (count, count), np.repeat(["L", "R"], [3000, 500]), vertex)
    assert transform_files(space) == () and why_not(space, None) == ""
    values = rng.standard_normal(3500).astype(np.float32)
    out = np.full((2, count), np.nan)
    out[(space.hemi == "R").astype(int), vertex] = values
    resampler = to_template(space, None)
    np.testing.assert_array_equal(resampler.scores(values), out[:, :N5].ravel())
    layers = rng.standard_normal((4, 3500))
    expected = np.where(np.isfinite(out[:, :N5].ravel()), resampler.labels(layers.argmax(axis=0)), -1)
    np.testing.assert_array_equal(argmax_after(resampler, layers), expected)


def test_the_whole_of_fsaverage(nsd, rng):
    """The finest template begins with the vertices of the coarse one, hemisphere by hemisphere."""
    space = volume(np.arange(np.prod(SHAPE)))
    values = rng.standard_normal(space.n_columns)
    fine = to_template(space, nsd[0], "fsaverage").scores(values).reshape(2, N7)
    np.testing.assert_array_equal(fine[:, :N5].ravel(), to_template(space, nsd[0]).scores(values))


@pytest.mark.parametrize("hemi", ["L", "R"])
def test_finer_icosahedra_begin_with_the_vertices_of_coarser_ones(hemi):
    """On fsaverage5, offline: vertices from 2,562 on are the midpoints of the edges between the first 2,562."""
    surface, coarse = load_surface(hemi), 2562
    sphere = surface.sphere / np.linalg.norm(surface.sphere, axis=1, keepdims=True)
    edges = mesh_edges(surface.faces)
    assert not (edges < coarse).all(axis=1).any(), "every coarse edge is cut"
    cut = edges[(edges[:, 0] < coarse) & (edges[:, 1] >= coarse)]
    ends = cut[np.argsort(cut[:, 1], kind="stable"), 0].reshape(-1, 2)
    assert np.array_equal(np.unique(cut[:, 1], return_counts=True)[1], np.full(N5 - coarse, 2))
    middle = sphere[ends].sum(axis=1)
    np.testing.assert_allclose(middle / np.linalg.norm(middle, axis=1, keepdims=True), sphere[coarse:], atol=2e-4)


def test_spaces_without_a_way_say_why(tmp_path, nsd):
    for space, part in [
        (UnplacedSpace("roi", 3), "without places"),
        (CiftiSpace("fsLR", None, np.arange(3)), "no transform from fsLR"),
        (volume(np.arange(3), "T1w"), "no transform from T1w"),
        (SurfaceSpace("other", (5, 5), np.array(["L"]), np.array([0])), "no transform from other"),
    ]:
        assert part in why_not(space, nsd[0]) and transform_files(space) is None
        with pytest.raises(UserError, match=part):
            to_template(space, nsd[0])
    small = SurfaceSpace("fsaverage5", (N5, N5), np.array(["L"]), np.array([0]))
    with pytest.raises(UserError, match="fewer vertices"):
        to_template(small, None, "fsaverage")
    space = volume(np.arange(3))
    assert "transform files" in why_not(space, None)
    part = shutil.copytree(nsd[0], tmp_path / "part")
    (part / "rh.func1pt8-to-layerB2.mgz").unlink()
    assert why_not(space, part) == f"{part} lacks rh.func1pt8-to-layerB2.mgz"
    assert len(transform_files(space) or ()) == 8


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        ("lh.white-to-fsaverage.mgz", np.full(N7, 0), "1 to 10500, found 0"),
        ("lh.white-to-fsaverage.mgz", np.full(N7, 10_501), "found 10501"),
        ("rh.white-to-fsaverage.mgz", np.full(N7, 1.5), "found 1.5"),
        ("rh.white-to-fsaverage.mgz", np.full(N5, 1), "expected 163842 vertices"),
        ("lh.func1pt8-to-layerB2.mgz", np.ones((10_499, 3)), "not of one subject"),
        ("lh.func1pt8-to-layerB3.mgz", np.ones((10_500, 2)), "vertices x 1 x 1 x 3"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, nsd, file, data, message):
    folder = shutil.copytree(nsd[0], tmp_path / "transforms")
    save_mgz(folder / file, data)
    with pytest.raises(UserError, match=message) as error:
        to_template(volume(np.arange(3)), folder)
    assert file in str(error.value)


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_truncated_files_are_refused(tmp_path, nsd, keep):
    folder = shutil.copytree(nsd[0], tmp_path / "transforms")
    path = folder / "rh.func1pt8-to-layerB1.mgz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"rh\.func1pt8-to-layerB1\.mgz: not a readable"):
        to_template(volume(np.arange(3)), folder)
