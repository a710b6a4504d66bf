"""Activations and codes of the tiny run against the backbone on one image and dense NumPy."""

from __future__ import annotations

import numpy as np
import pytest

HOOKS = ("block01.resid", "block05.resid")
K = 4


@pytest.mark.parametrize("row", [0, 31, 32, 77, 115])
def test_activations_of_one_image(stores, backbone_folder, row):
    """Rows at both sides of a shard's edge and the last one: the right picture, alone in its batch."""
    from sbm_jax.backbones import forward, load_backbone
    from sbm_jax.images.geometry import load_square, normalise

    backbone = load_backbone(backbone_folder)
    file = stores.data / stores.table("images.csv")["file"][row]
    pixels = normalise(load_square(file, backbone.image_size)[None], backbone.mean, backbone.std)
    acts = forward(backbone.model, pixels, HOOKS)
    for hook in HOOKS:
        expected = np.asarray(acts[hook])[0]
        scale = np.abs(expected).max()
        for found, wanted in (("cls", expected[0]), ("patch", expected[1:])):
            stored = stores.array("activations", f"{hook}/{found}")[row]
            assert stored.dtype == np.float16 and stored.shape == wanted.shape
            np.testing.assert_allclose(stored, wanted, atol=2e-3 * scale)


def _token_codes(stores, kind: str, hook: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes [n, t, u] in float64 and, per image, the least gap between the last kept and the first dropped unit."""
    members = [(m["kind"], m["hook"]) for m in stores.document("saes", "metrics.json")["members"]]
    a = members.index((kind, hook))
    mean, scale, w_enc, b_enc = (
        stores.array("saes", name)[a].astype(np.float64) for name in ("mean", "scale", "w_enc", "b_enc")
    )
    x = stores.array("activations", f"{hook}/{kind}").astype(np.float64)
    x = x[:, None] if kind == "cls" else x
    before = scale * (x - mean) @ w_enc + b_enc
    ordered = -np.sort(-before, axis=2)
    codes = np.where((before >= ordered[..., K - 1 : K]) & (before > 0), before, 0)
    return codes, (ordered[..., K - 1] - ordered[..., K]).min(axis=1)


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("mode", ["cls", "patch_mean", "patch_max"])
def test_sparse_codes(stores, mode, hook):
    tokens, gap = _token_codes(stores, "cls" if mode == "cls" else "patch", hook)
    pool = {"cls": lambda z: z[:, 0], "patch_mean": lambda z: z.mean(axis=1), "patch_max": lambda z: z.max(axis=1)}
    expected = pool[mode](tokens)
    stored = stores.codes(mode)[HOOKS.index(hook)]
    clear = gap > 1e-5  # elsewhere rounding may keep the other unit
    assert clear.mean() > 0.8
    np.testing.assert_allclose(stored[clear], expected[clear], atol=1e-5)
    active = stores.array("codes", f"{mode}/{hook}/active")
    np.testing.assert_array_equal(active, np.count_nonzero(stored, axis=1))
    assert (active.min() > 0) and (mode != "cls" or active.max() <= K)


@pytest.mark.parametrize("hook", HOOKS)
def test_raw_and_random(stores, hook):
    patches = stores.array("activations", f"{hook}/patch").astype(np.float64)
    mean = patches.mean(axis=1)
    layer = HOOKS.index(hook)
    scale = np.abs(mean).max()
    np.testing.assert_allclose(stores.codes("raw")[layer], mean, atol=1e-6 * scale)
    random = stores.codes("random")[layer]
    assert random.shape[1] == 2 * mean.shape[1]
    # The control is a fixed linear map of the same neurons with unit columns.
    directions = np.linalg.lstsq(mean, random, rcond=None)[0]
    np.testing.assert_allclose(mean @ directions, random, atol=1e-4 * scale)
    assert not np.allclose(random[:, 0], random[:, 1])


def test_training_saw_no_shared_image(stores):
    """The input statistics, which see every training image once, are those of the images that are not shared."""
    shared = stores.table("images.csv")["shared"] == "1"
    means = stores.array("saes", "mean")
    for a, member in enumerate(stores.document("saes", "metrics.json")["members"]):
        x = stores.array("activations", f"{member['hook']}/{member['kind']}")[~shared].astype(np.float64)
        x = x.reshape(-1, x.shape[-1])
        np.testing.assert_allclose(means[a], x.mean(axis=0), rtol=1e-5, atol=1e-6)
        assert stores.array("saes", "scale")[a] == pytest.approx(1 / np.sqrt(x.var(axis=0).mean()), rel=1e-5)


def test_held_out_metrics(stores):
    """Explained variance and l0 over the tokens of the shared images, from dense codes."""
    shared = stores.table("images.csv")["shared"] == "1"
    w_dec, b_dec = stores.array("saes", "w_dec"), stores.array("saes", "b_dec")
    np.testing.assert_allclose(np.linalg.norm(w_dec, axis=2), 1, atol=1e-5)
    for a, member in enumerate(stores.document("saes", "metrics.json")["members"]):
        codes = _token_codes(stores, member["kind"], member["hook"])[0][shared]
        x = stores.array("activations", f"{member['hook']}/{member['kind']}")[shared].astype(np.float64)
        x = x.reshape(-1, x.shape[-1])
        x = stores.array("saes", "scale")[a] * (x - stores.array("saes", "mean")[a])
        z = codes.reshape(len(x), -1)
        error = np.sum((x - z @ w_dec[a] - b_dec[a]) ** 2)
        explained = 1 - error / np.sum((x - x.mean(axis=0)) ** 2)
        assert member["explained_variance"] == pytest.approx(explained, abs=1e-4)
        assert member["l0"] == pytest.approx(np.count_nonzero(z, axis=1).mean(), abs=1e-2)
        assert member["dead"] == pytest.approx(np.mean(~z.any(axis=0)), abs=0.01)
        assert member["tokens"] == len(x)
