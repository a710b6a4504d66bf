"""Unlearned features: principal axes, random directions with and without ReLU, as functions and as a stage writes them."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.mesh import make_mesh
from sbm_jax.stages.controls import codes, fit, principal_axes

EPS = float(np.finfo(np.float32).eps)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(1, 12))
def test_principal_axes_are_a_rotation_that_orders_variance(seed, n, d):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)).astype(np.float32)
    mean, axes = principal_axes(x)
    z = (x.astype(np.float64) - mean) @ axes.astype(np.float64)
    variances = z.var(axis=0)
    bound = 64 * EPS * max(variances.max(), 1e-30)
    assert (np.diff(variances) <= bound).all()
    assert variances.sum() == pytest.approx(x.astype(np.float64).var(axis=0).sum(), rel=1e-4)
    real = np.linalg.norm(axes, axis=0) > 0
    assert real.sum() <= min(n - 1, d) or n > d
    np.testing.assert_allclose(axes[:, real].T @ axes[:, real], np.eye(real.sum()), atol=16 * EPS * d)
    covariance = np.cov(z[:, real].T, bias=True).reshape(real.sum(), real.sum())
    np.testing.assert_allclose(covariance, np.diag(variances[real]), atol=bound * d)
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(d)]
    assert (largest[real] > 0).all()


class Source:
    """Patch tokens of two hooks, and which images were read."""

    def __init__(self, rng: np.random.Generator):
        self.x = {f"{hook}/patch": rng.normal(1.0, 1.0, (30, 5, 6)).astype(np.float16) for hook in ("a", "b")}
        self.seen: set[int] = set()

    def array(self, name):
        return self.x[name]

    def read(self, name, rows):
        self.seen |= set(rows.tolist())
        return self.x[name][rows]


def test_codes_equal_the_definitions_on_eight_devices_for_any_number_of_images(rng):
    assert len(jax.devices()) == 8
    source, images = Source(rng), np.arange(4, 25)
    controls = fit(source, ("a", "b"), images, 13, 3)["b"]
    assert source.seen == set(images.tolist())
    x = source.x["b/patch"]
    x64 = x.astype(np.float64)
    raw = x.astype(np.float32).mean(axis=1)
    mean = x64[images].mean(axis=(0, 1))
    np.testing.assert_allclose(controls.mean, mean, atol=16 * EPS)
    np.testing.assert_allclose(np.linalg.norm(controls.directions, axis=0), 1, atol=4 * EPS)
    mesh = make_mesh({"data": 8}, jax.devices())
    found = {mode: codes(mode, controls, x, raw, mesh, 16) for mode in ("raw", "pca", "random", "random_relu")}
    want = {
        "raw": x64.mean(axis=1),
        "pca": (x64.mean(axis=1) - mean) @ controls.axes,
        "random": x64.mean(axis=1) @ controls.directions,
        "random_relu": np.maximum((x64 - mean) @ controls.directions, 0).mean(axis=1),
    }
    for mode, expected in want.items():
        assert found[mode].dtype == np.float32
        np.testing.assert_allclose(found[mode], expected, atol=64 * EPS * np.abs(expected).max(), err_msg=mode)


def test_without_images_nothing_is_fitted(rng):
    source = Source(rng)
    controls = fit(source, ("a",), np.empty(0, np.int64), 13, 3)["a"]
    assert not source.seen and controls.mean.shape == (0,) and controls.directions.shape == (6, 13)


@pytest.mark.slow
def test_the_stage_writes_controls_that_held_out_images_did_not_shape(stores, tiny, program, make_config, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(tiny.out, out, ignore=shutil.ignore_patterns("codes-*", "align-*", "rsa-*", "roi-*", "layers-*"))
    config = make_config(
        tmp_path / "c.yaml", encode={"modes": ["cls", "patch_mean", "patch_max", "pca", "random_relu"]}
    )
    program("run", "--config", config, "--out", out, "--stages", "encode..align")
    (folder,) = (out / "stores").glob("codes-*")
    shared = stores.table("images.csv")["shared"] == "1"
    x = stores.array("activations", "block05.resid/patch")
    mean, axes = principal_axes(x[~shared].astype(np.float32).mean(axis=1))
    pca = np.asarray(zarr.open_array(folder / "pca" / "block05.resid", mode="r")[...])
    expected = (x.astype(np.float32).mean(axis=1) - mean) @ axes
    np.testing.assert_allclose(pca, expected, atol=1e-5 * np.abs(expected).max())
    relu = np.asarray(zarr.open_array(folder / "random_relu" / "block05.resid", mode="r")[...])
    assert relu.shape == (len(x), 2 * x.shape[2]) and relu.min() >= 0 and (relu.std(axis=0) > 0).mean() > 0.9
    aligned = sorted((out / "stores").glob("align-*"))
    assert len(aligned) == 2
    units = np.asarray(zarr.open_array(aligned[0] / "pca" / "voxel_units", mode="r")[...])
    assert units.max() < 2 * x.shape[2], "as many candidates as layers times width"
