"""What the stage tests share: the arrays of the tiny run, read by zarr-python, and plain definitions of what they mean."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

HOOKS = ("block01.resid", "block05.resid")
SUBJECTS = ("subj01", "subj02")
SAE_MODES = ("cls", "patch_mean", "patch_max")


class Stores:
    """Arrays and documents of the tiny run, read without any code of the program."""

    def __init__(self, run: Any):
        self.run = run

    @cached_property
    def data(self) -> Path:
        return self.run.store("dataset") / "data"

    def folder(self, kind: str, subject: str | None = None) -> Path:
        folders = sorted((self.run.out / "stores").glob(f"{kind}-*"))
        if subject is None:
            (only,) = folders
            return only
        if kind == "betas":
            return next(p for p in folders if self._spec(p)["settings"]["subject"] == subject)
        betas = self.folder("betas", subject).name
        return next(p for p in folders if self._spec(p)["inputs"]["betas"] == betas)

    @staticmethod
    def _spec(folder: Path) -> dict[str, Any]:
        return json.loads((folder / "spec.json").read_text())

    def array(self, kind: str, name: str, subject: str | None = None) -> np.ndarray:
        return np.asarray(zarr.open_array(self.folder(kind, subject) / name, mode="r")[...])

    def document(self, kind: str, name: str, subject: str | None = None) -> Any:
        return json.loads((self.folder(kind, subject) / name).read_text())

    def table(self, name: str) -> dict[str, np.ndarray]:
        with (self.data / name).open(newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
        return {key: np.array([row[key] for row in rows]) for key in rows[0]}

    @cache  # noqa: B019  (one object per session)
    def codes(self, mode: str) -> np.ndarray:
        """Dense codes of all images and layers, float64 [l, n, u]."""
        out = []
        for hook in HOOKS:
            if mode not in SAE_MODES:
                out.append(self.array("codes", f"{mode}/{hook}").astype(np.float64))
                continue
            values, units = (self.array("codes", f"{mode}/{hook}/{part}") for part in ("values", "units"))
            dense = np.zeros((len(values), self.array("saes", "b_enc").shape[1]))
            np.add.at(dense, (np.arange(len(values))[:, None], units), values.astype(np.float64))
            out.append(dense)
        return np.stack(out)

    @cache  # noqa: B019
    def brain(self, subject: str) -> Brain:
        return Brain(
            betas_vn=self.array("betas", "betas", subject).astype(np.float64),
            rows=self.array("betas", "image_rows", subject),
            shared=self.array("betas", "shared", subject).astype(bool),
            ncsnr=self.array("betas", "ncsnr", subject),
            usable=self.array("betas", "usable", subject).astype(bool),
        )

    def rois(self, subject: str) -> dict[str, np.ndarray]:
        """The regions that are reported by default: four early areas (dorsal and ventral pooled), other atlases whole."""
        voxels = self.table(f"{subject}/voxels.csv")
        early = {
            f"prf-visualrois/{area}": np.isin(voxels["prf-visualrois"], [area, f"{area}v", f"{area}d"])
            for area in ("V1", "V2", "V3", "hV4")
        }
        others = {name: cells != "" for name, cells in voxels.items() if name not in ("hemi", "vertex")}
        del others["prf-visualrois"]
        return {**early, **others}

    def extents(self) -> tuple[list[str], np.ndarray]:
        """Concepts and [n, concepts]: visible fraction over its mean where visible."""
        table = self.table("images.csv")
        names = [key.removeprefix("label:") for key in table if key.startswith("label:")]
        columns = [table[f"label:{name}"].astype(float) for name in names]
        return names, np.stack([x / x[x > 0].mean() for x in columns], axis=1)


@dataclass(frozen=True)
class Brain:
    """One subject's responses and who takes part."""

    betas_vn: np.ndarray
    rows: np.ndarray
    shared: np.ndarray
    ncsnr: np.ndarray
    usable: np.ndarray

    @property
    def responsive(self) -> np.ndarray:
        return self.usable & (self.ncsnr >= 0.2)

    def part(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Image rows and responses [n, v] of `select` (unique) or `held_out` (shared) images."""
        mask = self.shared if name == "held_out" else ~self.shared
        return self.rows[mask], self.betas_vn[:, mask].T


def pearson(x_nu: np.ndarray, y_nv: np.ndarray) -> np.ndarray:
    """Every unit with every voxel, float64 [u, v]; 0 where either is constant."""
    x, y = (_standard(np.asarray(z, np.float64)) for z in (x_nu, y_nv))
    return x.T @ y


def _standard(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=0)
    norm = np.linalg.norm(centred, axis=0)
    real = norm > 1e-9 * np.linalg.norm(x, axis=0)
    return np.where(real, centred / np.where(real, norm, 1), 0)


@pytest.fixture(scope="session")
def stores(tiny) -> Stores:
    return Stores(tiny)


@pytest.fixture(scope="session")
def correlation():
    """`pearson`, for test files that cannot import a conftest."""
    return pearson
