"""The simulated brain: areas where they belong, early features, and a dataset that is driven by the scenes
alone.
"""

import csv

import numpy as np
import pytest

from sbm_jax.brain import open_dataset
from sbm_jax.brain.betas import stream_betas
from sbm_jax.brain.surfaces import load_fsaverage5
from sbm_jax.demo import areas, brain, features
from sbm_jax.demo.dataset import write_demo_dataset
from sbm_jax.demo.retinotopy import EARLY
from sbm_jax.demo.scenes import CONCEPTS, draw_scene
from sbm_jax.errors import UserError

TINY = {"seed": 3, "n_shared": 70, "n_unique": 50, "n_extra": 5, "size": 64, "repeats": 3}


@pytest.fixture(scope="module")
def two_subjects():
    return [areas.subject_areas(0, subject) for subject in (0, 1)]


def centre(hemi_areas, label):
    """Mean coordinate of an area in millimetres."""
    surface = load_fsaverage5()[hemi_areas.hemi == "R"]
    middle = (surface.white + surface.pial) / 2
    if label in EARLY:
        return middle[hemi_areas.early.label_v == EARLY.index(label)].mean(axis=0)
    index = [area.label for area in areas.CATEGORY_AREAS].index(label)
    return middle[hemi_areas.area_v == index].mean(axis=0)


def test_areas_are_there_disjoint_and_of_one_piece(two_subjects):
    for subject in two_subjects:
        for hemi in subject:
            assert not ((hemi.area_v >= 0) & (hemi.early.label_v >= 0)).any()
            assert (np.bincount(hemi.area_v[hemi.area_v >= 0], minlength=len(areas.CATEGORY_AREAS)) >= 5).all()
            assert (np.bincount(hemi.early.label_v[hemi.early.label_v >= 0], minlength=len(EARLY)) >= 10).all()
            assert (hemi.centrality[hemi.area_v >= 0] >= 0).all()
            assert hemi.centrality.max() <= 1
    assert {area.concept for area in areas.CATEGORY_AREAS} == set(brain.AREA_CONCEPTS)
    names = two_subjects[0][0].atlas_labels("floc-faces")
    assert set(names) == {"", "OFA", "FFA-1", "FFA-2"}


def test_areas_lie_at_anatomically_plausible_places(two_subjects):
    for subject in two_subjects:
        for hemi in subject:
            side = -1 if hemi.hemi == "L" else 1
            at = {a.label: centre(hemi, a.label) * (side, 1, 1) for a in areas.CATEGORY_AREAS}
            at |= {label: centre(hemi, label) * (side, 1, 1) for label in EARLY}
            x, y, z = ({name: place[axis] for name, place in at.items()} for axis in range(3))
            for ventral in (
                "FFA-1",
                "FFA-2",
                "PPA",
                "FBA-1",
                "VWFA-1",
                "VWFA-2",
                "food-medial",
                "food-lateral",
            ):
                assert z[ventral] < 0 and y[ventral] < -30
            # lateral occipital, dorsal, medial
            assert x["EBA"] > 38 and abs(z["EBA"]) < 15
            assert z["OPA"] > 10 and y["OPA"] < -70
            assert x["RSC"] < 25 and z["RSC"] > 0
            # on the ventral side from medial to lateral: places, food, faces, food; from back to front: OFA,
            # FFA-1, FFA-2
            assert x["PPA"] < x["FFA-2"]
            assert x["food-medial"] < x["FFA-1"] < x["food-lateral"]
            assert y["OFA"] < y["FFA-1"] < y["FFA-2"]
            # around the calcarine sulcus: dorsal parts above ventral ones, V1 innermost and at the occipital
            # pole
            assert z["V3d"] > z["V2d"] > z["V1d"] > z["V1v"] > z["V2v"]
            assert y["V1d"] < -80 and x["V1d"] < 20
            assert x["hV4"] > x["V1v"] and z["hV4"] < 0


def test_words_are_left_lateralised_and_subjects_differ(two_subjects):
    words = [i for i, area in enumerate(areas.CATEGORY_AREAS) if area.concept == "word"]
    for left, right in two_subjects:
        assert np.isin(left.area_v, words).sum() > 1.3 * np.isin(right.area_v, words).sum()
    (first, _), (second, _) = two_subjects
    same = (first.area_v == second.area_v)[(first.area_v >= 0) | (second.area_v >= 0)]
    assert 0.3 < same.mean() < 0.98
    np.testing.assert_array_equal(first.area_v, areas.subject_areas(0, 0)[0].area_v)


