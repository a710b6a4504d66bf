"""Activations that several tests of training share."""

from __future__ import annotations

import numpy as np
import pytest

from sbm_jax.store.spec import StoreSpec
from sbm_jax.store.store import Store, StoreWriter


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Store:
    """60 images, a CLS token and 4 patches of width 10 at two hooks: sparse mixtures of 20 directions, float32."""
    rng = np.random.default_rng(4)
    writer = StoreWriter(tmp_path_factory.mktemp("acts"), StoreSpec("activations", 1, {}, {}))
    for hook in ("block00.resid", "block03.resid"):
        mixed = rng.exponential(size=(60, 5, 20)) * (rng.random((60, 5, 20)) < 0.15) @ rng.normal(size=(20, 10))
        writer.put(f"{hook}/cls", mixed[:, 0].astype(np.float32))
        writer.put(f"{hook}/patch", mixed[:, 1:].astype(np.float32))
    return writer.commit()
