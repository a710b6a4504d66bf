"""The control of an untrained backbone through the whole pipeline: its own tokens, autoencoders, codes and rows of every table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sbm_jax import pipeline
from sbm_jax.config import load_config
from sbm_jax.plan import steps
from sbm_jax.sae.interchange_write import export_store
from sbm_jax.sae.stream import array_name
from sbm_jax.stages import dataset, encode, online, train
from sbm_jax.stages.activations import ForwardPass
from sbm_jax.stages.context import Context

HOOK = "block01.resid"
SETTINGS = (
    "data.demo.n_shared=12",
    "data.demo.n_unique=18",
    "data.demo.n_extra=0",
    "data.demo.n_subjects=1",
    "backbone.layers=[1]",
    "extract.batch=16",
    "train.steps=12",
    "train.batch=16",
    "train.expansion=2",
    "train.k=4",
    "train.fidelity_images=4",
    "align.shuffles=1",
    "rsa.bootstrap=0",
    "rsa.structure_voxels=20",
    "roi.top_units=5",
    "roi.exemplars=3",
    "roi.modes=[patch_mean,untrained]",
    "sizes.voxels=50",
    "exemplars.kinds=[]",
    "devices=1",
)
WITH = "encode.modes=[cls,patch_mean,raw,untrained]"
WITHOUT = ("encode.modes=[cls,patch_mean,raw]", "roi.modes=[patch_mean]")


def context(out: Path, *settings: str) -> Context:
    return Context(load_config(None, (*SETTINGS, *settings)), out)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A run's folder with nothing but the dataset."""
    ctx = context(tmp_path_factory.mktemp("untrained"), WITH)
    dataset.run(ctx)
    return ctx.out


@pytest.fixture(scope="module")
def finished(pictures) -> Context:
    """A whole run with the control."""
    ctx = context(pictures, WITH)
    pipeline.run(ctx)
    pipeline.publish(ctx)
    return context(ctx.out, WITH)


@pytest.mark.slow
def test_it_is_a_row_of_every_table(finished):
    summary = json.loads((finished.out / "summary.json").read_text())
    modes = ["cls", "patch_mean", "raw", "untrained"]
    (subject,) = summary["subjects"].values()
    (sizes,) = summary["sizes"].values()
    assert sorted(subject["modes"]) == sorted(sizes["modes"]) == sorted(summary["layers"]) == modes
    assert sorted(summary["recovery"]["modes"]) == modes and "untrained" in summary["roi"]["alignment"]["modes"]
    for roi in summary["rsa"]["rois"].values():
        assert all(sorted(scores) == modes for scores in roi["subjects"].values())
    row = subject["modes"]["untrained"]
    assert np.isfinite(row["held_out_mean"]) and row["mean"] != subject["modes"]["patch_mean"]["mean"]
    kinds = [member["kind"] for member in summary["saes"]]
    assert kinds == ["cls", "patch", "untrained"]
    # Reconstructions of its tokens stand for nothing in the backbone.
    assert [member["fidelity"] is None for member in summary["saes"]] == [False, False, True]
    assert summary["saes"][0]["fidelity"]["together"] is not None
    page = (finished.out / "report.html").read_text()
    assert "SAE, untrained backbone" in page and "untrained backbone&#39;s patch tokens" in page


@pytest.mark.slow
def test_codes_are_means_over_patches_of_the_untrained_tokens(finished):
    """In float64 from the stores: scale (x - mean), the k largest of w_enc x + b_enc, negatives 0, mean over patches."""
    saes, codes = finished.open(finished.specs.saes), finished.open(finished.specs.codes)
    acts = finished.activations.read(array_name(HOOK, "untrained")).astype(np.float64)
    w, b, mean, scale = (saes.read(name)[2].astype(np.float64) for name in ("w_enc", "b_enc", "mean", "scale"))
    pre = scale * (acts - mean) @ w + b
    kept = np.where(pre >= -np.sort(-pre, axis=2)[:, :, 3:4], np.maximum(pre, 0), 0)
    name = f"untrained/{HOOK}"
    dense = np.zeros((len(acts), w.shape[1]))
    np.add.at(
        dense, (np.arange(len(acts))[:, None], codes.read(f"{name}/units")), codes.read(f"{name}/values").astype(float)
    )
    np.testing.assert_allclose(dense, kept.mean(axis=1), atol=2e-5)
    assert (dense > 0).any(axis=1).all()


