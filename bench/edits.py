"""`python bench/edits.py RUN [--write]`: the tables of docs/edits.md from the newest edit stores of a run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parents[1] / "docs" / "edits.md"
MARK = "<!-- {}: bench/edits.py -->"
Record = dict[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def span(values: Sequence[float | None], digits: int = 2) -> str:
    value, low, high = values
    if value is None:
        return "-"
    return f"{value:+.{digits}f}" + ("" if low is None else f" ({low:+.{digits}f} to {high:+.{digits}f})")


def case_of(record: Record, what: str, hook: str | None = None) -> Record:
    cases = [case for case in record["cases"] if case["what"] == what and case["hook"] == (hook or record["hook"])]
    return max(cases, key=lambda case: case["value"])


def controls_of(record: Record, what: str) -> list[Record]:
    return [case for case in record["controls"] if case["what"] == what]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def name(record: Record) -> str:
    return f"{record['subject']}, {record['roi'].removeprefix('floc-')}"


def removed(document: Record) -> str:
    rows = []
    for record in document["sets"]:
        case, controls = case_of(record, "remove"), controls_of(record, "remove")
        before = document["accuracy"][record["concept"]]["accuracy"]
        worst = [control["on"]["accuracy"][0] for control in controls]
        beyond = record["beyond_controls"]["remove"]["on margin"]
        rows.append(
            [
                name(record),
                f"{before:.2f} to {before + case['on']['accuracy'][0]:.2f}",
                span(case["on"]["accuracy"]),
                f"{mean(worst):+.2f} ({min(worst):+.2f} to {max(worst):+.2f})",
                span(case["on"]["margin"], 1),
                span(beyond["difference"], 1),
                f"{beyond['p']:.3f}",
                span(case["off"]["accuracy"]),
            ]
        )
    head = [
        "units of",
        "accuracy on target",
        "change (95 %)",
        "matched sets: mean (least to most)",
        "margin on target (95 %)",
        "beyond matched (95 %)",
        "p",
        "accuracy off target (95 %)",
    ]
    return table(head, rows)


def by_concept(document: Record) -> str:
    names = list(document["categories"])
    rows = []
    for record in document["sets"]:
        cells = [record["by_concept"][c]["accuracy"][0] for c in names]
        own = names.index(record["concept"])
        rows.append([name(record), *(f"**{x:+.2f}**" if i == own else f"{x:+.2f}" for i, x in enumerate(cells))])
        if record["roi"] == "floc-faces":
            control = [span(record["by_concept_controls"][c]["accuracy"]) for c in names]
            rows.append([f"{name(record)}: matched", *control])
    return table(["units of", *(f"{c} images" for c in names)], rows)


def by_hook(document: Record) -> str:
    rows = [
        [name(record), *(span(case_of(record, "remove", hook)["on"]["accuracy"]) for hook in document["hooks"])]
        for record in document["sets"]
    ]
    return table(["units of", *document["hooks"]], rows)


def driven(document: Record) -> str:
    rows = []
    for record in document["sets"]:
        case, controls = case_of(record, "drive"), controls_of(record, "drive")
        matched = [control["off"]["claimed"][0] for control in controls]
        rows.append(
            [
                name(record),
                span(case["off"]["claimed"]),
                f"{mean(matched):+.2f} ({min(matched):+.2f} to {max(matched):+.2f})",
                span(case["on"]["margin"], 1),
            ]
        )
    head = ["units of", "other images answered with the concept (95 %)", "matched sets", "margin on target (95 %)"]
    return table(head, rows)


def doses(document: Record) -> str:
    scaled = [case["value"] for case in document["sets"][0]["cases"] if case["what"] == "dose"]
    rows = []
    for record in document["sets"]:
        cases = {case["value"]: case for case in record["cases"] if case["what"] == "dose"}
        rows.append(
            [
                name(record),
                span(case_of(record, "remove")["on"]["margin"], 1),
                *(span(cases[value]["on"]["margin"], 1) for value in scaled),
            ]
        )
    return table(["units of", "x 0", *(f"x {value:g}" for value in scaled)], rows)


def voxels(document: Record) -> str:
    wanted = [record["roi"] for record in document["sets"] if record["subject"] == document["sets"][0]["subject"]]
    rows = []
    for record in document["sets"]:
        found = record["voxels"]
        for part in ("removed", "control"):
            values = found[part]["concept"]
            cells = [f"{values[found['rois'].index(roi)]:+.2f}" for roi in wanted]
            rows.append([name(record) + ("" if part == "removed" else ": matched"), *cells])
    return table(["units of", *(roi.removeprefix("floc-") for roi in wanted)], rows)


def segmentation(document: Record) -> str:
    found, rows = document["segmentation"], []
    for record, chosen in zip(found["sets"], document["sets"], strict=True):
        for hook, tested in record["hooks"].items():
            if hook != chosen["hook"]:
                continue
            controls = [value for key, value in tested.items() if key != "roi"]
            for what in ("remove", "drive"):
                own, others = tested["roi"][what], [control[what] for control in controls]
                rows.append(
                    [
                        f"{name(record)}, {what}",
                        str(own["patches"]),
                        *(
                            f"{100 * x:.1f} %"
                            for part in ("on_target", "off_target")
                            for x in (own[part], mean([control[part] for control in others]))
                        ),
                    ]
                )
    return table(["units of, edit", "patches", "on target", "matched", "off target", "matched"], rows)


def segmentation_hooks(document: Record) -> str:
    rows = []
    for record in document["segmentation"]["sets"]:
        for what in ("remove", "drive"):
            cells = []
            for hook in document["hooks"]:
                own = record["hooks"][hook]["roi"][what]
                cells.append(f"{100 * own['on_target']:.0f} / {100 * own['off_target']:.1f}")
            rows.append([f"{name(record)}, {what}", *cells])
    return table(["units of, edit", *document["hooks"]], rows)


def rebuilt(document: Record) -> str:
    names = document["categories"]
    rows = [
        [hook, f"{record['distance'][0]:.3f}", *(f"{record[c]['accuracy'][0]:+.2f}" for c in names)]
        for hook, record in document["rebuilt"].items()
    ]
    return table(["hook", "1 - cosine", *names], rows)


TABLES = {
    "removed": removed,
    "by concept": by_concept,
    "by hook": by_hook,
    "driven": driven,
    "doses": doses,
    "voxels": voxels,
    "segmentation": segmentation,
    "segmentation by hook": segmentation_hooks,
    "rebuilt": rebuilt,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--write", action="store_true", help="replace the tables in docs/edits.md")
    arguments = parser.parse_args()
    stores = sorted((arguments.run / "stores").glob("edit-*/edit.json"), key=lambda path: path.stat().st_mtime)
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in stores]
    document = [found for found in documents if len(found["hooks"]) > 1][-1]
    tables = {key: make(document) for key, make in TABLES.items() if document["segmentation"] or "segm" not in key}
    if alone := [found for found in documents if len(found["hooks"]) == 1]:
        tables["removed at one block"] = removed(alone[-1])
    if not arguments.write:
        print("\n\n".join(f"{key}\n\n{text}" for key, text in tables.items()))
        return
    text = DOCUMENT.read_text(encoding="utf-8")
    for key, lines in tables.items():
        head, rest = text.split(MARK.format(key) + "\n", 1)
        tail = (rest.split("\n\n", 1)[1] if rest.startswith("|") else rest).lstrip("\n")
        text = f"{head}{MARK.format(key)}\n{lines}\n\n{tail}"
    DOCUMENT.write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
