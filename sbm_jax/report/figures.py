"""Static brain figures (PNG or SVG, matplotlib's Agg): inflated views and flat maps of both hemispheres."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from sbm_jax.report.colormaps import DEFAULT_PALETTE, colour_values, lookup_table
from sbm_jax.report.data import HEMISPHERES, CortexData, Hemisphere, RoiAtlas
from sbm_jax.report.raster import camera, interpolate, majority, rasterise, vertex_normals

OVERSAMPLE = 2  # rendered at twice the size and averaged down, which smooths edges and borders
GYRUS, SULCUS = 218.0, 150.0  # greys of the bare cortex
OUTLINE = np.array([25.0, 25.0, 30.0])


def sulcal_grey(sulc_v: np.ndarray) -> np.ndarray:
    """Sulcal depth -> grey float [v, 3]: light gyri, dark sulci, with a soft edge between them."""
    scale = float(np.std(sulc_v)) or 1.0
    depth = 1 / (1 + np.exp(-3 * sulc_v / scale))
    return np.repeat((GYRUS + (SULCUS - GYRUS) * depth)[:, None], 3, axis=1)


def vertex_colours(values_v: np.ndarray, sulc_v: np.ndarray, threshold: float | None, **scale) -> tuple:
    """Colours float [v, 3] and the mask of vertices that show the map; the rest show the sulci.

    threshold hides values whose size |value| is below it; `scale` goes to `colormaps.colour_values`.
    """
    shown = np.isfinite(values_v)
    if threshold is not None:
        shown &= np.abs(np.nan_to_num(values_v)) >= threshold
    colours = colour_values(np.where(shown, values_v, np.nan), **scale).astype(np.float64)
    return np.where(shown[:, None], colours, sulcal_grey(sulc_v)), shown


def render_hemisphere(
    hemi: Hemisphere,
    colours_v3: np.ndarray,
    shown_v: np.ndarray,
    *,
    name: str,
    surface: str,
    view: str,
    width: int,
    crisp: bool = False,
    borders: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """One view of one hemisphere: uint8 [height, width, 4], transparent around the cortex.

    The height follows from the shape. borders: label arrays [v_hemi] whose region borders are drawn.
    crisp: hard colour borders, for categories. Raises ValueError if the surface has no flat patch.
    """
    faces = hemi.flat_faces if surface == "flat" else hemi.faces
    if faces is None:
        raise ValueError(f"the {name} hemisphere has no flat map")
    xyz = np.asarray(hemi.coords[surface], np.float64)
    used = np.unique(faces)
    seen = xyz @ camera(view, name).T
    low, high = seen[used].min(0), seen[used].max(0)
    pixels = width * OVERSAMPLE
    scale = (pixels - 4) / (high[0] - low[0])
    height = OVERSAMPLE * int(np.ceil((scale * (high[1] - low[1]) + 4) / OVERSAMPLE))
    xy = np.stack([(seen[:, 0] - low[0]) * scale + 2, (high[1] - seen[:, 1]) * scale + 2], axis=1)
    face, weight = rasterise(xy, seen[:, 2], faces, height, pixels)

    if surface == "flat":
        light = np.ones(len(xyz))
    else:
        towards = np.clip(vertex_normals(xyz, faces) @ camera(view, name)[2], 0, 1)
        light = np.where(shown_v, 0.74 + 0.26 * towards, 0.55 + 0.45 * towards)
    if crisp:
        key = np.unique(np.round(colours_v3).astype(np.int64) @ [65536, 256, 1], return_inverse=True)[1]
        speaker = majority(np.where(shown_v, key, -1), faces, face, weight)
        # Bare cortex keeps its soft sulci; only pixels that belong to a category take one vertex's colour.
        soft = interpolate(np.where(shown_v[:, None], sulcal_grey(hemi.sulc), colours_v3), faces, face, weight)
        image = np.where(shown_v[speaker][..., None], colours_v3[speaker], soft)
    else:
        image = interpolate(colours_v3, faces, face, weight)
    image = image * interpolate(light[:, None], faces, face, weight)
    for labels in borders:
        image[_border(labels, faces, face, weight)] = OUTLINE
    return _shrink(image, face >= 0)


def _border(labels_v: np.ndarray, faces: np.ndarray, face: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Pixels [h, w] within two pixels of another label."""
    label = labels_v[majority(labels_v, faces, face, weight)]
    edge = np.zeros(face.shape, bool)
    for axis in (0, 1):
        a = [slice(None)] * 2
        b = [slice(None)] * 2
        a[axis], b[axis] = slice(None, -1), slice(1, None)
        step = (label[tuple(a)] != label[tuple(b)]) & (face[tuple(a)] >= 0) & (face[tuple(b)] >= 0)
        edge[tuple(a)] |= step
        edge[tuple(b)] |= step
    thick = edge.copy()
    thick[1:] |= edge[:-1]
    thick[:, 1:] |= edge[:, :-1]
    return thick & (face >= 0)


