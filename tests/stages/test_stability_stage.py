"""stability: halves that are one agree fully, noise agrees as often as chance says, and variants are found or asked for."""

from __future__ import annotations

import itertools
import json
import os
import shutil

import numpy as np
import pytest

from sbm_jax.config import load_config
from sbm_jax.errors import StoreError, UserError
from sbm_jax.plan import run_steps, steps
from sbm_jax.stages import stability
from sbm_jax.stages.context import Context
from sbm_jax.stages.dictionary_agreement import between_seeds, decoder_agreement
from sbm_jax.stages.halves import Split, agreement, pick, splits
from sbm_jax.stages.ranking import Engine
from sbm_jax.stages.report_stability import stability_tables
from sbm_jax.stages.rows import row
from sbm_jax.stages.subject_agreement import jaccard_index, random_jaccard
from sbm_jax.stages.variants import open_variants, variants
from sbm_jax.sweep.grid import Run
from sbm_jax.sweep.plan import plan_sweep

CLOSE = 2e-6
BUDGET = 1 << 26
ENGINE = Engine(None, BUDGET, False)


def random_codes(rng: np.random.Generator, n: int, u: int) -> np.ndarray:
    return ((rng.random((n, u)) + 0.1) * (rng.random((n, u)) < 0.3)).astype(np.float32)


def readers(layers: list[np.ndarray]):
    return [lambda codes=codes: codes for codes in layers]


def test_halves_are_apart_and_of_one_size():
    select = np.ones(21, bool)
    select[[0, 5]] = False
    found = splits(select, 3, 4)
    assert len(found) == 3 and found[0].one.tolist() != found[1].one.tolist()
    for s in found:
        assert len(s.one) == len(s.two) == len(s.order) == 9
        assert not set(s.one) & set(s.two) and not {0, 5} & {*s.one, *s.two}


def test_one_half_twice_agrees_fully(rng):
    layers = [random_codes(rng, 60, 19) for _ in range(3)]
    y = rng.standard_normal((60, 23)).astype(np.float32)
    rows = np.arange(0, 60, 2)
    picks = pick(readers(layers), 19, y, [Split(rows, rows, rng.permutation(30))], ENGINE)
    found = agreement(readers(layers), picks, y, None)
    for measure in ("same unit", "codes' r", "same layer"):
        assert found[measure][0] == pytest.approx([1], abs=CLOSE) and found[measure][1] < 0.9
    assert np.isnan(found["held-out r"][0]).all()


