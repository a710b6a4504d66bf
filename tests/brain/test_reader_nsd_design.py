"""NSD's design: index bases of both its files, their agreement, run lengths, the published repetition counts, bad files."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbm_jax.brain.readers.nsd_design import SCANNED, Design, read_csv, read_design, read_mat, read_shared
from sbm_jax.errors import UserError
from tests.brain.layouts import nsd as writer


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 1000), subject=st.integers(1, 8), session=st.integers(1, 40), trial=st.integers(1, 750))
def test_the_design_counts_from_1(tmp_path_factory, seed, subject, session, trial):
    """MATLAB's own words: subjectim(subject, masterordering(t)) is the 73k id of trial t, row id - 1 of the brick."""
    plan = writer.make_plan(seed)
    file = tmp_path_factory.mktemp("design") / "nsd_expdesign.mat"
    writer.write_mat(file, plan)
    design = read_mat(file, (subject,))
    image, sessions, run = design.trials(subject, (session,))
    t = 750 * (session - 1) + trial
    id73k = plan.subjectim[subject - 1, plan.masterordering[t - 1] - 1]
    assert image[trial - 1] == id73k - 1 and set(sessions) == {session}
    slots = plan.stimpattern[session - 1].ravel()
    assert run[trial - 1] == np.flatnonzero(slots)[trial - 1] // 75 + 1
    # an image is shared when its 10k id is at most 1000, and the lists say the same
    assert (id73k - 1 in design.shared) == (plan.masterordering[t - 1] <= 1000)
    assert design.shared.min() == 2950 and design.shared.max() == 72_948
    np.testing.assert_array_equal(read_shared(file), design.shared)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """nsd_stim_info_merged.csv of the default plan."""
    file = tmp_path_factory.mktemp("table") / "nsd_stim_info_merged.csv"
    writer.write_table(file, writer.make_plan())
    return file


def test_the_table_counts_images_from_0_and_trials_from_1(table):
    plan = writer.make_plan()
    design = read_csv(table, (3, 8))
    for s in (3, 8):
        np.testing.assert_array_equal(design.images[s], plan.subjectim[s - 1, plan.masterordering - 1] - 1)
    np.testing.assert_array_equal(design.shared, plan.sharedix - 1)
    assert [int((design.run[0] == r).sum()) for r in range(1, 13)] == [63, 62] * 6
    assert "63" in design.notes[0]


def test_both_designs_agree_or_the_first_difference_is_named(table, tmp_path):
    plan = writer.make_plan()
    shutil.copy(table, tmp_path)
    writer.write_mat(tmp_path / "nsd_expdesign.mat", plan)
    both = read_design(tmp_path, (1, 5))
    assert [f.name for f in both.files] == ["nsd_expdesign.mat", "nsd_stim_info_merged.csv"] and not both.notes
    order = plan.masterordering.copy()
    order[[16, 900]] = order[[900, 16]]
    writer.write_mat(tmp_path / "nsd_expdesign.mat", plan, masterordering=order[None].astype(float))
    shown = plan.subjectim[0, order[16] - 1] - 1
    with pytest.raises(UserError, match=rf"disagree in 2 trials; first: trial 17 of subject 1 shows image {shown} "):
        read_design(tmp_path, (1, 5))


@pytest.mark.parametrize("shift", ["masterordering", "subjectim", "sharedix"])
def test_a_design_counted_from_0_does_not_pass(table, tmp_path, shift):
    """Whoever saved it again from 0: out of range, or in conflict with the table."""
    plan = writer.make_plan()
    shutil.copy(table, tmp_path)
    values = np.atleast_2d(getattr(plan, shift)).astype(float) - 1
    writer.write_mat(tmp_path / "nsd_expdesign.mat", plan, **{shift: values})
    with pytest.raises(UserError, match=r"whole numbers from 1|disagree"):
        read_design(tmp_path, (1,))