def _shrink(image_hw3: np.ndarray, covered_hw: np.ndarray) -> np.ndarray:
    """Average OVERSAMPLE x OVERSAMPLE blocks; coverage becomes alpha."""
    h, w = covered_hw.shape[0] // OVERSAMPLE, covered_hw.shape[1] // OVERSAMPLE
    blocks = (h, OVERSAMPLE, w, OVERSAMPLE)
    covered = covered_hw.reshape(blocks).astype(np.float64)
    colour = (image_hw3.reshape(*blocks, 3) * covered[..., None]).sum((1, 3))
    share = covered.sum((1, 3))
    colour /= np.maximum(share, 1)[..., None]
    alpha = 255 * share / OVERSAMPLE**2
    return np.round(np.concatenate([colour, alpha[..., None]], axis=2)).clip(0, 255).astype(np.uint8)


def brain_figure(
    path: Path | str,
    surfaces: CortexData,
    values: np.ndarray,
    kind: str,
    vmin: float,
    vmax: float,
    title: str,
    outlines: Sequence[RoiAtlas] = (),
    *,
    label: str = "",
    categories: Sequence[tuple[str, str]] = (),
    palette: str = "",
    threshold: float | None = None,
    dpi: int = 150,
) -> None:
    """Write lateral, medial and ventral views of the inflated cortex, flat maps and a colour bar to `path`.

    values: float [v_left + v_right], NaN = none; the suffix of `path` says png or svg. The bytes depend on
    the arguments alone. Without flat maps the inflated views fill the figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    left, right = (surfaces.hemis[name] for name in HEMISPHERES)
    if len(values) != surfaces.n_vertices:
        raise ValueError(f"expected {surfaces.n_vertices} values (left then right), got {len(values)}")
    flat = all("flat" in hemi.coords and hemi.flat_faces is not None for hemi in (left, right))
    scale = {"kind": kind, "vmin": vmin, "vmax": vmax, "categories": categories, "palette": palette}

    size = (12.0, 5.4) if flat else (6.4, 6.2)
    figure = Figure(figsize=size, dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    cut = left.n_vertices
    for side, name in enumerate(HEMISPHERES):
        hemi = surfaces.hemis[name]
        part = slice(0, cut) if side == 0 else slice(cut, None)
        colours, shown = vertex_colours(np.asarray(values[part], np.float64), hemi.sulc, threshold, **scale)
        render = partial(
            render_hemisphere, hemi, colours, shown, name=name, crisp=kind == "categorical",
            borders=[np.asarray(atlas.labels)[part] for atlas in outlines],
        )  # fmt: skip
        x, wide, y = 0.12 + 2.6 * side if flat else 0.55 + 2.75 * side, 2.5, 0.62
        _caption(figure, x + wide / 2, name)
        for view in ("lateral", "medial", "ventral_lying"):
            picture = render(surface="inflated", view=view, width=round(wide * dpi))
            y += _place(figure, picture, x, y, wide) + 0.1
        if flat:
            x, wide = 5.45 + 3.28 * side, 3.2
            _caption(figure, x + wide / 2, f"{name}, flat")
            picture = render(surface="flat", view="flat", width=round(wide * dpi))
            _place(figure, picture, x, 2.5 - wide * picture.shape[0] / picture.shape[1] / 2, wide)
    figure.suptitle(title, fontsize=11.5, y=1 - 0.1 / size[1], va="top")
    _draw_key(figure, kind, vmin, vmax, label, categories, palette, threshold, x=0.725 if flat else 0.5)
    path = Path(path)
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "sbm"}):
        figure.savefig(path, dpi=dpi, metadata=metadata)


def _place(figure, picture: np.ndarray, x: float, top: float, wide: float) -> float:
    """Show a picture `wide` inches wide, x from the left and `top` from the top; return its height."""
    width, height = figure.get_size_inches()
    high = wide * picture.shape[0] / picture.shape[1]
    axes = figure.add_axes((x / width, 1 - (top + high) / height, wide / width, high / height))
    axes.imshow(picture, interpolation="antialiased")
    axes.axis("off")
    return high


def _caption(figure, x: float, text: str) -> None:
    width, height = figure.get_size_inches()
    figure.text(x / width, 1 - 0.46 / height, text, ha="center", va="center", fontsize=8.5, color="0.35")


def _draw_key(figure, kind, vmin, vmax, label, categories, palette, threshold, *, x: float) -> None:
    """Colour bar, or swatches for categories, centred at x at the bottom of the figure."""
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    if kind == "categorical":
        handles = [Patch(facecolor=colour, label=name) for name, colour in categories]
        figure.legend(
            handles=handles, loc="lower center", bbox_to_anchor=(x, 0.01), ncols=min(len(handles), 6),
            frameon=False, fontsize=8.5, title=label or None, handlelength=1.1, columnspacing=1.4,
        )  # fmt: skip
        return
    table = lookup_table(palette or DEFAULT_PALETTE[kind]).astype(np.float64)
    if threshold is not None:
        at = np.linspace(vmin, vmax, len(table))
        table[np.abs(at) < threshold] = (GYRUS + SULCUS) / 2
    axes = figure.add_axes((x - 0.13, 0.105, 0.26, 0.026))
    axes.imshow(table[None] / 255, aspect="auto", extent=(vmin, vmax, 0, 1), interpolation="nearest")
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.tick_params(labelsize=8, length=2.5, color="0.4")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel(label, fontsize=8.5, labelpad=2)