def test_retinotopy(two_subjects):
    left, right = two_subjects[0]
    median_size = {}
    for hemi, contralateral in ((left, 1), (right, -1)):
        early = hemi.early
        surface = load_fsaverage5()[hemi.hemi == "R"]
        v1 = early.label_v < 2
        v1 &= early.label_v >= 0
        has_field = early.label_v >= 0
        assert np.isnan(early.rf_x[~has_field]).all()
        assert (contralateral * (early.rf_x[has_field] - 0.5) >= 0).all()
        for label, upper in (("V1v", True), ("V2v", True), ("V3v", True), ("V1d", False), ("V2d", False)):
            mine = early.label_v == EARLY.index(label)
            assert ((early.rf_y[mine] <= 0.5) == upper).all()
        # the fovea at the pole, the periphery in front; more cortex for the centre than the area of visual
        # field asks
        assert np.corrcoef(surface.white[v1, 1], early.eccentricity[v1])[0, 1] > 0.7
        assert (early.eccentricity[v1] < 2).sum() > 0.25 * v1.sum()
        middle = has_field & (early.eccentricity > 1) & (early.eccentricity < 4)
        for name in ("V1d", "V2d", "V3d", "hV4"):
            mine = middle & (early.label_v == EARLY.index(name))
            median_size.setdefault(name, []).append(np.median(early.rf_size[mine]))
            assert np.corrcoef(early.rf_size[mine], early.eccentricity[mine])[0, 1] > 0.99
    sizes = [np.mean(median_size[name]) for name in ("V1d", "V2d", "V3d", "hV4")]
    assert sizes == sorted(sizes)


def grating(angle, cycles, size=128):
    """Stripes that run `angle` degrees anticlockwise from horizontal."""
    y, x = np.mgrid[:size, :size] / size
    across = np.radians(angle + 90)
    wave = np.cos(2 * np.pi * cycles * (x * np.cos(across) - y * np.sin(across)))
    return np.repeat((127 + 100 * wave).astype(np.uint8)[:, :, None], 3, axis=2)


@pytest.mark.parametrize("angle", features.ORIENTATIONS)
@pytest.mark.parametrize("band", features.CYCLES)
def test_gratings_drive_their_own_orientation_and_frequency(angle, band):
    maps = features.feature_maps(grating(angle, features.CYCLES[band]))
    energy = maps[: len(features.ORIENTED)].mean(axis=(1, 2))
    assert features.ORIENTED[int(np.argmax(energy))] == f"orientation-{angle:03d}-{band}"
    assert np.sort(energy)[-2] < 0.7 * energy.max()


def test_colour_luminance_and_contrast_features():
    def mean_of(colour, feature):
        image = np.broadcast_to(np.array(colour, dtype=np.uint8), (64, 64, 3))
        return features.feature_maps(image)[features.FEATURES.index(feature)].mean()

    assert mean_of((255, 0, 0), "red-green") == pytest.approx(1)
    assert mean_of((0, 255, 0), "red-green") == pytest.approx(-1)
    assert mean_of((0, 0, 255), "blue-yellow") == pytest.approx(1)
    assert mean_of((255, 255, 0), "blue-yellow") == pytest.approx(-1)
    assert mean_of((255, 255, 255), "luminance") == pytest.approx(1)
    assert mean_of((200, 200, 200), "contrast") == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="multiple of 64"):
        features.feature_maps(np.zeros((100, 100, 3), dtype=np.uint8))


def test_receptive_field_sees_its_place(two_subjects):
    early = two_subjects[0][0].early
    vertices = np.flatnonzero((early.label_v == EARLY.index("V1d")) & (early.eccentricity > 3))
    fields = features.receptive_fields(early, vertices)
    np.testing.assert_allclose(fields.sum(axis=0), 1)
    spot = np.zeros((1, len(features.FEATURES), features.GRID, features.GRID))
    vertex = vertices[0]
    column, row = int(early.rf_x[vertex] * features.GRID), int(early.rf_y[vertex] * features.GRID)
    spot[0, features.FEATURES.index("luminance"), row, column] = 1
    seen = features.pooled(spot.reshape(1, len(features.FEATURES), -1), "luminance", fields)[0]
    distance = np.hypot(early.rf_x[vertices] - early.rf_x[vertex], early.rf_y[vertices] - early.rf_y[vertex])
    assert seen[0] > 10 * seen[np.argmax(distance)]


