"""Running the stages whose stores are not there yet, in order, and publishing what the last one made."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sbm_jax import interrupt, processes
from sbm_jax.axes import MODE_TITLES
from sbm_jax.errors import UserError
from sbm_jax.plan import STAGES, TOGETHER, Step, run_steps, short, steps
from sbm_jax.progress import log
from sbm_jax.stages.context import Context
from sbm_jax.store.store import replace_text


def choose(stages: str | None) -> tuple[str, ...]:
    """Stage names from `extract,train` or a range such as `train..align`. Raises UserError for a name there is not."""
    if not stages:
        return STAGES
    chosen: list[str] = []
    for part in stages.split(","):
        first, dots, last = part.strip().partition("..")
        for name in (first, last) if dots else (first,):
            if name not in STAGES:
                raise UserError(f"--stages: there is no stage {name!r}; the stages are {', '.join(STAGES)}")
        if dots and STAGES.index(first) > STAGES.index(last):
            raise UserError(f"--stages: {part.strip()} runs backwards; the order is {', '.join(STAGES)}")
        chosen += STAGES[STAGES.index(first) : STAGES.index(last) + 1] if dots else [first]
    return tuple(stage for stage in STAGES if stage in chosen)


def run(ctx: Context, chosen: Sequence[str] = STAGES, say: Callable[[str], None] = log) -> None:
    """Make the missing stores of the chosen stages, in order. Raises UserError before starting when the disk is too full."""
    refuse_full_disk(ctx.out, [step for step in steps(ctx) if step.stage in chosen and not ctx.has(step.spec)])
    mine = [step for step in steps(ctx) if step.stage in chosen]
    for _, group in itertools.groupby(mine, lambda step: step.stage if step.stage in TOGETHER else step.spec.name):
        make(ctx, list(group), say)
    processes.wait("all stages")


def make(ctx: Context, group: Sequence[Step], say: Callable[[str], None] = log) -> None:
    """Make the stores of a stage that are not there; all processes train, the first does everything else."""
    interrupt.check()
    todo = [step for step in group if not ctx.has(step.spec)]
    processes.wait(group[0].spec.name)  # nobody writes between looking and this
    for step in group:
        if step not in todo:
            say(f"{step.stage}: found {step.spec.name}")
    if todo and (processes.is_first() or group[0].stage == "train"):
        run_steps(ctx, todo)


def refuse_full_disk(out: Path, todo: Sequence[Step]) -> None:
    """Raise UserError when the disk has less room than the stores to be made in `out` take."""
    needed = sum(step.bytes for step in todo)
    place = next(p for p in (out, *out.resolve().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{out}: the run needs about {short(needed, 'B')}, the disk has {short(free, 'B')} free. Choose another "
            "--out, fewer layers (backbone.layers) or fewer modes (encode.modes)."
        )


_COLUMNS = (
    ("MAX", "max"),
    ("MEAN", "mean"),
    ("score", "structure"),
    ("held out", "held_out_mean"),
    ("of ceiling", "held_out_of_ceiling"),
    ("shuffled", "shuffled_held_out_mean"),
)


def _ordered(by_mode: dict[str, Any]) -> list[tuple[str, Any]]:
    """(mode, record) in the order of `axes.MODES`; JSON sorts its keys."""
    return [(mode, by_mode[mode]) for mode in MODE_TITLES if mode in by_mode]


def _cell(value: float | None) -> str:
    return f"{'-':>12s}" if value is None else f"{value:12.3f}"


def publish(ctx: Context) -> list[str]:
    """Copy the finished page and summary to the top of the run's folder; the lines that end a run."""
    report = ctx.open(ctx.last)
    for name in ("report.html", "summary.json"):
        replace_text(ctx.out / name, (report.path / name).read_text(encoding="utf-8"))
    summary = report.json("summary.json")
    lines = [
        f"report   {ctx.out / 'report.html'}",
        f"summary  {ctx.out / 'summary.json'}",
    ]
    if ctx.facts.has_rdms:
        from sbm_jax.stages.rdms import lines as rdm_lines

        return lines + rdm_lines(summary, ctx.config.rsa.method)
    lines.append(f"maps     {report.path / 'maps'}")
    for name, subject in summary["subjects"].items():
        lines += [
            "",
            f"{name}, {subject['responsive']:,} responsive voxels".ljust(34)
            + "".join(f"{h:>12s}" for h, _ in _COLUMNS),
        ]
        for mode, row in _ordered(subject["modes"]):
            lines.append(f"  {MODE_TITLES[mode]:32s}" + "".join(_cell(row[key]) for _, key in _COLUMNS))
    if summary["recovery"]:
        lines += ["", "planted truth: category vertices whose best unit has the right concept (images permuted)"]
        for mode, record in _ordered(summary["recovery"]["modes"]):
            if part := record["all"]["category"]:
                found, null, count = 100 * part["found"], 100 * part["shuffled"], part["vertices"]
                lines.append(f"  {MODE_TITLES[mode]:32s}{found:10.1f} % ({null:.1f} %) of {count:,} vertices")
    return lines
