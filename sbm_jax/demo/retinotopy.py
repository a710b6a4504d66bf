"""Early visual areas V1 to hV4 on fsaverage5: bands around the calcarine sulcus with retinotopic receptive
fields.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import dijkstra

from sbm_jax.brain.geometry import geodesic, mesh_graph, nearest_vertex
from sbm_jax.brain.surfaces import Surface, load_surface

IMAGE_DEGREES = 16.0  # assumed width of the picture on the screen, degrees of visual angle
EARLY = ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4")

# Ends of the calcarine sulcus for the left hemisphere, mm in MNI305: foveal confluence behind and lateral,
# periphery in front.
_FOVEA = (-20.0, -98.0, -6.0)
_PERIPHERY = (-20.0, -57.0, 4.0)
_FULL_EXTENT_DEGREES = 90.0  # eccentricity at the front end
# degrees at which cortical magnification has halved: Horton & Hoyt 1991, M = 17.3 / (E + 0.75) mm/degree
_E2 = 0.75
# distance of an area's outer border from the calcarine fundus
_BORDERS_MM = {"V1": 13.0, "V2": 22.5, "V3": 30.0, "hV4": 41.0}
_CONFLUENCE_MM = 5.0  # all bands narrow towards the confluence with this length constant
# Receptive field sigma in degrees = intercept + slope * eccentricity; round numbers that grow from V1 to hV4
# as population receptive fields do (Dumoulin & Wandell 2008).
_RF_DEGREES = {"V1": (0.30, 0.08), "V2": (0.40, 0.12), "V3": (0.55, 0.18), "hV4": (0.90, 0.30)}


@dataclass(frozen=True)
class EarlyAreas:
    """Receptive fields of one hemisphere's early visual areas.

    label_v: int [v], index into EARLY or -1. eccentricity: degrees. rf_x, rf_y: centre in image fractions (0,
    0 is the upper left corner). rf_size: sigma of the Gaussian as a fraction of the image's width. NaN where
    label_v is -1.
    """

    label_v: np.ndarray
    eccentricity: np.ndarray
    rf_x: np.ndarray
    rf_y: np.ndarray
    rf_size: np.ndarray


def early_areas(hemi: str, scale: float = 1.0, shift_mm: tuple[float, float] = (0.0, 0.0)) -> EarlyAreas:
    """Lay V1v V1d V2v V2d V3v V3d hV4 around the calcarine sulcus.

    Args:
        hemi: "L" or "R".
        scale: factor on the widths of the areas and on the length of cortex per degree.
        shift_mm: moves the whole map along the sulcus (to the front) and across it (upwards).
    """
    along, across = _calcarine_frame(hemi)
    # _calcarine_frame gives the length of the sulcus as the largest value along it
    length = along.max()
    along = (along - shift_mm[0]) / scale
    across = (across - shift_mm[1]) / scale
    # inverse of s = k ln(1 + E / E2), the integral of the magnification above
    k = length / np.log1p(_FULL_EXTENT_DEGREES / _E2)
    eccentricity = _E2 * np.expm1(np.clip(along, 0, length) / k)
    inside = (along > 0.3) & (eccentricity <= IMAGE_DEGREES / 2)

    narrowing = 1 - np.exp(-np.clip(along, 0, None) / _CONFLUENCE_MM)
    distance = np.abs(across) / np.maximum(narrowing, 1e-6)
    dorsal = across >= 0
    v1, v2, v3, v4 = _BORDERS_MM.values()
    label = np.full(len(along), -1)
    # polar angle from the horizontal meridian, degrees of visual field, negative = lower field (dorsal
    # areas); it runs to the vertical meridian at the V1/V2 border, back to the horizontal at V2/V3, and so on
    angle = np.zeros(len(along))
    bands = (
        ("V1", distance < v1, 90 * distance / v1),
        ("V2", (distance >= v1) & (distance < v2), 90 * (1 - (distance - v1) / (v2 - v1))),
        ("V3", (distance >= v2) & (distance < v3), 90 * (distance - v2) / (v3 - v2)),
    )
    for name, band, away in bands:
        for suffix, side, sign in (("v", ~dorsal, 1.0), ("d", dorsal, -1.0)):
            chosen = inside & band & side
            label[chosen] = EARLY.index(name + suffix)
            angle[chosen] = sign * away[chosen]
    hv4 = inside & ~dorsal & (distance >= v3) & (distance < v4)
    label[hv4] = EARLY.index("hV4")
    angle[hv4] = 90 - 180 * (distance[hv4] - v3) / (v4 - v3)  # the whole hemifield on the ventral side

    contralateral = 1.0 if hemi == "L" else -1.0
    rf_x = 0.5 + contralateral * eccentricity * np.cos(np.radians(angle)) / IMAGE_DEGREES
    rf_y = 0.5 - eccentricity * np.sin(np.radians(angle)) / IMAGE_DEGREES
    rf_size = np.zeros(len(along))
    for position, name in enumerate(EARLY):
        intercept, slope = _RF_DEGREES[name.rstrip("vd")]
        chosen = label == position
        rf_size[chosen] = (intercept + slope * eccentricity[chosen]) / IMAGE_DEGREES
    outside = label < 0
    fields = [np.where(outside, np.nan, field) for field in (eccentricity, rf_x, rf_y, rf_size)]
    return EarlyAreas(label, *fields)


def middle_layer(surface: Surface) -> np.ndarray:
    """Vertex coordinates half-way between white matter and pia, [v, 3] mm."""
    return (surface.white + surface.pial) / 2


@lru_cache(maxsize=2)
def cortex_graph(hemi: str) -> sparse.csr_array:
    """Graph of distances along the middle of the cortex of one hemisphere; made once per process."""
    surface = load_surface(hemi)
    return mesh_graph(middle_layer(surface), surface.faces)


@lru_cache(maxsize=2)
def _calcarine_frame(hemi: str) -> tuple[np.ndarray, np.ndarray]:
    """Position of every vertex along the calcarine sulcus and signed distance across it (up is positive), mm.

    The sulcus is the shortest path between its two ends that prefers depth. Along: angle on the sphere, in
    the plane of the path, scaled to the path's length and clipped to it. Across: geodesic distance from the
    path.
    """
    surface, graph = load_surface(hemi), cortex_graph(hemi)
    side = -1.0 if hemi == "R" else 1.0
    middle = middle_layer(surface)
    ends = [nearest_vertex(middle, (side * x, y, z)) for x, y, z in (_FOVEA, _PERIPHERY)]
    path = _deep_path(graph, surface.sulc, *ends)
    length = float(np.linalg.norm(np.diff(middle[path], axis=0), axis=1).sum())

    ball = surface.sphere.astype(np.float64)
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    normal = np.linalg.svd(ball[path], full_matrices=False)[2][2]
    normal *= np.sign(normal[2])  # points upwards: the dorsal side is positive
    start = ball[ends[0]] - normal * (ball[ends[0]] @ normal)
    start /= np.linalg.norm(start)
    front = np.cross(normal, start)
    front *= np.sign(front @ ball[ends[1]])
    angle = np.arctan2(ball @ front, ball @ start)
    end_angle = np.arctan2(ball[ends[1]] @ front, ball[ends[1]] @ start)
    along = np.minimum(angle / end_angle, 1.0) * length
    distance = geodesic(graph, path).min(axis=0)
    return along, distance * np.sign(ball @ normal)


def _deep_path(graph: sparse.csr_array, sulc: np.ndarray, start: int, end: int) -> list[int]:
    edges = graph.tocoo()
    depth = (sulc[edges.coords[0]] + sulc[edges.coords[1]]) / 2
    cost = sparse.csr_array((edges.data * np.exp(-1.2 * depth), edges.coords), shape=graph.shape)
    before = dijkstra(cost, directed=False, indices=start, return_predecessors=True)[1]
    path = [end]
    while path[-1] != start:
        path.append(int(before[path[-1]]))
    return path[::-1]
