"""The explorer in headless Chromium: every view by mouse, keys and address, its files, and hostile texts."""

from __future__ import annotations

import csv
import io
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow
HOOK = "block05.resid"


@dataclass
class Visit:
    """A page, with what it complained of and what it asked for."""

    page: Any
    base: str
    trouble: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def open(self, address: str) -> None:
        self.page.goto("about:blank")
        self.page.goto(self.base + address)
        self.page.wait_for_selector("html[data-ready=yes]")

    def hash(self) -> str:
        return self.page.evaluate("location.hash")

    def wait_hash(self, part: str) -> None:
        for _ in range(200):
            if part in self.hash():
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{part!r} never was in {self.hash()!r}")

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    def calm(self) -> None:
        """Nothing failed, and nothing was asked of anybody else."""
        self.page.wait_for_load_state("networkidle")
        assert self.trouble == []
        assert [url for url in self.asked if not url.startswith((self.base, "data:", "blob:", "about:"))] == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("no Chromium on PATH (Debian: apt-get install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with api.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=binary, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@pytest.fixture
def visit(browser, request) -> Iterator[Any]:
    """`visit(explorer)`: a fresh page of 1280 x 800."""
    contexts = []

    def begin(explorer) -> Visit:
        context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        found = Visit(page, explorer.url)
        page.on("console", lambda message: found.trouble.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: found.trouble.append(str(error)))
        page.on("request", lambda asked: found.asked.append(asked.url))
        # a page that is left gives up the pictures it still waits for
        page.on(
            "requestfailed",
            lambda asked: None if "ABORTED" in (asked.failure or "") else found.trouble.append(f"failed: {asked.url}"),
        )
        return found

    yield begin
    for context in contexts:
        context.close()


def saved(visit: Visit, press: Any) -> bytes:
    """What a button saves."""
    with visit.page.expect_download() as download:
        press.click()
    with open(download.value.path(), "rb") as file:  # noqa: PTH123  (a path that playwright made)
        return file.read()


def check_files(visit: Visit, place: str, kinds: tuple[str, ...] = ("SVG", "PNG", "CSV")) -> None:
    """The first export of each kind within `place` is what its name says."""
    for kind in kinds:
        every = visit.page.locator(f"{place} .exports button, {place} .group button, {place} a[download]")
        data = saved(visit, every.filter(has_text=kind).first)
        if kind == "CSV":
            rows = list(csv.reader(io.StringIO(data.decode(), newline="")))
            assert len(rows) > 1 and len({len(row) for row in rows}) == 1, rows[:3]
        elif kind == "SVG":
            assert ElementTree.fromstring(data).tag == "{http://www.w3.org/2000/svg}svg"
            assert b'href="/' not in data  # pictures are inside
        else:
            pixels = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
            assert pixels.shape[1] > 300 and pixels.std() > 1  # not blank


def test_from_the_cortex_to_a_unit_and_back(visit, explorer):
    v = visit(explorer)
    v.open("")
    v.page.select_option("#map", "patch_mean.in_sample")
    v.page.select_option("#surface", "flat")
    v.wait_hash("map=patch_mean.in_sample")
    best = v.page.locator("#panel table button").first
    best.click()  # the best voxel
    v.wait_hash("vertex=")
    v.page.wait_for_selector("#panel .unit img")
    chosen = v.hash()
    assert (
        "Layer profile" in v.text("#panel") and "held-out r of the best unit" in v.page.locator("#panel").text_content()
    )
    v.page.locator("#panel .unit a[href^='#unit']").first.click()
    v.page.wait_for_selector("#view-unit .wall img")
    assert "How it fires" in v.text("#view-unit") and "images on which it fires" in v.text("#view-unit")
    v.page.go_back()
    v.wait_hash("#cortex?")
    assert v.hash() == chosen and v.page.locator("#view-cortex").is_visible() and "Layer profile" in v.text("#panel")
    v.page.go_back()
    v.page.wait_for_selector("#panel h2:has-text('Click a vertex')")
    assert "vertex=" not in v.hash()
    other = visit(explorer)
    other.open(chosen)
    other.page.wait_for_selector("#panel .unit img")
    assert other.page.input_value("#map") == "patch_mean.in_sample" and other.page.input_value("#surface") == "flat"
    assert other.hash() == chosen and other.text("#panel h2") in v.page.evaluate("document.title") + other.text(
        "#panel h2"
    )
    other.calm()
    v.calm()


def test_the_cortex_by_keys(visit, explorer):
    v = visit(explorer)
    v.open("")
    v.page.focus("#canvas")
    v.page.keyboard.press("ArrowLeft")
    v.wait_hash("turn=")
    v.page.keyboard.press("+")
    v.wait_hash("zoom=1.25")
    v.page.keyboard.press("0")
    v.page.keyboard.press("Enter")
    v.wait_hash("vertex=")
    first = v.hash()
    v.page.wait_for_selector("#panel .where, #panel h2")
    v.page.keyboard.press("Shift+ArrowUp")
    for _ in range(100):
        if v.hash() != first:
            break
        v.page.wait_for_timeout(30)
    assert v.hash() != first and "vertex=" in v.hash()
    v.page.wait_for_selector("#panel h2:has-text('hemisphere')")
    v.page.keyboard.press("Enter")
    assert v.page.evaluate("document.getElementById('panel').contains(document.activeElement)")
    v.page.focus("#canvas")
    v.page.keyboard.press("Escape")
    v.page.wait_for_selector("#panel h2:has-text('Click a vertex')")
    v.page.keyboard.press("Tab")
    assert v.page.evaluate("document.activeElement.id") == "outlines"  # what comes after the cortex
    v.calm()


def test_the_search_and_its_address(visit, explorer):
    v = visit(explorer)
    v.open("#units")
    v.page.wait_for_selector("#view-units .unit img")
    v.page.select_option("#units-layer", label="5")
    v.wait_hash("layer=1")
    v.page.wait_for_selector("#view-units .results:has-text('of 256 units')")
    v.page.select_option("#units-roi", "floc-faces")
    v.wait_hash("roi=floc-faces")
    v.page.wait_for_selector("#view-units .unit .facts:has-text('region')")
    titles = v.page.locator("#view-units .unit h3").all_inner_texts()
    assert titles and all(HOOK in title for title in titles)
    other = visit(explorer)
    other.open(v.hash())
    other.page.wait_for_selector("#view-units .unit .facts:has-text('region')")
    assert other.page.locator("#view-units .unit h3").all_inner_texts() == titles
    v.page.fill("input[name=unit]", "3")
    v.page.keyboard.press("Enter")
    v.wait_hash("#unit?")
    v.page.wait_for_selector("#view-unit h2:has-text('unit 3')")
    v.page.go_back()
    v.wait_hash("roi=floc-faces")
    v.calm()


def test_a_picture_its_patches_and_an_upload(visit, explorer, tmp_path):
    v = visit(explorer)
    v.open("#picture")
    v.page.fill("#picture-search", "face")
    v.page.keyboard.press("Enter")
    v.wait_hash("search=face")
    v.page.wait_for_selector("#view-picture .wall .tile")
    v.page.locator("#view-picture .wall .tile").first.click()
    v.page.wait_for_selector("#view-picture .unit img")
    assert "all 64 patches" in v.text("#view-picture .patches")
    canvas = v.page.locator("#view-picture .patches canvas")
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 0.4, "y": box["height"] * 0.4})
    v.wait_hash("patches=27")
    v.page.wait_for_selector("#view-picture h3:has-text('1 chosen patch')")
    canvas.focus()
    for key in ("ArrowRight", "Enter"):
        v.page.keyboard.press(key)
    v.wait_hash("patches=27,28")
    v.page.wait_for_selector("#view-picture h3:has-text('2 chosen patches')")
    v.page.wait_for_selector("#view-picture .small")
    other = visit(explorer)
    other.open(v.hash())
    other.page.wait_for_selector("#view-picture h3:has-text('2 chosen patches')")
    v.page.keyboard.press("Escape")
    v.page.wait_for_selector("#view-picture h3:has-text('all patches')")
    hostile = tmp_path / "<img src=x onerror=alert(1)>.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 120, 3), np.uint8)).save(hostile)
    v.page.locator("#view-picture a.button", has_text="another picture").click()
    v.page.set_input_files("#upload", hostile)
    v.wait_hash("picture=")
    v.page.wait_for_selector("#view-picture .unit img")
    assert "your picture" in v.text("#view-picture h2")
    v.page.locator("#view-picture a.button", has_text="another picture").click()
    (tmp_path / "no.png").write_bytes(b"no picture")
    v.page.set_input_files("#upload", tmp_path / "no.png")
    v.page.wait_for_selector("#view-picture .says:has-text('not a readable picture')")
    refused = [text for text in v.trouble if "415" in text]
    assert len(refused) == 1  # Chromium itself notes the refusal
    v.trouble.remove(refused[0])
    v.calm()


