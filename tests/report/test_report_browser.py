"""The page in headless Chromium: no console error, no outside request, right numbers, and the mouse."""

import base64
import fcntl
import io
import json
import os
import select
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sbm_jax.config import load_config
from sbm_jax.report.page import render_page
from sbm_jax.sweep.grid import Run
from sbm_jax.sweep.page import render_sweep
from sbm_jax.sweep.plan import Sweep

pytestmark = pytest.mark.slow

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
    "--remote-debugging-pipe", "--window-size=1280,1000",
]  # fmt: skip
TROUBLE = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")


class Browser:
    """DevTools protocol over file descriptors 3 and 4: JSON messages that end with a zero byte."""

    def __init__(self, binary: str, profile: Path) -> None:
        # above 9, so that the child's 3 and 4 do not overwrite what they are copied from
        pipes = [[fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in os.pipe()] for _ in range(2)]
        (child_in, self._out), (self._in, child_out) = pipes
        actions = [
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            (os.POSIX_SPAWN_DUP2, child_in, 3),
            (os.POSIX_SPAWN_DUP2, child_out, 4),
        ]
        command = [binary, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.pid = os.posix_spawn(binary, command, os.environ, file_actions=actions)
        os.close(child_in)
        os.close(child_out)
        self.events: list[dict] = []
        self._buffer, self._number, self._session = b"", 0, None
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _read(self) -> dict:
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], 60)[0]:
                raise TimeoutError("Chromium did not answer within 60 s")
            chunk = os.read(self._in, 1 << 20)
            if not chunk:
                raise ConnectionError("Chromium ended")
            self._buffer += chunk
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method: str, **parameters) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(
            self._out,
            json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0",
        )
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def run(self, expression: str):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression: str):
        end = time.monotonic() + 30
        while not (value := self.run(expression)):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)
        return value

    def open(self, address: str) -> None:
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)
        self.wait("document.documentElement?.dataset.ready === 'yes'")

    def mouse(self, kind: str, x: float, y: float, **more) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1, **more)

    def trouble(self) -> list[dict]:
        self.run("new Promise((done) => setTimeout(done, 300))")
        return [event for event in self.events if event.get("method") in TROUBLE]

    def close(self) -> None:
        self.call("Browser.close")
        os.waitpid(self.pid, 0)
        os.close(self._in)
        os.close(self._out)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("no Chromium on PATH (Debian: apt-get install chromium)")
    browser = Browser(binary, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def write(tmp_path: Path, report) -> str:
    path = tmp_path / "report.html"
    path.write_text(render_page(report), encoding="utf-8")
    return path.as_uri()


def test_quiet_offline_and_drawn(browser, build_report, tmp_path):
    browser.events.clear()
    browser.open(write(tmp_path, build_report()))
    assert browser.trouble() == []
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert {url.split(":")[0] for url in asked} <= {"file", "blob", "data", "about"}
    shot = browser.run("document.getElementById('canvas').toDataURL('image/png')").split(",")[1]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB")).reshape(-1, 3).astype(int)
    coloured = (pixels.max(1) - pixels.min(1)) > 60
    assert coloured.mean() > 0.05, "the map is on the canvas"
    assert (
        browser.wait("[...document.images].every((i) => i.complete && i.naturalWidth === 16) && document.images.length")
        == 3
    )


def test_the_address_sets_the_view_and_values_are_those_given(browser, build_report, tmp_path):
    report = build_report()
    vertex, offset = 13, report.cortex.hemis["left"].n_vertices
    address = write(tmp_path, report)
    browser.open(f"{address}#cortex?subject=subj01&map=gain&surface=flat&vertex=right,{vertex}&zoom=2")
    shown = browser.run("[...document.querySelectorAll('#readout td')].map((e) => e.textContent)")
    held_out, gain, kind = (layer.values[vertex + offset] for layer in report.subjects["subj01"])
    assert shown[0] == f"{held_out:.3f} r"
    assert shown[1] == f"{gain:.3f} Δr".replace("-", "−")
    assert shown[2] == ("–" if np.isnan(kind) else "abc"[int(kind)])
    assert browser.run("document.getElementById('surface').value") == "flat"


def test_mouse_wheel_and_keys(browser, build_report, tmp_path):
    browser.events.clear()
    browser.open(write(tmp_path, build_report()))
    browser.run("document.getElementById('canvas').scrollIntoView({behavior: 'instant'})")
    x, y = browser.run(
        "(() => {const b = document.getElementById('canvas').getBoundingClientRect();"
        " return [b.x + b.width / 4, b.y + 250]})()"
    )
    browser.mouse("mouseMoved", x, y)
    assert "hemisphere, vertex" in browser.wait("document.getElementById('tip').textContent")
    browser.mouse("mousePressed", x, y)
    browser.mouse("mouseMoved", x + 60, y + 20, buttons=1)
    browser.mouse("mouseReleased", x + 60, y + 20)
    browser.wait("location.hash.includes('turn=')")
    browser.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=-300)
    browser.wait("location.hash.includes('zoom=')")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="0")
    browser.wait("!location.hash.includes('zoom=')")
    browser.run("const s = document.getElementById('threshold'); s.value = 500; s.dispatchEvent(new Event('input'))")
    assert browser.run("document.getElementById('threshold-value').textContent") == "0.300 r"
    assert browser.trouble() == []


def test_hostile_text_runs_nowhere(browser, build_report, tmp_path):
    evil = "</script><script>document.documentElement.dataset.owned='yes'</script>"
    evil += "<img src=x onerror=\"this.id='owned'\">"
    browser.events.clear()
    browser.open(write(tmp_path, build_report(lambda text: text + evil)))
    browser.run("document.getElementById('canvas').scrollIntoView({behavior: 'instant'})")
    assert browser.trouble() == []
    assert browser.run("document.documentElement.dataset.owned === undefined && !document.getElementById('owned')")
    assert browser.run("document.querySelector('h1').textContent") == "Title" + evil


def test_headings_of_a_sweeps_table_sort_it(browser, tmp_path):
    scores = [0.2, -0.5, None, 1.5e-3]
    runs = [Run(i, {"backbone.path": name}, load_config(None)) for i, name in enumerate("cabd")]
    rows = [
        {"run": i, "page": "x", **run.values, "subject": "s", "mode": "cls", "held_out_mean": score}
        for i, (run, score) in enumerate(zip(runs, scores, strict=True))
    ]
    path = tmp_path / "index.html"
    path.write_text(render_sweep(Sweep(tmp_path, "s", runs, {}, [("r",)] * 4), rows, "t"), encoding="utf-8")
    browser.events.clear()
    browser.open(path.as_uri())

    def order(heading: str) -> str:
        browser.run(f"[...document.querySelectorAll('th button')].find((b) => b.textContent === '{heading}').click()")
        return browser.run("[...document.querySelectorAll('tbody th')].map((th) => th.textContent).join('')")

    assert [order("held-out r"), order("held-out r")] == ["0312", "1302"], "largest first; rows without a number last"
    assert [order("backbone.path"), order("backbone.path")] == ["1203", "3021"]
    assert [order("run"), order("run")] == ["3210", "0123"]
    assert browser.run("document.querySelector('[aria-sort]').textContent") == "run"
    assert browser.trouble() == []
