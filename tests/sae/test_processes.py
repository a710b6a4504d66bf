"""Two processes that train together: the numbers of one process, checkpoints, kill -9 and going on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from sbm_jax.config import TrainConfig
from sbm_jax.sae.stack import Stack, points
from sbm_jax.sae.trainer import Trained, train
from sbm_jax.store.store import Store

D = 10
HOOKS = ("block00.resid", "block03.resid")
CONFIG = TrainConfig(expansion=4, k=3, steps=12, batch=16, checkpoint_every=4, pool_tokens=512)

WORKER = """
import os, signal, sys
from pathlib import Path
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
import numpy as np
from sbm_jax import processes, progress
processes.join(sys.argv[1], 2, int(sys.argv[2]))
from sbm_jax.config import TrainConfig
from sbm_jax.sae.stack import Stack, points
from sbm_jax.sae.trainer import train
from sbm_jax.store.store import Store

stop = int(sys.argv[6])
def advance(self, count=1):
    self.done += count
    if self.done == stop:
        os.kill(os.getpid(), signal.SIGKILL)
progress.Task.advance = advance
assert len(jax.devices()) == 4 and len(jax.local_devices()) == 2
config = TrainConfig.model_validate_json(sys.argv[5])
stack = Stack(("block00.resid", "block03.resid"), ("patch",), points(config))
(done,) = train(Store(Path(sys.argv[3])), stack, np.arange(50), config, jax.devices(), Path(sys.argv[4]) / "checkpoints")
arrays = dict(zip("abcd", done.params[:4])) | {"losses": done.losses, "silent": done.silent}
np.savez(Path(sys.argv[4]) / f"process{sys.argv[2]}.npz", **arrays)
"""


def two(port: int, store: Store, folder: Path, config: TrainConfig, stop: int = 0) -> list[int]:
    """Exit codes of two processes that train; with `stop` they are killed after so many steps (the slower one by us)."""
    folder.mkdir(exist_ok=True)
    cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or ""}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5", **cache}
    environment.pop("XLA_FLAGS", None)
    words = [str(store.path), str(folder), config.model_dump_json(), str(stop)]
    address = f"127.0.0.1:{port}"
    started = []
    for i in range(2):
        command = [sys.executable, "-c", WORKER, address, str(i), *words]
        with (folder / f"stderr{i}").open("w") as errors:
            started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment))
    try:
        if stop:
            deadline = time.monotonic() + 120
            while all(process.poll() is None for process in started) and time.monotonic() < deadline:
                time.sleep(0.05)
            for process in started:
                process.kill()
        return [process.wait(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


def result(folder: Path, process: int) -> dict[str, np.ndarray]:
    with np.load(folder / f"process{process}.npz") as file:
        return dict(file)


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2], ids=["whole dictionaries", "dictionaries cut in two"])
def test_two_processes_train_are_killed_and_go_on(store, free_port, tmp_path, parts):
    config = CONFIG.model_copy(update={"split_units": parts})
    assert two(free_port(), store, tmp_path / "whole", config) == [0, 0], (tmp_path / "whole" / "stderr0").read_text()
    whole = result(tmp_path / "whole", 0)
    same(whole, result(tmp_path / "whole", 1))

    one: Trained
    (one,) = train(
        store, Stack(HOOKS, ("patch",), points(config)), np.arange(50), CONFIG, jax.devices()[:1], tmp_path / "one"
    )
    eps = float(np.finfo(np.float32).eps)
    np.testing.assert_allclose(whole["losses"], one.losses, rtol=512 * eps)
    bound = CONFIG.steps * CONFIG.lr * (4096 / (4 * D)) ** 0.5 * 512 * eps  # as test_sae.close_training
    for name, value in zip("abcd", one.params[:4], strict=True):
        np.testing.assert_allclose(whole[name], value, atol=bound, rtol=16 * eps)

    assert -signal.SIGKILL in two(free_port(), store, tmp_path / "killed", config, stop=10)
    assert not list((tmp_path / "killed").glob("*.npz"))
    saved = {p.name for p in (tmp_path / "killed" / "checkpoints").iterdir()}
    assert "4" in saved or "8" in saved
    assert two(free_port(), store, tmp_path / "killed", config) == [0, 0], (tmp_path / "killed" / "stderr0").read_text()
    same(result(tmp_path / "killed", 0), whole)
