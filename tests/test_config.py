"""Configuration: every mistake is a message that names the key, and what is written is what is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.axes import MODES
from sbm_jax.config import Config, demo_config, dump_config, load_config
from sbm_jax.errors import UserError

MINIMAL = {"data": {"root": "/data"}, "backbone": {"path": "/clip"}}


def written(folder: Path, content) -> Path:
    path = folder / "run.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def message(path: Path | None, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load_config(path, overrides)
    return str(error.value)


def test_the_embedded_default():
    config = load_config(None)
    assert config.data.root == config.backbone.path == "demo"
    assert config.encode.modes == [mode for mode in MODES if mode != "untrained"]
    assert config.sae_modes == [
        "cls",
        "patch_mean",
        "patch_max",
    ]
    assert load_config(None) == config == Config.model_validate(demo_config())


def test_a_minimal_file_takes_all_other_defaults(tmp_path):
    config = load_config(written(tmp_path, MINIMAL))
    demo = load_config(None)
    assert config.data.root == "/data" and config.backbone.path == "/clip"
    assert (config.train, config.encode, config.rsa) == (demo.train, demo.encode, demo.rsa)


def test_it_cannot_be_changed_afterwards():
    config = load_config(None)
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 3


# Unknown and missing keys --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "key", "nearest"),
    [
        ("train", "step", "train.steps"),
        ("train", "learning_rate", "lr"),
        ("train", "expantion", "train.expansion"),
        ("align", "kvoxel", "align.k_voxel"),
        ("rsa", "metrics", "rsa.metric"),
        ("data", "subject", "data.subjects"),
        # belongs to another section
        ("align", "expansion", "train.expansion"),
        ("train", "min_ncsnr", "align.min_ncsnr"),
    ],
)
def test_a_misspelt_key_names_the_nearest(tmp_path, section, key, nearest):
    content = {**MINIMAL, section: {**MINIMAL.get(section, {}), key: 1}}
    text = message(written(tmp_path, content))
    assert f"unknown key {section}.{key}; the nearest is " in text and "run.yaml" in text
    if nearest != "lr":
        assert text.endswith(f"the nearest is {nearest}")


def test_a_misspelt_section_and_a_key_two_levels_down(tmp_path):
    assert "unknown key trian; the nearest is train" in message(written(tmp_path, {**MINIMAL, "trian": {"steps": 3}}))
    content = {**MINIMAL, "data": {"root": "demo", "demo": {"n_subject": 3}}}
    assert "unknown key data.demo.n_subject; the nearest is data.demo.n_subjects" in message(written(tmp_path, content))


def test_every_unknown_key_is_reported_at_once(tmp_path):
    content = {**MINIMAL, "train": {"setps": 3, "bach": 4}, "nonsense": 1}
    text = message(written(tmp_path, content))
    assert text.count("unknown key") == 3
    assert "train.steps" in text and "train.batch" in text


def test_a_key_that_is_not_text(tmp_path):
    assert "unknown key train.3" in message(written(tmp_path, {**MINIMAL, "train": {3: 4}}))


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"backbone": {"path": "x"}}, "data"),
        ({"data": {"root": "x"}}, "backbone"),
        ({"data": {}, "backbone": {"path": "x"}}, "data.root"),
        ({"data": {"root": "x"}, "backbone": {"layers": [1]}}, "backbone.path"),
    ],
)
def test_a_missing_key_is_named(tmp_path, content, key):
    text = message(written(tmp_path, content))
    assert text.endswith(f"missing key {key}") and "run.yaml" in text


# Values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "key", "found"),
    [
        ("train.steps=many", "train.steps", "'many'"),
        ("train.steps=2.5", "train.steps", "2.5"),
        ("train.steps=0", "train.steps", "0"),
        ("train.lr=-1", "train.lr", "-1"),
        ("train.lr=.nan", "train.lr", "nan"),
        ("train.lr=.inf", "train.lr", "inf"),
        ("train.decay=1.5", "train.decay", "1.5"),
        ("extract.dtype=float64", "extract.dtype", "'float64'"),
        ("rsa.metric=manhattan", "rsa.metric", "'manhattan'"),
        ("encode.modes=[]", "encode.modes", "[]"),
        ("encode.modes=[cls, pathc_mean]", "encode.modes.1", "'pathc_mean'"),
        ("backbone.layers=[a]", "backbone.layers.0", "'a'"),
        ("devices=-1", "devices", "-1"),
        ("data.demo.n_shared=1", "data.demo.n_shared", "1"),
        ("align.k_voxel=0", "align.k_voxel", "0"),
        ("report.mode=best", "report.mode", "'best'"),
    ],
)
def test_a_bad_value_names_the_key_and_shows_it(override, key, found):
    text = message(None, override)
    assert f"{key}: " in text and text.endswith(f"found {found}")


@pytest.mark.parametrize("value", ["3", "[1, 2]", "text"])
def test_a_value_where_a_section_belongs(tmp_path, value):
    text = message(None, f"train={value}")
    assert "train: " in text and "found" in text


def test_an_empty_section_is_no_crash(tmp_path):
    """`train:` with nothing below it is None in YAML; easily written by commenting out its only line."""
    assert "train" in message(written(tmp_path, "data: {root: x}\nbackbone: {path: y}\ntrain:\n"))


def test_several_bad_values_are_all_reported():
    text = message(None, "train.steps=0", "rsa.metric=no", "devices=-2")
    assert all(key in text for key in ("train.steps", "rsa.metric", "devices"))


# Across fields -------------------------------------------------------------------------------------------------------


def test_modes_must_be_encoded():
    text = message(None, "encode.modes=[cls]", "report.mode=cls")
    assert "roi.modes names ['patch_mean'], which encode.modes does not list" in text
    text = message(None, "encode.modes=[cls, patch_mean]", "report.mode=raw")
    assert "report.mode names ['raw']" in text
    config = load_config(None, ["encode.modes=[cls]", "roi.modes=[cls]", "report.mode=cls"])
    assert config.sae_modes == ["cls"]


def test_modes_keep_the_order_of_the_vocabulary():
    config = load_config(None, ["encode.modes=[raw, patch_max, cls]", "roi.modes=[cls]", "report.mode=raw"])
    assert config.sae_modes == ["cls", "patch_max"]


# --set ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("train.steps=7", lambda c: c.train.steps, 7),
        ("train.lr=1e-3", lambda c: c.train.lr, 1e-3),
        ("train.lr=0.001", lambda c: c.train.lr, 1e-3),
        ("backbone.layers=[0, 5]", lambda c: c.backbone.layers, [0, 5]),
        ("data.subjects=[subj01]", lambda c: c.data.subjects, ["subj01"]),
        ("data.demo.size=64", lambda c: c.data.demo.size, 64),
        ("report.title=a = b", lambda c: c.report.title, "a = b"),
        (" devices =2", lambda c: c.devices, 2),
        ("report.title=''", lambda c: c.report.title, ""),
    ],
)
def test_set(override, read, value):
    assert read(load_config(None, [override])) == value


def test_later_settings_win_and_files_are_overridden(tmp_path):
    path = written(tmp_path, {**MINIMAL, "train": {"steps": 5, "k": 3}})
    config = load_config(path, ["train.steps=6", "train.steps=7", "data.root=elsewhere"])
    assert (config.train.steps, config.train.k, config.data.root) == (7, 3, "elsewhere")
    config = load_config(written(tmp_path, {"backbone": {"path": "x"}}), ["data.root=y"])
    assert config.data.root == "y"


@pytest.mark.parametrize("override", ["train.steps", "", "=3", "   =3"])
def test_set_without_key_or_value(override):
    text = message(None, override)
    assert f"--set {override!r}: expected key=value" in text


def test_bad_set():
    assert "unknown key train.stepz; the nearest is train.steps" in message(None, "train.stepz=3")
    assert "unknown key data.demo.n_share; the nearest is data.demo.n_shared" in message(None, "data.demo.n_share=3")
    assert "data.root" in message(None, "data.root.x=3") and "root is a single value" in message(None, "data.root.x=3")
    assert "the value is not valid YAML" in message(None, "train.steps=[1")
    assert "train.steps" in message(None, "train.steps=")
    assert "unknown key" in message(None, "train..steps=3")


# Files ---------------------------------------------------------------------------------------------------------------


def test_files_that_cannot_be_read(tmp_path):
    text = message(tmp_path / "none.yaml")
    assert "none.yaml" in text and "No such file" in text
    assert "cannot read" in message(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    assert "binary.yaml is not valid YAML" in message(tmp_path / "binary.yaml")


@pytest.mark.parametrize("text", ["data: [", "a: b: c", "\tx: 1", "- {"])
def test_text_that_is_not_yaml(tmp_path, text):
    assert "run.yaml is not valid YAML" in message(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "found"), [("", "NoneType"), ("- 1\n- 2", "list"), ("just words", "str"), ("3", "int")]
)
def test_yaml_that_has_no_sections(tmp_path, text, found):
    message_ = message(written(tmp_path, text))
    assert "expected sections" in message_ and f"found {found}" in message_


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object:os.system {}",
        "!!python/object/apply:os.system ['touch {marker}']",
        "!!python/name:os.system ''",
        "!!python/module:os ''",
        "!anything {}",
    ],
)
def test_tags_are_refused_and_nothing_runs(tmp_path, tag):
    marker = tmp_path / "ran"
    tag = tag.replace("{marker}", str(marker))
    text = message(written(tmp_path, f"data: {{root: x}}\nbackbone: {{path: y}}\nreport: {{title: {tag}}}\n"))
    assert "not valid YAML" in text
    assert "not valid YAML" in message(None, f"report.title={tag}")
    assert not marker.exists()


# Round trip ----------------------------------------------------------------------------------------------------------


def test_what_is_written_is_what_is_read(tmp_path):
    config = load_config(None, ["train.lr=3.3e-4", "backbone.layers=[1, 2]", "data.subjects=[subj02]", "devices=4"])
    assert load_config(written(tmp_path, dump_config(config))) == config
    assert dump_config(load_config(written(tmp_path, dump_config(config)))) == dump_config(config)


def test_the_written_file_spells_out_every_key():
    def keys(model, prefix=""):
        for name, field in model.model_fields.items():
            sub = field.annotation
            if hasattr(sub, "model_fields"):
                yield from keys(sub, f"{prefix}{name}.")
            else:
                yield prefix + name

    def flat(tree, prefix=""):
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    body = yaml.safe_load(dump_config(load_config(None)))
    assert list(flat(body)) == list(keys(Config))


@settings(max_examples=30, deadline=None)
@given(
    title=st.text(max_size=20),
    lr=st.floats(1e-8, 1, allow_nan=False),
    seed=st.integers(-(2**40), 2**40),
    layers=st.lists(st.integers(0, 50), max_size=5),
    subjects=st.lists(st.text(max_size=8), max_size=3),
)
def test_any_content_survives(tmp_path_factory, title, lr, seed, layers, subjects):
    raw = demo_config()
    raw["report"] = {"title": title}
    raw["train"] = {"lr": lr, "seed": seed}
    raw["backbone"]["layers"], raw["data"]["subjects"] = layers, subjects
    config = Config.model_validate(raw)
    assert load_config(written(tmp_path_factory.mktemp("config"), dump_config(config))) == config
