"""Mixing across a store: the place of an image says nothing about when it is seen, in no epoch and for no seed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sbm_jax.sae.stream import TokenStream
from sbm_jax.store.spec import StoreSpec
from sbm_jax.store.store import Store, StoreWriter

IMAGES, TOKENS, BATCH, POOL = 240, 12, 96, 720  # a pool is 60 images


@pytest.fixture(scope="module")
def numbered(tmp_path_factory) -> Store:
    """Patch tokens that hold the number of their image and their own."""
    writer = StoreWriter(tmp_path_factory.mktemp("numbered"), StoreSpec("activations", 1, {}, {}))
    image, token = np.meshgrid(np.arange(IMAGES), np.arange(TOKENS), indexing="ij")
    writer.put("block00.resid/patch", np.stack([image, token], axis=2).astype(np.float32))
    return writer.commit()


def epoch(store: Store, number: int, seed: int = 0) -> np.ndarray:
    """[batches, b, 2]: image and token of everything in one epoch."""
    stream = TokenStream(store, ("block00.resid",), "patch", np.arange(IMAGES), BATCH, POOL, seed)
    count = sum(stream.batches)
    return np.stack([stream.at(number * count + step)[0] for step in range(count)]).astype(int)


def test_where_an_image_lies_in_the_store_says_nothing_about_when_it_is_seen(numbered):
    """All images are permuted anew in every epoch, whatever shard they are in: rank correlation of place and time is noise."""
    for number in range(3):
        seen = epoch(numbered, number)[..., 0]
        first = np.array([np.flatnonzero((seen == image).any(axis=1))[0] for image in range(IMAGES)])
        assert stats.spearmanr(np.arange(IMAGES), first).pvalue > 1e-4


def test_epochs_and_seeds_have_batches_of_their_own(numbered):
    """Images that the first pools of two epochs share: hypergeometric, 15 of 60 expected."""
    pool = POOL // BATCH

    def first_pool(number: int, seed: int = 0) -> set[int]:
        return set(epoch(numbered, number, seed)[:pool, :, 0].ravel().tolist())

    base = first_pool(0)
    assert len(base) == POOL // TOKENS
    for other in (first_pool(1), first_pool(2), first_pool(0, seed=1)):
        low, high = stats.hypergeom(IMAGES, 60, 60).ppf([1e-5, 1 - 1e-5])
        assert low <= len(base & other) <= high
