"""Small charts over numbers (fronts, distributions) as inline SVG: no ids, no scripts, no style attributes, all text escaped."""

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

from sbm_jax.report.colormaps import CATEGORY_COLOURS, lookup_table
from sbm_jax.report.curves import LETTER, MARKERS, marker_path, nice_ticks, text_svg, tick_text
from sbm_jax.report.data import Plot

WIDTH, HEIGHT = 400, 270
LEFT, TOP, BOTTOM = 56, 10, 44
KEY_LINE = 15  # px between two names of the key
RAMP = 0.85  # share of the colour map that ranked traces use: its end is too light for a line on white


def plot_svg(plot: Plot) -> Markup:
    """The chart of one Plot. Raises ValueError where lengths do not agree, a number is not finite, or x is not above 0 on a
    logarithmic axis.
    """
    _check(plot)
    colours = _colours(plot)
    names = [name if len(name) <= 22 else name[:21] + "…" for name in plot.traces]
    right = 12 if len(names) < 2 else min(34 + LETTER * max(map(len, names)), 170)
    end = WIDTH - right
    xs = [x for trace in plot.traces.values() for x in trace.x]
    x_at, x_ticks = _axis(xs, LEFT + 8, end - 8, plot.log_x)
    ys = [y for trace in plot.traces.values() for y in trace.y]
    y_at, y_ticks = _axis([*ys, 0.0] if ys and 0 < min(ys) < 0.6 * max(ys) else ys, HEIGHT - BOTTOM, TOP + 6, False)
    out = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH, HEIGHT, _description(plot)
        )
    ]
    for tick, label in y_ticks:
        out.append(Markup('<path class="grid" d="M{} {:.1f}H{:.0f}"/>').format(LEFT, y_at(tick), end))
        out.append(text_svg(LEFT - 7, y_at(tick) + 4, label, "tick end"))
    for tick, label in x_ticks:
        out.append(Markup('<path class="zero" d="M{:.1f} {}v4"/>').format(x_at(tick), HEIGHT - BOTTOM))
        out.append(text_svg(x_at(tick), HEIGHT - BOTTOM + 18, label, "tick mid"))
    out.append(text_svg((LEFT + end) / 2, HEIGHT - 7, plot.x_label, "axis mid"))
    out.append(
        Markup('<text class="axis mid" transform="translate(12 {:.0f}) rotate(-90)">{}</text>').format(
            (HEIGHT - BOTTOM + TOP) / 2, plot.y_label
        )
    )
    for i, ((name, trace), colour) in enumerate(zip(plot.traces.items(), colours, strict=True)):
        corners = [f"{x_at(trace.x[j]):.1f} {y_at(trace.y[j]):.1f}" for j in trace.line]
        if corners:
            line = Markup('<path class="line" stroke="{}" d="M{}"><title>{}</title></path>')
            out.append(line.format(colour, "L".join(corners), name))
        for j, title in enumerate(trace.dots):
            if title is None:
                continue
            shape = marker_path(MARKERS[i % len(MARKERS)], x_at(trace.x[j]), y_at(trace.y[j]))
            hollow = bool(trace.open) and trace.open[j]
            dot = Markup('<path class="{}" {}="{}" d="{}"><title>{}</title></path>')
            out.append(dot.format("open" if hollow else "dot", "stroke" if hollow else "fill", colour, shape, title))
    return Markup("").join([*out, *_key(plot, names, colours, end + 10), Markup("</svg>")])


def _key(plot: Plot, names: list[str], colours: list[str], x: float) -> list[Markup]:
    """Names in their colours; of ranked ones as many as fit, evenly."""
    if len(names) < 2:
        return []
    lines = (HEIGHT - BOTTOM - TOP) // KEY_LINE
    every = -(-len(names) // lines)
    out = []
    for place, i in enumerate(range(0, len(names), every)):
        full = list(plot.traces)[i]
        label = Markup('<text class="name" x="{:.0f}" y="{}" fill="{}">{}<title>{}</title></text>')
        out.append(label.format(x, TOP + 12 + KEY_LINE * place, colours[i], names[i], full))
    return out


def _colours(plot: Plot) -> list[str]:
    n = len(plot.traces)
    if not plot.ranked:
        return [CATEGORY_COLOURS[i % len(CATEGORY_COLOURS)] for i in range(n)]
    table = lookup_table("lagoon")
    places = [int(RAMP * (len(table) - 1) * (i / (n - 1) if n > 1 else 0)) for i in range(n)]
    return ["#{:02x}{:02x}{:02x}".format(*(int(c) for c in table[place][:3])) for place in places]


def _axis(
    values: Sequence[float], start: float, stop: float, log: bool
) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    """Position in px of a value, and (value, text) of the ticks."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if log:
        if high < 1.2 * low:
            low, high = low / 1.5, high * 1.5
        first, last = math.log10(low), math.log10(high)
        ticks = [m * 10.0**p for p in range(math.floor(first), math.ceil(last) + 1) for m in (1, 2, 5)]
        if last - first > 2.5:
            ticks = ticks[::3]
        ticks = [t for t in ticks if low / 1.001 <= t <= high * 1.001]
        return lambda v: start + (stop - start) * (math.log10(v) - first) / (last - first), [
            (t, f"{t:g}") for t in ticks
        ]
    if not high > low:
        margin = 0.1 * abs(high) or 1.0
        low, high = low - margin, high + margin
    ticks = nice_ticks(low, high, 5)
    return lambda v: start + (stop - start) * (v - low) / (high - low), [(t, tick_text(t, ticks)) for t in ticks]


def _check(plot: Plot) -> None:
    for name, trace in plot.traces.items():
        n = len(trace.x)
        if len(trace.y) != n or len(trace.dots) not in (0, n) or len(trace.open) not in (0, n):
            raise ValueError(f"plot {plot.title!r}, trace {name!r}: x, y, dots and open are not equally long")
        if not all(math.isfinite(v) for v in (*trace.x, *trace.y)):
            raise ValueError(f"plot {plot.title!r}, trace {name!r}: a number is not finite")
        if plot.log_x and any(x <= 0 for x in trace.x):
            raise ValueError(f"plot {plot.title!r}, trace {name!r}: a logarithmic axis needs x above 0")


def _description(plot: Plot) -> Markup:
    lines = []
    for name, trace in plot.traces.items():
        pairs = ", ".join(f"({x:.3g}, {y:.3g})" for x, y in zip(trace.x, trace.y, strict=True))
        lines.append(f"{name}: {pairs}")
    return escape(f"{plot.title}. {plot.y_label} over {plot.x_label}. " + "; ".join(lines) + ".")
