"""The whole matrix of similarities, in blocks of units, against float64."""

from __future__ import annotations

import numpy as np
import pytest

from sbm_jax.kernels import SparseCodes, prepare_responses
from sbm_jax.kernels.cosine_topk import reference
from sbm_jax.kernels.cosine_topk.whole import cosine_keys


@pytest.mark.parametrize("memory", [1 << 12, 1 << 26])
@pytest.mark.parametrize("sparse", [False, True])
def test_every_similarity(rng, sparse, memory):
    n, u, v = 29, 150, 7
    units = np.stack([rng.permutation(u - 5)[:6] for _ in range(n)]).astype(np.int32)
    codes = SparseCodes(rng.random((n, 6)).astype(np.float32), units, u)
    y = rng.standard_normal((n, v)).astype(np.float32)
    y[:, 3] = 2.0
    s, real = reference.similarity(codes.to_dense(np.float64), y, True)
    assert 0 < real.sum() < u
    found = cosine_keys(codes if sparse else codes.to_dense(), prepare_responses(y), memory)
    assert found.shape == (v, u) and found.dtype == np.float32
    np.testing.assert_allclose(found, np.where(real[:, None], s, -2).T, atol=2e-6)


def test_refusals(rng):
    y = prepare_responses(rng.standard_normal((9, 3)))
    with pytest.raises(ValueError, match="8 images"):
        cosine_keys(rng.standard_normal((8, 4)), y)
    codes = rng.standard_normal((9, 4))
    codes[2, 1] = np.nan
    with pytest.raises(ValueError, match="unit 1"):
        cosine_keys(codes, y)