def test_an_edit_before_and_after(visit, explorer):
    v = visit(explorer)
    v.open("#edits?image=2&kind=patch&hook=block01.resid")
    v.page.wait_for_selector("#view-edits svg.chart")
    v.page.select_option("#edit-how", "clamp")
    v.wait_hash("how=clamp")
    v.page.fill("#edit-value", "3")
    v.page.keyboard.press("Enter")
    v.wait_hash("value=3")
    v.page.wait_for_selector("#view-edits canvas.small")
    seconds = []
    for i in (1, 2, 3):
        v.page.locator("#view-edits button.chip").nth(i).click()
        v.wait_hash("units=")
        v.page.wait_for_selector("#view-edits button.chip[aria-pressed=true]")
        v.page.wait_for_selector("#view-edits [data-seconds]")
        v.page.wait_for_load_state("networkidle")
        seconds.append(float(v.page.locator("#view-edits [data-seconds]").get_attribute("data-seconds")))
    assert min(seconds) < 1, seconds
    assert "What every patch shows" in v.text("#view-edits")
    shown = v.page.locator("#view-edits svg.chart").first.text_content()
    other = visit(explorer)
    other.open(v.hash())
    other.page.wait_for_selector("#view-edits canvas.small")
    assert other.page.input_value("#edit-how") == "clamp"
    assert other.page.locator("#view-edits svg.chart").first.text_content() == shown
    v.calm()


