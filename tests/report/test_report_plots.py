"""Small charts of fronts and distributions, and the tables beside them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.report.data import Plot, ReportData, Table, Trace
from sbm_jax.report.page import LONG_TABLE, render_page
from sbm_jax.report.plots import plot_svg
from sbm_jax.sae.front import fronts
from sbm_jax.sae.metrics import MAGNITUDE_BINS, RATE_BINS
from sbm_jax.stages.report_saes import sae_plots, sae_tables

HOSTILE = "</svg></title><script>alert(1)</script>\"'&<!--"


def tree(plot: Plot) -> ElementTree.Element:
    return ElementTree.fromstring(str(plot_svg(plot)))


def places(svg: ElementTree.Element, kind: str) -> list[tuple[float, float]]:
    """First point of every path of a class."""
    paths = [e.get("d", "") for e in svg if e.get("class") == kind]
    return [tuple(map(float, re.findall(r"-?[\d.]+", d)[:2])) for d in paths]  # pyright: ignore


def one(x: list[float], y: list[float], **options: Any) -> Plot:
    n = len(x)
    return Plot("t", {"a": Trace(x, y, range(n), [f"{i}" for i in range(n)])}, "x", "y", **options)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(1e-3, 1e4), st.floats(-10, 10)), min_size=1, max_size=9),
    st.booleans(),
)
def test_dots_lie_inside_and_in_the_order_of_their_numbers(points, log_x):
    x, y = (list(values) for values in zip(*points, strict=True))
    svg = tree(one(x, y, log_x=log_x))
    found = np.array(places(svg, "dot"))
    width, height = (float(v) for v in svg.get("viewBox", "").split()[2:])
    # a circle's path starts at its left edge
    assert (found >= -1).all() and (found[:, 0] < width).all() and (found[:, 1] < height).all()
    for values, drawn, sign in ((x, found[:, 0], 1), (y, found[:, 1], -1)):
        order = np.argsort(values, kind="stable")
        assert (sign * np.diff(drawn[order]) >= -0.11).all(), "positions are written with one decimal"


def test_a_logarithmic_axis_puts_equal_ratios_at_equal_distances():
    found = places(tree(one([4, 16, 64], [1, 2, 3], log_x=True)), "dot")
    assert found[1][0] - found[0][0] == pytest.approx(found[2][0] - found[1][0], abs=0.2)


def test_hollow_dots_lines_and_missing_dots():
    trace = Trace([1, 2, 3], [3, 2, 1], [2, 0], ["first", None, "third"], [True, False, False])
    svg = tree(Plot("t", {"a": trace}, "x", "y"))
    assert len(places(svg, "open")) == 1 and len(places(svg, "dot")) == 1
    (line,) = [e.get("d", "") for e in svg if e.get("class") == "line"]
    ends = [float(part.split()[0]) for part in re.split("[ML]", line) if part]
    assert len(ends) == 2 and ends[0] > ends[1], "through the third and the first, in that order"


def test_text_is_escaped():
    trace = Trace([1], [1], [0], [HOSTILE])
    plot = Plot(HOSTILE, {HOSTILE: trace, "b": trace}, HOSTILE, HOSTILE, HOSTILE)
    assert {e.tag for e in tree(plot).iter()} == {"svg", "path", "text", "title"}
    page = render_page(ReportData("t", "s", plots=[plot]))
    assert page.count("<script") == 2, "the data and the page's own"
    assert "alert(1)" in page


def test_a_plot_that_does_not_fit_is_refused():
    for plot, message in (
        (one([1, 2], [1]), "equally long"),
        (one([1, 2], [1, float("nan")]), "not finite"),
        (one([0, 2], [1, 1], log_x=True), "above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_svg(plot)
    with pytest.raises(ValueError, match="unknown section"):
        render_page(ReportData("t", "s", plots=[replace(one([1], [1]), section="layer")]))


@pytest.mark.parametrize("count", [1, 3, 40])
def test_ranked_traces_have_a_key_that_fits(count):
    traces = {f"block{i:02d}": Trace([0, 1], [i, 1], [0, 1]) for i in range(count)}
    svg = tree(Plot("t", traces, "x", "y", ranked=True))
    names = [e for e in svg if e.get("class") == "name"]
    assert len(names) == (0 if count == 1 else count) or (count == 40 and 8 < len(names) < 40)
    assert all(float(e.get("y", "999")) < 226 for e in names)
    assert len({e.get("stroke") for e in svg if e.get("class") == "line"}) == count


def test_a_long_table_is_folded():
    rows = [[f"{i}", i] for i in range(LONG_TABLE + 1)]
    pages = [render_page(ReportData("t", "s", tables=[Table("a", "", ["b", "c"], part)])) for part in (rows, rows[1:])]
    assert f"<summary>{LONG_TABLE + 1} rows</summary>" in pages[0] and "<details" not in pages[1]


# The autoencoders' part of the page -----------------------------------------------------------------------------------


def member(kind: str, objective: str, k: int, seed: int, fidelity: bool = True) -> dict[str, Any]:
    answer = {"cosine": 0.9, "kl": 0.1, "agreement": 0.8, "accuracy": None}
    part = {"sae": answer, "mean": answer | {"kl": 0.4}, "loss_recovered": 0.75}
    return {
        "kind": kind,
        "hook": "block01.resid",
        "objective": objective,
        "k": k,
        "sparsity": 0.0,
        "lr": 1e-3,
        "seed": seed,
        "expansion": 4,
        "explained_variance": 0.8,
        "normalised_mse": 1 / k + seed / 100,
        "l0": float(k),
        "dead": 0.1,
        "dense": 0.2,
        "dead_in_training": 0.05,
        "final_loss": 0.3,
        "rates": np.bincount([20, 21, 21], minlength=len(RATE_BINS) - 1).tolist(),
        "magnitudes": np.bincount([40, 44, 44], minlength=len(MAGNITUDE_BINS) - 1).tolist(),
        "fidelity": {"alone": part, "together": part} if fidelity else None,
    }


def summary(members: list[dict[str, Any]], categories: tuple[str, ...] = ("face", "place")) -> dict[str, Any]:
    answer = {"cosine": 1.0, "kl": 0.0, "agreement": 1.0, "accuracy": 0.5}
    stable = {"seeds": [0, 1], "mean_matched_cosine": 0.5, "shared": 0.25, "mean_max_cosine": 0.6, "exact": True}
    several = len({m["seed"] for m in members}) > 1
    return {
        "dataset": {"images": 60, "shared": 24},
        "saes": members,
        "front": fronts(members),
        "stability": [members[0] | stable] if several else [],
        "sae_fidelity": {
            "images": 7, "categories": list(categories), "identity": answer, "original": {"accuracy": 0.5},
        },
        "dead_tokens": 1000,
        "rate_bins": RATE_BINS.tolist(),
        "magnitude_bins": MAGNITUDE_BINS.tolist(),
    }  # fmt: skip


SWEEP = [member(kind, name, k, seed) for name in ("topk", "relu") for k in (4, 8) for seed in (0, 1) for kind in "cp"]
SWEEP = [m | {"kind": {"c": "cls", "p": "patch"}[m["kind"]]} for m in SWEEP]


def test_a_sweep_is_shown_as_fronts_and_table():
    found = summary(SWEEP)
    main, front, stable = sae_tables(found)
    assert [row[0] for row in main.rows] == ["cls, block01.resid", "patch, block01.resid"], "the primary setting alone"
    assert len(front.rows) == len(SWEEP) and front.rows[0][0] == "cls, block01.resid, topk, k=4, seed=0"
    by_name = {row[0]: row[-1] for row in front.rows}
    assert by_name["patch, block01.resid, relu, k=8, seed=0"] == "all"
    assert by_name["patch, block01.resid, relu, k=8, seed=1"] == ""
    assert stable.rows == [["cls, block01.resid, topk, k=4", 2, 0.5, 0.25, 0.6]]
    plots = sae_plots(found)
    assert [p.title for p in plots[:2]] == ["CLS tokens, block01.resid", "patch tokens, block01.resid"]
    assert list(plots[0].traces) == ["topk", "relu"] and plots[0].log_x
    assert plots[0].traces["topk"].line == [0, 2], "the first seed of either k"
    assert len(plots) == 2 + 4, "and two distributions per kind of token"
    page = render_page(ReportData("t", "s", tables=sae_tables(found), plots=plots))
    assert page.count('<svg class="chart"') == 6


def test_without_a_sweep_there_is_no_front():
    found = summary([member("cls", "topk", 4, 0), member("patch", "topk", 4, 0)])
    assert len(sae_tables(found)) == 1 and len(sae_plots(found)) == 4
    curve = sae_plots(found)[0].traces["block01.resid"]
    assert list(curve.y) == [0, 1, 2, 0], "one empty bin at either end"


def test_downstream_is_what_was_measured():
    members = [member("cls", "topk", 4, 0), member("patch", "topk", 4, 0, fidelity=False)]
    labels = [c.label if hasattr(c, "label") else c for c in sae_tables(summary(members))[0].columns]
    at = labels.index("downstream")
    table = sae_tables(summary(members))[0]
    assert [row[at] for row in table.rows] == [0.75, None] and "face, place" in table.note
    table = sae_tables(summary(members, categories=()))[0]
    assert [row[at] for row in table.rows] == [0.9, None] and "embeddings" in table.note
    table = sae_tables(summary(members) | {"sae_fidelity": None})[0]
    assert "not measured" in table.note
