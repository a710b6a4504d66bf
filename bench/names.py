"""`python bench/names.py RUN [--layer -1]`: how rightly judges name the units of category areas, beside random and other units."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np

from sbm_jax.axes import MODE_TITLES, TOKEN_KIND
from sbm_jax.bench.demo_tables import table
from sbm_jax.stages.explain_names import unit_names
from sbm_jax.statistics import wilson_interval
from sbm_jax.store.store import Store


def newest(run: Path, kind: str) -> Store:
    """The store of that kind that was made last."""
    found = sorted((run / "stores").glob(f"{kind}-*/manifest.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise SystemExit(f"{run}: no {kind} store; run `sbm-jax {kind}` first")
    return Store(found[-1].parent)


def vertices(run: Path, explain: Store) -> str:
    """Of the responsive vertices that a concept drives, those whose best unit has a name (q at most .05), and how many of the names
    are the planted concept; chance: the same names dealt out anew to these vertices.
    """
    exemplars = Store(run / "stores" / explain.spec["inputs"]["exemplars"])
    inputs = exemplars.spec["inputs"].items()
    subjects = {subject: Store(run / "stores" / name) for subject, name in inputs if name.startswith("align-")}
    rows = []
    for judge, about in explain.json("explain.json")["judges"].items():
        for mode in ("cls", "patch_mean", "patch_max"):
            if TOKEN_KIND[mode] not in about["kinds"]:
                continue
            pairs = [
                _best_names(run, explain, exemplars, align, subject, judge, mode) for subject, align in subjects.items()
            ]
            planted, named = (np.concatenate(x) for x in zip(*pairs, strict=True))
            has = named != ""
            right = (planted == named)[has].mean()
            chance = sum((planted[has] == c).mean() * (named[has] == c).mean() for c in np.unique(planted))
            cells = [f"{len(planted):,}", *(f"{100 * x:.0f}" for x in (has.mean(), right, chance))]
            rows.append([f"{judge}, {MODE_TITLES[mode]}", *cells])
    return table(["judge, features", "vertices", "best unit named, %", "rightly, %", "by chance, %"], rows)


def _best_names(
    run: Path, explain: Store, exemplars: Store, align: Store, subject: str, judge: str, mode: str
) -> tuple[np.ndarray, np.ndarray]:
    """The planted concept and the name of the best unit of every responsive vertex that a concept drives."""
    kind, concepts = TOKEN_KIND[mode], explain.json("explain.json")["judges"][judge]["concepts"]
    hooks = sorted(path.name for path in (explain.path / judge / kind).iterdir() if path.is_dir())
    lists = [
        (exemplars.read(f"{kind}/{hook}/units"), np.array(unit_names(explain, judge, kind, hook))) for hook in hooks
    ]
    width = len(exemplars.read(f"{kind}/{hooks[0]}/largest"))
    (truth,) = (run / "stores").glob(f"dataset-*/data/truth/{subject}.csv")
    with truth.open(newline="") as handle:
        concept = np.array([row["concept"] for row in csv.DictReader(handle)])
    ncsnr = Store(run / "stores" / align.spec["inputs"]["betas"]).read("ncsnr")
    best = align.read(f"{mode}/voxel_units")[:, 0]
    chosen = np.flatnonzero(np.isin(concept, concepts) & (ncsnr >= 0.2) & (best >= 0))
    names = []
    for unit in best[chosen]:
        units, known = lists[unit // width]
        names.append(known[np.searchsorted(units, unit % width)])
    return concept[chosen], np.array(names)


def pooled(subjects: dict[str, Any], layer: int, ranking: str) -> list[str]:
    """Over all ROIs and subjects: stable units and the share named rightly, and the same of the controls."""
    counts = {name: np.zeros(3, int) for name in ("own", "others", "random")}
    for rois in subjects.values():
        for record in rois.values():
            parts = record[ranking]
            for name in counts:
                part = parts if name == "own" else parts[name]
                counts[name] += [part[key][layer] for key in ("units", "stable", "aligned")]
    cells = []
    for name in counts:
        units, stable, aligned = counts[name]
        low, high = (float(x) for x in wilson_interval(np.array(aligned), np.array(stable)))
        # a control unit counts once per ROI and subject: no interval over units
        span = f" ({low:.2f} to {high:.2f})" if name == "own" else ""
        cells += [f"{stable:,} of {units:,}", f"{aligned / stable:.2f}{span}" if stable else "-"]
    return cells


def names(document: dict[str, Any], layer: int, ranking: str = "contrast") -> str:
    """One row per judge and kind of feature."""
    rows = [
        [f"{judge}, {MODE_TITLES[mode]}", *pooled(subjects, layer, ranking)]
        for judge, modes in document["rois"].items()
        for mode, subjects in modes.items()
    ]
    head = ["judge, features", "ROI units stable", "named rightly", "other ROIs' units stable", "so named"]
    return table([*head, "random units stable", "so named"], rows)


def onsets(document: dict[str, Any], mode: str) -> str:
    """Layer at which aligned units exceed the random ones', with its interval."""
    layers = document["layers"]
    known = list(dict.fromkeys(c for modes in document["curves"].values() for c in modes.get(mode, {})))
    rows = []
    for judge, modes in document["curves"].items():
        if mode in modes:
            found = [modes[mode].get(c, {}).get("roi", {}).get("onset_aligned") for c in known]
            rows.append([judge, *("-" if x is None else _layer(x, layers) for x in found)])
    return table(["judge", *known], rows)


def _layer(record: dict[str, Any], layers: list[str]) -> str:
    name = lambda layer: "none" if layer is None else layers[layer]  # noqa: E731
    return f"{name(record['layer'])} ({name(record['low'])} to {name(record['high'])})"


def flow(document: dict[str, Any]) -> str:
    """Held-out variance explained by layer, in percent, mean over units."""
    rows = []
    for kind, record in document["flow"]["kinds"].items():
        for group in document["flow"]["groups"]:
            values = zip(*(record[f"alone{end}"][group] for end in ("", "_low", "_high")), strict=True)
            rows.append(
                [f"{kind}, {group}", *(f"{100 * x:.1f} ({100 * a:.1f} to {100 * b:.1f})" for x, a, b in values)]
            )
    return table(["tokens, features", *(f"block {label}" for label in document["layers"])], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--layer", type=int, default=-1, help="index of the layer; -1 is the last")
    parser.add_argument("--mode", default="patch_mean", help="of the table of onsets")
    options = parser.parse_args()
    explain, emergence = newest(options.run, "explain"), newest(options.run, "emergence").json("emergence.json")
    tables = (
        names(explain.json("explain.json"), options.layer),
        vertices(options.run, explain),
        onsets(emergence, options.mode),
        flow(emergence),
    )
    print(*tables, sep="\n\n")


if __name__ == "__main__":
    main()
