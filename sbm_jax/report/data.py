"""What a report page shows, as frozen dataclasses of plain values and numpy arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

HEMISPHERES = ("left", "right")
SURFACES = ("inflated", "pial", "flat")
Cell = str | int | float | None


def number(value: float | None) -> float:
    """A number of a JSON document, where what is not finite stands as null."""
    return float("nan") if value is None else float(value)


MapKind = Literal["sequential", "diverging", "categorical"]


@dataclass(frozen=True)
class Column:
    """A table column: heading, unit shown beneath it, decimals of its floats, and a hover text."""

    label: str
    unit: str = ""
    digits: int = 3
    help: str = ""


@dataclass(frozen=True)
class Table:
    """A table; `section` is summary, layers, rois, rsa, recovery or methods. The first cell of a row is its
    heading.

    None and NaN cells are shown as a dash.
    """

    title: str
    note: str
    columns: Sequence[str | Column]
    rows: Sequence[Sequence[Cell]]
    section: str = "summary"


@dataclass(frozen=True)
class Hemisphere:
    """One hemisphere of a surface.

    coords: surface name (inflated, pial, flat) -> float [v, 3], mm; x to the right, y forward, z up.
    faces: int [f, 3], counter-clockwise seen from outside. flat_faces: int [g, 3], the faces inside the flat
    patch (None: no flat map). sulc: float [v], FreeSurfer's sulcal depth (positive in sulci).
    """

    coords: Mapping[str, np.ndarray]
    faces: np.ndarray
    sulc: np.ndarray
    flat_faces: np.ndarray | None = None

    @property
    def n_vertices(self) -> int:
        return len(self.sulc)


@dataclass(frozen=True)
class CortexData:
    """Both hemispheres: hemis["left"] and hemis["right"]."""

    hemis: Mapping[str, Hemisphere]

    @property
    def n_vertices(self) -> int:
        return sum(self.hemis[name].n_vertices for name in HEMISPHERES)


@dataclass(frozen=True)
class MapLayer:
    """One map of one subject.

    name is the stable key (the same over subjects), label what is shown. values: float [v_left + v_right],
    left first, NaN where there is none; for 'categorical' they are indices into categories (name, '#rrggbb').
    threshold: where the viewer's slider starts (None: at the bottom). palette: a name of
    `sbm_jax.report.colormaps.PALETTES`, empty for the kind's own.
    """

    name: str
    label: str
    unit: str
    kind: MapKind
    values: np.ndarray
    vmin: float = 0.0
    vmax: float = 1.0
    categories: Sequence[tuple[str, str]] = ()
    note: str = ""
    threshold: float | None = None
    palette: str = ""


@dataclass(frozen=True)
class RoiAtlas:
    """A set of regions that do not overlap: labels int [v_left + v_right], 0 = none, i = names[i - 1]."""

    name: str
    labels: np.ndarray
    names: Sequence[str]


@dataclass(frozen=True)
class LayerCurve:
    """Lines over layers. series: name -> (values, low or None, high or None), each as long as x_labels.

    levels: horizontal reference lines, name -> value (a null's 95th percentile, a noise ceiling).
    section: layers, rsa, rois, summary or recovery.
    """

    title: str
    x_labels: Sequence[str]
    series: Mapping[str, tuple[Sequence[float], Sequence[float] | None, Sequence[float] | None]]
    y_label: str
    x_label: str = "block"
    note: str = ""
    section: str = "layers"
    levels: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Trace:
    """One series of a Plot: dots where `dots` is set (its hover text, None: no dot there), a line through the places in
    `line`, in that order. open: dots that are drawn hollow. x, y: equally long.
    """

    x: Sequence[float]
    y: Sequence[float]
    line: Sequence[int] = ()
    dots: Sequence[str | None] = ()
    open: Sequence[bool] = ()


@dataclass(frozen=True)
class Plot:
    """A small chart over numbers, one of many side by side. traces: name -> Trace; ranked: names have an order, and so do
    their colours. log_x: x on a logarithmic scale (all x above 0). section: as of a Table.
    """

    title: str
    traces: Mapping[str, Trace]
    x_label: str
    y_label: str
    note: str = ""
    section: str = "layers"
    log_x: bool = False
    ranked: bool = False


@dataclass(frozen=True)
class Thumb:
    """An encoded picture (JPEG, PNG, GIF or WebP bytes) and its text for those who cannot see it."""

    data: bytes
    alt: str


@dataclass(frozen=True)
class UnitCard:
    """One unit and the images that drive it most."""

    layer: str
    unit: int
    score_text: str
    purity_text: str
    images: Sequence[Thumb]


@dataclass(frozen=True)
class RoiExemplars:
    """The top units of one ROI."""

    roi: str
    subtitle: str
    units: Sequence[UnitCard]


@dataclass(frozen=True)
class Recovery:
    """How well a planted truth was found again."""

    text: str
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class ReportData:
    """Everything on the page.

    headline: (label, value, note) of the few numbers at the top. subjects: subject -> its maps.
    outlines: subject -> its atlases (regions whose borders are drawn). methods: (heading, paragraph).
    provenance: nested mappings and lists of plain values. cortex None: a page without a viewer. cortex_notes: sentences
    above the viewer, or in its place.
    """

    title: str
    subtitle: str
    headline: Sequence[tuple[str, str, str]] = ()
    tables: Sequence[Table] = ()
    cortex: CortexData | None = None
    subjects: Mapping[str, Sequence[MapLayer]] = field(default_factory=dict)
    outlines: Mapping[str, Sequence[RoiAtlas]] = field(default_factory=dict)
    curves: Sequence[LayerCurve] = ()
    plots: Sequence[Plot] = ()
    exemplars: Sequence[RoiExemplars] = ()
    recovery: Recovery | None = None
    methods: Sequence[tuple[str, str]] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    cortex_notes: Sequence[str] = ()
