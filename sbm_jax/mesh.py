"""The one place where device meshes are made. Axes are Auto: XLA propagates shardings, `shard_map` names collectives."""

from __future__ import annotations

import math
import os
from typing import Any

import jax

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


def make_mesh(axes: dict[str, int], devices: list[Any]) -> jax.sharding.Mesh:
    """Mesh with named axes over the first prod(axes) devices."""
    used = math.prod(axes.values())
    types = (jax.sharding.AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types, devices=devices[:used])


def two_axes(first: str, n_first: int, second: str, n_second: int, devices: list[Any]) -> jax.sharding.Mesh:
    """Mesh (first, second) that uses as many devices as possible with both lengths divided evenly.

    The first axis is taken as long as it can be: it is the one along which nothing is communicated.
    """
    best = max(
        (
            (a * b, a, b)
            for a in range(1, len(devices) + 1)
            for b in range(1, len(devices) // a + 1)
            if n_first % a == 0 and n_second % b == 0
        ),
    )
    return make_mesh({first: best[1], second: best[2]}, devices)