def test_figures_and_numbers_are_saved_from_every_view(visit, explorer):
    v = visit(explorer)
    v.open(
        "#cortex?subject=subj01&mode=patch_mean&map=patch_mean.held_out&surface=inflated&hemis=both&vertex=left,4000"
    )
    v.page.wait_for_selector("#panel .exports")
    check_files(v, "#viewer")
    check_files(v, "#panel")
    for address, place in (
        ("#units", "#view-units"),
        (f"#unit?kind=patch&hook={HOOK}&unit={_fired(explorer)}", "#view-unit"),
        (f"#picture?image=3&kind=patch&hook={HOOK}", "#view-picture"),
        (f"#edits?image=3&kind=patch&hook={HOOK}", "#view-edits"),
    ):
        v.open(address)
        v.page.wait_for_selector(f"{place} .exports button")
        v.page.wait_for_load_state("networkidle")
        check_files(v, place)
    v.calm()


def _fired(explorer) -> int:
    return explorer.json("/api/units", kind="patch", mode="patch_mean", layer=1)["units"][0]["unit"]


def test_hostile_texts_are_shown_and_run_nowhere(visit, hostile):
    v = visit(hostile)
    marked = "<img src=x onerror="
    v.open("")
    assert (
        marked in v.text("#title")
        and marked in v.text("#subtitle")
        and marked[:9] in v.page.locator("#missing code").first.text_content()
    )
    v.page.select_option("#map", "patch_mean.category")
    v.wait_hash("map=patch_mean.category")
    v.page.locator("#panel table button").first.click()
    v.page.wait_for_selector("#panel .unit img")
    v.open("#units")
    concept = v.page.locator("#units-concept option", has_text="word").first.get_attribute("value")
    assert marked in concept
    v.page.select_option("#units-judge", "follows")
    v.wait_hash("judge=follows")
    v.page.wait_for_selector("#units-judge")
    v.page.select_option("#units-concept", concept)
    v.page.wait_for_selector(f"#view-units .chip >> text={marked}")
    v.open(f"#unit?kind=patch&hook={HOOK}&unit=1")
    v.page.wait_for_selector("#view-unit .says:has-text('sbm-jax match')")
    for view in ("picture", "edits"):
        v.open(f"#{view}")
        assert "--no-live" in v.text(f"#view-{view}")
    v.open(f"#unit?kind=<img>&hook={marked}&unit=<b>")
    v.page.wait_for_selector("#view-unit .says")
    v.trouble = [text for text in v.trouble if "400" not in text and "404" not in text]  # Chromium notes the refusal
    assert v.page.evaluate("document.documentElement.dataset.owned === undefined")
    assert v.page.evaluate("[...document.images].every((image) => !image.hasAttribute('onerror'))")
    v.calm()
