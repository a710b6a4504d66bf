"""What is written for SAELens and as plain files, and the export of a store of autoencoders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from sbm_jax.errors import UserError
from sbm_jax.sae.interchange import Activation, PortableSae, decode_reference, encode_reference, from_model
from sbm_jax.sae.interchange_read import read_sae
from sbm_jax.sae.interchange_write import export_store, write_sae
from sbm_jax.store.spec import StoreSpec
from sbm_jax.store.store import Store, StoreWriter

EPS = float(np.finfo(np.float32).eps)
N, D, U, K = 60, 6, 24, 5
X_MEAN = 5.0


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"w_enc": (D, U), "b_enc": (U,), "w_dec": (U, D), "b_dec": (D,)}
    made = {name: (0.5 * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
    return {**made, "mean": (X_MEAN + rng.normal(size=D)).astype(np.float32), "scale": np.array(1.7, np.float32)}


def tokens() -> np.ndarray:
    return (X_MEAN + np.random.default_rng(9).normal(size=(N, D))).astype(np.float32)


ACTIVATIONS = {
    "topk": Activation("topk", k=K),
    "standard": Activation("relu"),
    "jumprelu": Activation("threshold", threshold=np.linspace(0, 1, U, dtype=np.float32)),
}


def trained_codes(a: dict[str, np.ndarray], act: Activation, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and raw reconstruction as the model of this project was trained, said again."""
    w = {name: value.astype(np.float64) for name, value in a.items()}
    pre = w["scale"] * (x - w["mean"]) @ w["w_enc"] + w["b_enc"]
    if act.k is not None:
        kept = pre >= np.sort(pre, axis=1)[:, -act.k][:, None]
    else:
        kept = pre > (0 if act.threshold is None else act.threshold)
    z = np.where(kept & (pre > 0), pre, 0)
    return z, (z @ w["w_dec"] + w["b_dec"]) / w["scale"] + w["mean"]


def saelens_forward(folder: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SAELens 6's forward pass in float32, from its formulas: standard, topk and jumprelu with b_dec taken from the input."""
    config, w = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")
    assert config["apply_b_dec_to_input"] and config["normalize_activations"] == "none"
    assert (config["d_in"], config["d_sae"]) == w["W_enc"].shape == w["W_dec"].shape[::-1]
    assert all(value.dtype == np.float32 for value in w.values())
    pre = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    z = np.maximum(pre, 0)
    if config["architecture"] == "topk":
        assert config["rescale_acts_by_decoder_norm"] is False
        for row, values in zip(z, pre, strict=True):
            row[np.argsort(values)[: -config["k"]]] = 0
    if config["architecture"] == "jumprelu":
        z = z * (pre > w["threshold"])
    return z, z @ w["W_dec"] + w["b_dec"]


@pytest.mark.parametrize("architecture", ACTIVATIONS)
def test_saelens_gets_our_codes_and_reconstructions(tmp_path, architecture):
    a, act, x = arrays(), ACTIVATIONS[architecture], tokens()
    sae = from_model(**a, activation=act, source="here", metadata={"hook_name": "block03.resid", "extra": 1})
    folder = write_sae(sae, tmp_path / "out", "saelens")
    config = json.loads((folder / "cfg.json").read_text())
    assert config["architecture"] == architecture
    assert config["metadata"] == {"hook_name": "block03.resid", "sae_lens_version": "6.0.0"}
    z, output = trained_codes(a, act, x)
    got_z, got_output = saelens_forward(folder, x)
    # inputs near X_MEAN are rounded, times scale and weights, summed over D; then over K or U codes
    tolerance = 64 * EPS * X_MEAN
    assert (z > 0).any()
    np.testing.assert_allclose(got_z, z, atol=tolerance)
    np.testing.assert_allclose(got_output, output, atol=U * tolerance)
    again = read_sae(folder)
    np.testing.assert_allclose(encode_reference(again, x), z, atol=tolerance)


def test_the_input_is_centred_before_the_product(tmp_path):
    """Activations with a large mean: were it only in b_enc, codes would lose these digits."""
    a = arrays()
    a["mean"] = a["mean"] + 1000 * np.eye(D, dtype=np.float32)[2]
    x = (a["mean"] + np.random.default_rng(1).normal(size=(N, D))).astype(np.float32)
    sae = from_model(**a, activation=Activation("relu"), source="", metadata={})
    z, _ = trained_codes(a, Activation("relu"), x)
    got, _ = saelens_forward(write_sae(sae, tmp_path / "s", "saelens"), x)
    # b_dec, near 1000, is rounded to 3e-5, but b_enc was computed with it as it is written
    np.testing.assert_allclose(got, z, atol=64 * EPS * np.abs(z).max())


@pytest.mark.parametrize("name", [*ACTIVATIONS, "groupmax", "signed"])
def test_plain_files_come_back_with_every_number(tmp_path, name):
    more = {"groupmax": Activation("groupmax", k=6), "signed": Activation("topk", k=K, signed=True)}
    act = {**ACTIVATIONS, **more}[name]
    sae = from_model(**arrays(), activation=act, source="here", metadata={"a": [1, {"b": None}]})
    again = read_sae(write_sae(sae, tmp_path / "p", "plain"))
    for array in ("w_enc", "b_enc", "w_dec", "b_dec", "shift"):
        np.testing.assert_array_equal(getattr(again, array), getattr(sae, array))
    assert again.metadata == sae.metadata and again.activation.kind == act.kind
    x = tokens()
    z = encode_reference(sae, x)
    np.testing.assert_array_equal(encode_reference(again, x), z)
    np.testing.assert_array_equal(decode_reference(again, z, x), decode_reference(sae, z, x))
    config = json.loads((tmp_path / "p" / "sae.json").read_text())
    (tmp_path / "p" / "sae.json").write_text(json.dumps({**config, "version": 2}))
    with pytest.raises(UserError, match="version 2, expected 'sbm-jax-sae' version 1"):
        read_sae(tmp_path / "p")


def test_token_norm_is_written_by_name(tmp_path):
    a = arrays()
    zero = np.zeros(D, np.float32)
    sae = PortableSae(a["w_enc"], a["b_enc"], a["w_dec"], a["b_dec"], zero, Activation("relu"), "layer_norm")
    again = read_sae(write_sae(sae, tmp_path / "s", "saelens"))
    assert again.token_norm == "layer_norm"
    z = encode_reference(sae, tokens())
    np.testing.assert_allclose(encode_reference(again, tokens()), z, atol=64 * EPS * np.abs(z).max())


def test_refusals_leave_nothing_behind(tmp_path):
    sae = from_model(**arrays(), activation=Activation("groupmax", k=6), source="here", metadata={})
    with pytest.raises(UserError, match="no autoencoder with groupmax codes"):
        write_sae(sae, tmp_path / "g", "saelens")
    signed = from_model(**arrays(), activation=Activation("topk", k=K, signed=True), source="here", metadata={})
    with pytest.raises(UserError, match="topk codes that may be negative"):
        write_sae(signed, tmp_path / "g", "saelens")
    with pytest.raises(UserError, match="format is 'onnx'"):
        write_sae(sae, tmp_path / "g", "onnx")  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())
    write_sae(sae, tmp_path / "g", "plain")
    with pytest.raises(UserError, match="exists already"):
        write_sae(sae, tmp_path / "g", "plain")
    assert [p.name for p in tmp_path.iterdir()] == ["g"]


