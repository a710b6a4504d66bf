"""Two processes of one command: all of them train, the first does the rest, and the result is that of one process."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
import zarr


@pytest.mark.slow
def test_two_processes_train_and_encode_as_one(tiny, program, tmp_path, free_port):
    out = tmp_path / "run"
    shutil.copytree(tiny.out, out, ignore=shutil.ignore_patterns("saes-*", "codes-*", "align-*", "rsa-*", "roi-*"))
    address = f"127.0.0.1:{free_port()}"
    started = []
    for i in range(2):
        words = ("--cpu-devices", 2, "--coordinator", address, "--processes", 2, "--process", i)
        command = program.command(*words, "run", "--config", tiny.config, "--out", out, "--stages", "train..encode")
        with (tmp_path / f"stderr{i}").open("w") as errors, (tmp_path / f"stdout{i}").open("w") as output:
            started.append(subprocess.Popen(command, stdout=output, stderr=errors, env=program.environment))
    try:
        codes = [process.wait(timeout=200) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    said = [(tmp_path / f"stderr{i}").read_text() for i in range(2)]
    assert codes == [0, 0], "\n".join(said)
    assert "over mesh {'sae': 4, 'units': 1, 'data': 1}" in said[0]
    assert "train:" not in said[1] and "encode:" not in said[1], "one process speaks"
    (saes,) = (out / "stores").glob("saes-*")
    assert saes.name == tiny.store("saes").name and len(list((out / "stores").glob("codes-*"))) == 1
    for name in ("w_enc", "w_dec", "b_enc"):
        one, two = (np.asarray(zarr.open_array(p / name, mode="r")[...]) for p in (tiny.store("saes"), saes))
        np.testing.assert_allclose(two, one, atol=2e-5 * np.abs(one).max(), err_msg=name)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--coordinator", "127.0.0.1:1"), "--coordinator, --processes and --process belong together"),
        (
            ("--coordinator", "127.0.0.1:1", "--processes", 2, "--process", 2),
            "--process is 2, but there are 2 processes",
        ),
    ],
)
def test_words_that_do_not_fit_together(program, words, part):
    assert part in program(*words, "run", "--dry-run", code=2).stderr
