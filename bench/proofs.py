"""`python bench/proofs.py`: the statistics on simulated brains with known wiring, beside their nominal levels.

Writes bench/results/proofs.json and prints the tables of docs/validation.md. One process; about 3.5 minutes of processor time.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from sbm_jax.bench import proofs_measures as measures
from sbm_jax.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "proofs.json"


def measure() -> dict[str, Any]:
    """Every table's rows, Estimates as mean and standard error."""
    start = time.perf_counter()
    rows = {
        "null": [
            measures.null_brains(200, 40, shuffles=99, common=0.0),
            measures.null_brains(200, 40, shuffles=99, common=0.5),
            measures.null_brains(200, 40, shuffles=19, common=0.0, max_shuffles=199),
        ],
        "mixed": [
            measures.mixed_brains(60, 60, shuffles=199, null=0.5, common=0.0),
            measures.mixed_brains(60, 60, shuffles=199, null=0.8, common=0.0),
            measures.mixed_brains(60, 60, shuffles=199, null=0.8, common=0.5),
        ],
        "power": measures.power(60, 20, shuffles=99, sparse=True),
        "power_normal": measures.power(60, 20, shuffles=99, sparse=False),
        "r": [
            measures.r_coverage(n, rho, sparse)
            for sparse in (False, True)
            for rho in (0.0, 0.5)
            for n in (25, 100, 400)
        ],
        "profile": [measures.profile_coverage(n) for n in (25, 60, 240, 1000)],
        "rdm": [measures.rdm_coverage(40, 120, subjects) for subjects in (1, 4)],
        "ceiling": [measures.ceilings(level, 2000) for level in (0.2, 0.4, 0.8)],
    }
    return {"seconds": round(time.perf_counter() - start), "provenance": provenance([]), **measures.plain(rows)}


def markdown(record: dict[str, Any]) -> str:
    """The tables of docs/validation.md."""
    tables = (
        _table(
            "brains x voxels; permutations; common noise",
            ("p <= .05", "brains with any p_fwe <= .05", "brains with any p_fdr <= .05"),
            {
                _null_row(row): (
                    _mean(row["false_positives"]),
                    _share(row["any_fwe"]),
                    _share(row["any_fdr"]),
                )
                for row in record["null"]
            },
        ),
        _table(
            "null voxels; common noise",
            ("bound: .05 x share of null voxels", "false discoveries", "found (ncsnr .25)"),
            {
                f"{100 * row['null']:.0f} %; {row['common']:g}": (
                    f"{0.05 * row['null']:.3f}",
                    _mean(row["false_discoveries"]),
                    _mean(row["found"]),
                )
                for row in record["mixed"]
            },
        ),
        *(
            _table(
                f"ncsnr ({codes} codes)",
                ("r of the unit that drives", "p <= .05", "right unit", "in-sample bias", "held-out bias"),
                {
                    f"{row['ncsnr']:g}": (
                        f"{row['r']:.3f}",
                        _mean(row["power"]),
                        _mean(row["recovered"]),
                        _mean(row["in_sample_bias"], 4),
                        _mean(row["held_out_bias"], 4),
                    )
                    for row in record[key]
                },
            )
            for key, codes in (("power", "sparse"), ("power_normal", "normal"))
        ),
        _table(
            "r over images",
            tuple(f"{n} images" for n in dict.fromkeys(row["images"] for row in record["r"])),
            _by_kind(record["r"]),
        ),
        _table(
            "images",
            ("r of a layer", "mean r of a region", "depth", "mean depth (truth)", "mean ends of its interval"),
            {
                str(row["images"]): (
                    _share(row["profile"]),
                    _share(row["region"]),
                    _share(row["depth"]),
                    f"{row['depth_estimated']['mean']:.2f} ({row['depth_truth']:.2f})",
                    "{:.2f} to {:.2f}".format(*row["depth_interval"]),
                )
                for row in record["profile"]
            },
        ),
        _table(
            "RDM similarity",
            ("covered",),
            {
                f"{row['images']} images, {row['subjects']} subject{'s' * (row['subjects'] > 1)}": (
                    _share(row["covered"]),
                )
                for row in record["rdm"]
            },
        ),
        _table(
            "ncsnr",
            ("estimated", "r of the perfect model", "r / ceiling"),
            {
                f"{row['ncsnr']:g}": (
                    _mean(row["estimated_ncsnr"], 4),
                    _mean(row["r"], 4),
                    _mean(row["r_of_ceiling"], 4),
                )
                for row in record["ceiling"]
            },
        ),
    )
    return "\n\n".join(tables)


def _null_row(row: dict[str, Any]) -> str:
    most = f" to {row['max_shuffles']}" if row["max_shuffles"] else ""
    return f"{row['brains']} x {row['voxels']}; {row['shuffles']}{most}; {row['common']:g}"


def _by_kind(rows: list[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    kinds: dict[str, list[str]] = {}
    for row in rows:
        name = f"{'sparse' if row['sparse'] else 'normal'} codes, r = {row['r']:g}"
        kinds.setdefault(name, []).append(_share(row["covered"]))
    return {name: tuple(cells) for name, cells in kinds.items()}


def _table(corner: str, columns: tuple[str, ...], rows: dict[str, tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join((corner, *columns)) + " |", "|---" * (1 + len(columns)) + "|"]
    return "\n".join([*lines, *("| " + " | ".join((name, *cells)) + " |" for name, cells in rows.items())])


def _mean(value: dict[str, float], digits: int = 3) -> str:
    return f"{value['mean']:.{digits}f} ± {value['error']:.{digits}f}"


def _share(value: dict[str, Any]) -> str:
    return f"{value['share']:.3f} ({value['interval'][0]:.3f} to {value['interval'][1]:.3f})"


def main() -> None:
    record = measure()
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(markdown(record))
    print(f"{record['seconds']} s, {RESULTS}")


if __name__ == "__main__":
    main()
