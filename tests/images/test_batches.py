"""Prefetched batches: order, the short last one, damaged files, and no thread left behind."""

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sbm_jax.errors import UserError
from sbm_jax.images import batches, load_square, square_batches


@pytest.fixture
def paths(tmp_path: Path, rng: np.random.Generator) -> list[Path]:
    found = []
    for i in range(10):
        found.append(tmp_path / f"{i}.png")
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).save(found[-1])
    return found


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_come_in_order_with_a_short_last_one(paths, workers):
    got = list(square_batches(paths, 8, 4, workers))
    assert [len(batch) for batch in got] == [4, 4, 2]
    assert all(batch.dtype == np.uint8 for batch in got)
    np.testing.assert_array_equal(np.concatenate(got), [load_square(path, 8) for path in paths])
    assert not decoding_threads()


def test_no_paths_give_no_batches():
    assert list(square_batches([], 8, 4)) == []


def test_a_damaged_file_is_named_after_the_batches_before_it(paths):
    paths[6].write_bytes(b"")
    stream = square_batches(paths, 8, 4, 2)
    assert len(next(stream)) == 4
    with pytest.raises(UserError, match=r"6\.png: not a readable image"):
        next(stream)
    assert not decoding_threads()


def test_closing_early_stops_the_threads(paths):
    stream = square_batches(paths, 8, 2, 2)
    next(stream)
    assert decoding_threads()
    stream.close()
    assert not decoding_threads()


def test_only_a_few_batches_are_read_ahead(paths, monkeypatch):
    read = []

    def counting(path: Path, side: int) -> np.ndarray:
        read.append(path)
        return load_square(path, side)

    monkeypatch.setattr(batches, "load_square", counting)
    stream = square_batches(paths, 8, 2, 2)
    next(stream)
    stream.close()
    assert 2 <= len(read) <= 2 * (batches.AHEAD + 1)


@pytest.mark.parametrize(("batch", "workers"), [(0, 1), (1, 0)])
def test_sizes_below_one_are_refused(paths, batch, workers):
    with pytest.raises(ValueError, match="at least 1"):
        next(square_batches(paths, 8, batch, workers))
