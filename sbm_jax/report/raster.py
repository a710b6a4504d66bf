"""A small z-buffer rasteriser for triangle meshes in numpy, and the cameras that figures and page share."""

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
# Views from which the left hemisphere belongs on the right of the screen, medial walls together.
CROSSED_VIEWS = ("ventral", "anterior")


def camera(view: str, hemi: str) -> np.ndarray:
    """float64 [3, 3]; the right hemisphere's is the left one's mirrored in x, on screen and in space."""
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
        [np.bincount(faces_f3.ravel(), np.repeat(face_normal[:, axis], 3), minlength=len(xyz_v3)) for axis in range(3)],
        axis=1,
    )
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    return normal / np.where(length > 0, length, 1)


def rasterise(
    xy_v2: np.ndarray, depth_v: np.ndarray, faces_f3: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest front-facing triangle under every pixel centre.

    xy: pixel coordinates (x right, y down); depth: larger is nearer. Returns face [height, width] int32, -1
    where there is none, and barycentric weights [height, width, 3] float32 of that face's corners.
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

    count = n_pixels[kept]
    slot = np.repeat(np.arange(len(kept), dtype=np.int32), count)
    first = (np.cumsum(count) - count).astype(np.int32)
    within = np.arange(count.sum(), dtype=np.int32) - first[slot]
    row, column = np.divmod(within, columns[kept].astype(np.int32)[slot])
    row += top[kept].astype(np.int32)[slot]
    column += left[kept].astype(np.int32)[slot]

    # Weights are linear in the offset from the first corner; offsets are small, so float32 is exact enough.
    x, y, inverse = x[kept], y[kept], 1 / area[kept]
    dx = column.astype(np.float32) - _gather(x[:, 0] - 0.5, slot)
    dy = row.astype(np.float32) - _gather(y[:, 0] - 0.5, slot)
    w1 = dx * _gather((y[:, 2] - y[:, 0]) * inverse, slot) - dy * _gather((x[:, 2] - x[:, 0]) * inverse, slot)
    w2 = dy * _gather((x[:, 1] - x[:, 0]) * inverse, slot) - dx * _gather((y[:, 1] - y[:, 0]) * inverse, slot)
    w0 = 1 - w1 - w2
    # the tolerance closes pinholes along edges, where both neighbours can round to just outside
    inside = np.flatnonzero((w0 >= -1e-5) & (w1 >= -1e-5) & (w2 >= -1e-5))
    face, pixel = kept[slot[inside]], row[inside] * width + column[inside]
    w0, w1, w2 = w0[inside], w1[inside], w2[inside]
    corner_depth = depth_v.astype(np.float32)[faces_f3[face]]
    depth = w0 * corner_depth[:, 0] + w1 * corner_depth[:, 1] + w2 * corner_depth[:, 2]

    nearest = np.full(height * width, -np.inf, np.float32)
    np.maximum.at(nearest, pixel, depth)
    won = depth == nearest[pixel]
    face_hw[pixel[won]] = face[won]
    weight_hw3[pixel[won]] = np.stack([w0[won], w1[won], w2[won]], axis=1)
    return face_hw.reshape(height, width), weight_hw3.reshape(height, width, 3)


def _gather(per_face: np.ndarray, slot: np.ndarray) -> np.ndarray:
    return per_face.astype(np.float32)[slot]


def interpolate(attribute_vc: np.ndarray, faces_f3: np.ndarray, face_hw: np.ndarray, weight_hw3: np.ndarray):
    """Vertex attributes [v, c] -> pixels [h, w, c] float32 by barycentric weights; 0 off the mesh."""
    out = np.zeros((*face_hw.shape, attribute_vc.shape[1]), np.float32)
    covered = face_hw >= 0
    corner, weight = faces_f3[face_hw[covered]], weight_hw3[covered]
    attribute = attribute_vc.astype(np.float32)
    out[covered] = sum(weight[:, i : i + 1] * attribute[corner[:, i]] for i in range(3))
    return out


def majority(label_v: np.ndarray, faces_f3: np.ndarray, face_hw: np.ndarray, weight_hw3: np.ndarray) -> np.ndarray:
    """Vertex that speaks for each pixel, int [h, w], -1 none: a corner of the label that weighs most there.

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
