"""Collecting: the rows that summaries hold, Parquet that keeps their types, and a page that escapes what it shows."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from pyarrow import parquet

from sbm_jax.config import load_config
from sbm_jax.sweep.grid import Run
from sbm_jax.sweep.page import means, plots, render_sweep
from sbm_jax.sweep.plan import Sweep
from sbm_jax.sweep.table import SAE_METRICS, collect, columns, summary_rows, write_table

CONFIG = load_config(None, ("encode.modes=[cls,patch_mean,raw]", "roi.modes=[cls]", "report.mode=raw"))


def member(kind: str, hook: str, value: float) -> dict:
    return {"kind": kind, "hook": hook, **dict.fromkeys(SAE_METRICS, value)}


def summary(held_out: float = 0.1) -> dict:
    subject = {"voxels": 9, "usable": 8, "responsive": 7, "median_ncsnr": 0.3, "median_ceiling": None}
    modes = ("cls", "patch_mean", "raw")
    concepts = {
        "face": {"vertices": 1, "found": 1.0, "shuffled": 0.0},
        "food": {"vertices": 3, "found": 0.0, "shuffled": 1.0},
    }
    return {
        "subjects": {
            name: {**subject, "modes": {m: {"held_out_mean": held_out * i, "layer_held_out": [1, 2]} for m in modes}}
            for i, name in enumerate(("one", "two"), start=1)
        },
        "saes": [
            member("cls", "block0", 0.5), member("cls", "block1", 0.7), member("cls", "block0", 99.0),
            member("patch", "block0", 0.2), member("patch", "block1", 0.4),
        ],
        "recovery": {"modes": {m: {"subjects": {"one": {"concepts": concepts}, "two": {"concepts": {}}}} for m in modes}},
    }  # fmt: skip


def rdm_summary() -> dict:
    def record(a: float, b: float) -> dict:
        return {
            "corr": {"mean": (a + b) / 2, "p1": a, "p2": b},
            "spearman": {"mean": -(a + b), "p1": -a, "p2": -b},
            "interval": [a, b],
        }

    return {
        "dataset": {"people": ["p1", "p2"]},
        "backbone": {"layers": ["0", "1"]},
        "ceiling": {"corr": {"lower": 0.5, "upper": 0.6}, "spearman": {"lower": 0.1, "upper": 0.2}},
        "layers": {"cls": [record(0.1, 0.2), record(0.3, 0.4)]},
    }


def run(number: int, **values) -> Run:
    return Run(number, values, CONFIG)


@pytest.fixture
def sweep(tmp_path):
    """`sweep(runs, summaries)`: finished runs with these summaries; None: not finished."""

    def make(runs: list[Run], summaries: list) -> Sweep:
        for i, content in enumerate(summaries):
            if content is not None:
                folder = tmp_path / "stores" / f"report-{i}"
                folder.mkdir(parents=True)
                texts = {"summary.json": json.dumps(content), "spec.json": "{}"}
                for name, text in texts.items():
                    (folder / name).write_text(text)
                sizes = {name: len(text) for name, text in texts.items()}
                (folder / "manifest.json").write_text(json.dumps({"files": sizes}))
        return Sweep(tmp_path, "sweep-x", runs, {}, [(f"report-{i}",) for i in range(len(runs))])

    return make


def test_a_row_per_subject_and_mode():
    rows = summary_rows(summary(), run(0))
    assert [(row["subject"], row["mode"]) for row in rows] == [
        (subject, mode) for subject in ("one", "two") for mode in ("cls", "patch_mean", "raw")
    ]
    assert rows[3]["held_out_mean"] == 0.2 and rows[3]["responsive"] == 7
    assert "layer_held_out" not in rows[0]


def test_autoencoders_are_the_primary_ones_of_the_modes_tokens():
    cls, patch, raw = summary_rows(summary(), run(0))[:3]
    assert cls["sae_l0"] == pytest.approx(0.6) and patch["sae_l0"] == pytest.approx(0.3)
    assert {raw[f"sae_{key}"] for key in SAE_METRICS} == {None}


def test_recovery_weighs_concepts_by_vertices():
    rows = summary_rows(summary(), run(0))
    assert (rows[0]["recovered"], rows[0]["recovered_shuffled"], rows[0]["recovered_of"]) == (0.25, 0.75, 4)
    assert (rows[3]["recovered"], rows[3]["recovered_of"]) == (None, None)
    assert summary_rows({**summary(), "recovery": None}, run(0))[0]["recovered"] is None


def test_rdms_are_those_of_the_layer_that_the_configured_method_chooses():
    by_method = {}
    for method in ("corr", "spearman"):
        config = load_config(None, (f"rsa.method={method}",))
        by_method[method] = summary_rows(rdm_summary(), Run(0, {}, config))
    assert [(r["subject"], r["best_layer"], r["rdm_corr"]) for r in by_method["corr"]] == [
        ("p1", "1", 0.3),
        ("p2", "1", 0.4),
    ]
    assert [r["best_layer"] for r in by_method["spearman"]] == ["0", "0"]
    assert by_method["spearman"][0]["ceiling_lower"] == 0.1


def test_columns_hold_one_kind_of_value():
    found = columns([{"a": 1, "b": "x", "c": [1], "d": True, "e": 1}, {"a": 2.5, "b": 3, "c": ["s"], "f": None}])
    assert found == {
        "a": [1.0, 2.5], "b": ["x", "3"], "c": ["1", "s"], "d": [True, None], "e": [1, None], "f": [None, None],
    }  # fmt: skip
    assert isinstance(found["a"][0], float) and isinstance(found["e"][0], int)


def test_the_table_is_read_back(sweep, tmp_path):
    runs = [
        run(0, **{"train.k": 2, "data.subjects": ["one"]}),
        run(1, **{"train.k": 4, "data.subjects": ["one", "two"]}),
    ]
    rows = collect(sweep(runs, [summary(0.1), summary(0.2)]))
    write_table(rows, tmp_path / "table.parquet")
    table = parquet.read_table(tmp_path / "table.parquet")
    assert table.num_rows == len(rows) == 12
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds["train.k"] == "int64" and kinds["held_out_mean"] == "double" and kinds["median_ceiling"] == "double"
    back = table.to_pylist()
    assert [row["data.subjects"] for row in back[::6]] == ["one", '["one", "two"]']
    assert [row["held_out_mean"] for row in back] == [row["held_out_mean"] for row in rows]
    assert back[7]["page"] == "../stores/report-1/report.html"
    assert not list(tmp_path.glob("*.tmp"))


def test_only_finished_runs_are_collected(sweep):
    found = sweep([run(0, **{"train.k": 2}), run(1, **{"train.k": 4})], [None, summary()])
    rows = collect(found)
    assert {row["run"] for row in rows} == {1}
    page = render_sweep(found, rows, "t")
    assert "run 0: train.k=2" in page and "run 1: train.k=4" not in page
    assert "No run is finished yet" in render_sweep(sweep([run(0, **{"train.k": 2})], [None]), [], "t")


class Tags(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


EVIL = "\"><script>alert(1)</script><img src=x onerror='1'>"


def test_the_page_escapes_what_it_shows(sweep):
    runs = [run(0, **{"report.title": EVIL, EVIL: 1}), run(1, **{"report.title": "b", EVIL: 2})]
    found = sweep(runs, [summary(), None])
    tags = Tags(render_sweep(found, collect(found), EVIL)).found
    assert [tag for tag, _ in tags].count("script") == 1
    assert not [tag for tag, attributes in tags if tag == "img" or any(key.startswith("on") for key in attributes)]
    policy = next(a["content"] for _, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_the_page_links_every_run_and_draws_every_numeric_key(sweep):
    runs = [run(i, **{"train.k": k, "rsa.metric": m}) for i, (k, m) in enumerate([(2, "cosine"), (2, "b"), (32, "b")])]
    found = sweep(runs, [summary(0.1), summary(0.2), summary(0.3)])
    rows = collect(found)
    page = render_sweep(found, rows, "t")
    links = [a["href"] for tag, a in Tags(page).found if tag == "a"]
    assert set(links) == {*(f"../stores/report-{i}/report.html" for i in range(3)), "table.parquet"}
    drawn = plots(means(rows, ["held_out_mean"]), runs, {"held_out_mean": "r"})
    assert [(plot.x_label, plot.log_x) for plot in drawn] == [("train.k", True)]
    trace = drawn[0].traces["CLS SAE"]
    assert list(trace.x) == [2, 2, 32, 2, 32]
    assert list(trace.y) == pytest.approx([0.15, 0.3, 0.45, 0.225, 0.45]), "means over subjects, then over runs"
    assert list(trace.line) == [3, 4] and trace.dots[3] is None and trace.dots[0] == "run 0: 0.15"


def test_rdm_runs_are_shown_too(sweep):
    found = sweep([run(0, **{"rsa.seed": 1}), run(1, **{"rsa.seed": 2})], [rdm_summary(), rdm_summary()])
    page = render_sweep(found, collect(found), "t")
    assert "RDM spearman" in page and "held-out" not in page
