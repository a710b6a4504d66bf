"""`sbm-jax bench` from an installation: names, options that are passed on, and where the JSON goes."""

from __future__ import annotations

import json

import pytest


@pytest.mark.slow
def test_a_benchmark_runs_and_keeps_its_samples(program, tmp_path):
    done = program("bench", "store", "--out", tmp_path / "found", "--images", 64, timeout=300)
    (file,) = (tmp_path / "found").glob("stream-*.json")
    record = json.loads(file.read_text())
    assert len(record["rows"]) == 3 and record["copy_bytes_per_s"] > 0
    for row in record["rows"]:
        assert "64 images" in row["case"] and len(row["samples_tokens_per_s"]) == 3
        assert row["of_copy_rate"] == pytest.approx(row["megabytes_per_s"] * 1e6 / record["copy_bytes_per_s"])
    assert "tokens_per_s" in done.stdout and str(file) in done.stdout


def test_an_unknown_benchmark_is_refused_with_those_there_are(program):
    done = program("bench", "everything", code=2)
    for name in ("align", "rsa", "train", "extract", "store"):
        assert name in done.stderr
