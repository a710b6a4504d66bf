"""Stores: round trips, equal bytes for equal input, a second reader, damage that is noticed, full disks, and the lock."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sbm_jax.errors import StoreError, UserError
from sbm_jax.store.buffer import ShardBuffer
from sbm_jax.store.lock import run_lock
from sbm_jax.store.spec import StoreSpec, canonical_json, pretty_json
from sbm_jax.store.store import PARTIAL, Store, StoreWriter, is_finished

SPEC = StoreSpec("activations", 1, {"dtype": "float16", "hooks": ["block00.resid"]}, {"images": "abc"})


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder and its bytes."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def example(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "block00.resid/cls": rng.normal(size=(10, 6)).astype(np.float16),
        "block00.resid/patch": rng.normal(size=(10, 4, 6)).astype(np.float16),
        "ids": rng.integers(1, 9, size=10),
        "f64": rng.normal(size=(10, 3)),
        "mask": rng.integers(0, 2, size=(10, 9)).astype(np.uint8),
    }


def write(stores: Path, arrays: dict[str, np.ndarray], shard: int = 4, compress: bool = True) -> Store:
    writer = StoreWriter(stores, SPEC, {"config.yaml": "a: 1\n"})
    for name, value in arrays.items():
        writer.create(name, value.shape, value.dtype.name, shard_rows=shard, compress=compress)
        for start in range(0, len(value), shard):
            writer.write(name, start, value[start : start + shard])
    writer.put_json("info.json", {"b": [1.5, float("nan")], "a": np.float32(2)})
    return writer.commit()


def shards(store: Store, name: str) -> list[Path]:
    return sorted(p for p in (store.path / name / "c").rglob("*") if p.is_file())


# Round trips ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("shard", [1, 3, 4, 10, 99])
def test_round_trip(tmp_path, rng, shard, compress):
    arrays = example(rng)
    store = write(tmp_path, arrays, shard, compress)
    assert store.path == tmp_path / SPEC.name and is_finished(store.path)
    reopened = Store(store.path)
    for name, value in arrays.items():
        got = reopened.read(name)
        assert got.dtype == value.dtype
        np.testing.assert_array_equal(got, value)
        np.testing.assert_array_equal(reopened.read(name, slice(3, 7)), value[3:7])
        np.testing.assert_array_equal(reopened.read(name, np.array([7, 2, 2])), value[[7, 2, 2]])
        assert len(shards(store, name)) == -(-10 // min(shard, 10))
    assert reopened.json("info.json") == {"a": 2.0, "b": [1.5, None]}
    assert reopened.spec == SPEC.as_json() and reopened.name == SPEC.name
    assert not (tmp_path / (SPEC.name + PARTIAL)).exists()


@pytest.mark.parametrize("shape", [(0, 5), (1,), (3, 0), (2, 3, 4, 5)], ids=str)
def test_put_of_any_shape(tmp_path, rng, shape):
    writer = StoreWriter(tmp_path, SPEC)
    value = rng.normal(size=shape).astype(np.float32)
    writer.put("x", value, unit="percent")
    store = writer.commit()
    np.testing.assert_array_equal(store.read("x"), value)
    assert store.read("x").shape == shape
    assert json.loads((store.path / "x" / "zarr.json").read_text())["attributes"] == {"unit": "percent"}


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32", "int64", "float16", "float32", "float64"])
def test_extremes_of_every_dtype(tmp_path, dtype):
    if dtype == "bool":
        value = np.array([True, False, True])
    elif dtype.startswith("f"):
        info = np.finfo(dtype)
        value = np.array([info.min, info.max, info.tiny, -0.0, 0.0, np.inf, np.nan], dtype)
    else:
        value = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max, 0], dtype)
    writer = StoreWriter(tmp_path, SPEC)
    writer.put("x", value)
    got = writer.commit().read("x")
    assert got.dtype == value.dtype and got.tobytes() == value.tobytes()


# zarr-python says so of every document beside the arrays.
@pytest.mark.filterwarnings("ignore:Object at .*(json|yaml) is not recognized as a component of a Zarr hierarchy")
def test_zarr_python_opens_the_arrays_and_the_tree(tmp_path, rng):
    arrays = example(rng)
    store = write(tmp_path, arrays)
    group = zarr.open_group(str(store.path), mode="r")
    assert group.attrs["spec"] == SPEC.as_json()
    assert set(group.array_keys()) == {"ids", "f64", "mask"} and set(group.group_keys()) == {"block00.resid"}
    assert set(group["block00.resid"].array_keys()) == {"cls", "patch"}
    for name, value in arrays.items():
        array = group[name]
        assert array.dtype == value.dtype and array.shards == (4, *value.shape[1:])
        np.testing.assert_array_equal(array[:], value)
        np.testing.assert_array_equal(zarr.open_array(str(store.path / name), mode="r")[2:5], value[2:5])


@pytest.mark.parametrize("compress", [True, False])
def test_sharding_and_checksums_are_in_the_metadata(tmp_path, rng, compress):
    store = write(tmp_path, example(rng), compress=compress)
    body = json.loads((store.path / "block00.resid/patch/zarr.json").read_text())
    assert body["zarr_format"] == 3 and body["node_type"] == "array"
    assert body["chunk_grid"]["configuration"]["chunk_shape"] == [4, 4, 6]
    (codec,) = body["codecs"]
    assert codec["name"] == "sharding_indexed"
    inner = [c["name"] for c in codec["configuration"]["codecs"]]
    assert inner == (["bytes", "zstd", "crc32c"] if compress else ["bytes", "crc32c"])
    assert [c["name"] for c in codec["configuration"]["index_codecs"]] == ["bytes", "crc32c"]


def test_dimension_names(tmp_path, rng):
    writer = StoreWriter(tmp_path, SPEC)
    writer.put("x", rng.normal(size=(3, 2)), dimensions=("n", "d"))
    store = writer.commit()
    assert json.loads((store.path / "x/zarr.json").read_text())["dimension_names"] == ["n", "d"]
    assert zarr.open_array(str(store.path / "x"), mode="r").metadata.dimension_names == ("n", "d")


def test_large_rows_are_cut_into_chunks_of_at_most_half_a_mebibyte(tmp_path, rng):
    value = rng.normal(size=(12, 40_000)).astype(np.float32)  # 160 kB per row: 3 fit in 512 KiB
    writer = StoreWriter(tmp_path, SPEC)
    writer.create("x", value.shape, "float32", shard_rows=6, compress=False)
    for start in (0, 6):
        writer.write("x", start, value[start : start + 6])
    store = writer.commit()
    assert store.array("x").chunk_layout.read_chunk.shape == (3, 40_000)
    np.testing.assert_array_equal(store.read("x", slice(5, 8)), value[5:8])


# Equal bytes ---------------------------------------------------------------------------------------------------------


def test_equal_input_gives_equal_bytes_in_every_file(tmp_path):
    one = write(tmp_path / "one", example(np.random.default_rng(3)))
    two = write(tmp_path / "two", example(np.random.default_rng(3)))
    a, b = tree(one.path), tree(two.path)
    assert a == b and len(a) > 15
    assert set(json.loads(a["manifest.json"])["files"]) == set(a) - {"manifest.json"}
    assert "cursor.json" not in a
    assert not any(str(tmp_path).encode() in body for body in a.values())


def test_the_manifest_lists_every_file_with_its_size(tmp_path, rng):
    store = write(tmp_path, example(rng))
    files = json.loads((store.path / "manifest.json").read_text())["files"]
    assert files == {k: len(v) for k, v in tree(store.path).items() if k != "manifest.json"}


def test_committing_again_replaces_the_store(tmp_path, rng):
    arrays = example(rng)
    write(tmp_path, {**arrays, "old": arrays["ids"]})
    store = write(tmp_path, arrays)
    assert not (store.path / "old").exists()
    np.testing.assert_array_equal(store.read("ids"), arrays["ids"])


# Names ---------------------------------------------------------------------------------------------------------------

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), plain, max_size=4))
def test_the_name_depends_on_the_content_and_not_on_the_order_of_keys(content):
    turned = dict(reversed(list(content.items())))
    assert StoreSpec("k", 1, content, {}).name == StoreSpec("k", 1, turned, {}).name
    assert json.loads(canonical_json(content)) == content
    assert json.loads(pretty_json(content)) == content


def test_the_name_changes_with_every_part():
    specs = [
        SPEC,
        StoreSpec("codes", 1, SPEC.settings, SPEC.inputs),
        StoreSpec("activations", 2, SPEC.settings, SPEC.inputs),
        StoreSpec("activations", 1, {**SPEC.settings, "dtype": "float32"}, SPEC.inputs),
        StoreSpec("activations", 1, SPEC.settings, {"images": "abd"}),
    ]
    assert len({s.name for s in specs}) == 5
    # Fixed for ever: a changed hash would orphan every store on disk.
    assert StoreSpec("k", 1, {"a": [1, 2.5, None, "ü"]}, {"x": "y"}).name == "k-0268aecf9b335ba3"


def test_nan_is_no_setting():
    with pytest.raises(ValueError, match="JSON"):
        _ = StoreSpec("k", 1, {"a": float("nan")}, {}).name


# Damage --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [True, False])
def test_every_flipped_byte_of_a_shard_is_noticed(tmp_path, rng, compress):
    value = rng.normal(size=(4, 6)).astype(np.float32)
    store = write(tmp_path, {"layer/x": value}, compress=compress)
    (shard,) = shards(store, "layer/x")
    body = shard.read_bytes()
    said = set()
    for place in range(len(body)):
        shard.write_bytes(body[:place] + bytes([body[place] ^ 0x10]) + body[place + 1 :])
        with pytest.raises(StoreError, match=str(shard)) as error:
            Store(store.path).read("layer/x")
        said.add(str(error.value))
    assert [text for text in said if "corrupt" not in text or "Delete that store's folder" not in text] == []
    shard.write_bytes(body)
    np.testing.assert_array_equal(store.read("layer/x"), value)


def test_a_corrupt_shard_is_named_and_the_others_are_still_read(tmp_path, rng):
    arrays = example(rng)
    store = write(tmp_path, arrays)
    shard = shards(store, "f64")[1]
    body = bytearray(shard.read_bytes())
    body[5] ^= 1
    shard.write_bytes(body)
    np.testing.assert_array_equal(store.read("f64", slice(0, 4)), arrays["f64"][:4])
    with pytest.raises(StoreError, match=str(shard.relative_to(store.path))):
        store.read("f64", slice(4, 8))


def test_a_truncated_a_grown_and_a_missing_file_are_noticed_on_opening(tmp_path, rng):
    store = write(tmp_path, example(rng))
    for path in [p for p in store.path.rglob("*") if p.is_file() and p.name != "manifest.json"]:
        body = path.read_bytes()
        name = path.relative_to(store.path).as_posix()
        for damaged in (body[:-1], b"", body + b" ", None):
            if damaged is None:
                path.unlink()
            else:
                path.write_bytes(damaged)
            with pytest.raises(StoreError, match=rf"{name} (is missing|has {len(damaged or b'')} bytes)"):
                Store(store.path)
        path.write_bytes(body)
    Store(store.path)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"files": 3}', b"\xff\xfe", b"null"])
def test_a_damaged_manifest_is_noticed(tmp_path, rng, body):
    store = write(tmp_path, example(rng))
    (store.path / "manifest.json").write_bytes(body)
    with pytest.raises(StoreError, match="damaged"):
        Store(store.path)


def test_damaged_metadata_and_documents_of_the_right_size(tmp_path, rng):
    store = write(tmp_path, example(rng))
    for name in ("ids/zarr.json", "info.json"):
        (store.path / name).write_bytes(b"x" * (store.path / name).stat().st_size)
    reopened = Store(store.path)
    with pytest.raises(StoreError, match="ids"):
        reopened.read("ids")
    with pytest.raises(StoreError, match=r"info\.json"):
        reopened.json("info.json")
    with pytest.raises(StoreError, match="nothing"):
        reopened.read("nothing")
    with pytest.raises(StoreError, match=r"nothing\.json"):
        reopened.json("nothing.json")


def test_an_unfinished_store_is_refused(tmp_path, rng):
    with pytest.raises(StoreError, match="does not exist"):
        Store(tmp_path / SPEC.name)
    writer = StoreWriter(tmp_path, SPEC)
    writer.put("x", rng.normal(size=3))
    assert not is_finished(tmp_path / SPEC.name)
    for path in (tmp_path / SPEC.name, tmp_path / (SPEC.name + PARTIAL)):
        with pytest.raises(StoreError, match="unfinished"):
            Store(path)
    store = writer.commit()
    (store.path / "manifest.json").unlink()
    with pytest.raises(StoreError, match="unfinished"):
        Store(store.path)


@pytest.mark.parametrize(("start", "rows"), [(0, 3), (1, 4), (4, 5), (8, 1), (2, 2)])
def test_only_whole_shards_are_written(tmp_path, start, rows):
    writer = StoreWriter(tmp_path, SPEC)
    writer.create("x", (10, 2), "float32", shard_rows=4)
    with pytest.raises(ValueError, match=rf"{start}:{start + rows} are not whole shards of 4"):
        writer.write("x", start, np.ones((rows, 2)))
    assert not (writer.path / "x" / "c").exists()


@pytest.mark.parametrize(("start", "rows"), [(8, 3), (8, 6), (12, 1)])
def test_rows_beyond_the_end_are_refused(tmp_path, start, rows):
    writer = StoreWriter(tmp_path, SPEC)
    writer.create("x", (10, 2), "float32", shard_rows=4)
    with pytest.raises((ValueError, StoreError)):
        writer.write("x", start, np.ones((rows, 2)))


@pytest.mark.parametrize("block", [(4, 3), (4, 1), (4,), (4, 2, 2)], ids=str)
def test_a_block_of_another_width_is_refused(tmp_path, block):
    writer = StoreWriter(tmp_path, SPEC)
    writer.create("x", (10, 2), "float32", shard_rows=4)
    with pytest.raises((ValueError, StoreError)):
        writer.write("x", 0, np.ones(block))


def resume(stores: Path, arrays: dict[str, np.ndarray], stop_after: int | None, torn: bool = False) -> Store | None:
    """What a resumable stage does; stops as if killed after `stop_after` shards, perhaps in the middle of the next."""
    writer = StoreWriter(stores, SPEC)
    for name, value in arrays.items():
        writer.create(name, value.shape, value.dtype.name, shard_rows=4)
    for block in range(writer.cursor, 3):
        rows = slice(4 * block, 4 * block + 4)
        for name, value in arrays.items():
            if block == stop_after:
                if torn:
                    writer.write(name, 4 * block, 0 * value[rows] + 1)
                return None
            writer.write(name, 4 * block, value[rows])
        writer.advance(block + 1)
    return writer.commit()


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("stop", [0, 1, 2])
def test_an_interrupted_writer_goes_on_and_ends_with_the_same_bytes(tmp_path, rng, stop, torn):
    arrays = example(rng)
    whole = resume(tmp_path / "whole", arrays, None)
    assert whole is not None
    assert resume(tmp_path / "cut", arrays, stop, torn) is None
    partial = tmp_path / "cut" / (SPEC.name + PARTIAL)
    assert (json.loads((partial / "cursor.json").read_text())["done"] if stop else 0) == stop
    assert StoreWriter(tmp_path / "cut", SPEC).cursor == stop
    kept = {p: p.stat().st_mtime_ns for p in partial.rglob("c/0*") if p.is_file()}
    store = resume(tmp_path / "cut", arrays, None)
    assert store is not None and tree(store.path) == tree(whole.path)
    if stop > 0:
        assert all(
            (store.path / p.relative_to(partial)).stat().st_mtime_ns == t for p, t in kept.items() if "0/" in str(p)
        )


def test_leftovers_of_a_killed_writer_do_not_reach_the_store(tmp_path, rng):
    """A kill between a temporary file and its renaming leaves that file: by `replace_text`, or by TensorStore."""
    arrays = example(rng)
    whole = resume(tmp_path / "whole", arrays, None)
    resume(tmp_path / "cut", arrays, 1)
    partial = tmp_path / "cut" / (SPEC.name + PARTIAL)
    (partial / "spec.json.tmp").write_text("half")
    (partial / "ids/c/1.__lock").write_bytes(b"half a shard")
    store = resume(tmp_path / "cut", arrays, None)
    assert whole is not None and store is not None
    assert tree(store.path) == tree(whole.path)


def test_a_kill_between_the_manifest_and_the_renaming(tmp_path, rng):
    """The folder still ends in .partial: not finished, and the next writer commits the same bytes."""
    arrays = example(rng)
    whole = resume(tmp_path / "whole", arrays, None)
    done = resume(tmp_path / "cut", arrays, None)
    assert whole is not None and done is not None
    done.path.rename(done.path.with_name(done.path.name + PARTIAL))
    assert not is_finished(done.path)
    again = resume(tmp_path / "cut", arrays, None)
    assert again is not None and tree(again.path) == tree(whole.path)


@pytest.mark.parametrize("text", ["", "{}", "[]", "nothing"])
def test_a_damaged_cursor_means_starting_anew(tmp_path, rng, text):
    """A power cut can leave an empty file under the final name."""
    arrays = example(rng)
    whole = resume(tmp_path / "whole", arrays, None)
    resume(tmp_path / "cut", arrays, 1)
    (tmp_path / "cut" / (SPEC.name + PARTIAL) / "cursor.json").write_text(text)
    assert StoreWriter(tmp_path / "cut", SPEC).cursor == 0
    store = resume(tmp_path / "cut", arrays, None)
    assert whole is not None and store is not None and tree(store.path) == tree(whole.path)


# Columns in chunks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 127, 128, 129, 300, 1024])
def test_chunks_of_columns(tmp_path, rng, width):
    """Codes fill the front of each row; the zeros behind take no space and read as zeros, by both readers."""
    value = np.zeros((10, width), np.int32)
    for row in value:
        row[: rng.integers(0, min(width, 90) + 1)] = rng.integers(1, 9)
    writer = StoreWriter(tmp_path, SPEC)
    writer.create("x", value.shape, "int32", shard_rows=4, chunk_columns=128)
    for start in range(0, 10, 4):
        writer.write("x", start, value[start : start + 4])
    assert writer.width("x") == width
    store = writer.commit()
    np.testing.assert_array_equal(store.read("x"), value)
    np.testing.assert_array_equal(store.read("x", np.array([9, 0])), value[[9, 0]])
    array = zarr.open_array(str(store.path / "x"), mode="r")
    assert array.chunks[1] == min(128, width)
    np.testing.assert_array_equal(array[:], value)


def test_chunks_of_zeros_take_no_space(tmp_path, rng):
    writer = StoreWriter(tmp_path, SPEC)
    value = np.zeros((8, 1280), np.float32)
    value[:, :128] = rng.normal(size=(8, 128))
    for name, content in (("front", value), ("zeros", np.zeros_like(value))):
        writer.create(name, value.shape, "float32", shard_rows=8, compress=False, chunk_columns=128)
        writer.write(name, 0, content)
    store = writer.commit()
    (shard,) = shards(store, "front")
    # one chunk of data with its checksum, and an index of 16 bytes per chunk with its own
    assert shard.stat().st_size == 8 * 128 * 4 + 4 + 10 * 16 + 4
    assert shards(store, "zeros") == []
    np.testing.assert_array_equal(store.read("zeros"), np.zeros_like(value))
    np.testing.assert_array_equal(zarr.open_group(str(store.path), mode="r")["zeros"][:], np.zeros_like(value))


def test_zeros_over_an_earlier_attempt(tmp_path):
    """A resumed writer may replace a shard of numbers by one of zeros."""
    writer = StoreWriter(tmp_path, SPEC)
    writer.create("x", (4, 256), "float32", shard_rows=4, chunk_columns=128)
    writer.write("x", 0, np.ones((4, 256)))
    writer.write("x", 0, np.zeros((4, 256)))
    store = writer.commit()
    assert shards(store, "x") == [] and not store.read("x").any()


# ShardBuffer ---------------------------------------------------------------------------------------------------------

TOTAL = 23


def buffered(stores: Path, sizes: list[int], shard: int, start: int = 0, resumable: bool = True) -> Store:
    rng = np.random.default_rng(7)
    arrays = {"x": rng.normal(size=(TOTAL, 3)).astype(np.float32), "y/z": rng.integers(0, 99, size=TOTAL)}
    writer = StoreWriter(stores, SPEC)
    for name, value in arrays.items():
        writer.create(name, value.shape, value.dtype.name, shard_rows=shard)
    buffer = ShardBuffer(writer, shard, TOTAL, start, resumable=resumable)
    at = start
    for size in sizes:
        buffer.add({name: value[at : at + size] for name, value in arrays.items()})
        at += size
        written = TOTAL if at >= TOTAL else at // shard * shard
        assert buffer.next == written
        assert writer.cursor == (-(-written // shard) if resumable else 0)
    buffer.add({name: value[at:] for name, value in arrays.items()})
    return writer.commit()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 12), max_size=8), shard=st.sampled_from([1, 4, 5, 23]), resumable=st.booleans())
def test_any_block_sizes_give_the_same_bytes(tmp_path_factory, sizes, shard, resumable):
    folder = tmp_path_factory.mktemp("buffer")
    whole = buffered(folder / "whole", [], shard)
    parts = buffered(folder / "parts", sizes, shard, resumable=resumable)
    assert tree(parts.path) == tree(whole.path)


@pytest.mark.parametrize("start", [0, 5, 20])
def test_a_buffer_that_starts_later(tmp_path, start):
    whole = buffered(tmp_path / "whole", [], 5)
    first = StoreWriter(tmp_path / "parts", SPEC)
    for name in ("x", "y/z"):
        value = whole.read(name)
        first.create(name, value.shape, value.dtype.name, shard_rows=5)
        first.write(name, 0, value[:start])
    first.advance(start // 5)
    parts = buffered(tmp_path / "parts", [4, 4], 5, start)
    assert tree(parts.path) == tree(whole.path)


# Disks ---------------------------------------------------------------------------------------------------------------

FULL = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from sbm_jax.errors import UserError
from sbm_jax.store.spec import StoreSpec
from sbm_jax.store.store import StoreWriter

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = StoreWriter(Path(sys.argv[1]), StoreSpec("x", 1, {}, {}))
writer.create("x", (512, 1024), "float32", shard_rows=512, compress=False)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    if sys.argv[2] == "array":
        writer.write("x", 0, np.ones((512, 1024)))
    else:
        writer.put_json("big.json", ["x" * 200_000])
except UserError as error:
    print(error)
    sys.exit(2)
"""


