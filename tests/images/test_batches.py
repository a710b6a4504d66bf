"""Prefetched batches: order, the short last one, damaged files, bounded memory, and no thread left behind."""

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sbm_jax.errors import UserError
from sbm_jax.images import ImageSource, batches, load_square, open_image, square, square_batches, stretch


@pytest.fixture
def paths(tmp_path: Path, rng: np.random.Generator) -> list[Path]:
    found = []
    for i in range(10):
        found.append(tmp_path / f"{i}.png")
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).save(found[-1])
    return found


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.parametrize("workers", [1, 3, None])
@pytest.mark.parametrize("geometry", [square(8), stretch(8)])
def test_batches_come_in_order_with_a_short_last_one(paths, workers, geometry):
    got = list(square_batches(paths, geometry, 4, workers))
    assert [len(batch) for batch in got] == [4, 4, 2]
    assert all(batch.dtype == np.uint8 for batch in got)
    np.testing.assert_array_equal(np.concatenate(got), [geometry(open_image(path)) for path in paths])
    assert not decoding_threads()


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 9, 10, 11, 40])
def test_every_batch_size_gives_the_same_pictures(paths, batch):
    got = list(square_batches(paths, square(5), batch, 2))
    assert [len(b) for b in got] == [min(batch, 10 - start) for start in range(0, 10, batch)]
    np.testing.assert_array_equal(np.concatenate(got), [load_square(path, 5) for path in paths])


def test_no_paths_give_no_batches():
    assert list(square_batches([], square(8), 4)) == []


def test_a_damaged_file_is_named_after_the_batches_before_it(paths):
    paths[6].write_bytes(b"")
    stream = square_batches(paths, square(8), 4, 2)
    assert len(next(stream)) == 4
    with pytest.raises(UserError, match=r"6\.png: not a readable image"):
        next(stream)
    assert not decoding_threads()


def test_the_first_of_two_damaged_files_is_named(paths):
    paths[2].write_bytes(b"")
    paths[1].unlink()
    with pytest.raises(UserError, match=r"1\.png: no such image file"):
        next(square_batches(paths, square(8), 4, 3))


def test_closing_early_stops_the_threads(paths):
    stream = square_batches(paths, square(8), 2, 2)
    next(stream)
    assert decoding_threads()
    stream.close()
    assert not decoding_threads()


def test_only_a_few_batches_are_read_ahead(paths, monkeypatch):
    read = []

    def counting(source: ImageSource) -> Image.Image:
        read.append(source)
        return open_image(source)

    monkeypatch.setattr(batches, "open_image", counting)
    stream = square_batches(paths, square(8), 2, 2)
    next(stream)
    stream.close()
    assert 2 <= len(read) <= 2 * (batches.AHEAD + 1)


def test_batches_kept_by_the_caller_are_not_written_again(paths):
    stream = square_batches(paths, square(8), 2, 2)
    first = next(stream)
    before = first.copy()
    for later in stream:
        assert not np.shares_memory(first, later)
    np.testing.assert_array_equal(first, before)


@pytest.mark.parametrize(("batch", "workers"), [(0, 1), (1, 0)])
def test_sizes_below_one_are_refused(paths, batch, workers):
    with pytest.raises(ValueError, match="at least 1"):
        next(square_batches(paths, square(8), batch, workers))
