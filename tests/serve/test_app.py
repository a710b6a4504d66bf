"""The explorer's answers: numbers of the stores, refusals, many clients at once, and nothing for strangers."""

from __future__ import annotations

import base64
import csv
import io
import json
import socket
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from sbm_jax.report.encode import decode
from sbm_jax.store.store import Store

HOOK = "block05.resid"
EDIT = {"image": 1, "kind": "patch", "hook": HOOK, "units": "1", "subject": "subj01", "mode": "cls"}


def store(tiny, kind: str, **words) -> Store:
    """The finished store of a kind; `subject` chooses among those of subjects."""
    found = [Store(path) for path in (tiny.out / "stores").glob(f"{kind}-*") if (path / "manifest.json").is_file()]
    for key, value in words.items():
        found = [s for s in found if s.spec["settings"].get(key) == value]
    assert len(found) == 1
    return found[0]


@pytest.fixture(scope="module")
def align(tiny) -> Store:
    betas = store(tiny, "betas", subject="subj01").name
    return next(s for s in map(Store, (tiny.out / "stores").glob("align-*")) if s.spec["inputs"]["betas"] == betas)


def picture(size=(90, 70), kind="PNG", seed=0) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)).save(stream, kind)
    return stream.getvalue()


def upload(explorer, data: bytes, **headers: str):
    return explorer.request("/api/upload", method="POST", body=data, **{"Origin": explorer.url.rstrip("/"), **headers})


# Numbers -------------------------------------------------------------------------------------------------------------


def test_maps_hold_the_numbers_of_the_stores(explorer, align):
    answer = explorer.json("/api/map", subject="subj01", map="patch_mean.held_out")
    shown, stored = decode(answer["values"], answer["blobs"]), align.read("patch_mean/held_out")[:, 0]
    assert shown.shape == stored.shape  # the demo lives on fsaverage5 itself
    np.testing.assert_allclose(shown, stored, atol=1e-4)
    table = list(
        csv.reader(io.StringIO(explorer.request("/csv/map?subject=subj01&map=patch_mean.held_out")[2].decode()))
    )
    assert table[0] == ["voxel", "hemi", "vertex", "patch_mean.held_out"]
    np.testing.assert_allclose([float(row[3]) for row in table[1:]], stored, rtol=1e-6)


def test_every_map_that_is_listed_can_be_had(explorer):
    listed = explorer.json("/api/subject", subject="subj02")["maps"]
    names = [record["name"] for record in listed]
    assert len(set(names)) == len(names) > 40
    for key in (
        "held_out",
        "of_ceiling",
        "best_layer",
        "p_fdr",
        "p_fwe",
        "depth",
        "category",
        "truth",
        "ridge",
        "field",
    ):
        assert f"patch_mean.{key}" in names, key
    for name in names:
        answer = explorer.json("/api/map", subject="subj02", map=name)
        values = decode(answer["values"], answer["blobs"])
        assert len(values) == 20_484 and answer["name"] == name
        if answer["kind"] == "categorical":
            assert np.nanmax(values, initial=0) < len(answer["categories"])