def test_scene_measures_follow_the_mask():
    scene = draw_scene(0, 5, 64)
    left, right, attribute = brain.scene_measures(scene).T
    for i, concept in enumerate(CONCEPTS):
        assert left[i] == pytest.approx((scene.mask[:, :32] == i + 1).sum() / 64**2)
        assert left[i] + right[i] == pytest.approx(scene.labels[concept])
        assert (attribute[i] != 0) == (scene.labels[concept] > 0 and concept in brain.ATTRIBUTES)


def test_latents_prefer_the_opposite_visual_half():
    measures = np.zeros((40, len(CONCEPTS), 3))
    measures[:10, 0, 0] = 0.2  # faces on the left
    measures[10:20, 0, 1] = 0.2  # on the right
    latents = brain.scene_latents(
        measures, np.random.default_rng(0).random((40, len(features.FEATURES))), np.arange(40)
    )
    face_l, face_r = latents.column("face-L"), latents.column("face-R")
    assert face_l[15] > face_l[5] > face_l[25]
    assert face_r[5] > face_r[15] > face_r[25]
    assert (latents.column("word-L") == 0).all()  # constant: no words at all
    np.testing.assert_allclose(latents.column("contrast").std(), 1)


def test_noise_is_smooth_and_of_unit_variance():
    smoothing = brain.cortex_smoothing()
    noise = brain.noise_block(np.random.default_rng(0), 300, smoothing)
    assert noise.dtype == np.float32 and noise.shape == (300, 20_484)
    np.testing.assert_allclose(noise.var(axis=0).mean(), 1, atol=0.01)
    noise -= noise.mean(axis=0)
    faces = load_fsaverage5()[1].faces + 10_242

    def correlation(a, b):
        return ((noise[:, a] * noise[:, b]).mean(axis=0) / (noise[:, a].std(axis=0) * noise[:, b].std(axis=0))).mean()

    assert 0.3 < correlation(faces[:, 0], faces[:, 1]) < 0.5
    shuffled = np.random.default_rng(1).permutation(faces[:, 1])
    assert abs(correlation(faces[:, 0], shuffled)) < 0.02


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "data"
    calls = []
    write_demo_dataset(root, **TINY, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, calls[0][1]) for i in range(calls[0][1])]
    return root


def read_truth(path):
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_dataset_is_read_like_any_other(demo):
    data = open_dataset(demo)
    assert len(data.images.ids) == 70 + 2 * 50 + 5
    assert data.concepts == CONCEPTS
    assert [s.name for s in data.subjects] == ["subj01", "subj02"]
    for subject in data.subjects:
        shared, unique = data.image_sets(subject)
        assert (len(shared), len(unique)) == (70, 50)
        assert subject.n_trials == 360 and subject.n_voxels == 20_484
        np.testing.assert_array_equal(np.bincount(subject.session)[1:], [120] * 3)
        assert (np.bincount(subject.trial_image)[subject.seen()] == 3).all()
        assert subject.responses.dtype == np.float16
        assert np.isfinite(subject.responses.read_voxels(slice(None))).all()
        assert set(areas.ATLASES) <= set(subject.rois)
    first, second = (set(data.image_sets(s)[1]) for s in data.subjects)
    assert not first & second
    assert (demo / "masks" / "scene-00003.png").exists()


def test_bytes_do_not_depend_on_workers(tmp_path):
    small = {**TINY, "n_subjects": 1, "n_shared": 12, "n_unique": 9}
    for workers in (1, 2):
        write_demo_dataset(tmp_path / str(workers), **small, workers=workers)
    files = [sorted(p for p in (tmp_path / w).rglob("*") if p.is_file()) for w in "12"]
    assert len(files[0]) == len(files[1]) == 2 * 26 + 7
    for one, other in zip(*files, strict=True):
        assert one.relative_to(tmp_path / "1") == other.relative_to(tmp_path / "2")
        assert one.read_bytes() == other.read_bytes(), one


