"""One device and eight: which numbers are the same, which differ by rounding and how much; work is really spread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

DEVICES = (1, 8)


@pytest.fixture(scope="module")
def runs(tiny, program, tmp_path_factory) -> dict[int, tuple[Path, str]]:
    """Folder and log of the tiny run on each number of devices; the second starts with the first one's demo data."""
    out = {}
    for count in DEVICES:
        folder = tmp_path_factory.mktemp(f"devices{count}") / "run"
        done = program("--cpu-devices", count, "run", "--config", tiny.config, "--out", folder)
        out[count] = (folder, done.stderr)
    return out


def _array(run: Path, kind: str, name: str) -> np.ndarray:
    folder = next(iter(sorted(run.glob(f"stores/{kind}-*"))))
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
    assert "4 autoencoders of 256 units over mesh {'sae': 4, 'data': 2}" in runs[8][1]
    assert "4 autoencoders of 256 units over mesh {'sae': 1, 'data': 1}" in runs[1][1]
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
            print("ACTS", hook, kind, np.abs(a - b).max() / np.abs(a).max(), (a != b).mean())
            np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(a).max())


@pytest.mark.slow
def test_autoencoders(runs):
    one, eight = (runs[count][0] for count in DEVICES)
    for name in ("w_enc", "w_dec", "b_enc", "b_dec", "mean", "scale"):
        a, b = (_array(out, "saes", name) for out in (one, eight))
        print("SAE", name, np.abs(a - b).max() / np.abs(a).max())
        np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(a).max(), err_msg=name)
    a, b = (_array(out, "saes", "losses") for out in (one, eight))
    print("SAE losses", np.abs(a - b).max())
    np.testing.assert_allclose(a, b, rtol=1e-3)


@pytest.mark.slow
def test_summary(runs):
    """Every number of summary.json. Counts of voxels are equal; a mean similarity moves by what rounding can move it.

    A unit that fires on one image more or less changes its own similarities by as much as 1 / sqrt(n), so shares and
    maxima over few voxels are allowed more than means over thousands of voxels.
    """
    one, eight = (_numbers(json.loads((runs[count][0] / "summary.json").read_text())) for count in DEVICES)
    assert one.keys() == eight.keys()
    worst: dict[str, tuple[float, str]] = {}
    for path, a in one.items():
        b = eight[path]
        if isinstance(a, float) and isinstance(b, float):
            group = path.split("/")[1] + ("/" + path.rsplit("/", 1)[1] if not path.rsplit("/", 1)[1].isdigit() else "")
            worst[group] = max(worst.get(group, (0.0, "")), (abs(a - b), path))
        elif isinstance(a, int) and "alignment" in path:
            worst["counts"] = max(worst.get("counts", (0.0, "")), (float(abs(a - b)), path))
        else:
            assert a == b, path
    for group, (difference, path) in sorted(worst.items()):
        print(f"WORST {group}: {difference:.2g} at {path}")
    for path, a in one.items():
        if path.endswith(("/held_out_mean", "/mean", "/held_out_median")) and path.startswith("/subjects"):
            tolerance = 3e-3 if any(f"/{mode}/" in path for mode in ("cls", "patch_mean", "patch_max")) else 1e-4
            assert eight[path] == pytest.approx(a, abs=tolerance), path
        if path.startswith("/saes") and path.endswith("explained_variance"):
            assert eight[path] == pytest.approx(a, abs=1e-3), path


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
    from sbm_jax.mesh import two_axes
    from sbm_jax.sae.model import init_params
    from sbm_jax.sae.step import DATA, SAE, init_state, put_state

    mesh = two_axes(SAE, 4, DATA, 64, jax.devices())
    assert dict(mesh.shape) == {"sae": 4, "data": 2}
    state = put_state(init_state(init_params(np.arange(4), 8, 16, 0.5), TrainConfig(), 1), mesh)
    shards = state.params.w_enc.addressable_shards
    assert len({shard.device for shard in shards}) == 8
    assert sorted({shard.index[0].start for shard in shards}) == [0, 1, 2, 3]
    assert all(shard.data.shape == (1, 8, 16) for shard in shards)
