"""What a sweep makes: the stores of all runs, each once, with what must be there before it can be made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sbm_jax.config import Config
from sbm_jax.errors import UserError
from sbm_jax.plan import H100, STAGES, Step, duration, short, steps
from sbm_jax.stages.context import Context
from sbm_jax.stages.facts import Facts
from sbm_jax.store.spec import canonical_json, text_hash
from sbm_jax.store.store import is_finished
from sbm_jax.sweep.grid import Run, value_text

# What a stage reads of its own run; of stores by subject only those of its own, if it has one.
NEEDS: dict[str, tuple[str, ...]] = {
    "dataset": (),
    "betas": ("dataset",),
    "extract": ("dataset",),
    "train": ("dataset", "extract"),
    "encode": ("dataset", "extract", "train"),
    "align": ("betas", "encode"),
    "assign": ("align",),
    "sizes": ("betas", "encode"),
    "joint": ("betas", "encode"),
    "pooling": ("dataset", "extract", "align"),
    "rsa": ("align",),
    "roi": ("betas", "encode"),
    "layers": ("align",),
    "recovery": ("layers",),
    "exemplars": ("dataset", "extract", "align", "roi"),
    "explain": ("exemplars",),
    "emergence": ("explain",),
    "match": ("dataset", "extract", "encode"),
    "edit": ("exemplars",),
    "stability": ("betas", "encode", "align", "rsa", "roi", "recovery"),
    "report": (
        *("assign", "sizes", "joint", "pooling", "rsa", "roi", "layers", "recovery"),
        *("exemplars", "explain", "emergence", "match", "edit", "stability"),
    ),
    "rdms": ("dataset", "extract"),
}


@dataclass(frozen=True)
class Job:
    """One store to be made, with the configuration of run number `run`, the first that needs it.

    needs: stores that must be finished before. locks: names held while it is made: its own and, of betas, the place of the
    converted trials, which all betas of a subject share.
    """

    step: Step
    run: int
    needs: tuple[str, ...]
    locks: tuple[str, ...]

    @property
    def store(self) -> str:
        return self.step.spec.name

    @property
    def stage(self) -> str:
        return self.step.stage


@dataclass(frozen=True)
class Sweep:
    """The plan. out: the folder of all runs. jobs: store name -> job, in the order of the stages. stores: per run the names
    of all its stores, the last of which holds its page and summary.
    """

    out: Path
    name: str
    runs: list[Run]
    jobs: dict[str, Job]
    stores: list[tuple[str, ...]]

    @property
    def folder(self) -> Path:
        """Where the sweep keeps what belongs to no single run: configurations, logs, the table and the page."""
        return self.out / self.name

    def finished(self, store: str) -> bool:
        return is_finished(self.out / "stores" / store)

    def missing(self) -> list[Job]:
        """Jobs whose stores are not there, in order."""
        return [job for job in self.jobs.values() if not self.finished(job.store)]

    def report(self, run: Run) -> str:
        """Name of the store with the run's page and summary."""
        return self.stores[run.number][-1]


def plan_sweep(runs: Sequence[Run], out: Path) -> Sweep:
    """Every store that the runs need, once. Nothing is written.

    Raises UserError for a dataset or backbone that is missing, or settings that do not fit it, naming the run.
    """
    facts: dict[str, Facts] = {}
    found: dict[str, Job] = {}
    stores = []
    for run in runs:
        try:
            context = _context(run.config, out, facts)
        except UserError as error:
            raise UserError(f"run {run.number} of the grid ({run.label}): {error}") from None
        mine = steps(context)
        stores.append(tuple(step.spec.name for step in mine))
        for step in mine:
            if step.spec.name not in found:
                found[step.spec.name] = Job(step, run.number, _needs(step, mine), _locks(step, context))
    for name, job in found.items():
        variants = (store for store in job.step.spec.inputs.values() if store in found and store not in job.needs)
        if job.stage == "stability":  # which reads stores of other runs too
            found[name] = replace(job, needs=(*job.needs, *variants))
    jobs = sorted(found.values(), key=lambda job: STAGES.index(job.stage))  # stable: runs keep their order
    name = "sweep-" + text_hash(canonical_json([run.config.model_dump(mode="json") for run in runs]))
    return Sweep(out, name, list(runs), {job.store: job for job in jobs}, stores)


def _context(config: Config, out: Path, known: dict[str, Facts]) -> Context:
    """A context; tables are read and weights hashed once for all runs that say the same of data and backbone."""
    key = canonical_json([config.data.model_dump(), config.backbone.model_dump(), "cls" in config.encode.modes])
    context = Context(config, out, known.get(key))
    known[key] = context.facts
    return context


def _needs(step: Step, mine: Iterable[Step]) -> tuple[str, ...]:
    return tuple(
        other.spec.name
        for other in mine
        if other.stage in NEEDS[step.stage]
        and not (step.argument and other.argument and other.argument != step.argument)
    )


def _locks(step: Step, context: Context) -> tuple[str, ...]:
    by_trial = {s.name for s in context.facts.subjects if s.trial_bytes}
    if step.stage == "betas" and step.argument in by_trial:
        return tuple(sorted((step.spec.name, context.specs.trials[step.argument].name)))
    return (step.spec.name,)


def waves(jobs: Iterable[Job]) -> dict[str, list[Job]]:
    """Stage -> its jobs, in the order of the stages; stages without a job are left out."""
    out: dict[str, list[Job]] = {}
    for job in jobs:
        out.setdefault(job.stage, []).append(job)
    return out


def blocked(jobs: Iterable[Job], failed: Iterable[str], finished: Callable[[str], bool]) -> dict[str, str]:
    """Unfinished store -> the failed one that it waits for, through any number of others. jobs: in order."""
    causes = {store: store for store in failed}
    for job in jobs:
        if job.store not in causes and not finished(job.store):
            cause = next((causes[need] for need in job.needs if need in causes), None)
            if cause is not None:
                causes[job.store] = cause
    return {store: cause for store, cause in causes.items() if store != cause}


def sweep_lines(sweep: Sweep) -> list[str]:
    """The dry run: the table of runs, the stores of every stage, and what is left to do."""
    keys = list(sweep.runs[0].values)
    head = [("run", *keys, "stores", "to make", "report")]
    for run in sweep.runs:
        mine = sweep.stores[run.number]
        left = sum(not sweep.finished(store) for store in mine)
        texts = [value_text(value) for value in run.values.values()]
        head.append((str(run.number), *texts, str(len(mine)), str(left), sweep.report(run)))
    rows = [("stage", "stores", "of runs", "to make", "disk", "memory", "FLOPs", H100.name)]
    wanted = [store for mine in sweep.stores for store in mine]
    for stage, jobs in waves(sweep.jobs.values()).items():
        left = [job for job in jobs if not sweep.finished(job.store)]
        uses = sum(sweep.jobs[store].stage == stage for store in wanted)
        rows.append((stage, str(len(jobs)), str(uses), str(len(left)), *_costs([job.step for job in left])))
    todo = [job.step for job in sweep.missing()]
    rows.append(("all", str(len(sweep.jobs)), str(len(wanted)), str(len(todo)), *_costs(todo)))
    return [f"{sweep.name}: {len(sweep.runs)} runs in {sweep.out}", "", *_columns(head), "", *_columns(rows)]


def _costs(todo: Sequence[Step]) -> tuple[str, str, str, str]:
    return (
        short(sum(step.bytes for step in todo), "B"),
        short(max((step.memory for step in todo), default=0), "B"),
        short(sum(step.flops for step in todo), "FLOP"),
        duration(sum(step.seconds(H100) for step in todo)),
    )


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
