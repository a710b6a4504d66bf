"""The page: escaping, self-containment, size, determinism, and what a wrong report is told."""

import importlib.util
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import nibabel
import numpy as np
import pytest

from sbm_jax.report.encode import decode
from sbm_jax.report.page import (
    CortexData,
    Hemisphere,
    MapLayer,
    RoiAtlas,
    RoiExemplars,
    Thumb,
    UnitCard,
    cell_text,
    render_page,
    thumbnail,
)

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&<!--\u2028{{ 7*7 }}"


class Elements(HTMLParser):
    """Counts elements and collects attribute names, as a browser's parser would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self.attributes: set[str] = set()
        self.scripts: list[str] = []
        self._script = False

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.attributes |= {name for name, _ in attrs}
        self._script = tag == "script"
        if self._script:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._script = False

    def handle_data(self, data):
        if self._script:
            self.scripts[-1] += data


def parse(page: str) -> Elements:
    elements = Elements()
    elements.feed(page)
    return elements


def payload(page: str) -> dict:
    return json.loads(parse(page).scripts[0])


def test_hostile_text_in_every_field_changes_no_element(build_report):
    counter = iter(range(10**6))
    plain = render_page(build_report(lambda text: f"{'x' * len(HOSTILE)}{next(counter)}"))
    counter = iter(range(10**6))
    hostile = render_page(build_report(lambda text: f"{HOSTILE}{next(counter)}"))
    a, b = parse(plain), parse(hostile)
    assert a.count == b.count
    assert a.attributes == b.attributes
    assert not [name for name in b.attributes if name.startswith("on")]
    assert len(b.scripts) == 2
    assert "49" not in payload(hostile)["cortex"]["subjects"][0]["name"], "data must not run as a template"


def test_every_text_reaches_the_page(build_report):
    words: list[str] = []

    def mark(text: str) -> str:
        words.append(f"{text}-w{len(words)}")
        return words[-1]

    page = render_page(build_report(mark))
    plain = page.replace("\\u0394", "Δ")
    assert [word for word in words if word not in plain] == []


def test_data_in_the_script_is_the_data_given(build_report):
    report = build_report(lambda text: text + HOSTILE)
    found = payload(render_page(report))["cortex"]["subjects"]
    assert [subject["name"] for subject in found] == list(report.subjects)
    assert found[0]["atlases"][0]["names"] == ["FFA" + HOSTILE, "PPA" + HOSTILE]


def test_the_policy_allows_this_style_and_script_alone(build_report):
    page = render_page(build_report())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    text = policy.group(1).replace("&#39;", "'")
    assert text.startswith("default-src 'none'; img-src data: blob:; style-src 'sha256-")
    assert "script-src 'sha256-" in text and "unsafe" not in text and "connect-src 'none'" in text


def test_nothing_points_outside(build_report):
    page = render_page(build_report())
    assert "http://" not in page and "https://" not in page
    assert not re.search(r"\bsrc\s*=\s*[\"']?(?!data:)", page.split("<script")[0])
    assert not re.search(r"@import|url\(", page)
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|EventSource|eval|sendBeacon|innerHTML)\b", page)


def test_same_report_same_text(build_report):
    assert render_page(build_report()) == render_page(build_report())


def test_pictures_are_embedded_once(build_report):
    page = render_page(build_report())
    assert len(payload(page)["pictures"]) == 2
    assert re.findall(r'data-picture="(\d)"', page) == ["0", "1", "0"]


def test_arrays_survive_the_embedding(build_report):
    report = build_report()
    data = payload(render_page(report))
    first = report.subjects["subj01"]
    for given, shown in zip(first, data["cortex"]["subjects"][0]["maps"], strict=True):
        back = decode(shown["values"], data["blobs"])
        np.testing.assert_array_equal(np.isnan(back), np.isnan(given.values))
        span = np.nanmax(given.values) - np.nanmin(given.values)
        np.testing.assert_allclose(back, given.values, rtol=0, atol=0 if given.kind == "categorical" else span / 1e5)
    hemi, sent = report.cortex.hemis["left"], data["cortex"]["hemis"]["left"]
    np.testing.assert_array_equal(decode(sent["faces"], data["blobs"]), hemi.faces.ravel())
    np.testing.assert_array_equal(decode(sent["flatFaces"], data["blobs"]), hemi.flat_faces.ravel())
    np.testing.assert_allclose(decode(sent["coords"]["pial"], data["blobs"]), hemi.coords["pial"], atol=0.002)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: replace(m, values=m.values[:-1]), "values for"),
        (lambda m: replace(m, vmin=1.0, vmax=1.0), "cannot be shown"),
        (lambda m: replace(m, kind="rainbow"), "cannot be shown"),
        (lambda m: replace(m, palette="jet"), "unknown palette"),
        (lambda m: replace(m, kind="categorical", categories=[("a", "#000000")]), "not indices"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(build_report, change, message):
    report = build_report()
    with pytest.raises(ValueError, match=message):
        render_page(replace(report, subjects={"subj01": [change(report.subjects["subj01"][0])]}))


def test_labels_and_sections_that_do_not_fit_are_refused(build_report):
    report = build_report()
    n = report.cortex.n_vertices
    for atlas in (RoiAtlas("a", np.zeros(n - 1, int), []), RoiAtlas("a", np.full(n, 2), ["one"])):
        with pytest.raises(ValueError, match="labels"):
            render_page(replace(report, outlines={"subj01": [atlas]}))
    with pytest.raises(ValueError, match="subj09"):
        render_page(replace(report, outlines={"subj09": []}))
    with pytest.raises(ValueError, match="unknown section"):
        render_page(replace(report, tables=[replace(report.tables[0], section="sumary")]))
    card = UnitCard("block 0", 1, "", "", [Thumb(b"<svg/>", "drawing")])
    with pytest.raises(ValueError, match="drawing"):
        render_page(replace(report, exemplars=[RoiExemplars("V1", "", [card])]))


def test_without_cortex_truth_or_exemplars(build_report):
    bare = replace(build_report(), cortex=None, subjects={}, outlines={}, exemplars=(), recovery=None, warnings=())
    noted = render_page(bare)
    assert parse(noted).count.get("canvas") is None and "<p>not drawn: subj03</p>" in noted.split('id="cortex"')[1]
    page = render_page(replace(bare, cortex_notes=()))
    assert 'id="cortex"' not in page and 'id="recovery"' not in page and 'id="summary"' in page
    assert payload(page)["cortex"] is None


def test_file_names_that_are_no_unicode_can_be_written(build_report):
    page = render_page(replace(build_report(), warnings=["cannot read image\udcff.png"]))
    assert "image\\udcff.png" in page.encode("utf-8").decode("utf-8")


def test_cells():
    shown = [
        cell_text(v)
        for v in (
            0.28149,
            -0.0001,
            -0.5,
            20484,
            np.int64(-1200),
            None,
            float("nan"),
            True,
            "x",
            np.float32(2),
        )
    ]
    assert shown == ["0.281", "0.000", "−0.500", "20\u202f484", "−1\u202f200", "–", "–", "yes", "x", "2.000"]


def test_fsaverage5_page_stays_small(build_report):
    spec = importlib.util.find_spec("nilearn")
    assert spec and spec.origin
    folder = Path(spec.origin).parent / "datasets/data/fsaverage5"

    def arrays(name: str) -> list[np.ndarray]:
        return [array.data for array in nibabel.load(folder / f"{name}.gii.gz").darrays]

    hemis = {}
    for side in ("left", "right"):
        inflated, faces = arrays(f"infl_{side}")
        flat, flat_faces = arrays(f"flat_{side}")
        coords = {"inflated": inflated, "pial": arrays(f"pial_{side}")[0], "flat": flat}
        hemis[side] = Hemisphere(coords, faces, arrays(f"sulc_{side}")[0], flat_faces)
    cortex = CortexData(hemis)
    assert cortex.n_vertices == 20484
    rng = np.random.default_rng(0)
    subjects = {
        f"subj{s:02d}": [MapLayer(f"m{i}", f"map {i}", "r", "sequential", rng.random(20484), 0, 1) for i in range(8)]
        for s in range(1, 5)
    }
    pictures = [thumbnail(rng.integers(0, 255, (128, 128, 3), np.uint8), f"{i}") for i in range(120)]
    assert len(pictures[0].data) < 8000, "noise is the worst case of a JPEG"
    cards = [UnitCard("block 1", i, "", "", pictures[8 * i : 8 * i + 8]) for i in range(15)]
    page = render_page(
        replace(
            build_report(),
            cortex=cortex,
            subjects=subjects,
            outlines={},
            exemplars=[RoiExemplars("V1", "", cards)],
        )
    )
    assert len(page.encode()) < 8_000_000
