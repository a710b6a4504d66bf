"""The search over a mesh that also splits images: the reference's lists, the collectives of the compiled program, two processes."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sbm_jax.kernels import SparseCodes, cosine_topk, cosine_topk_both, prepare_responses
from sbm_jax.kernels.cosine_topk import reference, sharded
from sbm_jax.kernels.cosine_topk.cases import CASES
from sbm_jax.kernels.cosine_topk.precision import Precision, error_bound
from sbm_jax.kernels.cosine_topk.prepared import unit_columns_over
from sbm_jax.mesh import make_mesh

TESTED = [c for c in CASES if "test" in c.tags]
MESHES = [(2, 2, 2), (1, 2, 4), (1, 1, 8)]  # units, voxels, images; the cases' 5 to 64 images rarely divide
NAMES = ("units", "voxels", "images")


def mesh(*shape: int) -> jax.sharding.Mesh:
    assert jax.device_count() == 8
    return make_mesh(dict(zip(NAMES, shape, strict=False)), jax.devices())


def check(got, codes, y, center=True, precision: Precision = "f32"):
    """Values within the bound of the reference's, every index recomputed to the value it claims, none twice."""
    k_voxel, k_unit = got[0].shape[1], got[2].shape[1]
    want = cosine_topk_both(codes, y, k_voxel, k_unit, center=center, implementation="reference")
    dense = codes.to_dense(np.float64) if isinstance(codes, SparseCodes) else codes
    s, _ = reference.similarity(dense, y, center)
    bound = error_bound(precision, len(y))
    for values, index, expected, table in ((got[0], got[1], want[0], s.T), (got[2], got[3], want[2], s)):
        assert values.shape == index.shape == expected.shape
        np.testing.assert_allclose(values, expected, atol=bound, rtol=0)
        np.testing.assert_allclose(np.take_along_axis(table, index, axis=1), values, atol=bound, rtol=0)
        for row in index:
            assert len(set(row.tolist())) == len(row)


@pytest.mark.parametrize("shape", MESHES, ids=str)
@pytest.mark.parametrize("case", TESTED, ids=lambda c: c.name)
def test_images_that_are_split_match_the_reference(case, shape):
    codes, y = case.make()
    check(cosine_topk_both(codes, y, case.k_voxel, case.k_unit, mesh=mesh(*shape)), codes, y)


@pytest.mark.parametrize(("center", "precision"), [(False, "f32"), (True, "bf16x3"), (True, "bf16")])
def test_split_in_small_blocks_without_centring_and_in_named_precisions(center, precision):
    codes, y = next(c for c in TESTED if c.name == "odd").make()
    y += 1
    options: dict[str, Any] = {"mesh": mesh(2, 1, 4), "memory_bytes": 1 << 16}  # 64 units x 32 voxels of a device
    got = cosine_topk_both(codes, y, 3, 2, center=center, precision=precision, **options)
    check(got, codes, y, center, precision)


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_ties_constants_and_many_blocks_when_images_are_split(shape):
    """Powers of two: equal columns have equal similarities in any order of summation. 300 voxels are several blocks."""
    column = np.tile(np.array([1, -1], np.float32), 8)
    codes = column[:, None] * np.array([-1, 0, 1, -1, 1, 1, 1, 1, 1], np.float32)
    codes[:, 1] = 3
    y = column[:, None].repeat(700, axis=1)
    y[:, [0, 300]] = 7e3
    y[:, 400:] *= -1
    values, units, by_unit, voxels = cosine_topk_both(codes, y, 9, 4, mesh=mesh(*shape), memory_bytes=1 << 16)
    np.testing.assert_array_equal(units[1], [2, 4, 5, 6, 7, 8, 0, 3, 1])
    np.testing.assert_array_equal(values[1], [1, 1, 1, 1, 1, 1, -1, -1, 0])
    np.testing.assert_array_equal(units[0], [0, 2, 3, 4, 5, 6, 7, 8, 1])
    np.testing.assert_array_equal(values[[0, 300]], 0)
    np.testing.assert_array_equal(voxels[2], [1, 2, 3, 4])
    np.testing.assert_array_equal(voxels[0], [400, 401, 402, 403])
    np.testing.assert_array_equal(by_unit[1], 0)