@pytest.mark.parametrize(("what", "name"), [("array", "x"), ("json", "big.json")])
def test_a_file_that_the_system_will_not_let_grow(tmp_path, what, name):
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path, what], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "the disk is full" in done.stdout and "rerun" in done.stdout and name in done.stdout
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"cannot mount here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def remount(folder: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", folder], check=True, capture_output=True)


def test_a_full_disk_loses_nothing_and_the_rerun_goes_on(small_disk, tmp_path, rng):
    arrays = {"x": rng.normal(size=(10, 12_000))}  # 384 kB per shard
    whole = resume(tmp_path / "whole", arrays, None)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_400_000))
    with pytest.raises(UserError, match=r"the disk is full.*Finished shards are kept: free space and rerun"):
        resume(small_disk, arrays, None)
    assert json.loads((small_disk / (SPEC.name + PARTIAL) / "cursor.json").read_text()) == {"done": 1}
    ballast.unlink()
    store = resume(small_disk, arrays, None)
    assert whole is not None and store is not None
    assert tree(store.path) == tree(whole.path)


def test_a_disk_that_is_full_when_the_store_is_committed(small_disk):
    writer = StoreWriter(small_disk, SPEC)
    writer.put("group/x", np.ones(3))
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(4 << 20))
    with pytest.raises(UserError, match="the disk is full"):
        writer.commit()
    assert not is_finished(writer.final)
    ballast.unlink()
    again = StoreWriter(small_disk, SPEC)
    again.put("group/x", np.ones(3))
    np.testing.assert_array_equal(again.commit().read("group/x"), np.ones(3))