def test_every_measure_against_a_plain_search(rng, correlation):
    layers = [random_codes(rng, 50, 13) for _ in range(2)]
    y = rng.standard_normal((50, 17)).astype(np.float32)
    held_out = np.zeros(50, bool)
    held_out[40:] = True
    parts = splits(~held_out, 2, 0)
    picks = pick(readers(layers), 13, y, parts, ENGINE)
    found = agreement(readers(layers), picks, y, held_out)
    every = np.concatenate(layers, axis=1)
    for draw, s in enumerate(parts):
        one = correlation(every[s.one], y[s.one]).argmax(axis=0)
        two = correlation(every[s.two], y[s.two]).argmax(axis=0)
        null = correlation(every[s.two], y[s.two[s.order]]).argmax(axis=0)
        np.testing.assert_array_equal(picks.units[draw], [one, two, null])
        r, scores = correlation(every, every), correlation(every[held_out], y[held_out])
        for i, other in enumerate((two, null)):
            assert found["same unit"][i][draw] == np.mean(one == other)
            assert found["same layer"][i][draw] == np.mean(one // 13 == other // 13)
            assert found["codes' r"][i][draw] == pytest.approx(r[one, other].mean(), abs=CLOSE)
        v = np.arange(17)
        both = (scores[one, v].mean() + scores[two, v].mean()) / 2
        assert found["held-out r"][0][draw] == pytest.approx(both, abs=CLOSE)
        assert found["held-out r"][1][draw] == pytest.approx(scores[null, v].mean(), abs=CLOSE)


def test_noise_agrees_by_chance_and_a_planted_unit_is_found_in_both_halves(rng):
    n, u, v = 240, 30, 400
    layers = [random_codes(rng, n, u) for _ in range(2)]
    every = np.concatenate(layers, axis=1)
    held_out = np.arange(n) >= 200
    noise = rng.standard_normal((n, v)).astype(np.float32)
    truth = rng.integers(0, 2 * u, v)
    planted = (every[:, truth] / every[:, truth].std(axis=0) + 0.5 * noise).astype(np.float32)
    parts = splits(~held_out, 3, 1)
    for y, real in ((noise, False), (planted, True)):
        picks = pick(readers(layers), u, y, parts, ENGINE)
        found = {name: (a.mean(), c.mean()) for name, (a, c) in agreement(readers(layers), picks, y, held_out).items()}
        expected = {
            "same unit": (1, 1 / 60),
            "codes' r": (1, 1 / 60),
            "same layer": (1, 1 / 2),
            "held-out r": (0.89, 0),
        }
        for name, (value, chance) in found.items():
            # 1,200 pairs of picks: the largest standard error is .5 / sqrt(1200) = .014
            assert chance == pytest.approx(expected[name][1], abs=0.06), name
            assert value == pytest.approx(expected[name][0] if real else expected[name][1], abs=0.06), name
        if real:
            np.testing.assert_array_equal(picks.units[0, 0], truth)


def test_jaccard_and_its_chance_against_every_set():
    assert jaccard_index(np.array([1, 2, 3]), np.array([3, 4, 5])) == 1 / 5
    sets = [np.array(s) for s in itertools.combinations(range(6), 3)]
    assert random_jaccard(3, 6) == pytest.approx(np.mean([jaccard_index(sets[0], s) for s in sets]))
    assert random_jaccard(6, 6) == 1 and np.isnan(random_jaccard(0, 6))


def test_decoders_of_one_dictionary_and_of_unrelated_ones(rng):
    w, other, alive = rng.standard_normal((40, 16)), rng.standard_normal((40, 16)), np.ones(40, bool)
    alive[:4] = False
    best, paired, chance = decoder_agreement(w, w[rng.permutation(40)], np.ones(40, bool), np.ones(40, bool), 0, BUDGET)
    assert best == pytest.approx(1, abs=1e-5) and paired == pytest.approx(1, abs=1e-5) and chance < 0.8
    best, paired, chance = decoder_agreement(w, other, alive, alive, 0, BUDGET)
    assert best == pytest.approx(chance, abs=0.03) and paired < best
    assert np.isnan(decoder_agreement(w, other, ~np.ones(40, bool), alive, 0, BUDGET)).all()


def test_a_row_leaves_out_what_is_not_known():
    found = row("subjects", "headline number", "cls", "r", np.array([1.0, np.nan, 3.0]), [np.nan], 3)
    assert (found["value"], found["low"], found["high"], found["chance"]) == (2.0, 1.0, 3.0, None)
    assert found["sd"] == pytest.approx(np.sqrt(2))
    assert row("x", "y", "z", "r", np.array([np.nan]), [], 1)["value"] is None


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ("[train.kk=8]", "unknown key train.kk"),
        ("[train.seed=0]", "the run's own settings"),
        ("[data.hold_out=0.1]", "it changes `data`"),
        ('["backbone.layers=[0]"]', "it changes `backbone`"),
    ],
)
def test_what_is_no_variant_is_said(variant, said):
    with pytest.raises(UserError, match=said):
        variants(load_config(None, [f"stability.variants=[{variant}]"]))
    (good,) = variants(load_config(None, ["stability.variants=[[train.seed=1, train.k=8]]"]))
    assert (good.config.train.seed, good.config.train.k, good.config.stability.variants) == (1, 8, [])
    assert str(good) == "train.seed=1, train.k=8"


def test_a_variant_that_was_not_made_names_the_commands(tiny):
    config = load_config(tiny.config, ["stability.variants=[[train.seed=1], [train.k=3, train.expansion=3]]"])
    ctx = Context(config, tiny.out)
    with pytest.raises(
        StoreError, match=r"--set train\.seed=1 .*sbm-jax sweep CONFIG --grid train\.seed=0,1 --out OUT"
    ):
        open_variants(ctx)
    plain = Context(load_config(tiny.config), tiny.out)
    assert [ctx.specs.saes, ctx.specs.codes, ctx.specs.match] == [
        plain.specs.saes,
        plain.specs.codes,
        plain.specs.match,
    ]
    with_variants, without = ctx.specs.stability, plain.specs.stability
    assert with_variants and without
    assert with_variants.name != without.name == tiny.store("stability").name
    assert {"variant 0 saes", "variant 1 codes", "variant 1 subj01", "variant 0 recovery"} <= set(with_variants.inputs)


def test_a_sweep_makes_the_variants_first(tiny):
    configs = [
        load_config(tiny.config, ["stability.variants=[[train.seed=1]]"]),
        load_config(tiny.config, ["train.seed=1"]),
    ]
    sweep = plan_sweep([Run(i, {"train.seed": i}, config) for i, config in enumerate(configs)], tiny.out)
    spec = Context(configs[0], tiny.out).specs.stability
    assert spec
    wanted = {store for name, store in spec.inputs.items() if name.startswith("variant")}
    assert wanted and wanted <= set(sweep.jobs[spec.name].needs)


@pytest.fixture(scope="module")
def rows_of_tiny(tiny):
    return json.loads((tiny.store("stability") / "stability.json").read_text())["rows"]