# A store -------------------------------------------------------------------------------------------------------------

MEMBERS = [("cls", "block01.resid", "topk"), ("patch", "block01.resid", "batch_topk"), ("cls", "block05.resid", "relu")]


@pytest.fixture
def saes(tmp_path) -> tuple[Store, list[dict[str, np.ndarray]], list[Activation]]:
    """A store as the train stage writes it, of three objectives."""
    made = [arrays(seed) for seed in range(3)]
    cut = np.full(U, 0.4, np.float32)
    acts = [Activation("topk", k=K), Activation("threshold", threshold=cut), Activation("relu")]
    writer = StoreWriter(tmp_path / "stores", StoreSpec("saes", 1, {"train": {"k": K}}, {}))
    for name in made[0]:
        writer.put(name, np.stack([a[name] for a in made]))
    writer.put("threshold", np.stack([np.zeros(U, np.float32), cut, np.zeros(U, np.float32)]))
    point = {"k": K, "sparsity": 1e-3, "lr": 1e-3, "seed": 0, "expansion": 2}
    members = [{"kind": kind, "hook": hook, "objective": name, **point} for kind, hook, name in MEMBERS]
    writer.put_json("metrics.json", {"members": members})
    return writer.commit(), made, acts


@pytest.mark.parametrize("format", ["saelens", "plain"])
def test_export_of_a_store(tmp_path, saes, format):
    store, made, acts = saes
    folders = export_store(store, tmp_path / "out", format, model_name="vit")
    assert [f.name for f in folders] == ["000.block01.resid.cls", "001.block01.resid.patch", "002.block05.resid.cls"]
    x = tokens()
    for folder, a, act, (kind, hook, objective) in zip(folders, made, acts, MEMBERS, strict=True):
        sae = read_sae(folder)
        z, output = trained_codes(a, act, x)
        tolerance = 64 * EPS * X_MEAN
        np.testing.assert_allclose(encode_reference(sae, x), z, atol=tolerance)
        np.testing.assert_allclose(decode_reference(sae, z, x), output, atol=U * tolerance)
        said = {"hook_name": hook, "token_kind": kind, "objective": objective, "model_name": "vit", "store": store.name}
        assert said.items() <= sae.metadata.items()
    with pytest.raises(UserError, match="exists already"):
        export_store(store, tmp_path / "out", format)


def test_export_of_another_store_is_refused(tmp_path):
    writer = StoreWriter(tmp_path, StoreSpec("codes", 1, {}, {}))
    writer.put("a", np.zeros((2, 2), np.float32))
    with pytest.raises(UserError, match="a store of 'codes', expected saes"):
        export_store(writer.commit(), tmp_path / "out", "plain")
