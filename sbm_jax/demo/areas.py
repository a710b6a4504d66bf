"""Where the demo's visual areas lie on fsaverage5: NSD's atlas and label names at centres known from the
literature.

Centres are rounded, approximate positions (MNI, left hemisphere; the right one is mirrored) near those usual
for these areas, e.g. Julian et al. 2012 and Rosenke et al. 2021; the food patches flank the face areas as in
Jain et al. 2023. They make a plausible plan, not an atlas.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from sbm_jax.brain.geometry import geodesic, nearest_vertex, vertex_areas
from sbm_jax.brain.surfaces import HEMIS, Surface, load_surface
from sbm_jax.demo.retinotopy import EARLY, EarlyAreas, cortex_graph, early_areas, middle_layer


@dataclass(frozen=True)
class Area:
    """A category area: NSD atlas and label, the concept that drives it, centre in the left hemisphere, mm^2
    left and right.
    """

    atlas: str
    label: str
    concept: str
    centre: tuple[float, float, float]
    size_left: float
    size_right: float


CATEGORY_AREAS = (
    Area("floc-faces", "OFA", "face", (-38, -81, -10), 220, 280),
    Area("floc-faces", "FFA-1", "face", (-38, -62, -15), 240, 300),
    Area("floc-faces", "FFA-2", "face", (-40, -47, -18), 200, 260),
    Area("floc-bodies", "EBA", "body", (-46, -73, 5), 700, 800),
    Area("floc-bodies", "FBA-1", "body", (-44, -56, -14), 160, 200),
    Area("floc-bodies", "FBA-2", "body", (-44, -42, -17), 130, 160),
    Area("floc-places", "OPA", "place", (-32, -83, 20), 380, 400),
    Area("floc-places", "PPA", "place", (-26, -45, -9), 480, 500),
    Area("floc-places", "RSC", "place", (-16, -56, 13), 280, 300),
    Area("floc-words", "OWFA", "word", (-40, -78, -4), 190, 110),
    Area("floc-words", "VWFA-1", "word", (-46, -65, -9), 280, 140),
    Area("floc-words", "VWFA-2", "word", (-50, -52, -13), 240, 100),
    Area("food", "food-medial", "food", (-31, -57, -11), 240, 240),
    Area("food", "food-lateral", "food", (-50, -58, -8), 180, 200),
)
ATLASES = ("prf-visualrois", "floc-faces", "floc-bodies", "floc-places", "floc-words", "food")
_STREAM = 0xA2EA5  # separates these random numbers from others that use the same seed
_REACH = 1.7  # an area ends at this multiple of the radius of a disc of its size, whatever its neighbours leave it


@dataclass(frozen=True)
class HemiAreas:
    """Areas of one hemisphere of one subject.

    early: V1 to hV4 with receptive fields. area_v: int [v], index into CATEGORY_AREAS or -1; never where
    early has a label.
    centrality: float [v], 1 at an area's centre and falling to 0 at its rim (1 throughout early areas, 0
    outside areas).
    """

    hemi: str
    early: EarlyAreas
    area_v: np.ndarray
    centrality: np.ndarray

    def atlas_labels(self, atlas: str) -> list[str]:
        """The label of every vertex in one of ATLASES, "" for none."""
        if atlas == "prf-visualrois":
            return [EARLY[i] if i >= 0 else "" for i in self.early.label_v.tolist()]
        names = [area.label if area.atlas == atlas else "" for area in CATEGORY_AREAS]
        return [names[i] if i >= 0 else "" for i in self.area_v.tolist()]


def subject_areas(seed: int, subject: int) -> tuple[HemiAreas, HemiAreas]:
    """Left and right areas of one subject: the same plan with small random shifts and sizes of its own."""
    left, right = (
        _hemi_areas(load_surface(hemi), np.random.default_rng([_STREAM, seed, subject, side]))
        for side, hemi in enumerate(HEMIS)
    )
    return left, right


def _hemi_areas(surface: Surface, rng: np.random.Generator) -> HemiAreas:
    middle, graph = middle_layer(surface), cortex_graph(surface.hemi)
    size_v = vertex_areas(middle, surface.faces)
    scale = float(np.exp(rng.normal(0, 0.06)))
    shift = tuple(rng.normal(0, 1.0, 2).tolist())
    early = early_areas(surface.hemi, scale, shift)

    side = 1.0 if surface.hemi == "L" else -1.0
    homes = [nearest_vertex(middle, (side * a.centre[0], a.centre[1], a.centre[2])) for a in CATEGORY_AREAS]
    centres = _shifted(graph, homes, rng)
    sizes = np.array([a.size_left if surface.hemi == "L" else a.size_right for a in CATEGORY_AREAS])
    sizes = sizes * np.exp(rng.normal(0, 0.15, len(sizes)))
    radius = np.sqrt(sizes / np.pi)
    free = (early.label_v < 0) & cortex_mask(surface)
    reach = geodesic(graph, centres, limit=float(_REACH * radius.max())) / radius[:, None]
    area = _grow(graph, reach, sizes, size_v, free)

    centrality = np.where(early.label_v >= 0, 1.0, 0.0)
    for i in range(len(CATEGORY_AREAS)):
        mine = area == i
        if mine.any():
            centrality[mine] = 1 - reach[i, mine] / max(_REACH, float(reach[i, mine].max()))
    return HemiAreas(surface.hemi, early, area, centrality)


def cortex_mask(surface: Surface) -> np.ndarray:
    """Vertices of the flat map: cortex without the medial wall (and without the rims of the cuts)."""
    mask = np.zeros(len(surface.flat), dtype=bool)
    mask[surface.flat_faces.ravel()] = True
    return mask


def _shifted(graph: sparse.csr_array, homes: list[int], rng: np.random.Generator) -> list[int]:
    """Every centre moved to a random vertex within 3 mm on the surface."""
    near = geodesic(graph, homes, limit=3.0)
    return [int(rng.choice(np.flatnonzero(np.isfinite(row)))) for row in near]


def _grow(
    graph: sparse.csr_array, reach: np.ndarray, sizes: np.ndarray, size_v: np.ndarray, free: np.ndarray
) -> np.ndarray:
    """Give every free vertex to the area it is closest to (in radii of that area), up to each area's size.

    reach: [areas, v] distance in radii. Returns int [v], index of the area or -1. Every area is one piece.
    """
    owner = np.argmin(reach, axis=0)
    best = np.take_along_axis(reach, owner[None], axis=0)[0]
    area = np.full(len(owner), -1)
    for i, size in enumerate(sizes):
        own = np.flatnonzero((owner == i) & free & (best < _REACH))
        if not len(own):
            continue
        own = own[np.argsort(best[own], kind="stable")]
        own = own[np.cumsum(size_v[own]) <= size]
        if not len(own):
            continue
        pieces = connected_components(graph[own][:, own], directed=False)[1]
        area[own[pieces == np.argmax(np.bincount(pieces))]] = i
    return area
