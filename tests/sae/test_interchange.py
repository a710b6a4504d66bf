"""Checkpoints of other libraries, made here in their layouts, against their published forward passes said a second time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sbm_jax.errors import UserError
from sbm_jax.sae.interchange import (
    Activation,
    PortableSae,
    as_model,
    at_least,
    decode_reference,
    encode_reference,
    from_model,
    single,
)
from sbm_jax.sae.interchange_read import read_sae
from sbm_jax.sae.interchange_torch import SAEV_KEY

EPS = float(np.finfo(np.float32).eps)
N, D, U, K = 40, 6, 24, 5


@pytest.fixture
def w(rng) -> dict[str, np.ndarray]:
    """Untied weights of no special scale, with biases; x [n, d] has a mean far from 0."""
    shapes = {"enc": (D, U), "b_enc": (U,), "dec": (U, D), "b_dec": (D,), "x": (N, D), "extra": (U,)}
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    made["x"] += 2
    return made


def topk_rows(pre: np.ndarray, k: int) -> np.ndarray:
    """The k largest of each row where they stand, signs kept."""
    z = np.zeros_like(pre)
    for row, out in zip(pre, z, strict=True):
        for j in sorted(range(len(row)), key=lambda j: -row[j])[:k]:
            out[j] = row[j]
    return z


def relu(x):
    return np.where(x > 0, x, 0)


def f64(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]


def check(sae: PortableSae, x, codes, output, rounded: bool = False) -> None:
    """rounded: the reader computed weights, each rounded to float32 once; sums of D numbers then differ in 1e-7."""
    tolerance = 64 * EPS * max(1, np.abs(codes).max()) if rounded else 1e-12
    assert (codes > 0).any() and (codes == 0).any()
    got = encode_reference(sae, x)
    np.testing.assert_allclose(got, codes, rtol=1e-12, atol=tolerance)
    np.testing.assert_array_equal(got != 0, codes != 0)
    np.testing.assert_allclose(decode_reference(sae, got, x), output, rtol=1e-12, atol=U * tolerance)


def folder(path: Path, weights: str, tensors: dict, config_name: str, config: dict) -> Path:
    path.mkdir()
    save_file({k: np.asarray(v, order="C") for k, v in tensors.items()}, path / weights)
    (path / config_name).write_text(json.dumps(config))
    return path


# SAELens -------------------------------------------------------------------------------------------------------------


def saelens(path: Path, w: dict, config: dict, **tensors) -> Path:
    named = {"W_enc": w["enc"], "b_enc": w["b_enc"], "W_dec": w["dec"], "b_dec": w["b_dec"], **tensors}
    named = {k: v for k, v in named.items() if v is not None}
    base = {"d_in": D, "d_sae": U, "dtype": "float32", "metadata": {"sae_lens_version": "6.54.12"}}
    return folder(path, "sae_weights.safetensors", named, "cfg.json", {**base, **config})


@pytest.mark.parametrize("apply_b_dec", [True, False, None])
def test_saelens_standard(tmp_path, w, apply_b_dec):
    config = {"architecture": "standard"}
    if apply_b_dec is not None:
        config["apply_b_dec_to_input"] = apply_b_dec
    x, enc, b_enc, dec, b_dec = f64(w["x"], w["enc"], w["b_enc"], w["dec"], w["b_dec"])
    z = relu((x - (0 if apply_b_dec is False else b_dec)) @ enc + b_enc)
    check(read_sae(saelens(tmp_path / "s", w, config)), w["x"], z, z @ dec + b_dec)


def test_saelens_topk_with_decoder_norms(tmp_path, w):
    x, enc, b_enc, dec, b_dec = f64(w["x"], w["enc"], w["b_enc"], w["dec"], w["b_dec"])
    plain = read_sae(saelens(tmp_path / "p", w, {"architecture": "topk", "k": K}))
    z = relu(topk_rows((x - b_dec) @ enc + b_enc, K))
    check(plain, w["x"], z, z @ dec + b_dec)
    config = {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True}
    norm = np.sqrt((dec**2).sum(1))
    scaled = relu(topk_rows(((x - b_dec) @ enc + b_enc) * norm, K))
    assert ((scaled > 0) != (z > 0)).any()
    check(read_sae(saelens(tmp_path / "n", w, config)), w["x"], scaled, (scaled / norm) @ dec + b_dec, rounded=True)


@pytest.mark.parametrize("log", [False, True])
def test_saelens_jumprelu(tmp_path, w, log):
    threshold = np.exp(w["extra"]) if log else w["extra"]  # negative ones cut at 0, as its ReLU does
    tensors = {"log_threshold" if log else "threshold": w["extra"]}
    x, enc, b_enc, dec, b_dec = f64(w["x"], w["enc"], w["b_enc"], w["dec"], w["b_dec"])
    pre = (x - b_dec) @ enc + b_enc
    z = relu(pre) * (pre > threshold)
    sae = read_sae(saelens(tmp_path / "j", w, {"architecture": "jumprelu"}, **tensors))
    check(sae, w["x"], z, z @ dec + b_dec)


def test_saelens_gated_is_a_jumprelu(tmp_path, w, rng):
    b_gate, b_mag = (rng.normal(size=U).astype(np.float32) for _ in range(2))
    r_mag = 0.3 * w["extra"]
    x, enc, dec, b_dec = f64(w["x"], w["enc"], w["dec"], w["b_dec"])
    g = (x - b_dec) @ enc
    z = ((g + b_gate) > 0) * relu((x - b_dec) @ (enc * np.exp(r_mag.astype(np.float64))) + b_mag)
    path = saelens(tmp_path / "g", w, {"architecture": "gated"}, b_enc=None, b_gate=b_gate, b_mag=b_mag, r_mag=r_mag)
    check(read_sae(path), w["x"], z, z @ dec + b_dec, rounded=True)


def test_saelens_batchtopk_as_trained(tmp_path, w):
    x, enc, b_enc, dec, b_dec = f64(w["x"], w["enc"], w["b_enc"], w["dec"], w["b_dec"])
    pre = (x - b_dec) @ enc + b_enc
    z = pre * (pre > 1.25)
    config = {"architecture": "batchtopk", "k": 7.5, "rescale_acts_by_decoder_norm": False}
    path = saelens(tmp_path / "b", w, config, topk_threshold=np.array(1.25, np.float64))
    check(read_sae(path), w["x"], z, z @ dec + b_dec)


def test_saelens_layer_norm_and_constant_norm(tmp_path, w):
    x, enc, b_enc, dec, b_dec = f64(w["x"], w["enc"], w["b_enc"], w["dec"], w["b_dec"])
    mu = x.mean(1, keepdims=True)
    std = np.sqrt(((x - mu) ** 2).sum(1, keepdims=True) / (D - 1))  # torch's default
    z = relu(((x - mu) / (std + 1e-5) - b_dec) @ enc + b_enc)
    sae = read_sae(saelens(tmp_path / "l", w, {"architecture": "standard", "normalize_activations": "layer_norm"}))
    check(sae, w["x"], z, (z @ dec + b_dec) * std + mu)
    factor = np.sqrt(D) / np.linalg.norm(x, axis=1, keepdims=True)
    z = relu((x * factor - b_dec) @ enc + b_enc)
    config = {"architecture": "standard", "normalize_activations": "constant_norm_rescale"}
    check(read_sae(saelens(tmp_path / "c", w, config)), w["x"], z, (z @ dec + b_dec) / factor)


def test_saelens_scaled_inputs_need_their_factor(tmp_path, w):
    config = {"architecture": "standard", "normalize_activations": "expected_average_only_in"}
    path = saelens(tmp_path / "e", w, config)
    with pytest.raises(UserError, match=r"activation_scaler\.json"):
        read_sae(path)
    (path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.37}))
    x, enc, b_enc, dec, b_dec = f64(w["x"], w["enc"], w["b_enc"], w["dec"], w["b_dec"])
    z = relu((0.37 * x - b_dec) @ enc + b_enc)
    check(read_sae(path), w["x"], z, (z @ dec + b_dec) / 0.37, rounded=True)


def test_saelens_before_version_6(tmp_path, w):
    config = {
        "architecture": "standard",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K},
        "normalize_activations": False,
        "finetuning_scaling_factor": True,
        "hook_name": "blocks.3",
        "metadata": None,
    }
    path = saelens(tmp_path / "o", w, config, scaling_factor=w["extra"])
    x, enc, b_enc, dec, b_dec = f64(w["x"], w["enc"], w["b_enc"], w["dec"], w["b_dec"])
    z = relu(topk_rows((x - b_dec) @ enc + b_enc, K))
    sae = read_sae(path)
    check(sae, w["x"], z, (z * w["extra"]) @ dec + b_dec, rounded=True)
    assert sae.metadata == {"hook_name": "blocks.3"}


@pytest.mark.parametrize(
    ("config", "tensors", "words"),
    [
        ({"architecture": "temporal"}, {}, "architecture is 'temporal'"),
        ({"architecture": "standard", "activation_fn": "tanh-relu"}, {}, "'tanh-relu'"),
        ({"architecture": "standard", "normalize_activations": "covariance_whitening"}, {}, "whitening"),
        ({"architecture": "topk"}, {}, "k is None"),
        ({"architecture": "topk", "k": U + 1}, {}, f"k is {U + 1}, but the dictionary has {U} units"),
        ({"architecture": "jumprelu"}, {}, "no tensor threshold"),
        ({"architecture": "standard"}, {"W_skip": np.eye(D, dtype=np.float32)}, "W_skip have no place"),
        ({"architecture": "standard"}, {"b_enc": np.zeros(U + 1, np.float32)}, "b_enc has shape"),
        ({"architecture": "standard"}, {"b_dec": np.full(D, np.nan, np.float32)}, "not finite"),
        ({"architecture": "standard"}, {"scaling_factor": np.full(U, 2, np.float32)}, "scaling_factor is not 1"),
    ],
)
def test_saelens_refuses(tmp_path, w, config, tensors, words):
    with pytest.raises(UserError, match=words):
        read_sae(saelens(tmp_path / "bad", w, config, **tensors))


# sparsify ------------------------------------------------------------------------------------------------------------


def sparsify(path: Path, w: dict, config: dict) -> Path:
    tensors = {"encoder.weight": w["enc"].T, "encoder.bias": w["b_enc"], "W_dec": w["dec"], "b_dec": w["b_dec"]}
    return folder(path, "sae.safetensors", tensors, "cfg.json", {"d_in": D, "expansion_factor": 4, **config})


@pytest.mark.parametrize("signed", [False, True])
def test_sparsify_topk(tmp_path, w, signed):
    x, enc, b_enc, dec, b_dec = f64(w["x"], w["enc"], w["b_enc"], w["dec"], w["b_dec"])
    pre = (x - b_dec) @ enc + b_enc
    k = 20 if signed else K  # so many that negative ones are among them
    z = topk_rows(pre if signed else relu(pre), k)
    assert (z < 0).any() == signed
    sae = read_sae(sparsify(tmp_path / "layers.3", w, {"k": k, "signed": signed}))
    check(sae, w["x"], z, z @ dec + b_dec)
    assert sae.metadata["hook_name"] == "layers.3"


def test_sparsify_groupmax(tmp_path, w):
    x, enc, b_enc, dec, b_dec = f64(w["x"], w["enc"], w["b_enc"], w["dec"], w["b_dec"])
    pre, z = relu((x - b_dec) @ enc + b_enc), np.zeros((N, U))
    for i, row in enumerate(pre):
        for group in range(0, U, 4):  # k = 6 groups of 4
            j = group + int(np.argmax(row[group : group + 4]))
            z[i, j] = row[j]
    check(read_sae(sparsify(tmp_path / "g", w, {"k": 6, "activation": "groupmax"})), w["x"], z, z @ dec + b_dec)
    with pytest.raises(UserError, match="cut into k = 5 groups"):
        read_sae(sparsify(tmp_path / "h", w, {"k": 5, "activation": "groupmax"}))


def test_sparsify_refuses_transcoders(tmp_path, w):
    with pytest.raises(UserError, match="transcode is set"):
        read_sae(sparsify(tmp_path / "t", w, {"k": K, "transcode": True}))


# saev ----------------------------------------------------------------------------------------------------------------


def saev_state(w: dict, **more) -> dict[str, np.ndarray]:
    return {"W_enc": w["enc"], "b_enc": w["b_enc"], "W_dec": w["dec"], "b_dec": w["b_dec"], **more}


def saev(path: Path, header: dict, state: dict) -> Path:
    """As converted from sae.pt where torch is."""
    save_file(state, path, {SAEV_KEY: json.dumps(header) + "\n"})
    return path


def saev_header(schema: int, cls: str, **params) -> dict:
    return {"schema": schema, "cfg": {"d_model": D, "d_sae": U, "activation": {"cls": cls, "params": params}}}


SAEV_HEADERS = {
    "none": ({"d_vit": D, "exp_factor": 4, "sparsity_coeff": 1e-3, "ghost_grads": False}, relu, True),
    "1A relu": ({"schema": 1, "cls": "Relu", "cfg": {"d_vit": D}}, relu, True),
    "1A topk": ({"schema": 1, "cls": "TopK", "cfg": {"d_vit": D, "top_k": 20}}, lambda p: topk_rows(p, 20), True),
    "1B": ({**saev_header(1, "TopK", top_k=20), "cls": "SparseAutoencoderConfig"}, lambda p: topk_rows(p, 20), False),
    "2": (saev_header(2, "Relu"), relu, False),
    "4 topk": (saev_header(4, "TopK", top_k=20), lambda p: topk_rows(p, 20), False),
    "5": (saev_header(5, "Relu", sparsity={"cls": "L1Sparsity", "params": {"coeff": 4e-4}}), relu, False),
}


@pytest.mark.parametrize("name", SAEV_HEADERS)
def test_saev_every_header(tmp_path, w, name):
    header, activation, subtracts = SAEV_HEADERS[name]
    x, enc, b_enc, dec, b_dec = f64(w["x"], w["enc"], w["b_enc"], w["dec"], w["b_dec"])
    z = activation((x - b_dec * subtracts) @ enc + b_enc)
    sae = read_sae(saev(tmp_path / "sae.safetensors", header, saev_state(w)))
    check(sae, w["x"], z, z @ dec + b_dec)


@pytest.mark.parametrize("threshold", [0.75, -0.5])
def test_saev_batchtopk_in_evaluation(tmp_path, w, threshold):
    x, enc, b_enc, dec, b_dec = f64(w["x"], w["enc"], w["b_enc"], w["dec"], w["b_dec"])
    pre = x @ enc + b_enc
    z = np.where(pre > threshold, pre, 0) if threshold > 0 else relu(pre)
    state = saev_state(w, **{"activation.threshold": np.array(threshold, np.float32)})
    path = saev(tmp_path / "sae.safetensors", saev_header(5, "BatchTopK", top_k=4), state)
    check(read_sae(path), w["x"], z, z @ dec + b_dec)


def test_saev_batchtopk_without_threshold_depends_on_the_batch(tmp_path, w):
    path = saev(tmp_path / "sae.safetensors", saev_header(2, "BatchTopK", top_k=4), saev_state(w))
    with pytest.raises(UserError, match=r"codes depend on the batch\. Give threshold"):
        read_sae(path)
    assert read_sae(path, threshold=0.5).activation.threshold is not None


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"schema": 6, "cfg": {}}, "schema 6"),
        ({"schema": 2}, "no cfg"),
        (saev_header(4, "AbsBatchTopK"), "'AbsBatchTopK'"),
        ({"schema": 4, "cfg": {"activation": "relu"}}, "activation is 'relu'"),
    ],
)
def test_saev_refuses(tmp_path, w, header, words):
    with pytest.raises(UserError, match=words):
        read_sae(saev(tmp_path / "sae.safetensors", header, saev_state(w)))


def test_saev_k_must_be_the_files(tmp_path, w):
    path = saev(tmp_path / "sae.safetensors", saev_header(4, "TopK", top_k=4), saev_state(w))
    assert read_sae(path, k=4).activation.k == 4
    with pytest.raises(UserError, match="k is 5, but the file says 4"):
        read_sae(path, k=5)


# overcomplete --------------------------------------------------------------------------------------------------------


def overcomplete(path: Path, tensors: dict) -> Path:
    zero = {"dictionary.multiplier": np.array(0, np.float32)}
    save_file({k: np.asarray(v, order="C") for k, v in {**zero, **tensors}.items()}, path)
    return path


def linear(w: dict) -> dict[str, np.ndarray]:
    return {"encoder.final_block.0.weight": w["enc"].T, "encoder.final_block.0.bias": w["b_enc"]}


NORMS = {
    "l2": lambda m: m / (np.sqrt((m**2).sum(1, keepdims=True)) + 1e-8),
    "max_l2": lambda m: m / np.sqrt((m**2).sum(1)).max(),
    "l1": lambda m: m / (np.abs(m).sum(1, keepdims=True) + 1e-8),
    "max_l1": lambda m: m / np.abs(m).sum(1).max(),
    "identity": lambda m: m,
}


@pytest.mark.parametrize("norm", NORMS)
def test_overcomplete_topk(tmp_path, w, norm):
    tensors = {**linear(w), "dictionary._weights": w["dec"], "dictionary.multiplier": np.array(0.4, np.float32)}
    x, enc, b_enc, dec = f64(w["x"], w["enc"], w["b_enc"], w["dec"])
    z = topk_rows(relu(x @ enc + b_enc), K)
    dictionary = NORMS[norm](dec) * np.exp(np.float64(np.float32(0.4)))
    sae = read_sae(overcomplete(tmp_path / "s.safetensors", tensors), k=K, dictionary_norm=norm)
    check(sae, w["x"], z, z @ dictionary, rounded=True)


def test_overcomplete_batchtopk_keeps_the_threshold_itself(tmp_path, w):
    path = overcomplete(tmp_path / "s.safetensors", {**linear(w), "dictionary._weights": NORMS["l2"](w["dec"])})
    x, enc, b_enc = f64(w["x"], w["enc"], w["b_enc"])
    z = relu(x @ enc + b_enc)
    z = z * (z >= 0.8)
    check(read_sae(path, threshold=0.8), w["x"], z, z @ NORMS["l2"](w["dec"].astype(np.float64)), rounded=True)
    assert read_sae(path, threshold=0).activation.kind == "relu"


def test_overcomplete_jump(tmp_path, w):
    tensors = {**linear(w), "dictionary._weights": w["dec"], "thresholds": w["extra"] - 1}
    x, enc, b_enc, dec = f64(w["x"], w["enc"], w["b_enc"], w["dec"])
    z = relu(x @ enc + b_enc)
    z[z < np.exp(w["extra"] - 1)] = 0
    path = overcomplete(tmp_path / "s.safetensors", tensors)
    check(read_sae(path), w["x"], z, z @ NORMS["l2"](dec), rounded=True)
    with pytest.raises(UserError, match="leave out k"):
        read_sae(path, k=3)


@pytest.mark.parametrize("bias", [True, False])
def test_overcomplete_tied_and_untied(tmp_path, w, bias):
    x, enc, dec = f64(w["x"], w["enc"], w["dec"])
    more = {"encoder.bias": w["b_enc"]} if bias else {}
    b = w["b_enc"].astype(np.float64) if bias else 0
    dictionary = NORMS["l2"](dec)
    path = overcomplete(
        tmp_path / "u.safetensors", {"encoder.weight": w["enc"].T, "dictionary._weights": w["dec"], **more}
    )
    z = topk_rows(relu(x @ enc + b), K)
    check(read_sae(path, k=K), w["x"], z, z @ dictionary, rounded=True)
    again = {"encoder.tied_to._weights": w["dec"], "encoder.tied_to.multiplier": np.array(0, np.float32)}
    path = overcomplete(tmp_path / "t.safetensors", {**again, "dictionary._weights": w["dec"], **more})
    z = topk_rows(relu(x @ dictionary.T + b), K)
    check(read_sae(path, k=K), w["x"], z, z @ dictionary, rounded=True)


def test_overcomplete_archetypal(tmp_path, w, rng):
    points, mixing = rng.normal(size=(30, D)), rng.normal(size=(U, 30))
    relax = rng.normal(size=(U, D)) * np.linspace(0, 1, U)[:, None]
    tensors = {"dictionary.C": points, "dictionary.W": mixing, "dictionary.Relax": relax}
    path = overcomplete(tmp_path / "a.safetensors", {**linear(w), **{k: single(v) for k, v in tensors.items()}})
    points, mixing, relax = f64(single(points), single(mixing), single(relax))
    rows = relu(mixing) / (relu(mixing).sum(1, keepdims=True) + 1e-8)
    for row in relax:
        row *= min(1.0, 0.5 / max(np.linalg.norm(row), 1e-300))
    x, enc, b_enc = f64(w["x"], w["enc"], w["b_enc"])
    z = topk_rows(relu(x @ enc + b_enc), K)
    check(read_sae(path, k=K, delta=0.5), w["x"], z, z @ (rows @ points + relax), rounded=True)


def test_overcomplete_refuses(tmp_path, w):
    path = overcomplete(tmp_path / "s.safetensors", {**linear(w), "dictionary._weights": w["dec"]})
    for facts in ({}, {"k": 3, "threshold": 0.5}):
        with pytest.raises(UserError, match="Give either k"):
            read_sae(path, **facts)
    with pytest.raises(UserError, match="dictionary_norm is 'l3'"):
        read_sae(path, k=3, dictionary_norm="l3")
    normed = {**linear(w), "encoder.final_block.1.weight": w["extra"], "dictionary._weights": w["dec"]}
    with pytest.raises(UserError, match=r"final_block\.1\.weight have no place"):
        read_sae(overcomplete(tmp_path / "n.safetensors", normed), k=3)


# Torch files ---------------------------------------------------------------------------------------------------------


def test_torch_files_without_torch_say_how_to_convert(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "sae.pt").write_bytes(b'{"schema": 5}\nPK')
    with pytest.raises(UserError, match=r"torch is not installed[\s\S]*f\.readline[\s\S]*read sae\.safetensors"):
        read_sae(tmp_path / "sae.pt")
    (tmp_path / "sae.pth").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"torch is not installed[\s\S]*sae\.state_dict"):
        read_sae(tmp_path / "sae.pth", k=3)


def test_torch_files_with_torch(tmp_path, w):
    torch = pytest.importorskip("torch")
    state = {k: torch.from_numpy(v) for k, v in saev_state(w).items()}
    with (tmp_path / "sae.pt").open("wb") as file:
        file.write(json.dumps(saev_header(4, "TopK", top_k=4)).encode() + b"\n")
        torch.save(state, file)
    converted = saev(tmp_path / "sae.safetensors", saev_header(4, "TopK", top_k=4), saev_state(w))
    same(read_sae(tmp_path / "sae.pt"), read_sae(converted))
    tensors = {**linear(w), "dictionary._weights": w["dec"], "dictionary.multiplier": np.array(0, np.float32)}
    state = {k: torch.from_numpy(np.asarray(v, order="C")).to(torch.bfloat16) for k, v in tensors.items()}
    torch.save(state, tmp_path / "o.pt")
    assert read_sae(tmp_path / "o.pt", k=3).units == U
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(UserError, match="does not read it as plain tensors"):
        read_sae(tmp_path / "module.pt", k=3)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds a list"):
        read_sae(tmp_path / "list.pt", k=3)


def same(a: PortableSae, b: PortableSae) -> None:
    for name in ("w_enc", "b_enc", "w_dec", "b_dec", "shift"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


# The common form -----------------------------------------------------------------------------------------------------


def test_with_input_is_the_input_scaled_and_centred_before(w, rng):
    b = w["b_dec"]
    sae = PortableSae(w["enc"], w["b_enc"], w["dec"], b, b, Activation("topk", k=K))
    mean, scale = rng.normal(size=D), 0.31
    raw = w["x"] / scale + mean
    moved = sae.with_input(mean, scale)
    z = encode_reference(sae, scale * (raw - mean))
    output = decode_reference(sae, z, w["x"]) / scale + mean
    check(moved, raw, z, output, rounded=True)
    for bad in (0.0, -1.0, np.inf):
        with pytest.raises(UserError, match="input scale"):
            sae.with_input(mean, bad)


@pytest.mark.parametrize("kind", ["topk", "relu", "threshold"])
def test_as_model_gives_the_same_codes_in_our_model(w, rng, kind):
    import jax.numpy as jnp

    from sbm_jax.sae.model import Norm, Params, normalise
    from sbm_jax.sae.objectives import final_codes

    mean, scale = rng.normal(size=D), 1.7
    threshold = np.abs(w["extra"]) if kind == "threshold" else None
    act = Activation(kind, k=K if kind == "topk" else None, threshold=threshold)
    sae = from_model(w["enc"], w["b_enc"], w["dec"], w["b_dec"], mean, scale, act, "here", {})
    # the same as the model as it was trained
    pre = scale * (w["x"] - mean) @ w["enc"].astype(np.float64) + w["b_enc"]
    z = relu(topk_rows(pre, K)) if kind == "topk" else relu(pre) * (pre > (0 if threshold is None else threshold))
    check(sae, w["x"], z, (z @ w["dec"].astype(np.float64) + w["b_dec"]) / scale + mean, rounded=True)
    # and in our own code
    arrays, objective, k = as_model(sae)
    norm = Norm(*(jnp.asarray(arrays[name])[None] for name in Norm._fields))
    params = Params(*(jnp.asarray(arrays[name]) for name in ("w_enc", "b_enc", "w_dec", "b_dec")))
    x = normalise(norm, jnp.asarray(w["x"])[None])[0]
    codes = np.asarray(final_codes(objective, k or 0, params, jnp.asarray(arrays["threshold"]), x), np.float64)
    wanted = encode_reference(sae, w["x"])
    tolerance = 64 * EPS * np.abs(wanted).max()
    np.testing.assert_allclose(codes, wanted, atol=tolerance)
    output = (codes @ arrays["w_dec"] + arrays["b_dec"]) / arrays["scale"] + arrays["mean"]
    np.testing.assert_allclose(output, decode_reference(sae, wanted, w["x"]), atol=U * tolerance)


def test_as_model_refuses_what_the_model_is_not(w):
    b = w["b_dec"]
    for act in (Activation("groupmax", k=2), Activation("topk", k=2, signed=True)):
        with pytest.raises(UserError, match="non-negative topk"):
            as_model(PortableSae(w["enc"], w["b_enc"], w["dec"], b, b, act))
    with pytest.raises(UserError, match="token normalisation layer_norm"):
        as_model(PortableSae(w["enc"], w["b_enc"], w["dec"], b, b, Activation("relu"), "layer_norm"))


def test_topk_takes_the_first_of_equals():
    pre = np.array([[1.0, 2, 2, 2], [-1, -3, -2, -2]])
    np.testing.assert_array_equal(Activation("topk", k=2).apply(pre), [[0, 2, 2, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(Activation("topk", k=2, signed=True).apply(pre), [[0, 2, 2, 0], [-1, 0, -2, 0]])


def test_at_least_is_the_number_below():
    t = np.array([0.5, 1e-30], np.float32)
    assert (t > at_least(t)).all() and not (np.nextafter(t, np.float32(-1)) > at_least(t)).any()


def test_paths_that_are_no_checkpoints(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_sae(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds none of"):
        read_sae(tmp_path)
    with pytest.raises(UserError, match="format is 'keras'"):
        read_sae(tmp_path, format="keras")
    (tmp_path / "sae_weights.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match=r"cfg\.json: cannot be read"):
        read_sae(tmp_path)
    (tmp_path / "cfg.json").write_text("[]")
    with pytest.raises(UserError, match="holds a list, expected a JSON object"):
        read_sae(tmp_path)
    (tmp_path / "cfg.json").write_text("{}")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        read_sae(tmp_path)
    with pytest.raises(UserError, match="says its own k; leave it out"):
        read_sae(tmp_path, k=3)
