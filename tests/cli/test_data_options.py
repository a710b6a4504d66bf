"""Settings of `data:` and `betas:` on a lab's folder: floors, hold-out, shipped ncsnr, precision, z-score, kept trials."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from sbm_jax.store.store import Store
from tests.brain.layouts import nsd


def betas(out: Path, subject: str = "subj01") -> Store:
    found = [s for p in (out / "stores").glob("betas-*") if (s := Store(p)).spec["settings"]["subject"] == subject]
    assert len(found) == 1
    return found[0]


def convert(program, lab, out: Path, *settings: str, code: int = 0):
    words = [word for setting in settings for word in ("--set", setting)]
    return program("data", "convert", *lab[:2], "--out", out, *words, code=code)


def test_voxels_below_the_floor_are_left_out_before_anything_else(lab, program, tmp_path):
    convert(program, lab, tmp_path / "all")
    done = convert(program, lab, tmp_path / "some", "betas.min_ncsnr=0.3")
    everything, some = betas(tmp_path / "all"), betas(tmp_path / "some")
    ncsnr = everything.read("ncsnr")
    np.testing.assert_array_equal(some.read("usable").astype(bool), ncsnr >= 0.3)
    np.testing.assert_array_equal(everything.read("betas"), some.read("betas"))
    below = int((ncsnr < 0.3).sum())
    assert (
        some.json("dropped.json")["below"] == {"ncsnr": below}
        and f"{below} voxels with a ncsnr below 0.3" in done.stderr
    )


def test_a_dataset_s_own_ncsnr_is_used_unless_told_otherwise(dataset, lab, program, tmp_path):
    path = dataset / "subj01" / "voxels.csv"
    with path.open(newline="") as handle:
        rows = list(csv.reader(handle))
    own = np.round(np.linspace(0, 1, len(rows) - 1), 4)
    with path.open("w", newline="") as handle:
        out = csv.writer(handle, lineterminator="\n")
        out.writerow([*rows[0], "ncsnr"])
        out.writerows([*row, value] for row, value in zip(rows[1:], own, strict=True))
    assert "ncsnr: shipped" in program("data", "check", dataset).stdout
    convert(program, lab, tmp_path / "own")
    convert(program, lab, tmp_path / "estimated", "betas.ncsnr=estimated")
    shipped, estimated = betas(tmp_path / "own"), betas(tmp_path / "estimated")
    np.testing.assert_array_equal(shipped.read("ncsnr"), own)
    np.testing.assert_allclose(shipped.read("noise_ceiling"), own**2 / (own**2 + 1 / 3), atol=1e-12)
    np.testing.assert_array_equal(estimated.read("ncsnr"), shipped.read("ncsnr_estimated"))
    done = convert(program, lab, tmp_path / "none", "betas.ncsnr=shipped", code=2)
    assert "brings no ncsnr and no noise ceiling for subj02" in done.stderr


def test_a_random_share_of_the_images_can_score(dataset, lab, program, tmp_path):
    convert(program, lab, tmp_path / "run", "data.hold_out=0.25")
    flags = betas(tmp_path / "run").read("shared").astype(bool)
    total = len((dataset / "images.csv").read_text().splitlines()) - 1
    record = json.loads(program("data", "check", dataset, "--hold-out", "0.25", "--json").stdout)
    assert record["images"]["shared"] == round(0.25 * total)
    assert flags.sum() == record["subjects"][0]["images"]["shared"] and 3 <= flags.sum() < len(flags)
    assert any("drawn at random" in note for note in record["notes"])


def test_half_precision_betas_are_the_rounded_ones(lab, program, tmp_path):
    convert(program, lab, tmp_path / "f32")
    convert(program, lab, tmp_path / "f16", "betas.dtype=float16")
    np.testing.assert_array_equal(
        betas(tmp_path / "f16").read("betas"), betas(tmp_path / "f32").read("betas").astype(np.float16)
    )


def test_missing_sessions_runs_and_kept_trials_of_an_nsd_folder(program, tmp_path, make_config):
    """int16 sessions 1, 2 and 4 of a volume: z-score within true runs, zeros of a session missing, trials kept as stored."""
    plan = nsd.few_images(nsd.make_plan(), (1, 2, 4), 60)
    made = nsd.write_nsd(tmp_path / "nsd", {1: (1, 2, 4)}, plan=plan).subjects[1]
    lab = ("--config", make_config(tmp_path / "nsd.yaml", data={"root": str(tmp_path / "nsd")}))
    convert(program, lab, tmp_path / "run", "betas.zscore=run", "betas.keep_trials=true", "betas.ncsnr=estimated")
    store = betas(tmp_path / "run")
    columns = np.flatnonzero(made.general)
    trials = Store(next((tmp_path / "run" / "stores").glob("trials-*")))
    np.testing.assert_array_equal(trials.read("trials"), made.stored[:, columns])
    psc = made.stored[:, columns] / 300.0
    psc[np.ix_(made.session == 4, made.missing[columns])] = np.nan
    z = psc.copy()
    for session in (1, 2, 4):
        for run in range(1, 13):
            rows = (made.session == session) & (made.run == run)
            assert rows.sum() == (63 if run % 2 else 62)
            z[rows] = (psc[rows] - psc[rows].mean(axis=0)) / psc[rows].std(axis=0)
    ids = np.unique(made.image)
    expected = np.stack([np.nanmean(z[made.image == i], axis=0) for i in ids], axis=1)
    np.testing.assert_allclose(store.read("betas"), expected, atol=2e-5)
    assert (store.read("missing") == 750 * made.missing[columns]).all()
    done = program("run", "--dry-run", *lab, "--out", tmp_path / "run", "--set", "betas.zscore=run")
    assert "about" in done.stdout


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("data.space=fsaverage", "data.space is 'fsaverage'"),
        ("data.subjects=[subj09]", "subj09"),
        ("data.hold_out=1.5", "data.hold_out"),
        ("data.format=bids", "expected auto or one of"),
        ("betas.min_noise_ceiling=2", "betas.min_noise_ceiling"),
    ],
)
def test_settings_that_do_not_fit_are_refused(lab, program, tmp_path, setting, part, refused):
    refused(convert(program, lab, tmp_path / "run", setting, code=2), part)
    assert not (tmp_path / "run" / "stores").exists()
