"""One place for test-wide settings: eight CPU devices, warnings as errors (pyproject), a persistent compilation cache.
And one small finished run, made by the command line once per session, for all tests that look at results.
"""

from __future__ import annotations

import copy
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest
import yaml

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture
def rng() -> np.random.Generator:
    """A fresh seeded generator."""
    return np.random.default_rng(0)


CACHE = Path(__file__).parents[1] / ".jax_cache"
# Shards of 32 and batches of 24 images: a resumed extraction then forms other batches than an uninterrupted one.
TINY: dict[str, Any] = {
    "data": {"root": "demo", "demo": {"n_shared": 24, "n_unique": 36, "n_extra": 20, "n_subjects": 2}},
    "backbone": {"layers": [1, 5]},
    "extract": {"shard_images": 32, "batch": 24},
    "train": {"steps": 12, "batch": 64, "expansion": 2, "k": 4, "checkpoint_every": 4},
    "encode": {"modes": ["cls", "patch_mean", "patch_max", "raw", "random"]},
    "align": {"k_voxel": 3, "k_unit": 3, "shuffles": 2},
    "rsa": {"structure_voxels": 100, "bootstrap": 40},
    "roi": {"top_units": 10, "exemplars": 5, "stable": 2},
    "joint": {"modes": ["patch_mean", "raw"], "atoms": 3, "candidates": 8, "lambdas": [0.1, 10]},
    "layers": {"bootstrap": 40},
    "pooling": {"positions": 3, "sizes": [0.1, 0.3], "bootstrap": 100},
    "edit": {"images": 12, "units": 6, "draws": 2, "doses": [2.0], "drive": [1.0], "bootstrap": 50},
    "report": {"title": "tiny", "units_per_roi": 1, "images_per_unit": 3},
}


@dataclass(frozen=True)
class Program:
    """The command line in a process of its own, as a user calls it."""

    environment: dict[str, str]

    def command(self, *words: Any) -> list[str]:
        return [sys.executable, "-m", "sbm_jax.cli.main", *map(str, words)]

    def __call__(
        self,
        *words: Any,
        code: int = 0,
        timeout: float = 400,
        noisy: bool = False,
        largest_file: int | None = None,
        **options: Any,
    ) -> subprocess.CompletedProcess:
        """Run to the end and check the exit code; there must be no traceback unless a library's `noisy` threads print it.

        largest_file: bytes beyond which no file may grow (set in a process between: a fork of one that runs JAX may hang).
        """
        options = {"env": self.environment, **options}
        command = self.command(*words)
        if largest_file is not None:
            command = [sys.executable, "-c", _LIMITED, str(largest_file), *command]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)
        assert done.returncode == code, f"exit code {done.returncode}, expected {code}\n{done.stdout}\n{done.stderr}"
        assert noisy or "Traceback" not in done.stderr, done.stderr
        return done


_LIMITED = """
import os, resource, sys
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class TinyRun:
    """A finished run: its folder, its configuration file, what it printed."""

    out: Path
    config: Path
    process: subprocess.CompletedProcess

    def store(self, kind: str, number: int = 0) -> Path:
        """The store of that kind; the number counts stores of one kind in the order of their subjects."""
        found = sorted((self.out / "stores").glob(f"{kind}-*"), key=lambda p: (p / "spec.json").read_text())
        return found[number]


@pytest.fixture
def free_port():
    """`free_port()`: a port of this machine on which nobody listens."""

    def find() -> int:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            return s.getsockname()[1]

    return find


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the embedded backbone, so that its hash is one throughout the session."""
    folder = tmp_path_factory.mktemp("backbone") / "clip"
    shutil.copytree(Path(__file__).parents[1] / "sbm_jax" / "demo" / "clip", folder)
    return folder


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The command line with one device and a shared compilation cache, outside of any git repository."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_"))}
    return Program(
        {
            **inherited,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(CACHE),
            "GIT_DIR": str(tmp_path_factory.mktemp("no_repository")),  # a commit meanwhile would change provenance.json
        }
    )


def write_config(path: Path, folder: Path, sections: dict[str, Any]) -> Path:
    """TINY as YAML with some settings replaced: `{"train": {"steps": 3}}`."""
    config = copy.deepcopy(TINY)
    config["backbone"]["path"] = str(folder)
    for name, settings in sections.items():
        config[name] = {**config.get(name, {}), **settings}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def make_config(backbone_folder: Path):
    """`make_config(path, train={"steps": 3})` writes the tiny configuration with some settings replaced."""
    return lambda path, **sections: write_config(path, backbone_folder, sections)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, program: Program, make_config) -> TinyRun:
    """The finished run of TINY, made by the first worker that needs it. Tests must not write into it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny"
    folder.mkdir(exist_ok=True)
    config, said = folder / "tiny.yaml", folder / "said.json"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            process = program("run", "--config", make_config(config), "--out", folder / "run")
            said.write_text(json.dumps([process.args, process.stdout, process.stderr]))
    words, stdout, stderr = json.loads(said.read_text())
    process = subprocess.CompletedProcess(words, 0, stdout, stderr)
    return TinyRun(folder / "run", config, process)
