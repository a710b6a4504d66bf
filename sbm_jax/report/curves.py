"""Line charts over layers as inline SVG: no ids, no scripts, no style attributes; every text is escaped."""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from sbm_jax.report.colormaps import CATEGORY_COLOURS
from sbm_jax.report.data import LayerCurve

WIDTH, HEIGHT = 560, 330
LEFT, TOP, BOTTOM = 58, 12, 46
LETTER = 6.9  # width of an average letter of the labels, px
LONGEST_NAME = 26  # longer ones are cut; the whole name is in the hover text
MARKERS = ("circle", "square", "diamond", "triangle")


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers inside [low, high], about `count` of them; steps are 1, 2, 2.5 or 5 times 10^n."""
    if not high > low:
        return [low]
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float, ticks: Sequence[float]) -> str:
    """All ticks with the decimals that the finest needs; a true minus sign."""
    decimals = max((len(f"{t:.6f}".rstrip("0").split(".")[1]) for t in ticks), default=0)
    return f"{value:.{decimals}f}".replace("-", "−")


def curve_svg(curve: LayerCurve) -> Markup:
    """The chart of one LayerCurve. Lines break at NaN. Raises ValueError where lengths do not agree."""
    n = len(curve.x_labels)
    for name, (values, low, high) in curve.series.items():
        for part in (values, low, high):
            if part is not None and len(part) != n:
                raise ValueError(f"curve {curve.title!r}, series {name!r}: {len(part)} values for {n} labels")
    lowest, highest = _range(curve)
    names = [*curve.series, *curve.levels]
    right = min(24 + LETTER * max((len(name) for name in names), default=0), 200)
    x_at = [LEFT + 14 + (WIDTH - LEFT - 28 - right) * (i / (n - 1) if n > 1 else 0.5) for i in range(n)]
    end = WIDTH - right

    def y_at(value: float) -> float:
        return HEIGHT - BOTTOM - (value - lowest) / (highest - lowest) * (HEIGHT - BOTTOM - TOP)

    out = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH, HEIGHT, _description(curve)
        )
    ]
    ticks = nice_ticks(lowest, highest, 7)
    for tick in ticks:
        y = y_at(tick)
        out.append(
            Markup('<path class="{}" d="M{} {:.1f}H{:.0f}"/>').format("zero" if tick == 0 else "grid", LEFT, y, end)
        )
        out.append(text_svg(LEFT - 8, y + 4, tick_text(tick, ticks), "tick end"))
    every = math.ceil(n * LETTER * max((len(s) + 1 for s in curve.x_labels), default=1) / max(end - LEFT, 1)) or 1
    out += [text_svg(x_at[i], HEIGHT - BOTTOM + 19, curve.x_labels[i], "tick mid") for i in range(0, n, every)]
    out.append(text_svg((LEFT + end) / 2, HEIGHT - 8, curve.x_label, "axis mid"))
    middle = (HEIGHT - BOTTOM + TOP) / 2
    out.append(
        Markup('<text class="axis mid" transform="translate(13 {:.0f}) rotate(-90)">{}</text>').format(
            middle, curve.y_label
        )
    )
    ends: list[tuple[float, str, str]] = []
    for name, level in curve.levels.items():
        out.append(Markup('<path class="level" d="M{} {:.1f}H{:.0f}"/>').format(LEFT, y_at(level), end))
        ends.append((y_at(level), name, "#5c6670"))
    for i, (name, (values, low, high)) in enumerate(curve.series.items()):
        colour = CATEGORY_COLOURS[i % len(CATEGORY_COLOURS)]
        if low is not None and high is not None:
            out.append(
                _band(
                    [(x, y_at(a), y_at(b)) for x, a, b in zip(x_at, low, high, strict=True) if _finite(a, b)],
                    colour,
                )
            )
        points = [(x, y_at(v), v, s) for x, v, s in zip(x_at, values, curve.x_labels, strict=True) if _finite(v)]
        out.append(Markup('<path class="line" stroke="{}" d="{}"/>').format(colour, _path(x_at, values, y_at)))
        for x, y, value, label in points:
            title = f"{name}, {curve.x_label} {label}: {value:.4g}"
            out.append(_marker(MARKERS[i % len(MARKERS)], x, y, colour, title))
        if points:
            ends.append((points[-1][1], name, colour))
    for y, name, colour in _spread(ends):
        shown = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
        label = Markup('<text class="name" x="{:.0f}" y="{:.1f}" fill="{}">{}<title>{}</title></text>')
        out.append(label.format(end + 8, y + 4, colour, shown, name))
    out.append(Markup("</svg>"))
    return Markup("").join(out)


def _finite(*values: float) -> bool:
    return all(math.isfinite(v) for v in values)


def _range(curve: LayerCurve) -> tuple[float, float]:
    """Limits of the y axis: all data with a margin; 0 is shown when the data come near it."""
    seen = [float(v) for parts in curve.series.values() for part in parts if part is not None for v in part]
    seen = [v for v in [*seen, *map(float, curve.levels.values())] if math.isfinite(v)]
    if not seen:
        return 0.0, 1.0
    low, high = min(seen), max(seen)
    if 0 < low < 0.6 * high:
        low = 0.0
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return (low if low == 0 else low - margin), high + margin


def _path(x_at: Sequence[float], values: Sequence[float], y_at) -> str:
    parts, pen_up = [], True
    for x, value in zip(x_at, values, strict=True):
        if _finite(value):
            parts.append(f"{'M' if pen_up else 'L'}{x:.1f} {y_at(value):.1f}")
        pen_up = not _finite(value)
    return "".join(parts)


def _band(points: list[tuple[float, float, float]], colour: str) -> Markup:
    corners = [f"{x:.1f} {y:.1f}" for x, y, _ in points] + [f"{x:.1f} {y:.1f}" for x, _, y in reversed(points)]
    return (
        Markup('<path class="band" fill="{}" d="{}"/>').format(colour, "M" + "L".join(corners) + "Z")
        if corners
        else Markup("")
    )


def marker_path(shape: str, x: float, y: float) -> str:
    """Path data of one of MARKERS around a point."""
    return {
        "circle": f"M{x - 3.4:.1f} {y:.1f}a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0 -6.8 0Z",
        "square": f"M{x - 3:.1f} {y - 3:.1f}h6v6h-6Z",
        "diamond": f"M{x:.1f} {y - 4.2:.1f}l4.2 4.2l-4.2 4.2l-4.2 -4.2Z",
        "triangle": f"M{x:.1f} {y - 4:.1f}l4 7h-8Z",
    }[shape]


def _marker(shape: str, x: float, y: float, colour: str, title: str) -> Markup:
    drawn = marker_path(shape, x, y)
    return Markup('<path class="dot" fill="{}" d="{}"><title>{}</title></path>').format(colour, drawn, title)


def text_svg(x: float, y: float, text: str, kind: str) -> Markup:
    """Text with its CSS classes."""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(kind, x, y, text)


def _spread(ends: list[tuple[float, str, str]], gap: float = 15.0) -> list[tuple[float, str, str]]:
    """Push labels at the line ends apart so that none overlap, keeping their order and the frame."""
    placed: list[tuple[float, str, str]] = []
    for y, name, colour in sorted(ends):
        placed.append((max(y, placed[-1][0] + gap if placed else y), name, colour))
    limit = HEIGHT - BOTTOM
    for i in range(len(placed) - 1, -1, -1):
        y, name, colour = placed[i]
        placed[i] = (min(y, limit), name, colour)
        limit = placed[i][0] - gap
    return placed


def _description(curve: LayerCurve) -> Markup:
    lines = []
    for name, (values, _, _) in curve.series.items():
        numbers = ", ".join(f"{v:.3g}" if _finite(v) else "none" for v in values)
        lines.append(f"{name}: {numbers}")
    return escape(f"{curve.title}. {curve.y_label} over {curve.x_label}. " + "; ".join(lines) + ".")
