"""A small z-buffer rasteriser for triangle meshes in numpy, and the cameras that the figures and the page share."""

import numpy as np

# Rows of a camera: screen right, screen up, towards the viewer; written for the left hemisphere.
VIEWS = {
    "lateral": ((0, -1, 0), (0, 0, 1), (-1, 0, 0)),
    "medial": ((0, 1, 0), (0, 0, 1), (1, 0, 0)),
    "ventral": ((-1, 0, 0), (0, 1, 0), (0, 0, -1)),
    "dorsal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "posterior": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
    "anterior": ((-1, 0, 0), (0, 0, 1), (0, 1, 0)),
    "ventral_lying": ((0, -1, 0), (-1, 0, 0), (0, 0, -1)),
    "flat": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
}
# Views from which the left hemisphere belongs on the right of the screen, so that medial walls face each other.
CROSSED_VIEWS = ("ventral", "anterior")


def camera(view: str, hemi: str) -> np.ndarray:
    """float64 [3, 3]. The right hemisphere's camera is the left one's mirrored in x, on the screen and in space."""
    rows = np.array(VIEWS[view], np.float64)
    if hemi == "right" and view != "flat":
        mirror = np.diag([-1.0, 1.0, 1.0])
        rows = mirror @ rows @ mirror
    return rows


def vertex_normals(xyz_v3: np.ndarray, faces_f3: np.ndarray) -> np.ndarray:
    """Unit normals float64 [v, 3], faces weighted by their area; zero for a vertex without a face."""
    a, b, c = (xyz_v3[faces_f3[:, i]].astype(np.float64) for i in range(3))
    face_normal = np.cross(b - a, c - a)
    normal = np.stack(
        [
            np.bincount(faces_f3.ravel(), np.repeat(face_normal[:, axis], 3), minlength=len(xyz_v3))
            for axis in range(3)
        ],
        axis=1,
    )
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    return normal / np.where(length > 0, length, 1)


def rasterise(
    xy_v2: np.ndarray, depth_v: np.ndarray, faces_f3: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest front-facing triangle under every pixel centre.

    xy: pixel coordinates (x right, y down); depth: larger is nearer. Returns face [height, width] int32, -1 where
    there is none, and barycentric weights [height, width, 3] float32 of that face's corners.
    """
    face_hw = np.full(height * width, -1, np.int32)
    weight_hw3 = np.zeros((height * width, 3), np.float32)
    x, y = xy_v2[faces_f3, 0], xy_v2[faces_f3, 1]
    area = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 0])
    left = np.clip(np.ceil(x.min(1) - 0.5), 0, width).astype(np.int64)
    right = np.clip(np.floor(x.max(1) - 0.5) + 1, 0, width).astype(np.int64)
    top = np.clip(np.ceil(y.min(1) - 0.5), 0, height).astype(np.int64)
    bottom = np.clip(np.floor(y.max(1) - 0.5) + 1, 0, height).astype(np.int64)
    columns, n_pixels = right - left, (right - left) * (bottom - top)
    # y points down, so a triangle that faces the viewer has a negative area here
    kept = np.flatnonzero((area < -1e-12) & (right > left) & (bottom > top))
    if not len(kept):
        return face_hw.reshape(height, width), weight_hw3.reshape(height, width, 3)

    face = np.repeat(kept, n_pixels[kept])
    first = np.cumsum(n_pixels[kept]) - n_pixels[kept]
    within = np.arange(len(face)) - np.repeat(first, n_pixels[kept])
    px, py = left[face] + within % columns[face], top[face] + within // columns[face]

    # Weights are affine in the pixel: w_i = (const + x slope_x + y slope_y), one row of coefficients per face.
    inverse = 1 / area[kept]
    slot = np.repeat(np.arange(len(kept)), n_pixels[kept])
    weights = []
    for j, k in ((1, 2), (2, 0)):
        xj, yj, xk, yk = x[kept, j], y[kept, j], x[kept, k], y[kept, k]
        constant, slope_x, slope_y = (xj * yk - xk * yj) * inverse, (yj - yk) * inverse, (xk - xj) * inverse
        weights.append(constant[slot] + (px + 0.5) * slope_x[slot] + (py + 0.5) * slope_y[slot])
    w0, w1 = weights
    w2 = 1 - w0 - w1
    inside = (w0 >= 0) & (w1 >= 0) & (w2 >= 0)
    face, pixel = face[inside], (py * width + px)[inside]
    w0, w1, w2 = w0[inside], w1[inside], w2[inside]
    corner_depth = depth_v[faces_f3[face]]
    depth = w0 * corner_depth[:, 0] + w1 * corner_depth[:, 1] + w2 * corner_depth[:, 2]

    nearest = np.full(height * width, -np.inf)
    np.maximum.at(nearest, pixel, depth)
    won = depth == nearest[pixel]
    face_hw[pixel[won]] = face[won]
    weight_hw3[pixel[won]] = np.stack([w0[won], w1[won], w2[won]], axis=1)
    return face_hw.reshape(height, width), weight_hw3.reshape(height, width, 3)


def interpolate(attribute_vc: np.ndarray, faces_f3: np.ndarray, face_hw: np.ndarray, weight_hw3: np.ndarray):
    """Vertex attributes [v, c] -> pixels [h, w, c] float32 by barycentric weights; 0 where there is no face."""
    corner = attribute_vc.astype(np.float32)[faces_f3[np.maximum(face_hw, 0)]]
    out = np.einsum("hwk,hwkc->hwc", weight_hw3, corner)
    return np.where(face_hw[..., None] >= 0, out, 0)


def majority(
    label_v: np.ndarray, faces_f3: np.ndarray, face_hw: np.ndarray, weight_hw3: np.ndarray
) -> np.ndarray:
    """Vertex that speaks for each pixel: of the corners whose equal labels weigh most together. int [h, w], -1 none.

    Borders between labels then run straight from edge midpoint to edge midpoint.
    """
    label_f3 = label_v[faces_f3]
    mixed_f = (label_f3[:, 0] != label_f3[:, 1]) | (label_f3[:, 0] != label_f3[:, 2])
    covered = face_hw >= 0
    speaker = np.where(covered, faces_f3[np.maximum(face_hw, 0), 0], -1)
    at = covered & mixed_f[face_hw]  # only triangles that a border crosses need the vote
    face, weight = face_hw[at], weight_hw3[at]
    label = label_f3[face]
    support = np.stack([(weight * (label == label[:, i : i + 1])).sum(-1) for i in range(3)], axis=-1)
    best = np.argmax(support + 1e-6 * weight, axis=-1)
    speaker[at] = faces_f3[face, best]
    return speaker
