"""docs/tutorial.md, every block in order, as a reader would run it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TUTORIAL, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_every_block_runs(tmp_path, program):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "bin").mkdir()
    command = " ".join(shlex.quote(str(word)) for word in program.command())
    script = tmp_path / "bin" / "sbm-jax"
    script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    script.chmod(0o755)
    environment = {**program.environment, "PATH": f"{script.parent}:{os.environ['PATH']}"}
    kinds = [kind for kind, _ in BLOCKS]
    assert kinds.count("bash") >= 6 and kinds.count("python") == 3
    shell = "set -e\n"
    for kind, text in BLOCKS:
        shell += text if kind == "bash" else ""
    script = "".join(text for kind, text in BLOCKS if kind == "python")
    for words in (["bash", "-c", shell], [sys.executable, "-c", script]):
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
    assert "floc-faces" in done.stdout
    out = tmp_path / "runs" / "tutorial"
    for name in ("report.html", "areas_by_layer.png", "held_out_left.png"):
        assert (out / name).stat().st_size > 10_000, name


def test_blocks_that_are_not_run_only_install():
    assert [text for kind, text in BLOCKS if not kind] == ["pip install .\nsbm-jax --version\n"]
