"""Distances and areas on a triangle mesh: the graph of its edges, geodesic distance along it, mm^2 per
vertex.
"""

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import dijkstra


def mesh_edges(faces: np.ndarray) -> np.ndarray:
    """Every edge once, int [e, 2], lower vertex first, sorted."""
    return _once(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]))


def _once(pairs: np.ndarray) -> np.ndarray:
    """Pairs with the lower number first, sorted, without repeats (by one key per pair: many times faster)."""
    pairs = np.sort(pairs.astype(np.int64), axis=1)
    count = int(pairs.max()) + 1
    return np.stack(np.divmod(np.unique(pairs[:, 0] * count + pairs[:, 1]), count), axis=1)


def mesh_graph(coords: np.ndarray, faces: np.ndarray) -> sparse.csr_array:
    """Symmetric graph [v, v] of edge lengths in the units of coords (mm).

    Besides the mesh's edges it has the other diagonal of every pair of neighbouring triangles, with its
    straight
    length: paths then zigzag less and distances from a vertex grow in rounder rings.
    """
    edges = _once(np.concatenate([mesh_edges(faces), _opposite_pairs(faces)]))
    length = np.linalg.norm(coords[edges[:, 0]] - coords[edges[:, 1]], axis=1).astype(np.float64)
    n = len(coords)
    upper = sparse.coo_array((length, (edges[:, 0], edges[:, 1])), shape=(n, n))
    return sparse.csr_array(upper + upper.T)


def _opposite_pairs(faces: np.ndarray) -> np.ndarray:
    """For every inner edge the two vertices across it."""
    sides = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    apex = np.concatenate([faces[:, 2], faces[:, 0], faces[:, 1]])
    sides = np.sort(sides, axis=1)
    order = np.lexsort((sides[:, 1], sides[:, 0]))
    sides, apex = sides[order], apex[order]
    twin = np.flatnonzero((sides[1:] == sides[:-1]).all(axis=1))
    return np.stack([apex[twin], apex[twin + 1]], axis=1)


def geodesic(graph: sparse.csr_array, sources: np.ndarray | list[int], limit: float = np.inf) -> np.ndarray:
    """Shortest-path distance [sources, v] along the graph; inf beyond `limit`."""
    return dijkstra(graph, directed=False, indices=np.asarray(sources), limit=limit)


def vertex_areas(coords: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area of every vertex [v]: a third of the triangles it belongs to (mm^2 for coords in mm)."""
    a, b, c = (coords[faces[:, k]].astype(np.float64) for k in range(3))
    triangle = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2
    return np.bincount(faces.ravel(), weights=np.repeat(triangle / 3, 3), minlength=len(coords))


def nearest_vertex(coords: np.ndarray, point: tuple[float, float, float]) -> int:
    """The vertex closest to a point in space."""
    return int(np.argmin(((coords - np.asarray(point, dtype=coords.dtype)) ** 2).sum(axis=1)))
