"""Explorers of the tiny run, as a user starts them; and a copy of the run whose texts are hostile."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

EVIL = "<img src=x onerror=\"document.documentElement.dataset.owned='yes'\">"


@dataclass(frozen=True)
class Explorer:
    """A server that runs: where it listens, and what it answers."""

    url: str
    process: subprocess.Popen

    @property
    def port(self) -> int:
        return int(urlsplit(self.url).port or 0)

    def request(
        self,
        path: str,
        words: dict[str, Any] | None = None,
        method: str = "GET",
        body: bytes | None = None,
        **headers: str,
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (lower case) and body. The path goes out as it is; `Host` may be given, even as nothing."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            target = f"{path}?{urlencode(words)}" if words else path
            own_host = "Host" in headers
            connection.putrequest(method, target, skip_host=own_host, skip_accept_encoding=True)
            if body is not None and "Content_Length" not in headers:
                headers["Content-Length"] = str(len(body))
            for key, value in headers.items():
                if value:
                    connection.putheader(key.replace("_", "-"), value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def json(self, path: str, **words: Any) -> Any:
        status, headers, body = self.request(path, words)
        assert status == 200, (path, words, body[:500])
        assert headers["content-type"] == "application/json"
        return json.loads(body)

    def refused(self, path: str, status: int, **words: Any) -> dict[str, str]:
        found, _, body = self.request(path, words)
        assert found == status, (path, words, body[:500])
        return json.loads(body)


def start(program: Any, *words: Any) -> Iterator[Explorer]:
    """An explorer; at the end it is interrupted as by Ctrl-C, and must end well."""
    command = program.command("serve", *words, "--port", 0)
    process = subprocess.Popen(
        command, env=program.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline(), process.stdout.readline()]
        assert lines[1].startswith("http://127.0.0.1:"), (lines, process.poll())
        yield Explorer(lines[1].strip(), process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, "Traceback" in errors) == (0, False), errors[-3000:]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def explorer(tiny, program, tmp_path_factory) -> Iterator[Explorer]:
    """The tiny run, with the backbone and a segmentation head at work. Nothing of the run may change."""
    head = tmp_path_factory.mktemp("head") / "head.safetensors"
    program("segmentation-head", "--config", tiny.config, "--out", tiny.out, "--images", 30, "--save", head)
    stores = tiny.out / "stores"
    before = {path: path.stat().st_mtime_ns for path in stores.rglob("*")}
    yield from start(program, tiny.out, "--head", head)
    assert {path: path.stat().st_mtime_ns for path in stores.rglob("*")} == before, "serving writes nothing"


@pytest.fixture(scope="session")
def hostile(tiny, program, tmp_path_factory) -> Iterator[Explorer]:
    """A copy whose captions, labels, concepts, regions and title are markup, without the store of matches and without JAX."""
    out = Path(shutil.copytree(tiny.out, tmp_path_factory.mktemp("hostile") / f"run {EVIL[:9]}"))
    data = next((out / "stores").glob("dataset-*")) / "data"
    quoted = EVIL.replace('"', '""')
    images = (data / "images.csv").read_text().splitlines()
    images[0] = images[0].replace("label:word", f'"label:word{quoted}"')
    rows = [line.split(",", 4) for line in images[1:]]
    images[1:] = [",".join([*row[:3], f'"{quoted}"', row[4]]) if row[3][:1] != '"' else ",".join(row) for row in rows]
    (data / "images.csv").write_text("\n".join(images) + "\n")
    document = json.loads((data / "dataset.json").read_text())
    document["concepts"] = [name + EVIL if name == "word" else name for name in document["concepts"]]
    document["name"] += EVIL
    (data / "dataset.json").write_text(json.dumps(document))
    for table in data.glob("subj*/voxels.csv"):
        table.write_text(table.read_text().replace("FFA-1", f'"FFA-1{quoted}"'))
    explain = next((out / "stores").glob("explain-*"))
    judged = json.loads((explain / "explain.json").read_text())
    for record in judged["judges"].values():
        record["concepts"] = [name + EVIL if name == "word" else name for name in record["concepts"]]
        record["about"] = EVIL
    (explain / "explain.json").write_text(json.dumps(judged))
    manifest = json.loads((explain / "manifest.json").read_text())
    manifest["files"]["explain.json"] = (explain / "explain.json").stat().st_size
    (explain / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(next((out / "stores").glob("match-*")))
    yield from start(program, out, "--no-live", "--set", f"report.title=tiny{EVIL}")
