"""`--grid`: every combination once, values as the schema reads them, and one message for whatever is wrong."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbm_jax.config import load_config
from sbm_jax.errors import UserError
from sbm_jax.sweep.grid import make_runs, parse_grid, value_text


@pytest.fixture
def runs_of(tmp_path, make_config):
    """`runs_of("train.k=1,2", ...)`: the table of runs over the tiny configuration."""
    path = make_config(tmp_path / "tiny.yaml")
    return lambda *grids: make_runs(path, (), parse_grid(grids))


def test_every_combination_is_a_run_and_the_last_key_changes_fastest(runs_of):
    runs = runs_of("train.k=2,4", "train.lr=1e-3,2.5e-3,1")
    assert [run.number for run in runs] == list(range(6))
    assert [tuple(run.values.values()) for run in runs] == [(k, lr) for k in (2, 4) for lr in (1e-3, 2.5e-3, 1.0)]
    assert [(run.config.train.k, run.config.train.lr) for run in runs] == [tuple(run.values.values()) for run in runs]
    assert runs[1].label == "train.k=2 train.lr=0.0025"


def test_other_settings_are_those_of_the_file(tmp_path, make_config):
    path = make_config(tmp_path / "tiny.yaml")
    (run,) = make_runs(path, ("align.seed=7",), parse_grid(["train.k=9"]))
    assert run.config == load_config(path, ("align.seed=7", "train.k=9"))


def test_a_single_value_for_a_list_is_a_list_of_one(runs_of):
    runs = runs_of("data.subjects=subj01,[subj01, subj02],[]", "backbone.layers=3")
    assert [run.config.data.subjects for run in runs] == [["subj01"], ["subj01", "subj02"], []]
    assert [run.config.backbone.layers for run in runs] == [[3]] * 3
    assert [run.label for run in runs][:2] == [
        "data.subjects=subj01 backbone.layers=3",
        'data.subjects=["subj01", "subj02"] backbone.layers=3',
    ]


def test_values_are_yaml_with_its_quotes_and_sections(runs_of):
    titles = [run.config.report.title for run in runs_of("""report.title='a, b',"c: [d]",plain""")]
    assert titles == ["a, b", "c: [d]", "plain"]
    assert [run.config.rsa.seed for run in runs_of("rsa={seed: 1},{seed: 2, method: corr}")] == [1, 2]


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4, unique=True))
def test_any_text_comes_through_when_quoted(texts):
    grid = parse_grid(["report.title=" + ",".join(json.dumps(text) for text in texts)])
    assert [json.loads(override.partition("=")[2]) for override in grid["report.title"]] == texts


@pytest.mark.parametrize(
    ("grids", "parts"),
    [
        ([], ["at least one --grid"]),
        (["train.k"], ["'train.k'", "expected KEY=a,b,c"]),
        (["=1,2"], ["expected KEY=a,b,c"]),
        (["train.k="], ["no value is given for train.k"]),
        (["train.k=1,,2"], ["'1,,2' is not a list of YAML values"]),
        (["train.k=1], [2"], ["is not a list of YAML values"]),
        (["train.k=1", "train.k=2"], ["'train.k=2'", "train.k is in the grid already"]),
        (["train={k: 1}", "train.k=2"], ["train is in the grid already"]),
        (["train.k=2", "train={k: 1}"], ["train.k is in the grid already"]),
        (["report.title=2020-01-01"], ["in quotes", "date"]),
        (["train.kk=1,2"], ["unknown key train.kk; the nearest is train.k"]),
        (["nothing.at.all=1"], ["unknown key nothing"]),
        (["train.k.deep=1"], ["k is a single value, not a section"]),
        (["train.k=4,0"], ["run 1 of the grid (train.k=0)", "train.k", "found 0"]),
        (["train.k=4,many"], ["run 1 of the grid", "train.k", "found 'many'"]),
        (["train.lr=1,.inf"], ["run 1 of the grid", "train.lr"]),
        (["train.k=4,4"], ["runs 0 and 1 of the grid are the same (train.k=4)"]),
        (["train.lr=0.001,1e-3"], ["runs 0 and 1 of the grid are the same"]),
        (["encode.modes=[cls],[cls, cls]", "train.k=1"], ["run 0 of the grid", "encode.modes"]),
    ],
)
def test_what_is_wrong_is_said(runs_of, grids, parts):
    with pytest.raises(UserError) as error:
        runs_of(*grids)
    for part in parts:
        assert part in str(error.value)


def test_values_on_one_line():
    assert [value_text(v) for v in (3, 0.5, "a b", ["one"], [1, 2], None, True, {"k": 1})] == [
        "3", "0.5", "a b", "one", "[1, 2]", "null", "true", '{"k": 1}',
    ]  # fmt: skip