def test_truth_is_what_the_responses_show(demo):
    data = open_dataset(demo)
    with (demo / "truth" / "latents.csv").open(newline="") as handle:
        latents = {row["image_id"]: row for row in csv.DictReader(handle)}
    for subject in data.subjects:
        truth = read_truth(demo / "truth" / f"{subject.name}.csv")
        concept = np.array([row["concept"] for row in truth])
        true_ncsnr = np.array([float(row["ncsnr"]) for row in truth])
        driven = concept != ""
        assert (true_ncsnr[~driven] == 0).all()
        assert true_ncsnr[driven].min() >= 0.1 and true_ncsnr.max() <= 1.0
        assert 0.35 < np.median(true_ncsnr[driven]) < 0.55
        np.testing.assert_array_equal([row["latent"] != "" for row in truth], driven)
        np.testing.assert_array_equal([row["rf_x"] != "" for row in truth], concept == "early")
        np.testing.assert_array_equal(subject.rois["floc-faces"], concept == "face")
        np.testing.assert_array_equal(subject.rois["prf-visualrois"], concept == "early")

        block = next(stream_betas(subject, memory_bytes=2**31))
        assert np.corrcoef(block.ncsnr_v[driven], true_ncsnr[driven])[0, 1] > 0.6
        assert np.median(block.ncsnr_v[driven]) == pytest.approx(np.median(true_ncsnr[driven]), abs=0.05)
        assert block.ncsnr_v[~driven].mean() < 0.2
        betas_nv = block.betas_nv - block.betas_nv.mean(axis=0)
        betas_nv /= np.linalg.norm(betas_nv, axis=0)
        ids = [data.images.ids[i] for i in subject.seen()]
        columns = {}
        for name in brain.AREA_CONCEPTS:
            x = np.array([float(latents[i][f"{name}-L"]) for i in ids])
            columns[name] = (x - x.mean()) / np.linalg.norm(x - x.mean())
        for name in brain.AREA_CONCEPTS:
            r = {other: (columns[other] @ betas_nv[:, concept == name]).mean() for other in columns}
            assert max(r, key=r.get) == name and r[name] > 0.3
        assert abs((columns["face"] @ betas_nv[:, ~driven]).mean()) < 0.03


def test_weight_is_response_per_latent(demo):
    """The noise-free signal of a face vertex regressed on its latent has the slope that the truth table
    gives.
    """
    rng = np.random.default_rng(0)
    n = 200
    values = rng.standard_normal((n, 2 * len(CONCEPTS) + 2 * len(brain.ATTRIBUTES) + len(features.FEATURES)))
    measured = brain.scene_latents(np.zeros((n, len(CONCEPTS), 3)), np.zeros((n, len(features.FEATURES))), np.arange(n))
    latents = brain.Latents(measured.names, (values - values.mean(axis=0)) / values.std(axis=0))
    maps = rng.random((n, len(features.FEATURES), features.GRID**2)).astype(np.float16)
    model = brain.build_subject(0, 0, latents, maps, np.arange(n), brain.cortex_smoothing())
    names = np.array(model.latent)[model.responsive]
    for name in ("face-L", "place-R", "word-L"):
        mine = np.flatnonzero(names == name)
        design = np.concatenate([latents.values, np.ones((n, 1))], axis=1)
        slopes = np.linalg.lstsq(design, model.signal_nr[:, mine].astype(np.float64), rcond=None)[0]
        np.testing.assert_allclose(slopes[latents.names.index(name)], model.weight[model.responsive[mine]], rtol=1e-3)
    ratio = model.signal_nr.std(axis=0) / model.noise_sd[model.responsive]
    np.testing.assert_allclose(ratio, model.ncsnr[model.responsive], rtol=1e-4)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"size": 100}, "multiple of 64"),
        ({"n_subjects": 0}, "n_subjects must be at least 1, got 0"),
        ({"n_shared": 3, "n_unique": 2}, "at least 8 images"),
    ],
)
def test_bad_numbers(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        write_demo_dataset(tmp_path / "x", **{**TINY, **change})


def test_folder_must_be_empty(tmp_path):
    (tmp_path / "something").write_text("")
    with pytest.raises(UserError, match="empty or new folder"):
        write_demo_dataset(tmp_path, **TINY)
