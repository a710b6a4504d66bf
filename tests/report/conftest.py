"""A small report with everything on it: coarse spheres for hemispheres, two subjects, every kind of map."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from sbm_jax.report.page import (
    Column,
    CortexData,
    Hemisphere,
    LayerCurve,
    MapLayer,
    Plot,
    Recovery,
    ReportData,
    RoiAtlas,
    RoiExemplars,
    Table,
    Thumb,
    Trace,
    UnitCard,
)


def sphere(subdivisions: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """An octahedron subdivided onto the sphere of radius 100: vertices [v, 3], faces [f, 3]."""
    points = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    faces = [(0, 2, 4), (2, 1, 4), (1, 3, 4), (3, 0, 4), (2, 0, 5), (1, 2, 5), (3, 1, 5), (0, 3, 5)]
    for _ in range(subdivisions):
        middle: dict[tuple[int, int], int] = {}

        def midpoint(a: int, b: int, middle=middle) -> int:
            key = (min(a, b), max(a, b))
            if key not in middle:
                middle[key] = len(points)
                points.append(tuple((np.array(points[a]) + points[b]) / 2))
            return middle[key]

        split = []
        for a, b, c in faces:
            ab, bc, ca = midpoint(a, b), midpoint(b, c), midpoint(c, a)
            split += [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
        faces = split
    xyz = np.array(points, float)
    return (100 * xyz / np.linalg.norm(xyz, axis=1, keepdims=True)).astype(np.float32), np.array(faces)


def small_cortex() -> CortexData:
    xyz, faces = sphere()
    top = faces[(xyz[faces][:, :, 2] > -20).all(1)]
    flat = np.column_stack([xyz[:, 0], xyz[:, 1], np.zeros(len(xyz))]).astype(np.float32)
    coords = {"inflated": xyz, "pial": xyz * np.float32([0.6, 1, 0.7]), "flat": flat}
    return CortexData({name: Hemisphere(coords, faces, xyz[:, 2], top) for name in ("left", "right")})


def picture(seed: int) -> Thumb:
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return Thumb(stream.getvalue(), f"picture {seed}")


def make_report(word: Callable[[str], str] = lambda text: text) -> ReportData:
    """Every text of the page goes through `word`."""
    cortex = small_cortex()
    n = cortex.n_vertices
    rng = np.random.default_rng(0)
    values = np.where(np.arange(n) % 5 == 0, np.nan, rng.uniform(0, 0.6, n))
    kinds = np.where(np.arange(n) % 2 == 0, np.nan, np.arange(n) % 3)
    colours = [(word(name), colour) for name, colour in zip("abc", ("#0072b2", "#d55e00", "#009e73"), strict=True)]
    maps = [
        MapLayer(word("held_out"), word("Held-out"), word("r"), "sequential", values, 0, 0.6, note=word("note")),
        MapLayer(word("gain"), word("Gain"), word("Δr"), "diverging", values - 0.3, -0.3, 0.3),
        MapLayer(word("kind"), word("Kind"), "", "categorical", kinds, categories=colours),
    ]
    labels = np.where(np.arange(n) < 40, 1, np.where(np.arange(n) < 80, 2, 0))
    atlas = RoiAtlas(word("floc"), labels, [word("FFA"), word("PPA")])
    columns = [word("mode"), Column(word("MEAN"), word("r"), help=word("help"))]
    table = Table(word("Scores"), word("table note"), columns, [(word("CLS"), 0.28114), (word("raw"), None)])
    early = ([0.1, float("nan"), 0.3], [0.0, 0.1, 0.2], [0.2, 0.3, 0.4])
    curve = LayerCurve(
        word("By block"), [word("0"), word("1"), word("2")],
        {word("early"): early, word("late"): ([0.3, 0.2, 0.1], None, None)},
        word("mean r"), word("block"), note=word("curve note"), levels={word("null"): 0.05},
    )  # fmt: skip
    dots = Trace([4.0, 8.0, 40.0], [0.5, 0.3, 0.1], [0, 2], [word("k=4"), None, word("k=40")], [False, True, True])
    plot = Plot(
        word("Front"), {word("topk"): dots, word("relu"): Trace([5.0, 6.0], [0.2, 0.2], [0, 1])},
        word("L0"), word("MSE"), word("plot note"), log_x=True,
    )  # fmt: skip
    cards = [UnitCard(word("block 3"), 17, word("r = .4"), word("8 of 9"), [picture(0), picture(1), picture(0)])]
    cards[0].images[1] = Thumb(cards[0].images[1].data, word("alternative text"))
    first, second = word("subj01"), word("subj02")
    return ReportData(
        word("Title"), word("Subtitle"), [(word("label"), word("0.3"), word("headline note"))], [table],
        cortex, {first: maps, second: maps}, {first: [atlas]}, [curve], [plot],
        [RoiExemplars(word("FFA"), word("top units"), cards)], Recovery(word("found again"), [table]),
        [(word("Similarity"), word("cosine"))],
        {word("config"): {word("seed"): 7, word("paths"): [word("a/b"), {word("k"): word("v")}], "no": None}},
        [word("careful")], [word("not drawn: subj03")],
    )  # fmt: skip


@pytest.fixture(scope="session")
def build_report():
    return make_report


@pytest.fixture(scope="session")
def cortex():
    return small_cortex()
