"""The one place where device meshes are made. Axes are Auto: XLA propagates shardings, `shard_map` names collectives."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sbm_jax.errors import UserError

_MOST_CPU_DEVICES = 4


def force_cpu_devices(count: int) -> None:
    """Run on the CPU as if it were `count` devices; must come before the first use of JAX."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)


def use_cpu_cores() -> None:
    """If the CPU is what JAX will use, make it one device per core (at most 4); before the first use of JAX.

    XLA runs selections such as top-k on one thread of a device, so work split over devices uses the other cores.
    """
    if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", min(os.cpu_count() or 1, _MOST_CPU_DEVICES))


def enable_compilation_cache() -> None:
    """Keep compiled programs between runs (JAX_COMPILATION_CACHE_DIR overrides the place)."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
        jax.config.update("jax_compilation_cache_dir", os.path.join(base, "sbm_jax", "xla"))  # noqa: PTH118
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def choose_devices(count: int) -> list[Any]:
    """The first `count` devices, or all when 0. Raises UserError when there are not so many."""
    devices = jax.devices()
    if count > len(devices):
        raise UserError(
            f"devices: {count} were asked for, JAX finds {len(devices)} ({devices[0].platform}). "
            "Set devices to 0 for all, or force CPU devices with --cpu-devices."
        )
    return devices[:count] if count else devices


def device_memory(devices: list[Any]) -> int | None:
    """Free bytes of the first of the devices that is this process's; of a CPU its share of what the machine has free.

    None where neither the device nor the system says.
    """
    local = [device for device in devices if device.process_index == jax.process_index()]
    statistics = local[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return free // len(local)


def put(x: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """A host array that every process has, laid over devices; each process copies its own parts alone."""
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def to_host(tree: Any) -> Any:
    """Arrays as NumPy, whole on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def make_mesh(axes: dict[str, int], devices: list[Any]) -> jax.sharding.Mesh:
    """Mesh with named axes over the first prod(axes) devices."""
    used = math.prod(axes.values())
    types = (jax.sharding.AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types, devices=devices[:used])


def training_mesh(saes: int, units: int, data: int, devices: list[Any]) -> jax.sharding.Mesh:
    """Mesh (sae, units, data): `units` as given, the others as long as they can be and still divide `saes` and `data`.

    All devices are used if that is possible; the axis `sae` comes first, along which nothing is communicated.
    """
    count = len(devices) // units
    best = max(
        (a * b, a, b) for a in range(1, count + 1) for b in range(1, count // a + 1) if saes % a == 0 and data % b == 0
    )
    return make_mesh({"sae": best[1], "units": units, "data": best[2]}, devices)
