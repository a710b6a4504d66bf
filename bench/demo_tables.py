"""`python bench/demo_tables.py RUN [--write]`: the tables of the README from a finished demo run's summary.json."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from sbm_jax.axes import MODE_TITLES

README = Path(__file__).parents[1] / "README.md"
FIRST, LAST = "Share (%) of vertices whose best unit", "Sizes and times on two CPU cores"
CONCEPTS = ("face", "body", "place", "word", "food")


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)).replace(
        "| --- ", "|---"
    )


def titles(modes: dict[str, Any]) -> dict[str, str]:
    return {mode: title for mode, title in MODE_TITLES.items() if mode in modes}


def recovery(modes: dict[str, Any]) -> str:
    def cell(part: dict[str, float]) -> str:
        return f"{100 * part['found']:.0f} ({100 * part['shuffled']:.0f})"

    rows = []
    for mode, title in titles(modes).items():
        every = modes[mode]["all"]
        shares = [cell(every["concepts"][concept]) for concept in CONCEPTS]
        rows.append([title, *shares, f"**{cell(every['category'])}**", f"{every['category']['held_out']:.3f}"])
    return table(["features", *CONCEPTS, "all categories", "held-out r"], rows)


def depth(modes: dict[str, Any]) -> str:
    rows = []
    for mode, title in titles(modes).items():
        cells = []
        for area in ("early", "category"):
            d = modes[mode]["all"]["depth"][area]
            cells += [f"{d['best_layer']:.2f} (depth {d['centre_of_mass']:.2f})", f"{d['best_layer_shuffled']:.2f}"]
        rows.append([title, *cells])
    return table(["features", "early areas", "early, permuted", "category areas", "category, permuted"], rows)


def alignment(subjects: dict[str, Any]) -> str:
    columns = {
        "MAX": "max",
        "MEAN": "mean",
        "score": "structure",
        "held-out MEAN": "held_out_mean",
        "of the ceiling": "held_out_of_ceiling",
        "shuffled": "shuffled_held_out_mean",
    }
    rows = [
        [title, *(f"{np.mean([s['modes'][mode][key] for s in subjects.values()]):.3f}" for key in columns.values())]
        for mode, title in titles(next(iter(subjects.values()))["modes"]).items()
    ]
    return table(["features", *columns], rows)


def beyond(summary: dict[str, Any]) -> str:
    """Mean held-out r of the two subjects: the best unit, of as many candidates for all, one-to-one, and joint models."""
    width = summary["backbone"]["width"]

    def equal(record: dict[str, Any], mode: str) -> float:
        (row,) = [row for row in record["modes"][mode] if row["units"] == width]
        return row["held_out"]

    def joint(record: dict[str, Any], mode: str, model: str) -> float | None:
        return record["modes"][mode]["rois"]["all responsive"][model] if mode in record["modes"] else None

    ways = {
        "best unit": lambda s, mode: summary["subjects"][s]["modes"][mode]["held_out_mean"],
        f"of {width} per layer": lambda s, mode: equal(summary["sizes"][s], mode),
        "one-to-one": lambda s, mode: summary["assign"][s][mode]["rois"]["all responsive"]["one_to_one_held_out"],
        "matching pursuit": lambda s, mode: joint(summary["joint"][s], mode, "omp"),
        f"ridge, {width} predictors": lambda s, mode: joint(summary["joint"][s], mode, "ridge"),
    }

    def cell(values: list[float | None]) -> str:
        known = [value for value in values if value is not None]
        return f"{np.mean(known):.3f}" if known else "-"

    subjects = list(summary["subjects"])
    modes = titles(summary["subjects"][subjects[0]]["modes"])
    rows = [
        [title, *(cell([way(s, mode) for s in subjects]) for way in ways.values())] for mode, title in modes.items()
    ]
    return table(["features", *ways], rows)


def _interval(ends: list[float]) -> str:
    return f"{ends[0]:+.3f} to {ends[1]:+.3f}"


def pooling(summary: dict[str, Any]) -> str:
    """Held-out r with the code averaged over all patches and over the voxel's own field, early areas."""
    rows = []
    for roi in ("prf-visualrois/V1", "prf-visualrois/V2", "prf-visualrois/V3", "prf-visualrois/hV4", "floc-faces"):
        parts = [record["rois"][roi] for record in summary["pooling"].values()]
        cells = [f"{x['uniform_held_out']:.3f} to {x['held_out']:.3f} ({_interval(x['gain_interval'])})" for x in parts]
        rows.append([roi.rsplit("/", 1)[-1].removeprefix("floc-"), *cells])
    return table(["area", *summary["pooling"]], rows)


def text(summary: dict[str, Any]) -> str:
    modes = summary["recovery"]["modes"]
    silent = modes["patch_mean"]["all"]["silent"]
    return f"""Share (%) of vertices whose best unit, chosen on unique images, follows the planted concept on the shared ones;
in brackets the same search with images permuted:

{recovery(modes)}

Mean layer of the best unit (0 to 5), and centre of mass of the held-out layer profile:

{depth(modes)}

The {silent["vertices"]:,} vertices that respond to nothing score {silent["held_out"]:.4f} on average (patch SAE, mean).

The paper's table with held-out columns, mean of the two subjects, over responsive voxels:

{alignment(summary["subjects"])}

Other ways to count, held-out r over responsive voxels, mean of the two subjects (docs/methods.md): the best of as many units for
all features (1,000 voxels); every unit for one voxel at most; up to five units by matching pursuit; ridge on equally many
predictors:

{beyond(summary)}

A receptive field for every voxel (patch SAE, mean): held-out r with the code averaged over all patches, to that over the
fitted field, and the 95 % interval of the gain:

{pooling(summary)}

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--write", action="store_true", help="replace the tables in README.md")
    options = parser.parse_args()
    made = text(json.loads((options.run / "summary.json").read_text(encoding="utf-8")))
    if not options.write:
        print(made)
        return
    readme = README.read_text(encoding="utf-8")
    README.write_text(readme[: readme.index(FIRST)] + made + readme[readme.index(LAST) :], encoding="utf-8")


if __name__ == "__main__":
    main()