def test_tokens_repeat_with_the_seed_and_leave_the_others_alone(pictures):
    names = [array_name(HOOK, kind) for kind in ("cls", "patch", "untrained")]

    def computed(*settings: str) -> dict[str, np.ndarray]:
        ctx = context(pictures, *settings)
        forward = ForwardPass(ctx)
        ((_, values),) = forward.blocks(range(10), forward.arrays)
        return values

    stored, again, other = computed(WITH), computed(WITH), computed(WITH, "encode.seed=1")
    plain = computed(*WITHOUT)
    assert list(plain) == names[:2]
    for name in names:
        np.testing.assert_array_equal(again[name], stored[name])
    for name in names[:2]:
        np.testing.assert_array_equal(other[name], stored[name])
        np.testing.assert_array_equal(plain[name], stored[name])
    patch, twin = (stored[name].astype(np.float32) for name in names[1:])
    assert patch.shape == twin.shape and np.isfinite(twin).all()
    assert np.abs(patch - twin).mean() > 0.1 * patch.std()
    assert not np.array_equal(other[names[2]], stored[names[2]])


def test_it_is_in_names_and_estimates_only_when_asked_for(tmp_path):
    one, without = context(tmp_path, WITH), context(tmp_path, *WITHOUT)
    assert one.specs.activations.settings["untrained"] == 0
    assert "untrained" not in without.specs.activations.settings
    assert one.specs.activations.name != without.specs.activations.name
    # a seed that nothing random needs is in no name of the activations
    assert context(tmp_path, *WITHOUT, "encode.seed=1").specs.activations == without.specs.activations
    assert context(tmp_path, WITH, "encode.seed=1").specs.activations != one.specs.activations
    more, less = ({step.stage: step for step in steps(ctx)} for ctx in (one, without))
    assert more["extract"].flops == 2 * less["extract"].flops
    per_image = online.image_bytes(one, "patch")
    assert more["extract"].bytes - less["extract"].bytes == pytest.approx(30 * per_image)
    assert more["train"].bytes == pytest.approx(1.5 * less["train"].bytes)
    # reconstructions are put in for the two kinds of the backbone itself
    passes = 4 * one.facts.backbone.flops_per_image(6)
    assert more["train"].flops - less["train"].flops < passes


@pytest.mark.slow
def test_without_a_store_the_same_bytes(finished, tmp_path):
    other = context(tmp_path, WITH, "extract.keep=false", "extract.memory_mb=1")
    assert other.specs == finished.specs
    assert set(online.rooms(other)) == {"cls", "patch", "untrained"}
    (pictures,) = finished.stores.glob("dataset-*")
    shutil.copytree(pictures, other.stores / pictures.name)
    train.run(other)
    encode.run(other)
    for spec in (other.specs.saes, other.specs.codes):
        ours, theirs = (ctx.open(spec) for ctx in (other, finished))
        names = ("w_enc", "w_dec") if spec == other.specs.saes else (f"untrained/{HOOK}/values", f"raw/{HOOK}")
        for name in names:
            np.testing.assert_array_equal(ours.read(name), theirs.read(name))


@pytest.mark.slow
def test_exported_autoencoders_say_that_the_model_was_untrained(finished, tmp_path):
    folders = export_store(finished.open(finished.specs.saes), tmp_path / "out", "plain", "lab/clip")
    names = [json.loads((folder / "sae.json").read_text())["metadata"]["model_name"] for folder in folders]
    assert names == ["lab/clip", "lab/clip", "lab/clip (untrained)"]
    assert folders[2].name == f"002.{HOOK}.untrained"


@pytest.mark.slow
def test_only_the_control(finished):
    """Nothing but the untrained backbone is asked for: no CLS or patch autoencoder is trained."""
    modes = ("encode.modes=[untrained]", "roi.modes=[untrained]", "report.mode=untrained")
    ctx = context(finished.out, *modes)
    train.run(ctx)
    encode.run(ctx)
    members = ctx.open(ctx.specs.saes).json("metrics.json")["members"]
    assert [member["kind"] for member in members] == ["untrained"] and members[0]["fidelity"] is None
