"""One device and eight: which numbers are the same, which differ by rounding and how much; work is really spread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

DEVICES = (1, 8)
MODES = ("cls", "patch_mean", "patch_max", "raw", "random")
ARRAYS = ("voxel_values", "voxel_units", "held_out", "layer_values")


@pytest.fixture(scope="module")
def runs(tiny, program, tmp_path_factory) -> dict[int, tuple[Path, str]]:
    """Folder and log of the tiny run on each number of devices."""
    out = {}
    for count in DEVICES:
        folder = tmp_path_factory.mktemp(f"devices{count}") / "run"
        done = program("--cpu-devices", count, "run", "--config", tiny.config, "--out", folder)
        out[count] = (folder, done.stderr)
    return out


def _array(run: Path, kind: str, name: str, number: int = 0) -> np.ndarray:
    folder = sorted(run.glob(f"stores/{kind}-*"))[number]
    return np.asarray(zarr.open_array(folder / name, mode="r")[...])


def _numbers(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in _numbers(part, f"{path}/{key}").items()}
    if isinstance(value, list):
        return {k: v for i, part in enumerate(value) for k, v in _numbers(part, f"{path}/{i}").items()}
    return {path: value}


@pytest.mark.slow
def test_training_is_spread(runs):
    """Four autoencoders over `sae`, the tokens of a batch over `data`."""
    assert "4 autoencoders of 256 units over mesh {'sae': 4, 'units': 1, 'data': 2}" in runs[8][1]
    assert "4 autoencoders of 256 units over mesh {'sae': 1, 'units': 1, 'data': 1}" in runs[1][1]
    for count in DEVICES:
        provenance = json.loads(next(runs[count][0].glob("stores/saes-*/provenance.json")).read_text())
        assert provenance["devices"] == ["cpu:cpu"] * count


@pytest.mark.slow
def test_stores_have_the_same_names(runs):
    names = [sorted(p.name for p in (out / "stores").iterdir()) for out, _ in runs.values()]
    assert names[0] == names[1]


@pytest.mark.slow
def test_activations_and_betas(runs):
    """Responses do not touch a device; float16 activations agree to one unit in the last place of the largest values."""
    one, eight = (runs[count][0] for count in DEVICES)
    np.testing.assert_array_equal(_array(one, "betas", "betas"), _array(eight, "betas", "betas"))
    for hook in ("block01.resid", "block05.resid"):
        for kind in ("cls", "patch"):
            a, b = (_array(out, "activations", f"{hook}/{kind}").astype(np.float32) for out in (one, eight))
            np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(a).max())


@pytest.mark.slow
def test_autoencoders(runs):
    """Float32 sums over halves of a batch; measured: 1.5e-6 of the largest weight after twelve steps."""
    one, eight = (runs[count][0] for count in DEVICES)
    for name in ("w_enc", "w_dec", "b_enc", "b_dec", "mean", "scale"):
        a, b = (_array(out, "saes", name) for out in (one, eight))
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(a).max(), err_msg=name)
    np.testing.assert_allclose(*(_array(out, "saes", "losses") for out in (one, eight)), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", [0, 1])
def test_alignment(runs, mode, number):
    """Similarities agree to float32; another unit is chosen only where two are tied, and equal choices score equally.

    Many CLS units fire on one selection image alone; these tie exactly on any device, and the lowest of them is chosen.
    """
    one, eight = ({key: _array(runs[n][0], "align", f"{mode}/{key}", number) for key in ARRAYS} for n in DEVICES)
    np.testing.assert_allclose(one["voxel_values"], eight["voxel_values"], atol=1e-5)
    np.testing.assert_allclose(one["layer_values"], eight["layer_values"], atol=1e-5)
    same = one["voxel_units"] == eight["voxel_units"]
    np.testing.assert_allclose(one["held_out"][same], eight["held_out"][same], atol=1e-5)
    values = one["voxel_values"]
    gap = np.minimum(np.abs(np.diff(values, prepend=9)), np.abs(np.diff(values, append=-9)))  # to the neighbours listed
    last = np.arange(values.shape[1]) == values.shape[1] - 1  # the next one after the list is not known
    assert (same | (gap < 1e-5) | last).all()
    assert same[:, 0].mean() > 0.999


# What rounding may move, by the start or the end of a number's path: a rank correlation, in which ranks of nearly equal cells
# change places; shares over small regions, where one voxel of 50 may change sides; and choices among nearly equal things, by
# which exemplars, pursued units, or receptive fields of a few voxels differ, and with them means over these.
LOOSE_STARTS = {"/joint/": 0.01, "/explain/": 0.02, "/agreement/": 1e-3, "/pooling/": 0.05}
LOOSE_ENDS = {"structure": 1e-3, "found": 0.02, "shuffled": 0.02, "above_0.1": 0.02}


def _tolerance(path: str) -> float:
    last = path.rsplit("/", 1)[1]
    for part, tolerance in LOOSE_STARTS.items():
        if path.startswith(part):
            return tolerance
    if last.startswith("structure"):
        return LOOSE_ENDS["structure"]
    if last in LOOSE_ENDS or "/best_layer_share/" in path:
        return LOOSE_ENDS.get(last, 0.02)
    if path.startswith(("/layers", "/recovery")) and not any(f"/{mode}/" in path for mode in ("raw", "random")):
        return 3e-3
    return 1e-5 if path.startswith(("/saes", "/rsa", "/dataset")) or last == "max" else 1e-4


@pytest.mark.slow
def test_summary(runs):
    """Every number of summary.json, to float32 but for what is said above. Soft matching's held-out score is left out: of
    flows that are equally good in sample, which `soft` checks, rounding takes another, and nothing ties their scores elsewhere.
    """
    one, eight = (_numbers(json.loads((runs[count][0] / "summary.json").read_text())) for count in DEVICES)
    assert one.keys() == eight.keys()
    compared = 0
    for path, a in one.items():
        if path.endswith("/soft_held_out"):
            continue
        compared += 1
        if path.startswith("/pooling/") and isinstance(a, int):
            assert abs(eight[path] - a) <= 0.02 * a, path  # voxels whose field is not the uniform one
        elif isinstance(a, float):
            assert eight[path] == pytest.approx(a, abs=_tolerance(path), nan_ok=True), path
        else:
            assert eight[path] == a, path
    assert compared > 5_000


def test_alignment_is_spread(rng):
    """In this process with its eight devices: responses lie in eight blocks of voxels, results are those of one device."""
    import jax

    from sbm_jax.kernels import cosine_topk_both, prepare_responses
    from sbm_jax.mesh import make_mesh

    devices = jax.devices()
    assert len(devices) == 8
    codes, responses = rng.standard_normal((40, 96)), rng.standard_normal((40, 203))
    codes, responses = codes.astype(np.float32), responses.astype(np.float32)
    spread = prepare_responses(responses, mesh=make_mesh({"units": 1, "voxels": 8}, devices))
    shards = spread.y_nv.addressable_shards
    assert {shard.device for shard in shards} == set(devices)
    assert len({str(shard.index) for shard in shards}) == 8
    ours = cosine_topk_both(codes, spread, 5, 5)
    theirs = cosine_topk_both(codes, responses, 5, 5)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_training_state_is_spread():
    """Each of four autoencoders lies on its own pair of devices."""
    import jax

    from sbm_jax.config import TrainConfig
    from sbm_jax.mesh import training_mesh
    from sbm_jax.sae.model import init_params
    from sbm_jax.sae.step import init_state, put_state

    mesh = training_mesh(4, 1, 64, jax.devices())
    assert dict(mesh.shape) == {"sae": 4, "units": 1, "data": 2}
    state = put_state(init_state(init_params(np.arange(4), 8, 16, 0.5), TrainConfig(), 1), mesh)
    shards = state.params.w_enc.addressable_shards
    assert len({shard.device for shard in shards}) == 8
    assert sorted({shard.index[0].start for shard in shards}) == [0, 1, 2, 3]
    assert all(shard.data.shape == (1, 8, 8) for shard in shards)  # and half of the 16 units on each of the pair
