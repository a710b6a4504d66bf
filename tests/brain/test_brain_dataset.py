"""The reader of the sbm-tables folder: what it gives, and a clear error for everything that can be wrong with
one.
"""

import json

import numpy as np
import pytest

from sbm_jax.brain import open_dataset
from sbm_jax.brain.responses import even_blocks
from sbm_jax.errors import UserError

IMAGES = """image_id,file,shared,caption,label:face,label:place
a,images/a.png,1,"a face, close up",0.3,0
b,images/b.png,0,a street,0,0.9
c,images/c.png,0,both,0.1,
d,images/d.png,0,never shown,0,0
"""
TRIALS = "image_id,session,run\nb,1,1\na,1,1\nb,1,2\na,2,1\nb,2,1\n"
VOXELS = """hemi,vertex,prf-visualrois,floc-faces
L,0,V1d,
L,7,V1v,
R,7,,FFA-1
R,10241,hV4,OFA
"""


@pytest.fixture
def folder(tmp_path):
    head = {
        "format": "sbm-tables",
        "version": 1,
        "name": "toy",
        "space": "fsaverage5",
        "concepts": ["face", "place"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(head))
    (tmp_path / "images.csv").write_text(IMAGES)
    (tmp_path / "images").mkdir()
    for name in "abcd":
        (tmp_path / "images" / f"{name}.png").write_bytes(b"")
    for name, trials in (("subj01", TRIALS), ("subj02", TRIALS.replace("b,", "c,"))):
        subject = tmp_path / name
        subject.mkdir()
        (subject / "trials.csv").write_text(trials)
        (subject / "voxels.csv").write_text(VOXELS)
        np.save(subject / "responses.npy", np.arange(20, dtype=np.float16).reshape(5, 4))
    return tmp_path


def test_tables_are_read(folder):
    data = open_dataset(folder)
    assert (data.name, data.space, data.concepts) == ("toy", "fsaverage5", ("face", "place"))
    assert data.images.ids == ("a", "b", "c", "d")
    assert data.images.captions[0] == "a face, close up"
    np.testing.assert_array_equal(data.images.labels["place"], [0, 0.9, np.nan, 0])
    np.testing.assert_array_equal(data.images.rows(["c", "a"]), [2, 0])
    first, second = data.subjects
    assert (first.name, first.n_trials, first.n_voxels) == ("subj01", 5, 4)
    np.testing.assert_array_equal(first.trial_image, [1, 0, 1, 0, 1])
    np.testing.assert_array_equal(first.session, [1, 1, 1, 2, 2])
    assert list(first.rois) == [
        *(
            "prf-visualrois",
            "prf-visualrois/V1v",
            "prf-visualrois/V1d",
            "prf-visualrois/hV4",
            "prf-visualrois/V1",
        ),
        *("floc-faces", "floc-faces/OFA", "floc-faces/FFA-1"),
    ]
    np.testing.assert_array_equal(first.rois["prf-visualrois/V1"], [True, True, False, False])
    np.testing.assert_array_equal(first.rois["floc-faces"], [False, False, True, True])
    assert data.image_sets(first) == (("a",), ("b",))
    assert data.image_sets(second) == (("a",), ("c",))
    assert data.subject("subj02") is second
    with pytest.raises(UserError, match=r"subj09.*subj01, subj02"):
        data.subject("subj09")


def test_blocks_cover_everything_once(folder):
    subject = open_dataset(folder).subjects[0]
    whole = np.arange(20, dtype=np.float32).reshape(5, 4)
    pieces = [values for _, values in subject.iter_voxels(3)]
    assert all(piece.dtype == np.float32 for piece in pieces)
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)
    assert [block for block, _ in subject.iter_voxels(2, start=1)] == [slice(1, 2), slice(2, 4)]
    blocks = list(subject.responses.iter_trials(1, memory_bytes=32))
    assert [len(block) for block in blocks] == [2, 2] and blocks[0].dtype == np.float16
    np.testing.assert_array_equal(np.concatenate(blocks), whole[1:])
    assert [b.stop - b.start for b in even_blocks(10, 4)] == [3, 3, 4]
    assert even_blocks(0, 4) == []


def test_shared_is_derived_when_not_given(folder):
    lines = [",".join(row.split(",")[:2]) for row in IMAGES.splitlines()]
    (folder / "images.csv").write_text("\n".join(lines) + "\n")
    head = json.loads((folder / "dataset.json").read_text())
    del head["concepts"]
    (folder / "dataset.json").write_text(json.dumps(head))
    data = open_dataset(folder)
    np.testing.assert_array_equal(data.images.shared, [True, False, False, False])
    assert data.concepts == ()


def test_nan_is_allowed_and_read_as_nan(folder):
    values = np.ones((5, 4), dtype=np.float32)
    values[2, 1] = np.nan
    np.save(folder / "subj01" / "responses.npy", values)
    assert np.isnan(open_dataset(folder).subjects[0].responses.read_voxels(slice(1, 2))[2, 0])