def test_the_table_of_the_tiny_run(tiny, rows_of_tiny):
    summary = json.loads((tiny.out / "summary.json").read_text())
    assert summary["agreement"]["rows"] == rows_of_tiny
    by_key = {(r["over"], r["of"], r["where"], r["measure"]): r for r in rows_of_tiny}
    assert len(by_key) == len(rows_of_tiny)
    for name, mode in itertools.product(("subj01", "subj02"), ("cls", "patch_mean")):
        assert 0 <= by_key["image halves", "voxel's unit", f"{name}, {mode}", "same unit"]["value"] <= 1
    for key, measure in (("held_out_mean", "held-out r"), ("structure_held_out", "voxel-structure score")):
        found = by_key["subjects", "headline number", "patch_mean", measure]
        expected = {name: s["modes"]["patch_mean"][key] for name, s in summary["subjects"].items()}
        assert found["values"] == pytest.approx(expected)
        assert found["value"] == pytest.approx(np.mean([*expected.values()]))
        assert (found["low"], found["high"]) == pytest.approx((min(expected.values()), max(expected.values())))
    faces = by_key["subjects", "ROI's units", "floc-faces, patch_mean", "r of contrasts"]
    assert -1 <= faces["low"] <= faces["value"] <= faces["high"] <= 1
    (table,) = stability_tables(summary["agreement"])
    assert len(table.rows) == len(
        {(r["over"], r["of"], r["where"].split(", ")[-1], r["measure"]) for r in rows_of_tiny}
    )


def test_roi_contrasts_of_two_subjects_against_a_plain_product(tiny, stores, correlation, rows_of_tiny):
    contrasts, rows = {}, {}
    for name in ("subj01", "subj02"):
        brain, inside = stores.brain(name), stores.rois(name)["floc-faces"]
        rows[name], y = brain.part("select")
        face, other = brain.responsive & inside, brain.responsive & ~inside
        contrasts[name] = []
        for layer in range(2):
            r = correlation(stores.codes("patch_mean")[layer][rows[name]], y)
            vary = np.ptp(stores.codes("patch_mean")[layer][rows[name]], axis=0) > 0
            contrasts[name].append(np.where(vary, r[:, face].mean(axis=1) - r[:, other].mean(axis=1), np.nan))
    expected = []
    for one, two in zip(*contrasts.values(), strict=True):
        both = np.isfinite(one) & np.isfinite(two)
        expected.append(np.corrcoef(one[both], two[both])[0, 1])
    (found,) = (r for r in rows_of_tiny if r["where"] == "floc-faces, patch_mean" and r["measure"] == "r of contrasts")
    assert found["value"] == pytest.approx(np.mean(expected), abs=1e-4)


def test_a_variant_whose_stores_are_the_same_agrees_fully(tiny, tmp_path):
    """A setting of a stage that is not read: everything compared is there, and equal."""
    shutil.copytree(tiny.out / "stores", tmp_path / "stores", copy_function=os.link)
    label = "sizes.draws=2"
    store = stability.run(Context(load_config(tiny.config, [f"stability.variants=[[{label}]]"]), tmp_path))
    found = json.loads((store.path / "stability.json").read_text())
    assert found["variants"] == [label]
    mine = [r for r in found["rows"] if r["over"] == label]
    assert {r["measure"] for r in mine} == {"codes' r", "same layer", "same unit"}  # one dictionary, nothing to compare
    assert [r["value"] for r in mine] == pytest.approx([1] * len(mine), abs=CLOSE)
    assert all(r["chance"] < 0.99 for r in mine)
    over = [r for r in found["rows"] if r["over"] == "variants" and r["measure"] == "held-out r"]
    assert len(over) == 4 and all(r["sd"] == 0 and set(r["values"]) == {"this run", label} for r in over)


@pytest.mark.slow
def test_another_seed_is_less_alike_than_itself_and_more_than_chance(tiny, tmp_path):
    """Trained longer than the tiny run, so that there is something to find again."""
    shutil.copytree(tiny.out / "stores", tmp_path / "stores", copy_function=os.link)
    settings, label = ["train.steps=150", "train.sweep.seed=[2]"], "train.seed=1"
    for overrides in ((*settings, label), settings):
        made = Context(load_config(tiny.config, overrides), tmp_path)
        for stage in ("train", "encode", "align", "rsa", "roi", "layers", "recovery"):
            run_steps(made, [step for step in steps(made) if step.stage == stage])
    ctx = Context(load_config(tiny.config, [*settings, f"stability.variants=[[{label}]]"]), tmp_path)
    rows = json.loads((stability.run(ctx).path / "stability.json").read_text())["rows"]
    found = {r["measure"]: r for r in rows if r["over"] == label and r["where"] == "patch"}
    for measure in ("best decoder cosine", "best r of codes"):
        assert found[measure]["chance"] < found[measure]["value"] < 0.999
    seeds = [r for r in rows if r["over"] == "seeds"]
    assert {r["where"] for r in seeds} == {"patch", "cls"} and [dict(r) for r in between_seeds(ctx)] == [
        {key: r[key] for key in r} for r in seeds
    ]
