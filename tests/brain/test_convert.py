"""Trials that come session by session, converted once: the same betas as from an array, after any interruption."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.brain import convert
from sbm_jax.brain.betas import stream_betas, zscore_groups
from sbm_jax.brain.convert import StoredTrials, convert_trials, finished_trials, trials_per_shard
from sbm_jax.brain.dataset import Subject
from sbm_jax.brain.responses import NpyResponses, Responses
from sbm_jax.brain.sessions import Piece, SessionResponses, TrialFile
from sbm_jax.brain.spaces import UnplacedSpace
from sbm_jax.store.spec import StoreSpec
from sbm_jax.store.store import StoreWriter


class ArrayFile(TrialFile):
    """A session in memory that counts how often each of its trials is read."""

    def __init__(self, x_tv: np.ndarray, name: str):
        self.x_tv, self.path, self.reads = x_tv, Path(name), np.zeros(len(x_tv), int)
        self.n_trials, self.n_places = x_tv.shape
        self.dtype = x_tv.dtype

    def working_bytes(self) -> int:
        return 0

    def iter_rows(self, rows, places, height):
        for first in range(0, len(rows), height):
            part = rows[first : first + height]
            self.reads[part] += 1
            yield self.x_tv[np.ix_(part, places)]


def make_sessions(rng, lengths=(30, 21, 30), n_places=40):
    """int16 sessions of two hemispheres, some trials and columns left out; and the array they amount to."""
    pieces, expected = [], []
    columns = [np.sort(rng.choice(n_places, 12, replace=False)), np.sort(rng.choice(n_places, 9, replace=False))]
    for number, length in enumerate(lengths):
        halves = [rng.integers(-900, 900, (length, n_places)).astype(np.int16) for _ in range(2)]
        halves[0][:, columns[0][3]] = 0 if number == 1 else halves[0][:, columns[0][3]]
        rows = np.sort(rng.choice(length, length - 2, replace=False))
        files = [ArrayFile(half, f"{side}.session{number + 1}") for side, half in zip("lr", halves, strict=True)]
        pieces.append(Piece(rows, tuple(zip(files, columns, strict=True))))
        expected.append(
            np.concatenate([half[np.ix_(rows, c)] for half, c in zip(halves, columns, strict=True)], axis=1)
        )
    return SessionResponses(tuple(pieces), divisor=300, zero_is_missing=True), np.concatenate(expected)


def writer(folder):
    return StoreWriter(folder, StoreSpec("trials", 1, {}, {}))


@given(start=st.integers(0, 75), memory=st.integers(1, 20_000))
@settings(max_examples=30, deadline=None)
def test_trials_come_in_order_from_any_start(start, memory):
    responses, expected = make_sessions(np.random.default_rng(3))
    got = list(responses.iter_trials(start, memory))
    np.testing.assert_array_equal(np.concatenate([np.empty((0, 21), np.int16), *got]), expected[start:])
    assert all(block.dtype == np.int16 for block in got)
    # a block and the parts it is joined from stay within the budget, unless a single trial does not
    assert all(2 * block.nbytes <= max(memory, 2 * 21 * 2) for block in got)


def test_where_names_the_file_and_the_place(rng):
    responses, expected = make_sessions(rng)
    piece = responses.pieces[1]
    file, places = piece.parts[1]
    assert responses.where(28 + 2, 12 + 4) == f"r.session2: trial {piece.rows[2] + 1}, place {places[4] + 1}"
    assert expected[30, 16] == file.x_tv[piece.rows[2], places[4]]


def test_conversion_reads_every_trial_once_and_keeps_the_numbers(rng, tmp_path):
    responses, expected = make_sessions(rng)
    done = []
    target = writer(tmp_path)
    convert_trials(responses, target, 1 << 20, done.append)
    stored = StoredTrials(target.commit(), responses)
    assert sum(done) == len(expected) and stored.divisor == 300 and stored.zero_is_missing
    np.testing.assert_array_equal(stored.read_voxels(slice(2, 19)), expected[:, 2:19])
    np.testing.assert_array_equal(np.concatenate(list(stored.iter_trials(5, 700))), expected[5:])
    for piece in responses.pieces:
        for file, _ in piece.parts:
            assert (file.reads[piece.rows] == 1).all() and file.reads.sum() == len(piece.rows)


def test_a_killed_conversion_goes_on_behind_its_last_shard(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "_SHARD_BYTES", 21 * 2 * 16)
    assert trials_per_shard(21, 2) == 16
    responses, expected = make_sessions(rng)

    class Stops(Exception):
        pass

    def stop_after(limit):
        seen = []

        def advance(count):
            seen.append(count)
            if sum(seen) >= limit:
                raise Stops

        return advance

    with pytest.raises(Stops):
        convert_trials(responses, writer(tmp_path), 21 * 2 * 2 * 10, stop_after(50))
    again = writer(tmp_path)
    found = finished_trials(responses, again)
    assert found == 48
    done = []
    convert_trials(responses, again, 21 * 2 * 2 * 7, done.append)
    assert sum(done) == len(expected) - found
    np.testing.assert_array_equal(StoredTrials(again.commit(), responses).read_voxels(slice(0, 21)), expected)


def subject_of(responses: Responses, session: np.ndarray, run: np.ndarray, image: np.ndarray) -> Subject:
    return Subject("s", responses, image, session, run, UnplacedSpace("none", responses.n_voxels), {})


@pytest.mark.parametrize("within", ["session", "run", "none"])
def test_betas_of_converted_sessions_equal_plain_numpy(rng, tmp_path, within):
    responses, expected = make_sessions(rng)
    session = np.repeat([1, 2, 4], [28, 19, 28])
    run = np.concatenate([np.repeat([1, 2], [15, 13]), np.repeat([1, 2], [9, 10]), np.repeat([1, 2], [14, 14])])
    image = np.concatenate([np.arange(25), rng.permutation(25), rng.permutation(25)])
    target = writer(tmp_path)
    convert_trials(responses, target, 1 << 20)
    subject = subject_of(StoredTrials(target.commit(), responses), session, run, image)
    psc = expected.astype(np.float64) / 300
    psc[np.ix_(session == 2, [3])] = np.nan
    groups = {"session": session, "run": session * 10 + run, "none": None}[within]
    for group in np.unique(groups) if groups is not None else []:
        part = psc[groups == group]
        psc[groups == group] = (part - part.mean(axis=0)) / part.std(axis=0)
    blocks = list(stream_betas(subject, memory_bytes=75 * 21 * 12, zscore=within))
    assert len(blocks) > 1
    betas = np.concatenate([block.betas_nv for block in blocks], axis=1)
    direct = np.stack([np.nanmean(psc[image == i], axis=0) for i in range(25)])
    np.testing.assert_allclose(betas, direct, atol=5e-6)
    counts = np.concatenate([block.counts_nv for block in blocks], axis=1)
    np.testing.assert_array_equal(
        counts, [[(~np.isnan(psc[image == i, v])).sum() for v in range(21)] for i in range(25)]
    )
    later = np.concatenate([b.betas_nv for b in stream_betas(subject, zscore=within, start=8)], axis=1)
    np.testing.assert_array_equal(later, betas[:, 8:])


def test_unscaled_trials_have_the_same_ncsnr_in_any_unit(rng, tmp_path):
    """Without z-scoring the noise variance is relative to the trials' own variance, so units cancel."""
    x = rng.normal(0, 1, (60, 5)) + rng.normal(0, 1, (20, 5))[np.tile(np.arange(20), 3)]
    values = []
    for scale, name in ((1.0, "a"), (40.0, "b")):
        np.save(tmp_path / f"{name}.npy", (x * scale).astype(np.float64))
        ones = np.ones(60, np.int64)
        subject = subject_of(NpyResponses(tmp_path / f"{name}.npy", 60, 5), ones, ones, np.tile(np.arange(20), 3))
        values.append(next(stream_betas(subject, zscore="none")).ncsnr_v)
        scored = next(stream_betas(subject, zscore="session")).ncsnr_v
        np.testing.assert_allclose(values[-1], scored, rtol=1e-4)
    np.testing.assert_allclose(values[0], values[1], rtol=1e-4)


def test_averages_are_not_scored_again(rng, tmp_path):
    np.save(tmp_path / "x.npy", rng.normal(3, 2, (10, 4)).astype(np.float32))
    ones = np.ones(10, np.int64)
    subject = subject_of(NpyResponses(tmp_path / "x.npy", 10, 4), ones, ones, np.arange(10))
    given_ = replace(subject, averaged=True)
    assert zscore_groups(given_, "session") is None
    np.testing.assert_array_equal(next(stream_betas(given_)).betas_nv, np.load(tmp_path / "x.npy"))
    assert np.isnan(next(stream_betas(given_)).ncsnr_v).all()
