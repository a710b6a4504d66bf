"""The report page: one HTML text with everything inside it, that asks the network for nothing."""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from sbm_jax.report.colormaps import DEFAULT_PALETTE, lookup_table, parse_hex
from sbm_jax.report.curves import curve_svg
from sbm_jax.report.data import (
    HEMISPHERES,
    SURFACES,
    Cell,
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
from sbm_jax.report.encode import Blobs, image_type, script_json
from sbm_jax.report.plots import plot_svg
from sbm_jax.report.raster import CROSSED_VIEWS, VIEWS, camera
from sbm_jax.report.thumbs import thumbnail

__all__ = [
    "Column",
    "CortexData",
    "Hemisphere",
    "LayerCurve",
    "MapLayer",
    "Plot",
    "Recovery",
    "ReportData",
    "RoiAtlas",
    "RoiExemplars",
    "Table",
    "Thumb",
    "Trace",
    "UnitCard",
    "render_page",
    "thumbnail",
]

SCRIPTS = (
    "codec.js",
    "raster.js",
    "outline.js",
    "key.js",
    "cortex.js",
    "controls.js",
    "listen.js",
    "page.js",
)
PAGE_VIEWS = ("lateral", "medial", "ventral", "dorsal", "posterior", "anterior")
LONG_TABLE = 40  # rows beyond which a table is folded
SECTIONS = {
    "summary": "Summary",
    "cortex": "Cortex",
    "layers": "Layers",
    "rois": "ROIs",
    "rsa": "RSA",
    "recovery": "Recovery of the truth",
    "methods": "Methods notes",
    "provenance": "Provenance",
}


def render_page(report: ReportData) -> str:
    """The whole page as text (write it as UTF-8). The same report gives the same text.

    Raises ValueError where arrays, labels or sections of the report do not fit together.
    """
    for item in (*report.tables, *report.curves, *report.plots):
        if item.section not in SECTIONS:
            raise ValueError(f"{item.title!r}: unknown section {item.section!r}; there are {', '.join(SECTIONS)}")
    style, script = asset("page.css"), _script()
    blobs, pictures = Blobs(), Blobs()
    types: dict[int, str] = {}
    for thumb in (t for roi in report.exemplars for card in roi.units for t in card.images):
        types[pictures.add(thumb.data)] = image_type(thumb)
    payload = {
        "cortex": _cortex_payload(report, blobs),
        "blobs": blobs.texts,
        "pictures": [[types[i], text] for i, text in enumerate(pictures.texts)],
    }
    page = (
        _environment()
        .get_template("page.html.j2")
        .render(
            report=report,
            sections=_present_sections(report),
            views=PAGE_VIEWS,
            picture=lambda thumb: pictures.add(thumb.data),
            payload=script_json(payload),
            style=Markup(style),
            script=Markup(script),
            policy=policy(style, script),
        )
    )
    # A file name that is no valid UTF-8 reaches us as lone surrogates, which could not be written.
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def _present_sections(report: ReportData) -> dict[str, str]:
    """Sections that have something to show, in order."""
    named = {item.section for item in (*report.tables, *report.curves, *report.plots)}
    present = {
        "summary": True,
        "cortex": bool(report.cortex_notes) or (report.cortex is not None and bool(report.subjects)),
        "rois": bool(report.exemplars),
        "recovery": report.recovery is not None,
        "methods": bool(report.methods),
        "provenance": bool(report.provenance),
    }
    return {key: title for key, title in SECTIONS.items() if present.get(key) or key in named}


def _cortex_payload(report: ReportData, blobs: Blobs) -> dict[str, Any] | None:
    cortex = report.cortex
    if cortex is None or not report.subjects:
        return None
    surfaces = [s for s in SURFACES if all(s in cortex.hemis[name].coords for name in HEMISPHERES)]
    if any(cortex.hemis[name].flat_faces is None for name in HEMISPHERES):
        surfaces = [s for s in surfaces if s != "flat"]
    hemis = {name: hemisphere_payload(cortex.hemis[name], surfaces, blobs) for name in HEMISPHERES}
    palettes = {
        layer.palette or DEFAULT_PALETTE.get(layer.kind, "") for maps in report.subjects.values() for layer in maps
    }
    unknown = set(report.outlines) - set(report.subjects)
    if unknown:
        raise ValueError(f"outlines for subjects without maps: {', '.join(sorted(unknown))}")
    return {
        "surfaces": surfaces,
        "hemis": hemis,
        "views": {view: camera(view, "left").ravel().tolist() for view in PAGE_VIEWS if view in VIEWS},
        "crossed": list(CROSSED_VIEWS),
        "palettes": {name: blobs.add(lookup_table(name).tobytes()) for name in sorted(palettes - {""})},
        "subjects": [
            {
                "name": subject,
                "maps": [map_payload(layer, cortex.n_vertices, blobs) for layer in maps],
                "atlases": [atlas_payload(a, cortex.n_vertices, blobs) for a in report.outlines.get(subject, ())],
            }
            for subject, maps in report.subjects.items()
        ],
    }


def hemisphere_payload(hemi: Hemisphere, surfaces: Sequence[str], blobs: Blobs) -> dict[str, Any]:
    """A hemisphere's surfaces as the page's script reads them."""
    last = hemi.n_vertices - 1
    return {
        "n": hemi.n_vertices,
        "coords": {s: blobs.positions(hemi.coords[s]) for s in surfaces},
        "faces": blobs.integers(hemi.faces, last),
        "flatFaces": None if hemi.flat_faces is None else blobs.integers(hemi.flat_faces, last),
        "sulc": blobs.scalars(hemi.sulc),
    }


def map_payload(layer: MapLayer, n_vertices: int, blobs: Blobs) -> dict[str, Any]:
    """A map as the page's script reads it. ValueError where values, categories or limits do not fit together."""
    if len(layer.values) != n_vertices:
        raise ValueError(f"map {layer.name!r}: {len(layer.values)} values for {n_vertices} vertices")
    categorical = layer.kind == "categorical"
    if categorical:
        finite = layer.values[np.isfinite(layer.values)]
        whole = np.array_equal(finite, np.round(finite))
        if not whole or (finite.size and not 0 <= finite.min() <= finite.max() < len(layer.categories)):
            raise ValueError(f"map {layer.name!r}: values are not indices of its {len(layer.categories)} categories")
    elif layer.kind not in DEFAULT_PALETTE or not (math.isfinite(layer.vmin) and layer.vmin < layer.vmax < math.inf):
        raise ValueError(f"map {layer.name!r}: kind {layer.kind!r} from {layer.vmin} to {layer.vmax} cannot be shown")
    return {
        "name": layer.name,
        "label": layer.label,
        "unit": layer.unit,
        "kind": layer.kind,
        "note": layer.note,
        "vmin": float(layer.vmin),
        "vmax": float(layer.vmax),
        "threshold": None if layer.threshold is None else float(layer.threshold),
        "palette": layer.palette or DEFAULT_PALETTE.get(layer.kind, ""),
        "categories": [[name, parse_hex(colour).tolist()] for name, colour in layer.categories],
        "values": blobs.scalars(layer.values, whole=categorical),
    }


def atlas_payload(atlas: RoiAtlas, n_vertices: int, blobs: Blobs) -> dict[str, Any]:
    """Regions as the page's script reads them. ValueError for labels without a name."""
    labels = np.asarray(atlas.labels)
    if len(labels) != n_vertices:
        raise ValueError(f"atlas {atlas.name!r}: {len(labels)} labels for {n_vertices} vertices")
    if labels.size and not 0 <= labels.min() <= labels.max() <= len(atlas.names):
        raise ValueError(f"atlas {atlas.name!r}: labels outside 0..{len(atlas.names)}")
    return {
        "name": atlas.name,
        "names": list(atlas.names),
        "labels": blobs.integers(labels, len(atlas.names)),
    }


def column(heading: str | Column) -> Column:
    return heading if isinstance(heading, Column) else Column(heading)


def cell_text(value: Cell, digits: int = 3) -> str:
    """A table cell as shown: floats with fixed decimals and a true minus sign, integers grouped by three."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{int(value):,}".replace(",", "\u202f").replace("-", "−")
    if isinstance(value, float | np.floating):
        text = f"{float(value):.{digits}f}"
        return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")
    return str(value)


def is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float | np.number) and not isinstance(value, bool))


def is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def is_plain_list(value: Sequence) -> bool:
    return bool(value) and all(isinstance(item, int | float | str) for item in value)


@cache
def asset(name: str) -> str:
    return (files("sbm_jax.report") / "assets" / name).read_text(encoding="utf-8")


def _script() -> str:
    return "'use strict';\n(() => {\n" + "\n".join(asset(name) for name in SCRIPTS) + "\n})();\n"


def policy(style: str, script: str) -> str:
    """Content-Security-Policy: own style and script, pictures made from the data, nothing else."""

    def digest(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    return (
        f"default-src 'none'; img-src data: blob:; style-src {digest(style)}; script-src {digest(script)}; "
        "connect-src 'none'; base-uri 'none'; form-action 'none'"
    )


def environment_of(name: str, template: str) -> Environment:
    """Jinja for one page: text from data is escaped, a name that is missing is an error; numbers as all pages show them."""
    environment = Environment(
        loader=DictLoader({name: template}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell_text}
    environment.tests |= {"numeric": is_number}
    environment.globals |= {"plot": plot_svg}
    return environment


@cache
def _environment() -> Environment:
    environment = environment_of("page.html.j2", asset("page.html.j2"))
    environment.filters |= {"column": column}
    environment.tests |= {
        "mapping_like": is_mapping,
        "list_like": is_list,
        "plain_list": is_plain_list,
    }
    environment.globals |= {"chart": curve_svg, "long_table": LONG_TABLE}
    return environment
