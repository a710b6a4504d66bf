"""RDMs that a dataset brings: the reader, the published anchors where the photographs are there, and a run from pictures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from scipy.stats import spearmanr

from sbm_jax.brain import open_dataset
from sbm_jax.brain.readers.objects92 import BRAINS, MODELS, STIMULI
from sbm_jax.errors import UserError
from sbm_jax.images.sources import open_image
from sbm_jax.kernels import rdm
from sbm_jax.kernels.rdm_compare.api import upper_triangle
from sbm_jax.stages.rdms import ceilings, compare

FOLDER = "rsatoolbox_92objects"


def photographs() -> Path | None:
    """The folder of the 92 photographs: SBM_JAX_92OBJECTS, or one of that name in a `data` folder beside the checkout."""
    named = os.environ.get("SBM_JAX_92OBJECTS")
    beside = sorted(Path(__file__).parents[3].glob(f"*/data/{FOLDER}"))
    return Path(named) if named else next(iter(beside), None)


def struct(**arrays) -> np.ndarray:
    """MATLAB struct array from equally shaped object arrays."""
    shape = next(iter(arrays.values())).shape
    out = np.empty(shape, dtype=[(name, object) for name in arrays])
    for name, values in arrays.items():
        out[name] = values
    return out


def objects(values, shape) -> np.ndarray:
    out = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        out[i] = value
    return out.reshape(shape)


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    """The layout with 92 small pictures; every person's RDM is that of the pictures' mean colours plus noise."""
    pictures = [
        rng.integers(0, 255, (12, 12, 3)).astype(np.uint8) // 4 + rng.integers(0, 190, 3).astype(np.uint8)
        for _ in range(92)
    ]
    colours = np.stack([p.reshape(-1, 3).mean(axis=0) for p in pictures])
    truth = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    noise = [rng.normal(0, 20, (92, 92)) for _ in range(6)]
    rdms = [((truth + n + n.T) * (1 - np.eye(92))).astype(np.float32) for n in noise]
    names = [f"hIT | {who} | Session: {session}" for who in ("AA", "BB", "CC") for session in (1, 2)]
    kind = objects(["face", "place"] * 46, 92)
    savemat(tmp_path / STIMULI, {"stimuli_92objs": struct(image=objects(pictures, 92), category=kind)[None]})
    savemat(tmp_path / BRAINS, {"RDMs": struct(RDM=objects(rdms, (3, 2)), name=objects(names, (3, 2)))})
    models = struct(RDM=objects([truth, truth[::-1, ::-1].copy()], 2), name=objects(["colour", "reversed"], 2))
    savemat(tmp_path / MODELS, {"Models": models[None]})
    return tmp_path


def test_the_reader_keeps_people_sessions_and_models(folder):
    data = open_dataset(folder)
    assert (data.format, data.rdms.region, data.subjects) == ("objects92", "hIT", ())
    assert {name: x.shape for name, x in data.rdms.subjects.items()} == dict.fromkeys(("AA", "BB", "CC"), (2, 4186))
    assert list(data.rdms.models) == ["colour", "reversed"]
    assert open_image(data.images.sources[91]).size == (12, 12) and data.images.captions[:2] == ("face", "place")
    people = {name: x.mean(axis=0) for name, x in data.rdms.subjects.items()}
    scores = compare(data.rdms.models["colour"], people)
    direct = np.mean([spearmanr(data.rdms.models["colour"], x).statistic for x in people.values()])
    assert scores["spearman"]["mean"] == pytest.approx(direct, abs=1e-12)
    ceiling = ceilings(people)["spearman"]
    assert ceiling["lower"] < ceiling["upper"] and scores["spearman"]["mean"] > ceiling["lower"]
    assert abs(compare(data.rdms.models["reversed"], people)["spearman"]["mean"]) < 0.2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / STIMULI).write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200)), "not a readable MATLAB file"),
        (lambda f: savemat(f / BRAINS, {"other": 1}), "expected a variable 'RDMs'"),
        (
            lambda f: savemat(
                f / MODELS, {"Models": struct(RDM=objects([np.zeros((3, 3))], 1), name=objects(["m"], 1))}
            ),
            "expected a symmetric 92 x 92 RDM",
        ),
    ],
)
def test_damaged_files_are_named(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UserError, match=message):
        open_dataset(folder)


def test_a_run_compares_every_layer(folder, program, backbone_folder, tmp_path):
    config = tmp_path / "k.yaml"
    config.write_text(f"data: {{root: '{folder}'}}\nbackbone: {{path: '{backbone_folder}', layers: [0, 3]}}\n")
    done = program("run", "--config", config, "--out", tmp_path / "out")
    assert "noise ceiling" in done.stdout and "reversed" in done.stdout
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["backbone"]["layers"] == ["0", "3"] and summary["dataset"]["people"] == ["AA", "BB", "CC"]
    # pictures differ in colour alone, which the first block's patch mean keeps
    assert summary["layers"]["patch_mean"][0]["spearman"]["mean"] > 0.3
    assert "Similarity to hIT" in (tmp_path / "out" / "report.html").read_text()
    again = program("run", "--config", config, "--out", tmp_path / "out")
    assert "rdms: found" in again.stderr


@pytest.mark.skipif(photographs() is None, reason="the 92 photographs are not here (set SBM_JAX_92OBJECTS)")
def test_published_anchors_of_the_92_objects():
    """Values by rsatoolbox 0.3.2 on the same files."""
    data = open_dataset(photographs())
    people = {name: x.mean(axis=0) for name, x in data.rdms.subjects.items()}
    anchors = {
        "spearman": (0.3723, 0.6657),
        "corr": (0.3944, 0.6804),
        "rho-a": (0.3723, 0.6657),
        "tau-a": (0.2539, 0.4767),
        "cosine": (0.9881, 0.9933),
        "corr_cov": (0.4298, 0.6958),
        "cosine_cov": (0.6647, 0.8173),
    }
    for method, ceiling in ceilings(people).items():
        assert (ceiling["lower"], ceiling["upper"]) == pytest.approx(anchors[method], abs=5.1e-5), method
    scores = {name: compare(vector, people) for name, vector in data.rdms.models.items()}
    spearman = {
        "animacy": 0.3862,
        "FaceBodyManmadeNatobj": 0.2766,
        "monkeyIT": 0.2963,
        "EVA": 0.2454,
        "HMAX": 0.1599,
        "Silhouette": 0.0966,
        "RADON": 0.0381,
        "V1": 0.0265,
    }
    assert {n: s["spearman"]["mean"] for n, s in scores.items()} == pytest.approx(spearman, abs=5.1e-5)
    # these two have ties, where rho-a and spearman part
    assert scores["animacy"]["rho-a"]["mean"] == pytest.approx(0.3345, abs=5.1e-5)
    assert scores["FaceBodyManmadeNatobj"]["rho-a"]["mean"] == pytest.approx(0.2053, abs=5.1e-5)
    small = [open_image(s).resize((32, 32), Image.Resampling.BILINEAR) for s in data.images.sources]
    pixels = np.stack([np.asarray(picture, np.float32).ravel() for picture in small])
    found = compare(upper_triangle(rdm(pixels)), people)["spearman"]["mean"]
    assert found == pytest.approx(0.0828, abs=5.1e-5)