def test_columns_that_fire_on_almost_every_image_are_centred_over_all_devices(rng):
    """Sums of thousands, differences of thousandths, as sparse codes with a shift and as dense ones; 51 images on 8 devices."""
    n, u = 51, 40
    values = (100 + rng.normal(size=(n, u))).astype(np.float32)
    values[rng.random((n, u)) < 0.02] = 0
    codes = SparseCodes(values, np.tile(np.arange(u, dtype=np.int32), (n, 1)), u)
    y = rng.normal(size=(n, 30)).astype(np.float32)
    check(cosine_topk_both(codes, y, 3, 3, mesh=mesh(1, 1, 8)), codes, y)


def test_an_image_axis_of_one_is_no_axis(rng):
    """Bitwise; and responses on the host may be searched by any implementation only where no column is cut."""
    codes, y = rng.normal(size=(21, 70)).astype(np.float32), rng.normal(size=(21, 90)).astype(np.float32)
    two = cosine_topk_both(codes, y, 3, 2, implementation="sharded", mesh=mesh(4, 2))
    three = cosine_topk_both(codes, y, 3, 2, implementation="sharded", mesh=mesh(4, 2, 1))
    for a, b in zip(two, three, strict=True):
        np.testing.assert_array_equal(a, b)
    assert prepare_responses(y, mesh=mesh(4, 2, 1)).on_host
    split = prepare_responses(y, mesh=mesh(2, 2, 2))
    assert not split.on_host and split.n_images == 21 and split.y_nv.shape == (22, 92)
    assert split.y_nv.addressable_shards[0].data.shape == (11, 46)
    np.testing.assert_array_equal(np.asarray(split.y_nv)[21:], 0)
    np.testing.assert_array_equal(split.on_one_device().y_nv, np.asarray(split.y_nv)[:21, :90])
    for name in ("host", "xla", "sparse"):
        with pytest.raises(NotImplementedError):
            cosine_topk(codes, split, 1, implementation=name)
    check((*cosine_topk(codes, split, 3, implementation="reference"), *two[2:]), codes, y)
    with pytest.raises(ValueError, match="codes have 22 images, responses 21"):
        cosine_topk(np.zeros((22, 3)), split, 1)


# One line of HLO: `%name = result opcode(operands), ...`; the result may be a tuple of several arrays.
_COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast)"
    r"(?:-start)?\((.*?)\), "
)


