"""What the command-line tests share: how a refusal looks, and a lab's folder that a test may damage."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

# The shortest run that goes all the way: one layer, two cheap kinds of features.
QUICK = {
    "encode": {"modes": ["cls", "raw"]},
    "roi": {"modes": ["cls"]},
    "report": {"mode": "raw"},
    "align": {"shuffles": 1},
    "exemplars": {"kinds": []},  # and with it the stages that say what units mean
}


def _refused(done: subprocess.CompletedProcess, *parts: str) -> None:
    """One error message that holds all parts, on stderr alone."""
    # not at the start of a line only: a library's threads may be in the middle of one
    errors = list(re.finditer(r"\b[eE]rror: ", done.stderr))
    assert len(errors) == 1, done.stderr
    message = done.stderr[errors[0].start() :]
    for part in parts:
        assert str(part) in message, message
    assert done.stdout == ""


def _finished(out: Path) -> set[str]:
    """Kinds of finished stores; each is checked against its manifest."""
    from sbm_jax.store.store import Store

    if not (out / "stores").exists():
        return set()
    folders = [p for p in (out / "stores").iterdir() if not p.name.endswith(".partial")]
    return {Store(p).name.rpartition("-")[0] for p in folders}


@pytest.fixture
def refused():
    """`refused(done, *parts)`: one error message that holds all parts, on stderr alone."""
    return _refused


@pytest.fixture
def finished():
    """`finished(out)`: kinds of finished stores in a run's folder."""
    return _finished


@pytest.fixture
def dataset(tiny, tmp_path) -> Path:
    """A lab's folder: the tables, pictures and responses of the tiny demo, which the test may damage."""
    return Path(shutil.copytree(tiny.store("dataset") / "data", tmp_path / "lab"))


@pytest.fixture
def lab(dataset, tmp_path, make_config) -> tuple:
    """Words that run on `dataset`."""
    config = make_config(tmp_path / "lab.yaml", data={"root": str(dataset)}, backbone={"layers": [1]}, **QUICK)
    return "--config", config, "--out", tmp_path / "run"