def test_a_vertex_shows_its_best_units_null_and_profile(explorer, align):
    v = int(align.read("patch_mean/held_out")[:, 0].argmax())
    found = explorer.json(
        "/api/voxel", subject="subj01", hemi=("left", "right")[v // 10_242], vertex=v % 10_242, mode="patch_mean"
    )
    assert found["voxel"] == v and found["responsive"]
    width = align.json("index.json")["units_per_layer"]["patch_mean"]
    units = align.read("patch_mean/voxel_units")[v]
    assert [(u["layer"], u["unit"]) for u in found["units"]] == [divmod(int(u), width) for u in units]
    for key, part in (("in_sample", "voxel_values"), ("held_out", "held_out")):
        np.testing.assert_allclose([u[key] for u in found["units"]], align.read(f"patch_mean/{part}")[v], rtol=1e-6)
    np.testing.assert_allclose(found["profile"]["held_out"], align.read("patch_mean/layer_held_out")[:, v], rtol=1e-6)
    np.testing.assert_allclose(found["null"]["held_out"], align.read("patch_mean/shuffled_held_out")[:, v], rtol=1e-6)
    best = found["units"][0]["exemplars"]
    assert best["source"] == "probe" and len(best["images"]) == len(best["heat"]) > 0 and max(best["heat"][0]) == 255
    assert explorer.json("/api/voxel", subject="subj01", voxel=v, mode="patch_mean") == found
    top = explorer.json("/api/top_voxels", subject="subj01", mode="patch_mean")
    assert top[0]["voxel"] == v


def test_units_are_found_by_concept_region_and_layer(explorer, tiny):
    base = {"kind": "patch", "mode": "patch_mean"}
    everything = explorer.json("/api/units", **base)
    won = [u["voxels"] for u in everything["units"]]
    assert everything["total"] >= len(won) > 5 and won == sorted(won, reverse=True) and won[-1] > 0
    for judge in ("labels", "masks", "follows"):
        found = explorer.json("/api/units", **base, judge=judge, concept="face")
        assert all(u["names"][judge] == "face" for u in found["units"])
        assert found["total"] > 0 or judge != "follows"
    layer = explorer.json("/api/units", **base, layer=1)
    assert layer["total"] == 256 and {u["layer"] for u in layer["units"]} == {1}  # every unit of that layer
    by_region = explorer.json("/api/units", **base, roi="floc-faces", subject="subj01", order="score")
    rois = store(tiny, "roi")
    scores = np.sort(rois.read("patch_mean/subj01/floc-faces/contrast_scores")[..., 0].ravel())[::-1]
    np.testing.assert_allclose(
        [u["roi_score"] for u in by_region["units"]], scores[: len(by_region["units"])], rtol=1e-6
    )
    exemplars = store(tiny, "exemplars")
    asked = explorer.json("/api/units", **base, why=4 + 8)
    why = np.concatenate([exemplars.read(f"patch/{hook}/why") for hook in ("block01.resid", HOOK)])
    assert asked["total"] == int(((why & 12) > 0).sum()) > 0
    rows = list(csv.reader(io.StringIO(explorer.request("/csv/units?kind=patch&mode=patch_mean")[2].decode())))
    assert len(rows) == everything["total"] + 1 and rows[1][2] == str(everything["units"][0]["unit"])


def test_a_unit_tells_where_it_lives_and_what_matches_it(explorer, tiny, align):
    best = explorer.json("/api/units", kind="patch", mode="patch_mean", layer=1)["units"][0]
    found = explorer.json("/api/unit", kind="patch", hook=best["hook"], unit=best["unit"])
    lives = next(x for x in found["lives"] if (x["subject"], x["mode"]) == ("subj01", "patch_mean"))
    assert [v["voxel"] for v in lives["voxels"]] == align.read("patch_mean/unit_voxels")[1, best["unit"]].tolist()
    exemplars = store(tiny, "exemplars")
    assert found["firing"]["largest"] == pytest.approx(exemplars.read(f"patch/{HOOK}/largest")[best["unit"]], rel=1e-6)
    row = int(np.flatnonzero(exemplars.read(f"patch/{HOOK}/units") == best["unit"])[0])
    images = exemplars.read(f"patch/{HOOK}/images")[row]
    assert found["exemplars"]["images"] == images[images >= 0].tolist()
    assert found["matches"]["there"] and all(
        m["hook"] == "block01.resid" or m["kind"] == "cls" for m in found["matches"]["rows"]
    )


def test_units_that_no_picture_drives_have_pages_too(explorer, tiny):
    """Every wanted unit and every one that nobody asked for: with exemplars, with a few, without any."""
    exemplars, seen = store(tiny, "exemplars"), set()
    units, images = exemplars.read(f"patch/{HOOK}/units"), exemplars.read(f"patch/{HOOK}/images")
    counts = dict(zip(units.tolist(), (images >= 0).sum(axis=1).tolist(), strict=True))
    for number in range(0, 256, 4):
        found = explorer.json("/api/unit", kind="patch", hook=HOOK, unit=number)["exemplars"]
        seen.add(found["source"])
        if number in counts:
            assert (found["source"], len(found["images"]), len(found["heat"])) == (
                "probe",
                counts[number],
                counts[number],
            )
    assert seen == {"probe", "stimuli"}


def test_a_units_map_is_its_correlation_with_every_voxel(explorer, tiny):
    unit = explorer.json("/api/units", kind="patch", mode="patch_mean", layer=1)["units"][0]["unit"]
    answer = explorer.json(
        "/api/unit_map", kind="patch", hook=HOOK, unit=unit, subject="subj01", mode="patch_mean", name="unit"
    )
    shown = decode(answer["values"], answer["blobs"])
    betas, codes = store(tiny, "betas", subject="subj01"), store(tiny, "codes")
    chosen = np.flatnonzero(betas.read("shared"))
    rows = betas.read("image_rows")[chosen]
    values, units = codes.read(f"patch_mean/{HOOK}/values", rows), codes.read(f"patch_mean/{HOOK}/units", rows)
    code = np.where(units == unit, values, 0).sum(axis=1, dtype=np.float64)
    y = betas.read("betas")[:, chosen].astype(np.float64)
    alive = betas.read("usable").astype(bool) & (y.std(axis=1) > 0)
    reference = [np.corrcoef(code, y[v])[0, 1] for v in np.flatnonzero(alive)[:400]]
    np.testing.assert_allclose(shown[np.flatnonzero(alive)[:400]], reference, atol=2e-4)


def test_thumbs_are_small_pictures(explorer, tiny):
    status, headers, body = explorer.request("/thumb/stimuli/3/128")
    assert (status, headers["content-type"]) == (200, "image/jpeg")
    assert Image.open(io.BytesIO(body)).size == (128, 128)
    assert explorer.request("/thumb/probe/3/64")[0] == 200
    for path in ("/thumb/stimuli/9999/128", "/thumb/stimuli/3/129", "/thumb/secrets/3/128", "/thumb/stimuli/-1/128"):
        assert explorer.request(path)[0] == 404, path


# The backbone at work ------------------------------------------------------------------------------------------------


def test_a_pictures_codes_are_those_that_were_stored(explorer, tiny):
    codes, row = store(tiny, "codes"), 7
    found = explorer.json("/api/picture", image=row, kind="patch", hook=HOOK)
    assert found["grid"] ** 2 == len(found["values"]) == len(found["units"])
    total = np.zeros(256)
    np.add.at(total, np.array(found["units"]).ravel(), np.array(found["values"]).ravel())
    stored = np.zeros(256)
    np.add.at(
        stored,
        codes.read(f"patch_mean/{HOOK}/units", slice(row, row + 1))[0],
        codes.read(f"patch_mean/{HOOK}/values", slice(row, row + 1))[0],
    )
    np.testing.assert_allclose(total / len(found["values"]), stored, atol=2e-3 * stored.max())


def test_uploads_are_pictures_and_are_kept_for_a_while(explorer):
    status, _, body = upload(explorer, picture(kind="JPEG"))
    assert status == 200
    name = json.loads(body)["picture"]
    found = explorer.json("/api/picture", picture=name, kind="cls", hook=HOOK)
    assert len(found["values"]) == 1 and found["shown"].startswith("data:image/jpeg;base64,")
    shown = Image.open(io.BytesIO(base64.b64decode(found["shown"].split(",")[1])))
    assert shown.size == (70, 70)
    assert explorer.json("/api/predict", picture=name, subject="subj01", mode="cls")["regions"]
    assert explorer.json("/api/edit", picture=name, kind="cls", hook=HOOK, units="3", subject="subj01", mode="cls")[
        "classes"
    ]
    explorer.refused("/api/picture", 404, picture="0" * 32, kind="cls", hook=HOOK)


def bomb(side: int) -> bytes:
    """A PNG that says it has side x side pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        picture()[:200],
        bomb(30_000),
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ],
    ids=["empty", "text", "cut", "bomb", "eps", "svg"],
)
def test_what_is_no_picture_is_refused(explorer, data):
    status, _, body = upload(explorer, data)
    assert status == 415 and "picture" in json.loads(body)["error"]


def test_uploads_that_are_too_long_are_refused(explorer):
    assert upload(explorer, b"", Content_Length=str(1 << 30))[0] == 413
    assert upload(explorer, b"", Content_Length="1e3")[0] in (400, 411)


def test_the_prediction_is_that_of_each_voxels_best_unit(explorer, tiny, align):
    row = 5
    answer = explorer.json("/api/predict", image=row, subject="subj01", mode="cls")
    shown = decode(answer["map"]["values"], answer["map"]["blobs"])
    codes, betas = store(tiny, "codes"), store(tiny, "betas", subject="subj01")
    dense = []
    for hook in ("block01.resid", HOOK):
        out = np.zeros((codes.array(f"cls/{hook}/values").shape[0], 256))
        np.add.at(
            out, (np.arange(len(out))[:, None], codes.read(f"cls/{hook}/units")), codes.read(f"cls/{hook}/values")
        )
        dense.append(out)
    z = np.concatenate(dense, axis=1)
    seen = z[betas.read("image_rows")]
    units, r = align.read("cls/voxel_units")[:, 0], align.read("cls/held_out")[:, 0]
    there = np.flatnonzero((units >= 0) & (r > 0) & np.isfinite(shown))
    assert len(there) > 100
    sd = seen[:, units[there]].std(axis=0)
    wanted = r[there] * (z[row, units[there]] - seen[:, units[there]].mean(axis=0)) / np.where(sd > 1e-9, sd, np.inf)
    np.testing.assert_allclose(shown[there], wanted, atol=0.02 * np.abs(wanted).max())


def test_edits_answer_in_less_than_a_second_and_do_what_they_say(explorer):
    codes = explorer.json("/api/picture", image=2, kind="patch", hook="block01.resid")
    fires, t = codes["units"][10][0], len(codes["units"])
    silent = next(u for u in range(256) if all(u not in row for row in codes["units"]))
    base = {"image": 2, "kind": "patch", "hook": "block01.resid", "subject": "subj01", "mode": "patch_mean"}

    def shift(**words) -> float:
        found = explorer.json("/api/edit", **{**base, **words})
        assert sum(c["before"] for c in found["classes"]) == pytest.approx(1, abs=1e-3)
        return max(abs(c["after"] - c["before"]) for c in found["classes"])

    assert shift(units=silent, how="zero") == 0  # it was 0 already
    assert shift(units=fires, how="scale", value=1) < 1e-6
    assert shift(units=fires, how="clamp", value=5) > shift(units=fires, how="clamp", value=5, patches="10") > 0
    found = explorer.json("/api/edit", **base, units=fires, how="clamp", value=5)
    assert len(found["codes"]) == t and found["codes"][10] == pytest.approx(codes["values"][10][0], rel=1e-3)
    assert found["cases"] == ["before", "after", "rebuilt", "matched"] and len(found["controls"]) == 1
    assert {key: len(found["segmentation"][key]) for key in found["cases"]} == dict.fromkeys(found["cases"], t)
    assert (
        0
        <= min(found["segmentation"]["after"])
        <= max(found["segmentation"]["after"])
        < len(found["segmentation"]["names"])
    )
    nothing = explorer.json("/api/edit", **base, units=silent, how="zero")
    assert (
        nothing["segmentation"]["before"] == nothing["segmentation"]["after"] and nothing["cosine"]["after"] > 0.999999
    )
    assert found["cosine"]["after"] < 0.9999
    assert found["regions"] and len(decode(found["map"]["values"], found["map"]["blobs"])) == 20_484
    took = []
    for value in (1.5, 2.5, 3.5, 4.5, 5.5):
        start = time.monotonic()
        explorer.json("/api/edit", **base, units=fires, how="clamp", value=value)
        took.append(time.monotonic() - start)
    assert min(took) < 1, took


# Refusals ------------------------------------------------------------------------------------------------------------


def test_strangers_are_refused(explorer):
    port = explorer.port
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1",
        f"127.0.0.1:{port + 1}",
        f"127.0.0.1.evil.example:{port}",
        "",
    ):
        for path in ("/", "/api/run", "/assets/main.js", "/nothing"):
            assert explorer.request(path, Host=host)[0] in (400, 421), (host, path)
    for host in (f"localhost:{port}", f"127.0.0.1:{port}"):
        assert explorer.request("/api/run", Host=host)[0] == 200
    for origin in ("http://evil.example", "null", f"http://localhost:{port + 1}", f"https://127.0.0.1:{port}"):
        assert explorer.request("/api/run", Origin=origin)[0] == 403, origin
        assert upload(explorer, picture(), Origin=origin)[0] == 403, origin
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        assert explorer.request("/thumb/stimuli/3/128", Sec_Fetch_Site=site)[0] == status
    assert explorer.request("/", Sec_Fetch_Site="cross-site")[0] == 200  # a link that leads here
    assert upload(explorer, picture(), Origin="")[0] == 403


def test_the_server_only_reads(explorer):
    own = {"Origin": explorer.url.rstrip("/")}
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "POST"):
        for path in ("/", "/api/run", "/api/picture", "/thumb/stimuli/3/128"):
            assert explorer.request(path, method=method, body=b"x", **own)[0] == 405, (method, path)


@pytest.mark.parametrize(
    "path",
    [
        "/assets/../app.py", "/assets/..%2fapp.py", "/assets/%2e%2e/app.py", "/assets/..%5capp.py", "/assets/", "/assets",
        "/assets//etc/passwd", "//etc/passwd", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/assets/main.js%00.css",
        "/assets/page.html.j2", "/assets/__init__.py", "/thumb/stimuli/..%2f3/128", "/thumb/../api/run", "/api/", "/stores",
        "/assets/main.js/", "/api/run/", "/favicon.ico",
    ],
)  # fmt: skip
def test_path_tricks_lead_nowhere(explorer, path):
    status, headers, body = explorer.request(path)
    assert status == 404 and json.loads(body)["error"]
    assert headers["content-security-policy"].startswith("default-src 'none'")


def test_garbage_on_the_wire_ends_nothing(explorer):
    for raw in (
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"A" * 100_000,
    ):
        with socket.create_connection(("127.0.0.1", explorer.port), timeout=10) as connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    assert explorer.request("/api/run")[0] == 200


@pytest.mark.parametrize(
    ("path", "words", "status"),
    [
        ("/api/map", {"subject": "subj01"}, 400),
        ("/api/map", {"subject": "nobody", "map": "patch_mean.held_out"}, 404),
        ("/api/map", {"subject": "subj01", "map": "../../x"}, 404),
        ("/api/voxel", {"subject": "subj01", "voxel": "-1", "mode": "cls"}, 400),
        ("/api/voxel", {"subject": "subj01", "voxel": "99999999", "mode": "cls"}, 404),
        ("/api/voxel", {"subject": "subj01", "hemi": "up", "vertex": "3", "mode": "cls"}, 404),
        ("/api/voxel", {"subject": "subj01", "voxel": "3", "mode": "../cls"}, 404),
        ("/api/unit", {"kind": "patch", "hook": "../../saes", "unit": "3"}, 404),
        ("/api/unit", {"kind": "patch", "hook": HOOK, "unit": "256"}, 404),
        ("/api/unit", {"kind": "patch", "hook": HOOK, "unit": "٣"}, 400),
        ("/api/units", {"kind": "patch", "mode": "raw"}, 404),
        ("/api/units", {"kind": "patch", "mode": "patch_mean", "roi": "../x"}, 404),
        ("/api/units", {"kind": "patch", "mode": "patch_mean", "judge": "labels", "concept": "dragon"}, 404),
        ("/api/picture", {"image": "99999", "kind": "patch", "hook": HOOK}, 404),
        ("/api/cards", {"kind": "patch", "hook": HOOK, "units": "1,x"}, 400),
        ("/api/edit", {**EDIT, "how": "explode"}, 400),
        ("/api/edit", {**EDIT, "how": "set", "value": "nan"}, 400),
        ("/api/edit", {**EDIT, "units": "256"}, 404),
        ("/api/edit", {**EDIT, "patches": "9999"}, 409),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_refused_with_a_sentence(explorer, path, words, status):
    assert len(explorer.refused(path, status, **words)["error"]) > 10


def test_what_is_missing_names_its_command(hostile):
    run = hostile.json("/api/run")
    assert [m["store"] for m in run["missing"]] == ["match"] and run["live"] is False
    assert run["missing"][0]["command"].startswith("sbm-jax match --out ")
    found = hostile.json("/api/unit", kind="patch", hook=HOOK, unit=0)
    assert found["matches"] == {"there": False, "rows": []}
    hostile.refused("/api/picture", 404, image=1, kind="patch", hook=HOOK)  # --no-live


def test_answers_are_held_by_the_browser_under_their_tags(explorer):
    for path in ("/", "/assets/main.js", "/api/run", "/thumb/stimuli/4/64", "/csv/map?subject=subj01&map=ncsnr"):
        status, headers, body = explorer.request(path)
        assert status == 200 and body and headers["x-content-type-options"] == "nosniff"
        assert explorer.request(path, If_None_Match=headers["etag"])[::2] == (304, b"")


def test_fifty_clients_at_once_are_answered_as_one_is(explorer):
    paths = [
        "/", "/assets/cortex.js", "/api/run", "/api/cortex", "/api/subject?subject=subj01",
        "/api/map?subject=subj02&map=patch_max.in_sample", "/api/voxel?subject=subj01&voxel=4000&mode=cls",
        "/api/units?kind=cls&mode=cls", f"/api/unit?kind=patch&hook={HOOK}&unit=3", "/thumb/stimuli/6/256",
        f"/api/picture?image=9&kind=patch&hook={HOOK}", "/api/predict?image=9&subject=subj02&mode=patch_max",
        "/csv/units?kind=cls&mode=cls", "/assets/..%2fapp.py",
    ]  # fmt: skip
    alone = {path: explorer.request(path) for path in paths}
    asked = [paths[(3 * i + j) % len(paths)] for i in range(50) for j in range(4)]
    with ThreadPoolExecutor(50) as pool:
        together = list(pool.map(explorer.request, asked))
    for path, (status, _, body) in zip(asked, together, strict=True):
        assert (status, body) == alone[path][::2], path


# The command ---------------------------------------------------------------------------------------------------------


def test_what_is_no_finished_run_is_refused_with_the_command_that_makes_it(program, tiny, tmp_path):
    done = program("serve", tmp_path / "nothing", code=2)
    assert f"sbm-jax run --out {tmp_path / 'nothing'}" in done.stderr and done.stdout == ""
    (tmp_path / "begun" / "stores").mkdir(parents=True)
    assert "no finished report" in program("serve", tmp_path / "begun", code=2).stderr
    other = program("serve", tiny.out, "--config", tiny.config, "--set", "train.steps=3", code=2)
    assert "is no finished run of this configuration" in other.stderr and "--set train.steps=3" in other.stderr
    assert "train.stepz" in program("serve", tiny.out, "--set", "train.stepz=3", code=2).stderr


def test_a_port_that_is_taken_is_refused(program, tiny, explorer):
    done = program("serve", tiny.out, "--no-live", "--port", explorer.port, code=2, noisy=True)
    assert f"port {explorer.port}" in done.stderr and "--port" in done.stderr