def collectives(compiled: Any) -> list[tuple[str, int]]:
    """(name, largest number of elements of an array it takes or gives) of a program over 8 devices."""
    text = compiled.as_text()
    assert "num_partitions=8" in text or "replica_count=8" in text
    sizes = {
        name: [math.prod(map(int, filter(None, s.split(",")))) for s in re.findall(r"\w+\[([\d,]*)\]", result)]
        for name, result in re.findall(r"(%[\w.-]+) = (.*?) [\w-]+\(", text)
    }
    found = []
    for result, opcode, operands in _COLLECTIVE.findall(text):
        given = [math.prod(map(int, filter(None, s.split(",")))) for s in re.findall(r"\w+\[([\d,]*)\]", result)]
        taken = [size for operand in re.findall(r"%[\w.-]+", operands) for size in sizes[operand]]
        assert given and taken
        found.append((opcode, max(given + taken)))
    return found


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("shape", [(4, 2), *MESHES], ids=str)
def test_only_lists_blocks_and_norms_travel(shape, sparse, rng):
    """Read from the compiled program: no collective takes or gives as much as a device's part of codes or responses."""
    n, u, v, k, kept_v, kept_u = 1003, 600, 2000, 160, 2, 1
    units = rng.integers(0, u, size=(n, k)).astype(np.int32)
    codes = SparseCodes(rng.random((n, k), np.float32), units, u)
    y = rng.normal(size=(n, v)).astype(np.float32)
    where = mesh(*shape)
    prepared = prepare_responses(y, mesh=where)
    run, operands = sharded.search_program(
        codes if sparse else codes.to_dense(), prepared, kept_v, kept_u, memory_bytes=1 << 20
    )
    cut_u, cut_v, cut_n = (where.shape.get(name, 1) for name in NAMES)
    local_n, local_u, local_v = -(-n // cut_n), -(-u // cut_u), -(-v // cut_v)
    lists = max(cut_u * -(-local_v // cut_n) * kept_v, cut_v * cut_n * local_u * kept_u)
    bu, bv = 64, max(64, 32 * cut_n)  # what the budget allows
    found = collectives(run.lower(*operands).compile())
    allowed = {"all-gather": lists}
    if cut_n > 1:
        # One more kind for dense codes alone: their norms and means, for a block of units.
        allowed |= {"reduce-scatter": bu * bv} | ({} if sparse else {"all-reduce": 3 * bu})
    assert {opcode for opcode, _ in found} == set(allowed)
    assert all(size <= allowed[opcode] for opcode, size in found), (found, allowed)
    parts = [operand.addressable_shards[0].data.size for operand in jax.tree.leaves(operands) if operand.ndim == 2]
    assert local_n * local_v in parts
    assert max(size for _, size in found) < min(parts), (found, parts)
    if cut_n > 1:
        program = unit_columns_over(where, True, n).lower(prepared.y_nv).compile()
        assert {opcode for opcode, _ in collectives(program)} == {"all-reduce"}
        assert max(size for _, size in collectives(program)) <= 2 * prepared.y_nv.shape[1] // cut_v


def test_the_reader_of_programs_sees_what_must_not_be_there():
    """Codes gathered over the unit axis, as a search that went wrong would do it."""
    where = mesh(4, 2)
    shape = jax.ShapeDtypeStruct((100, 80), np.float32, sharding=NamedSharding(where, P(None, "units")))
    whole = jax.jit(lambda x: x, out_shardings=NamedSharding(where, P()))
    assert ("all-gather", 8000) in collectives(whole.lower(shape).compile())


WORKER = """
import sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
import numpy as np
from sbm_jax import processes
processes.join(sys.argv[1], 2, int(sys.argv[2]))
from sbm_jax.kernels import cosine_topk_both, prepare_responses
from sbm_jax.kernels.cosine_topk import sharded
from sbm_jax.kernels.cosine_topk.cases import CASES
from sbm_jax.mesh import make_mesh, to_host

assert len(jax.devices()) == 4 and len(jax.local_devices()) == 2
found = {}
for name, shapes in (("odd", ((2, 2, 1), (1, 2, 2))), ("sparse odd", ((1, 1, 4),))):
    codes, y = next(c for c in CASES if c.name == name).make()
    for shape in shapes:
        mesh = make_mesh(dict(zip(("units", "voxels", "images"), shape)), jax.devices())
        responses = prepare_responses(y, mesh=mesh)
        assert not responses.y_nv.is_fully_addressable and not responses.on_host
        lists = sharded.sharded_topk(codes, responses, 3, 3, memory_bytes=1 << 20)
        for x, axes in zip(lists, (shape[1:], shape[1:], shape[:1], shape[:1])):
            assert len(x.sharding.device_set) == 4 and len(x.addressable_shards) == 2
            assert all(len(shard.data) == len(x) // np.prod(axes) for shard in x.addressable_shards)
        whole = to_host(lists)
        again = cosine_topk_both(codes, responses, 3, 3, memory_bytes=1 << 20)
        for i, (x, both) in enumerate(zip(whole, again)):
            np.testing.assert_array_equal(x[: len(both)], both)
            found[f"{name}/{shape}/{i}"] = both
if jax.process_index() == 0:
    np.savez(sys.argv[3], **found)
"""


@pytest.mark.slow
def test_two_processes_search_together(free_port, tmp_path):
    """Four devices of two processes: every process holds its own parts of the lists, which together are the reference's."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[2] / ".jax_cache")
    environment.pop("XLA_FLAGS", None)
    address, started = f"127.0.0.1:{free_port()}", []
    for i in range(2):
        command = [sys.executable, "-c", WORKER, address, str(i), str(tmp_path / "lists.npz")]
        with (tmp_path / f"stderr{i}").open("w") as errors:
            started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment))
    try:
        ended = [process.wait(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert ended == [0, 0], "\n".join((tmp_path / f"stderr{i}").read_text() for i in range(2))
    with np.load(tmp_path / "lists.npz") as file:
        found = dict(file)
    for name, shape in (("odd", (2, 2, 1)), ("odd", (1, 2, 2)), ("sparse odd", (1, 1, 4))):
        codes, y = next(c for c in CASES if c.name == name).make()
        check([found.pop(f"{name}/{shape}/{i}") for i in range(4)], codes, y)
    assert not found
