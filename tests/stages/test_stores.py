"""What lies on disk after a run: stores that zarr-python reads, their documents, and the keys of summary.json."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import yaml
import zarr

MODES = ("cls", "patch_mean", "patch_max", "raw", "random")
KINDS = {
    "activations": 1,
    "align": 2,
    "assign": 2,
    "betas": 2,
    "codes": 1,
    "dataset": 1,
    "edit": 1,
    "emergence": 1,
    "exemplars": 1,
    "explain": 1,
    "joint": 2,
    "layers": 1,
    "match": 1,
    "pooling": 2,
    "recovery": 1,
    "report": 1,
    "roi": 1,
    "rsa": 1,
    "saes": 1,
    "sizes": 1,
    "stability": 1,
}
SUMMARY = {
    "assign": {"subj01", "subj02"},
    "backbone": {"family", "image_size", "layers", "patches", "width"},
    "dataset": {"images", "name", "shared", "space", "subjects"},
    "emergence": {"curves", "flow", "layers", "left_out"},
    "explain": {"judges", "left_out", "rois"},
    "joint": {"subj01", "subj02"},
    "layers": set(MODES),
    "pooling": {"subj01", "subj02"},
    "recovery": {"concepts", "modes"},
    "roi": {"alignment", "voxels"},
    "rsa": {"n_images", "rois", "too_small"},
    "sae_fidelity": {"categories", "embedding", "identity", "images", "original"},
    "sizes": {"subj01", "subj02"},
    "subjects": {"subj01", "subj02"},
}
SAE = {
    *("kind", "hook", "objective", "k", "sparsity", "lr", "seed", "expansion", "tokens", "final_loss", "rates"),
    *("mse", "normalised_mse", "explained_variance", "explained_variance_per_dimension", "cosine"),
    *("l0", "l1", "dead", "dead_in_training", "dense", "effective_units", "magnitudes", "fidelity"),
}
SUBJECT = {"median_ceiling", "median_ncsnr", "min_ncsnr", "modes", "responsive", "usable", "voxels"}
ROW = {
    "held_out_max",
    "held_out_mean",
    "held_out_median",
    "held_out_of_ceiling",
    "layer_held_out",
    "max",
    "mean",
    "shuffled_held_out_mean",
    "shuffled_mean",
    "significant_fdr",
    "significant_fwe",
    "structure",
    "structure_held_out",
    "structure_held_out_shuffled",
    "structure_shuffled",
}


@pytest.fixture(scope="module")
def summary(tiny) -> dict:
    return json.loads((tiny.out / "summary.json").read_text())


def test_kinds_of_stores(tiny):
    names = [p.name.rpartition("-")[0] for p in (tiny.out / "stores").iterdir()]
    assert {kind: names.count(kind) for kind in names} == KINDS


def test_zarr_python_reads_every_array(tiny):
    """Every array by its path, and every store as a group that lists what lies in it."""
    count = 0
    for store in (tiny.out / "stores").iterdir():
        group = zarr.open_group(store, mode="r")
        assert group.attrs["spec"] == json.loads((store / "spec.json").read_text())
        with warnings.catch_warnings():
            # zarr-python says of every other file in the folder that it is no part of a hierarchy.
            warnings.filterwarnings("ignore", message="Object at .* is not recognized")
            listed = {name for name, item in group.members(max_depth=None) if isinstance(item, zarr.Array)}
        arrays = {
            p.parent.relative_to(store).as_posix()
            for p in store.rglob("zarr.json")
            if json.loads(p.read_text())["node_type"] == "array"
        }
        assert listed == arrays, store.name
        for name in arrays:
            array = group[name]
            assert isinstance(array, zarr.Array) and "sharding_indexed" in (store / name / "zarr.json").read_text()
            assert np.asarray(array[...]).shape == array.shape
            count += 1
    assert count > 150


def test_manifest_names_every_file(tiny):
    for store in (tiny.out / "stores").iterdir():
        files = json.loads((store / "manifest.json").read_text())["files"]
        found = {p.relative_to(store).as_posix(): p.stat().st_size for p in store.rglob("*") if p.is_file()}
        del found["manifest.json"]
        assert files == found, store.name


def test_configuration_and_provenance_lie_beside_every_store(tiny):
    from sbm_jax.config import dump_config, load_config

    for store in (tiny.out / "stores").iterdir():
        assert (store / "config.yaml").read_text() == dump_config(load_config(tiny.config))
        record = json.loads((store / "provenance.json").read_text())
        assert set(record) == {"commit", "devices", "machine", "packages", "python", "sbm_jax"}
        assert set(record["devices"]) == {"cpu:cpu"} and record["packages"]["numpy"] == np.__version__
    assert yaml.safe_load((store / "config.yaml").read_text())["train"]["steps"] == 12


def test_keys_of_the_summary(summary):
    others = {"saes", "front", "stability", "dead_tokens", "rate_bins", "magnitude_bins", "match", "agreement", "edit"}
    assert set(summary) == {*SUMMARY, *others}
    for name, keys in SUMMARY.items():
        assert set(summary[name]) == keys, name
    assert len(summary["saes"]) == 4
    assert all(set(record) == SAE for record in summary["saes"])
    for subject in summary["subjects"].values():
        assert set(subject) == SUBJECT
        assert set(subject["modes"]) == set(MODES)
        assert all(set(row) == ROW for row in subject["modes"].values())


@pytest.mark.parametrize("subject", ["subj01", "subj02"])
@pytest.mark.parametrize("mode", MODES)
def test_row_of_the_main_table(stores, summary, mode, subject):
    brain, row = stores.brain(subject), summary["subjects"][subject]["modes"][mode]
    alive = brain.responsive
    values, held_out = (
        stores.array("align", f"{mode}/{key}", subject)[alive, 0] for key in ("voxel_values", "held_out")
    )
    assert summary["subjects"][subject]["responsive"] == alive.sum()
    assert row["max"] == pytest.approx(values.max())
    assert row["mean"] == pytest.approx(values.mean(dtype=np.float64), rel=1e-6)
    assert row["held_out_max"] == pytest.approx(held_out.max())
    assert row["held_out_mean"] == pytest.approx(held_out.mean(dtype=np.float64), rel=1e-6)
    assert row["held_out_median"] == pytest.approx(np.median(held_out))
    ceiling = np.sqrt(stores.array("betas", "noise_ceiling", subject)[alive])
    assert row["held_out_of_ceiling"] == pytest.approx(np.mean(held_out / ceiling), rel=1e-5)
    for key in ("shuffled_values", "shuffled_held_out"):
        name = {"shuffled_values": "shuffled_mean", "shuffled_held_out": "shuffled_held_out_mean"}[key]
        mean = stores.array("align", f"{mode}/{key}", subject)[:, alive].mean(dtype=np.float64)
        assert row[name] == pytest.approx(mean, rel=1e-5, abs=1e-8)
    # Two permutations cannot reach .05.
    assert row["significant_fdr"] is None and row["significant_fwe"] is None
    layers = stores.array("align", f"{mode}/layer_held_out", subject)[:, alive].mean(axis=1, dtype=np.float64)
    np.testing.assert_allclose(row["layer_held_out"], layers, atol=1e-7)


def test_report_folder(tiny):
    report = tiny.store("report")
    assert (tiny.out / "report.html").read_bytes() == (report / "report.html").read_bytes()
    assert (tiny.out / "summary.json").read_bytes() == (report / "summary.json").read_bytes()
    assert len(list((report / "figures").glob("*.png"))) == 3
    maps = {p.name for p in (report / "maps").glob("*.func.gii")}
    assert len(maps) >= 8 and all(name.startswith(("subj01", "subj02")) for name in maps)


def test_maps_open_in_nibabel(tiny, stores):
    """The held-out map of each hemisphere holds the held-out score of the report's mode, vertex by vertex."""
    import nibabel

    folder = tiny.store("report") / "maps"
    held_out = stores.array("align", "patch_mean/held_out", "subj01")[:, 0]
    voxels = stores.table("subj01/voxels.csv")
    for hemi in "LR":
        (array,) = nibabel.load(folder / f"subj01_space-fsaverage5_hemi-{hemi}_desc-heldout.func.gii").darrays
        mine = voxels["hemi"] == hemi
        expected = np.full(10_242, np.nan, np.float32)
        expected[voxels["vertex"][mine].astype(int)] = held_out[mine]
        shown = np.isfinite(array.data) & np.isfinite(expected) & (array.data != 0)
        np.testing.assert_allclose(array.data[shown], expected[shown], atol=1e-6)
        assert shown.mean() > 0.2
