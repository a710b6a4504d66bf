"""The order of the stages, what each will make, and running those that are not there yet."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sbm_jax.axes import MODE_TITLES, SAE_MODES
from sbm_jax.errors import UserError
from sbm_jax.progress import log
from sbm_jax.stages.context import Context
from sbm_jax.store.spec import StoreSpec
from sbm_jax.store.store import PARTIAL, replace_text

STAGES = ("dataset", "betas", "extract", "train", "encode", "align", "rsa", "roi", "layers", "recovery", "report")


@dataclass(frozen=True)
class Step:
    """One store to be made: by which stage, how large, at what cost. `argument` is the subject of per-subject stages."""

    stage: str
    spec: StoreSpec
    bytes: float
    flops: float
    argument: str | None = None

    def run(self, ctx: Context) -> Any:
        module = importlib.import_module(f"sbm_jax.stages.{self.stage}")
        subject = {"betas": lambda name: ctx.dataset.subject(name)}.get(self.stage, lambda name: name)
        return module.run(ctx) if self.argument is None else module.run(ctx, subject(self.argument))


def steps(ctx: Context) -> list[Step]:
    """Every store of the run in order, with estimates of its bytes on disk and its floating-point operations."""
    return list(_steps(ctx))


def _steps(ctx: Context) -> Iterator[Step]:
    facts, config, specs = ctx.facts, ctx.config, ctx.specs
    backbone, layers, n = facts.backbone, len(facts.hooks), facts.n_images
    t, d = backbone.n_patches, backbone.d_model
    u, k = config.train.expansion * d, config.train.k
    item = 2 if config.extract.dtype == "float16" else 4
    if facts.demo is not None:
        trials = sum(s.n_trials * s.n_voxels for s in facts.subjects)
        # pictures compress to about 1.9 bytes per pixel; responses are float16
        yield Step("dataset", facts.demo, 1.9 * n * config.data.demo.size**2 + 2 * trials, 0)
    for s in facts.subjects:
        yield Step("betas", specs.betas[s.name], 4 * s.n_images * s.n_voxels, 12 * s.n_trials * s.n_voxels, s.name)
    depth = max(ctx.facts.layers) + 1
    yield Step("extract", specs.activations, n * layers * (t + 1) * d * item, n * backbone.flops_per_image(depth))
    kinds = len({mode == "cls" for mode in config.sae_modes})
    # encoder forward and its weight gradient are dense; decoding touches the k active rows only
    per_token = 4 * d * u + 12 * d * k
    cost = config.train.steps * config.train.batch * kinds * layers * per_token
    yield Step("train", specs.saes, kinds * layers * (2 * d * u + u + 2 * d) * 4, cost)
    width = {"cls": 2 * k, "patch_mean": 2 * min(u, t * k), "patch_max": 2 * min(u, t * k), "raw": d, "random": u}
    size = sum(n * layers * width[mode] * 4 for mode in config.encode.modes)
    tokens = sum({"cls": 1, "patch_mean": t, "patch_max": 0}.get(mode, 0) for mode in config.encode.modes)
    yield Step("encode", specs.codes, size, 2 * n * layers * tokens * d * u)
    searches = 1 + config.align.shuffles
    units = {mode: d if mode == "raw" else u for mode in config.encode.modes}
    for s in facts.subjects:
        flops = sum(2 * s.n_unique * layers * units[mode] * s.n_voxels * searches for mode in config.encode.modes)
        per_voxel = 12 * config.align.k_voxel + 12 * layers + 12 * config.align.shuffles
        out = sum(
            s.n_voxels * (per_voxel + (4 * d if mode in SAE_MODES else 0))
            + 8 * layers * units[mode] * config.align.k_unit
            for mode in config.encode.modes
        )
        yield Step("align", specs.align[s.name], out, flops, s.name)
    rdms = facts.n_shared**2 * layers * sum(2 * units[mode] for mode in config.encode.modes)
    yield Step("rsa", specs.rsa, 1e5, rdms)
    modes = len(config.roi.modes)
    yield Step("roi", specs.roi, modes * layers * u * config.roi.exemplars * 4, 0)
    yield Step("layers", specs.layers, len(config.encode.modes) * sum(8 * s.n_voxels for s in facts.subjects), 0)
    if specs.recovery is not None:
        yield Step("recovery", specs.recovery, 1e4, 0)
    yield Step("report", specs.report, 2e7, 0)


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


def plan_lines(ctx: Context, chosen: Sequence[str]) -> list[str]:
    """The dry run: one line per store with its state, size and cost, and what is left to do."""
    rows = [("stage", "store", "state", "bytes", "FLOPs")]
    missing = [0.0, 0.0]
    for step in steps(ctx):
        path = step.spec.path(ctx.stores)
        partial = path.with_name(path.name + PARTIAL).exists()
        state = "found" if ctx.has(step.spec) else "to finish" if partial else "to make"
        if step.stage not in chosen:
            state = f"{state} (not asked for)" if state != "found" else state
        elif state != "found":
            missing = [missing[0] + step.bytes, missing[1] + step.flops]
        rows.append((step.stage, step.spec.name, state, _short(step.bytes, "B"), _short(step.flops, "FLOP")))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*lines, f"to do: about {_short(missing[0], 'B')} on disk, {_short(missing[1], 'FLOP')}; folder {ctx.out}"]


def _short(value: float, unit: str) -> str:
    if value == 0:
        return "-"
    for power, prefix in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:.1f} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def run(ctx: Context, chosen: Sequence[str] = STAGES, say: Callable[[str], None] = log) -> None:
    """Make the missing stores of the chosen stages, in order. Raises UserError before starting when the disk is too full."""
    todo = [step for step in steps(ctx) if step.stage in chosen and not ctx.has(step.spec)]
    needed = sum(step.bytes for step in todo)
    place = next(p for p in (ctx.out, *ctx.out.resolve().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{ctx.out}: the run needs about {_short(needed, 'B')}, the disk has {_short(free, 'B')} free. Choose another "
            "--out, fewer layers (backbone.layers) or fewer modes (encode.modes)."
        )
    for step in steps(ctx):
        if step.stage not in chosen:
            continue
        if ctx.has(step.spec):
            say(f"{step.stage}: found {step.spec.name}")
        else:
            step.run(ctx)


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
    report = ctx.open(ctx.specs.report)
    for name in ("report.html", "summary.json"):
        replace_text(ctx.out / name, (report.path / name).read_text(encoding="utf-8"))
    summary = report.json("summary.json")
    lines = [
        f"report   {ctx.out / 'report.html'}",
        f"summary  {ctx.out / 'summary.json'}",
        f"maps     {report.path / 'maps'}",
    ]
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