def test_a_read_only_folder(small_disk):
    writer = StoreWriter(small_disk, SPEC)
    writer.put("x", np.ones(3))
    remount(small_disk, "ro")
    message = r"no permission to write there.*--out"
    with pytest.raises(UserError, match=message):
        writer.put("y", np.ones(3))
    with pytest.raises(UserError, match=message):
        writer.put_json("y.json", 1)
    with pytest.raises(UserError, match=message):
        StoreWriter(small_disk / "new", SPEC)
    with pytest.raises(UserError, match=message), run_lock(small_disk):
        pass
    with pytest.raises(UserError, match=message), run_lock(small_disk / "run"):
        pass
    with pytest.raises(UserError, match=message):
        writer.commit()


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        StoreWriter(tmp_path / "file", SPEC)
    with pytest.raises(UserError, match="file"), run_lock(tmp_path / "file"):
        pass


# The lock ------------------------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from sbm_jax.store.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


def test_two_runs_in_one_folder(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            refused = rf"process {holder.pid}\).*Wait for it, or choose another --out"
            with pytest.raises(UserError, match=refused), run_lock(tmp_path):
                pass
            # Being refused takes nothing from the holder.
            with pytest.raises(UserError, match=f"process {holder.pid}"), run_lock(tmp_path):
                pass
            with run_lock(tmp_path / "other"):
                pass
        finally:
            holder.send_signal(signal.SIGKILL)
            holder.wait()
    with run_lock(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_the_lock_is_released_after_an_error_and_makes_its_folder(tmp_path):
    out = tmp_path / "a" / "b"
    with pytest.raises(KeyError), run_lock(out):
        raise KeyError
    with run_lock(out), pytest.raises(UserError, match=f"process {os.getpid()}"), run_lock(out):
        pass
    with run_lock(out):
        pass
