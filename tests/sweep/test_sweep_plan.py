"""Planning: every store once, in waves, after what it reads; and what a failure takes with it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import pytest

from sbm_jax.errors import UserError
from sbm_jax.plan import STAGES
from sbm_jax.stages import context
from sbm_jax.sweep.folder import open_job, program, write_folder
from sbm_jax.sweep.grid import make_runs, parse_grid
from sbm_jax.sweep.plan import NEEDS, blocked, plan_sweep, sweep_lines, waves


@pytest.fixture
def planned(tmp_path, make_config):
    """`planned("train.k=2,4", ...)`: the plan over the tiny configuration."""
    path = make_config(tmp_path / "tiny.yaml")
    return lambda *grids: plan_sweep(make_runs(path, (), parse_grid(grids)), tmp_path / "out")


GRID = ("train.k=2,4", "data.subjects=subj01,subj02")


def test_every_store_once(planned):
    sweep = planned(*GRID)
    counts = Counter(job.stage for job in sweep.jobs.values())
    one_for_all = dict.fromkeys(("dataset", "extract"), 1)
    two = dict.fromkeys(("betas", "train", "encode", "match"), 2)
    four = dict.fromkeys(STAGES[STAGES.index("align") : STAGES.index("report") + 1], 4)
    assert counts == one_for_all | four | two
    assert {store for mine in sweep.stores for store in mine} == set(sweep.jobs)
    assert [len(mine) for mine in sweep.stores] == [21] * 4


def test_waves_are_the_stages_in_order(planned):
    sweep = planned(*GRID)
    found = waves(sweep.jobs.values())
    assert list(found) == [stage for stage in STAGES if stage in found]
    assert [job.store for wave in found.values() for job in wave] == list(sweep.jobs)


def test_a_job_comes_after_what_it_reads_of_its_own_run(planned):
    sweep = planned(*GRID)
    place = {store: i for i, store in enumerate(sweep.jobs)}
    for job in sweep.jobs.values():
        assert all(place[need] < place[job.store] for need in job.needs)
        assert set(job.needs) <= set(sweep.stores[job.run])


def test_needs_cover_what_the_stores_name_as_inputs(planned):
    """The specs say what a store was made from; a job waits for all of it, directly or through others."""
    sweep = planned("data.subjects=[]")
    reached: dict[str, set[str]] = {}
    for store, job in sweep.jobs.items():
        reached[store] = set(job.needs).union(*(reached[need] for need in job.needs))
        inputs = {value.partition("/")[0] for value in job.step.spec.inputs.values()}
        assert inputs & set(sweep.jobs) <= reached[store], job.stage
    assert set(NEEDS) == set(STAGES)


@pytest.mark.parametrize(("stage", "read"), [("align", "betas"), ("assign", "align"), ("joint", "betas")])
def test_a_stage_by_subject_waits_for_its_own_subject_alone(planned, stage, read):
    sweep = planned("data.subjects=[]")
    stores = {job.step.argument: store for store, job in sweep.jobs.items() if job.stage == read}
    jobs = [job for job in sweep.jobs.values() if job.stage == stage]
    assert len(jobs) == len(stores) == 2
    for job in jobs:
        assert set(job.needs) & set(stores.values()) == {stores[job.step.argument]}


def test_settings_that_change_no_number_share_everything(planned):
    sweep = planned("encode.batch=7,9")
    assert len(sweep.runs) == 2 and sweep.stores[0] == sweep.stores[1]


def test_without_kept_activations_training_follows_the_dataset(planned):
    sweep = planned("extract.keep=false")
    found = waves(sweep.jobs.values())
    assert "extract" not in found
    assert found["train"][0].needs == (found["dataset"][0].store,)


def test_tables_and_weights_are_read_once(planned, monkeypatch):
    calls = []
    gather = context.gather_facts
    monkeypatch.setattr(context, "gather_facts", lambda *words: calls.append(words) or gather(*words))
    planned("train.k=2,4,8", "backbone.layers=1,3")
    assert len(calls) == 2


def test_betas_of_one_subject_lock_its_converted_trials(tmp_path, make_config, monkeypatch):
    gather = context.gather_facts

    def by_trial(config, stores):
        facts = gather(config, stores)
        return dataclasses.replace(facts, subjects=tuple(dataclasses.replace(s, trial_bytes=2) for s in facts.subjects))

    monkeypatch.setattr(context, "gather_facts", by_trial)
    runs = make_runs(make_config(tmp_path / "tiny.yaml"), (), parse_grid(["betas.zscore=run,session"]))
    jobs = waves(plan_sweep(runs, tmp_path).jobs.values())["betas"]
    assert len(jobs) == 4
    for job in jobs:
        sharing = [other for other in jobs if set(other.locks) & set(job.locks)]
        assert [other.step.argument for other in sharing] == [job.step.argument] * 2


def test_a_failure_takes_what_depends_on_it_and_nothing_else(planned):
    sweep = planned("train.k=2,4")
    saes = waves(sweep.jobs.values())["train"]
    lost = blocked(sweep.jobs.values(), [saes[0].store], lambda store: False)
    only_first = set(sweep.stores[0]) - set(sweep.stores[1]) - {saes[0].store}
    assert lost == dict.fromkeys(only_first, saes[0].store)
    # what is finished already was not lost
    report = sweep.report(sweep.runs[0])
    assert report not in blocked(sweep.jobs.values(), [saes[0].store], lambda store: store == report)


def test_what_the_data_refuse_names_the_run(planned):
    with pytest.raises(UserError, match=r"run 1 of the grid \(data.subjects=nobody\).*nobody"):
        planned("data.subjects=subj01,nobody")


def test_the_name_depends_on_runs_alone(planned, monkeypatch):
    assert planned(*GRID).name == planned(*GRID).name
    assert planned(*GRID).name != planned("train.k=2,4").name


def test_the_dry_run_counts_shared_stores(planned):
    sweep = planned(*GRID)
    lines = [line.split() for line in sweep_lines(sweep)]
    by_stage = {line[0]: line[1:4] for line in lines if line}
    assert by_stage["train"] == ["2", "4", "2"] and by_stage["all"] == ["70", "84", "70"]
    assert not sweep.out.exists()


def test_a_job_reads_the_sweeps_folder_alone(planned, tmp_path):
    sweep = planned(*GRID)
    write_folder(sweep)
    (tmp_path / "tiny.yaml").unlink()
    for store, job in sweep.jobs.items():
        found, step, locks = open_job(sweep.folder, store)
        assert (found.config, found.out) == (sweep.runs[job.run].config, sweep.out)
        assert (step, tuple(locks)) == (job.step, job.locks)
    with pytest.raises(UserError, match="no sweep that makes saes-0"):
        open_job(sweep.folder, "saes-0")
    with pytest.raises(UserError, match="no sweep that makes"):
        open_job(tmp_path / "elsewhere", "saes-0")


def test_a_job_refuses_data_that_have_changed(planned, monkeypatch):
    sweep = planned("train.k=2")
    write_folder(sweep)
    store = waves(sweep.jobs.values())["train"][0].store
    jobs = json.loads((sweep.folder / "jobs.json").read_text())
    (sweep.folder / "jobs.json").write_text(json.dumps({"saes-other": jobs[store]}))
    with pytest.raises(UserError, match="have changed"):
        open_job(sweep.folder, "saes-other")


def test_the_command_of_a_job(planned):
    sweep = planned("train.k=2")
    assert program(sweep.folder, "saes-1", ["--cpu-devices", "2"])[1:] == [
        "-m", "sbm_jax.cli.main", "--cpu-devices", "2", "sweep-job", str(sweep.folder), "saes-1",
    ]  # fmt: skip