def test_repetitions_as_published():
    """The known counts of images per subject follow from which trials lie in 30, 32 and 40 sessions."""

    # shared and other images: (trials in sessions 1-30, in 31-32) and how many images have them
    def counts(none, one, two, three, moved):
        zero_one, one_two, two_three = moved
        return {
            (0, 1): zero_one,
            (0, 0): none - zero_one,
            (1, 1): one_two,
            (1, 0): one - one_two,
            (2, 1): two_three,
            (2, 0): two - two_three,
            (3, 0): three,
        }

    shared = counts(93, 141, 251, 515, (23, 51, 79))
    others = counts(791 - 93, 1363 - 141, 2401 - 251, 5445 - 515, (202 - 23, 509 - 51, 789 - 79))
    blocks: list[list[int]] = [[], [], []]
    for start, groups in ((1, shared), (1001, others)):
        ids = iter(range(start, start + sum(groups.values())))
        for (early, middle), how_many in groups.items():
            for _ in range(how_many):
                number = next(ids)
                for block, times in zip(blocks, (early, middle, 3 - early - middle), strict=True):
                    block += [number] * times
    assert [len(b) for b in blocks] == [22_500, 1_500, 6_000]
    plan = writer.make_plan()
    order = np.concatenate([np.random.default_rng(0).permutation(b) for b in blocks])
    images = {s: plan.subjectim[s - 1, order - 1] - 1 for s in SCANNED}
    design = Design(images, np.ones((40, 750), np.int64), plan.sharedix - 1, ())
    table = {40: (10_000, 10_000, 1000), 32: (9411, 6234, 930), 30: (9209, 5445, 907)}
    for subject, scanned in SCANNED.items():
        image, _, _ = design.trials(subject, tuple(range(1, scanned + 1)))
        ids, times = np.unique(image, return_counts=True)
        found = (len(ids), int((times == 3).sum()), int(np.isin(ids, design.shared).sum()))
        assert found == table[scanned]
    assert [SCANNED[s] for s in (3, 4, 6, 8)] == [32, 30, 32, 30]


DESIGNS = {
    "masterordering": (np.ones((30_000, 1)), r"\(1, 30000\), found float64 \(30000, 1\)"),
    "subjectim": (np.full((8, 10_000), 73_001.0), "from 1 to 73000"),
    "sharedix": (np.full((1, 1000), 2.5), "whole numbers"),
    "stimpattern": (np.ones((40, 12, 75)), "900 trials in session 1, expected 750"),
}


@pytest.mark.parametrize("name", DESIGNS)
def test_a_design_of_another_kind_is_told(tmp_path, name):
    values, words = DESIGNS[name]
    writer.write_mat(tmp_path / "nsd_expdesign.mat", writer.make_plan(), **{name: values})
    with pytest.raises(UserError, match=words):
        read_mat(tmp_path / "nsd_expdesign.mat", (1,))


def test_a_table_of_another_kind_is_told(table, tmp_path):
    lines = table.read_text().splitlines()
    file = tmp_path / "t.csv"
    file.write_text("\n".join(lines[:-5]) + "\n")
    with pytest.raises(UserError, match=r"expected 73000 rows.*72995"):
        read_csv(file, (1,))
    file.write_text("\n".join([lines[0].replace("nsdId", "id"), *lines[1:]]) + "\n")
    with pytest.raises(UserError, match="'nsdId'"):
        read_csv(file, (1,))
    shown = next(n for n, line in enumerate(lines) if n and int(line.split(",")[-1]) > 0)
    cells = lines[shown].split(",")
    lines[shown] = ",".join([*cells[:-1], "0"])
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=f"trial {cells[-1]} of subject 8"):
        read_csv(file, (8,))
    lines[shown] = ",".join([*cells[:-1], "30001"])
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=f"row {shown}: column 'subject8_rep2'.*30001"):
        read_csv(file, (8,))
