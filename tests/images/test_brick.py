"""Pictures inside HDF5 arrays: every layout of the file, many threads, and wrong or damaged bricks."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from sbm_jax.errors import UserError
from sbm_jax.images import BrickImage, open_image, square, square_batches
from sbm_jax.images.brick import Brick

N, HEIGHT, WIDTH = 12, 9, 7


@pytest.fixture
def pictures(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (N, HEIGHT, WIDTH, 3), np.uint8)


def write(path: Path, pictures: np.ndarray, layout: str) -> Path:
    """`imgBrick` in one of the ways in which HDF5 can keep an array."""
    options: dict[str, object] = {
        "chunked": {"chunks": (5, HEIGHT, WIDTH, 3)},
        "compressed": {"chunks": (1, HEIGHT, WIDTH, 3), "compression": "gzip", "shuffle": True},
        "external": {"external": [(path.with_suffix(".raw"), 0, h5py.h5f.UNLIMITED)]},
    }.get(layout, {})
    target = path.with_suffix(".target.h5") if layout == "linked" else path
    with h5py.File(target, "w", userblock_size=512 if layout == "user block" else 0) as file:
        file["other"] = np.arange(7)
        if layout == "virtual":
            file["parts"] = pictures
            whole = h5py.VirtualLayout(pictures.shape, np.uint8)
            whole[:] = h5py.VirtualSource(".", "parts", pictures.shape)
            file.create_virtual_dataset("imgBrick", whole)
        else:
            file.create_dataset("imgBrick", data=pictures, **options)
    if layout == "linked":
        with h5py.File(path, "w") as file:
            file["imgBrick"] = h5py.ExternalLink(target.name, "imgBrick")
    return path


LAYOUTS = ["contiguous", "user block", "linked", "chunked", "compressed", "external", "virtual"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_every_layout(tmp_path, pictures, layout):
    path = write(tmp_path / "stimuli.hdf5", pictures, layout)
    for row in range(N):
        np.testing.assert_array_equal(np.asarray(open_image(BrickImage(path, "imgBrick", row))), pictures[row])


def test_nothing_written_is_black(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("imgBrick", (N, 4, 5, 3), np.uint8)
    assert not np.asarray(open_image(BrickImage(tmp_path / "a.h5", "imgBrick", 3))).any()


def test_a_source_says_its_file_array_and_row():
    assert str(BrickImage(Path("nsd/nsd_stimuli.hdf5"), "imgBrick", 12)) == "nsd_stimuli.hdf5[imgBrick, row 12]"


@pytest.mark.parametrize("layout", ["contiguous", "compressed"])
def test_many_threads_read_what_one_would(tmp_path, pictures, layout):
    sources = [BrickImage(write(tmp_path / f"{layout}.h5", pictures, layout), "imgBrick", i % N) for i in range(400)]
    start = threading.Barrier(8)

    def read(worker: int) -> bool:
        start.wait()
        return all(np.array_equal(open_image(s), pictures[s.row]) for s in sources[worker::8])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))


def test_bricks_and_files_mix_in_batches(tmp_path, pictures):
    path = write(tmp_path / "stimuli.hdf5", pictures, "contiguous")
    open_image(BrickImage(path, "imgBrick", 5)).save(tmp_path / "five.png")
    sources = [BrickImage(path, "imgBrick", 11), tmp_path / "five.png", BrickImage(path, "imgBrick", 0)]
    (got,) = square_batches(sources, square(6), 3, 2)
    for one, row in zip(got, (11, 5, 0), strict=True):
        np.testing.assert_array_equal(one, square(6)(open_image(BrickImage(path, "imgBrick", row))))


def test_a_file_written_anew_is_opened_anew(tmp_path, pictures):
    source = BrickImage(write(tmp_path / "a.h5", pictures, "contiguous"), "imgBrick", 2)
    open_image(source)
    write(tmp_path / "a.h5", np.concatenate([255 - pictures, pictures]), "contiguous")
    np.testing.assert_array_equal(np.asarray(open_image(source)), 255 - pictures[2])


@pytest.mark.parametrize("row", [-1, N, 73000])
def test_rows_that_are_not_there(tmp_path, pictures, row):
    path = write(tmp_path / "a.h5", pictures, "contiguous")
    with pytest.raises(UserError, match=rf"a\.h5\[imgBrick\]: has 12 pictures \(rows 0 to 11\), but row {row}"):
        open_image(BrickImage(path, "imgBrick", row))


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((4, 5, 6, 3), np.float32), r"float32 \[4, 5, 6, 3\]"),
        (np.zeros((4, 5, 6, 3), np.int8), r"int8 \[4, 5, 6, 3\]"),
        (np.zeros((4, 3, 5, 6), np.uint8), r"uint8 \[4, 3, 5, 6\]"),
        (np.zeros((5, 6, 3), np.uint8), r"uint8 \[5, 6, 3\]"),
        (np.zeros((0, 5, 6, 3), np.uint8), r"uint8 \[0, 5, 6, 3\]"),
    ],
)
def test_what_is_no_brick(tmp_path, array, found):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["imgBrick"] = array
    with pytest.raises(
        UserError, match=rf"a\.h5\[imgBrick\]: expected pictures as uint8 \[n, h, w, 3\], found {found}"
    ):
        open_image(BrickImage(tmp_path / "a.h5", "imgBrick", 0))


def test_files_that_are_missing_foreign_or_without_the_array(tmp_path, pictures):
    with pytest.raises(UserError, match=r"gone\.h5: no such image file"):
        open_image(BrickImage(tmp_path / "gone.h5", "imgBrick", 0))
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(UserError, match=r"text\.h5: not a readable HDF5 file"):
        open_image(BrickImage(tmp_path / "text.h5", "imgBrick", 0))
    path = write(tmp_path / "a.h5", pictures, "contiguous")
    with pytest.raises(UserError, match=r"expected an array named 'brick', found \['imgBrick', 'other'\]"):
        open_image(BrickImage(path, "brick", 0))
    with pytest.raises(UserError, match="expected an array named '/'"):
        open_image(BrickImage(path, "/", 0))


@pytest.mark.parametrize("layout", ["contiguous", "chunked", "compressed"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.999])
def test_truncated_files_are_named(tmp_path, pictures, layout, kept):
    path = write(tmp_path / "a.h5", pictures, layout)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(UserError, match=r"a\.h5: not a readable HDF5 file"):
        open_image(BrickImage(path, "imgBrick", N - 1))


@pytest.mark.parametrize("layout", ["contiguous", "compressed"])
def test_a_file_cut_while_it_is_read(tmp_path, pictures, layout):
    path = write(tmp_path / "a.h5", pictures, layout)
    brick = Brick(path, "imgBrick")
    np.testing.assert_array_equal(brick[0], pictures[0])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 4])
    with pytest.raises(UserError, match=r"a\.h5\[imgBrick\]: row 11 is not readable"):
        brick[N - 1]


def test_a_damaged_chunk_is_named(tmp_path, pictures):
    path = write(tmp_path / "a.h5", pictures, "compressed")
    with h5py.File(path, "r") as file:
        chunk = file["imgBrick"].id.get_chunk_info(4)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(data)
    np.testing.assert_array_equal(np.asarray(open_image(BrickImage(path, "imgBrick", 3))), pictures[3])
    with pytest.raises(UserError, match=r"row 4 is not readable"):
        open_image(BrickImage(path, "imgBrick", 4))