def replace(name, old, new):
    def spoil(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return spoil


def remove(name):
    return lambda folder: (folder / name).unlink()


def save(values):
    return lambda folder: np.save(folder / "subj01" / "responses.npy", values, allow_pickle=True)


def truncate(folder):
    path = folder / "subj01" / "responses.npy"
    path.write_bytes(path.read_bytes()[:-3])


WRONG = [
    (replace("dataset.json", "{", "{,"), r"dataset\.json: not valid JSON"),
    (lambda f: (f / "dataset.json").write_text("[]"), "expected a JSON object"),
    (replace("dataset.json", "sbm-tables", "bids"), r'expected "format": "sbm-tables", found \'bids\''),
    (replace("dataset.json", '"version": 1', '"version": 2'), r'expected "version": 1, found 2'),
    (replace("dataset.json", '"toy"', "3"), "'name'"),
    (replace("dataset.json", '"place"]', '"food"]'), "label:food"),
    (remove("images.csv"), r"images\.csv: file not found"),
    (replace("images.csv", "image_id", "id"), "missing image_id"),
    (replace("images.csv", "b,images", "a,images"), r"'a' is in rows 1 and 2"),
    (replace("images.csv", "b,images", ",images"), "row 2: empty image_id"),
    (replace("images.csv", "images/b.png", "images/x.png"), r"row 2: the image file .*x\.png does not exist"),
    (replace("images.csv", "images/b.png", "../b.png"), "needs a path inside"),
    (replace("images.csv", "b.png,0", "b.png,maybe"), r"row 2: column 'shared'.*'maybe'"),
    (replace("images.csv", "b.png,0", "b.png,2"), "needs 0 or 1, found 2"),
    (replace("images.csv", "0,0.9", "0,much"), r"row 2: column 'label:place' needs numbers, found 'much'"),
    (replace("images.csv", "street,0,0.9", "street,0"), "line 3: expected 6 cells as in the header, found 5"),
    (replace("images.csv", "caption", "file"), "column 'file' twice"),
    (
        replace("subj01/trials.csv", "b,1,2", "zz,1,2"),
        r"subj01.trials\.csv, row 3: image_id 'zz' is not in images\.csv",
    ),
    (
        replace("subj01/trials.csv", "b,1,2", "b,first,2"),
        r"row 3: column 'session' needs whole numbers.*'first'",
    ),
    (replace("subj01/trials.csv", "b,1,2", "b,0,2"), "column 'session'"),
    (replace("subj01/trials.csv", "b,1,2", "b,1,1.5"), "column 'run'"),
    (replace("subj01/trials.csv", "b,1,2\n", ""), r"expected 4 trials .* found an array of shape \(5, 4\)"),
    (replace("subj01/voxels.csv", "R,7,,FFA-1\n", ""), r"x 3 voxels .* found an array of shape \(5, 4\)"),
    (replace("subj01/voxels.csv", "R,7", "X,7"), "row 3: column 'hemi' needs L or R, found 'X'"),
    (replace("subj01/voxels.csv", "10241", "10242"), "row 4: fsaverage5 has the vertices 0 to 10241"),
    (replace("subj01/voxels.csv", "L,7", "L,0"), "rows 1 and 2 are both vertex 0 of hemisphere L"),
    (replace("subj01/voxels.csv", "vertex", "node"), "missing vertex"),
    (remove("subj01/voxels.csv"), r"voxels\.csv: file not found"),
    (remove("subj01/responses.npy"), r"responses\.npy: file not found"),
    (truncate, r"responses\.npy: not a readable NumPy"),
    (save(np.zeros((5, 4), dtype=np.int16)), "expected float16, float32 or float64, found int16"),
    (save(np.zeros((5, 4), dtype=object)), "not a readable NumPy"),
    (lambda f: [(f / s / "trials.csv").unlink() for s in ("subj01", "subj02")], "no subject found"),
]


@pytest.mark.parametrize("spoil, message", WRONG, ids=[message for _, message in WRONG])
def test_every_mistake_has_its_message(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UserError, match=message):
        open_dataset(folder)


def test_absent_folder(tmp_path):
    with pytest.raises(UserError, match="folder not found"):
        open_dataset(tmp_path / "nothing")


def test_volume_data_need_no_surface_places(folder):
    head = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**head, "space": "func1pt8mm"}))
    for name in ("subj01", "subj02"):
        (folder / name / "voxels.csv").write_text("i,j,k,streams\n" + "1,2,3,ventral\n" * 4)
    subject = open_dataset(folder).subjects[0]
    np.testing.assert_array_equal(subject.vertex, [-1] * 4)
    assert list(subject.rois) == ["streams", "streams/ventral"]
