"""The server's addresses: pages and scripts, pictures, and JSON or CSV of what finished stores hold."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sbm_jax.errors import UserError
from sbm_jax.serve import data_cortex, data_maps, data_unit, data_units, data_voxel
from sbm_jax.serve.answers import Refused, csv_bytes, json_bytes, refusal
from sbm_jax.serve.library import Library
from sbm_jax.serve.overview import overview
from sbm_jax.serve.query import Words
from sbm_jax.serve.security import App, Guard
from sbm_jax.serve.thumbs import Thumbs

# Scripts and styles, by the name in the address: the report's own drawing code is served as it is.
SHARED = ("codec.js", "raster.js", "outline.js", "key.js", "cortex.js", "controls.js", "listen.js", "page.css")
TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
}
POSTS = ("/api/upload",)
LIVE_THREADS = 4  # that may wait for the backbone; the others go on serving what is stored
Answer = Callable[[Words], Any]


def make_app(lib: Library, live: Any | None) -> App:
    """The ASGI application. live: the backbone at work (`serve.live.Live`), None without it."""
    assets = _assets()
    thumbs = Thumbs(lib)
    routes = [
        Route("/", lambda request: _file(request, assets, "index.html")),
        Route("/assets/{name}", lambda request: _file(request, assets, request.path_params["name"])),
        Route("/thumb/{which}/{row:int}/{side:int}", lambda request: _picture(request, thumbs, lib)),
    ]
    for path, answer in json_answers(lib, live is not None).items():
        routes.append(Route(path, _json(lib, answer)))
    for path, table in csv_answers(lib).items():
        routes.append(Route(path, _csv(lib, table)))
    if live is not None:
        from sbm_jax.serve.posts import upload_route

        routes.append(upload_route(live))
        gate = asyncio.Semaphore(LIVE_THREADS)
        routes += [Route(path, _gated(gate, _json(lib, answer))) for path, answer in live.answers().items()]
    app = Starlette(routes=routes, exception_handlers={404: _not_found, 405: _only_reads, 500: _broken})
    app.router.redirect_slashes = False
    return Guard(app, POSTS)


def json_answers(lib: Library, live: bool) -> dict[str, Answer]:
    def voxel(words: Words) -> Any:
        subject = words.text("subject")
        v = (
            words.whole("voxel")
            if words.has("voxel")
            else data_maps.voxel_at(lib, subject, words.text("hemi"), words.whole("vertex"))
        )
        if v < 0:
            raise Refused(404, "no voxel lies near this vertex")
        return data_voxel.voxel(lib, subject, v, words.text("mode"))

    def unit_map(words: Words) -> Any:
        subject = words.text("subject")
        layer = data_unit.score_map(lib, *_unit(words), subject, words.text("mode"))
        return data_cortex.packed(data_maps.on_cortex(lib, subject, layer), words.text("name"))

    return {
        "/api/run": lambda words: overview(lib, live),
        "/api/cortex": lambda words: data_cortex.surfaces(),
        "/api/subject": lambda words: data_cortex.subject_cortex(lib, words.text("subject")),
        "/api/map": lambda words: data_cortex.cortex_map(lib, words.text("subject"), words.text("map")),
        "/api/voxel": voxel,
        "/api/top_voxels": lambda words: data_voxel.top_voxels(lib, words.text("subject"), words.text("mode")),
        "/api/units": lambda words: data_units.search(lib, unit_query(words)),
        "/api/unit": lambda words: data_unit.unit(lib, *_unit(words)),
        "/api/unit_map": unit_map,
        "/api/images": lambda words: images(lib, words.text("search", ""), words.whole("start", 0)),
    }


def csv_answers(lib: Library) -> dict[str, Callable[[Words], tuple[list[str], list[list[Any]]]]]:
    def units(words: Words) -> tuple[list[str], list[list[Any]]]:
        query, rows = unit_query(words), []
        while len(rows) < 5000:
            found = data_units.search(lib, replace(query, start=len(rows)))
            rows += found["units"]
            if len(rows) >= found["total"] or not found["units"]:
                break
        keys = ("kind", "hook", "unit", "voxels", "held_out", "best", "image_rate", "roi_score")
        judges = sorted({judge for row in rows for judge in row["names"]})
        table = [[*(row.get(key) for key in keys), *(row["names"].get(judge) for judge in judges)] for row in rows]
        return [*keys, *(f"name by {judge}" for judge in judges)], table

    return {
        "/csv/map": lambda words: data_cortex.map_table(lib, words.text("subject"), words.text("map")),
        "/csv/units": units,
    }


def _unit(words: Words) -> tuple[str, str, int]:
    return words.text("kind"), words.text("hook"), words.whole("unit")


def unit_query(words: Words) -> data_units.Query:
    return data_units.Query(
        kind=words.text("kind"),
        mode=words.text("mode"),
        judge=words.text("judge", ""),
        concept=words.text("concept", ""),
        layer=words.whole("layer") if words.has("layer") else None,
        subject=words.text("subject", ""),
        roi=words.text("roi", ""),
        ranking=words.text("ranking", "contrast"),
        why=words.whole("why", 0),
        order=words.text("order", "voxels"),
        start=words.whole("start", 0),
    )


def images(lib: Library, wanted: str, start: int, most: int = 60) -> dict[str, Any]:
    """Stimuli whose id, caption or labels contain a text."""
    table, labels = lib.images, lib.images.labels
    rows = range(len(table.ids))
    if wanted:
        low = wanted.casefold()
        rows = [
            i
            for i in rows
            if low in table.ids[i].casefold()
            or low in table.captions[i].casefold()
            or any(low in name.casefold() and values[i] > 0 for name, values in labels.items())
        ]
    page = rows[max(0, start) : max(0, start) + most]
    shown = [
        {"row": i, "id": table.ids[i], "caption": table.captions[i], "shared": bool(table.shared[i])} for i in page
    ]
    return {"total": len(rows), "start": start, "page": most, "images": shown}


# Requests and responses --------------------------------------------------------------------------------------------------


def _assets() -> dict[str, tuple[bytes, str]]:
    """Name -> (bytes, media type); only names in here can be asked for."""
    out: dict[str, tuple[bytes, str]] = {}
    own = files("sbm_jax.serve") / "assets"
    found = {item.name: item for item in own.iterdir()} | {
        name: files("sbm_jax.report") / "assets" / name for name in SHARED
    }
    for name, item in found.items():
        suffix = "." + name.rsplit(".", 1)[-1]
        if suffix in TYPES:
            out[name] = item.read_bytes(), TYPES[suffix]
    return out


def _tagged(request: Request, tag: str, body: Callable[[], bytes], media: str, **headers: str) -> Response:
    """The body under its ETag, or 304 where the browser holds it."""
    tag = '"' + hashlib.sha256(tag.encode("utf-8", "backslashreplace")).hexdigest()[:32] + '"'
    headers = {"etag": tag, "cache-control": "no-cache", **headers}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(body(), media_type=media, headers=headers)


def _file(request: Request, assets: dict[str, tuple[bytes, str]], name: str) -> Response:
    if name not in assets:
        return _refused(Refused(404, "there is nothing at this address"))
    body, media = assets[name]
    return _tagged(request, hashlib.sha256(body).hexdigest(), lambda: body, media)


def _picture(request: Request, thumbs: Thumbs, lib: Library) -> Response:
    which, row, side = (request.path_params[key] for key in ("which", "row", "side"))
    return _guarded(
        lambda: _tagged(
            request, f"{lib.key()} {which} {row} {side}", lambda: thumbs.jpeg(which, row, side), "image/jpeg"
        )
    )


def _json(lib: Library, answer: Answer) -> Callable[[Request], Response]:
    def endpoint(request: Request) -> Response:
        words = Words(request.query_params)
        tag = f"{lib.key()} {request.url.path}?{request.url.query}"
        return _guarded(lambda: _tagged(request, tag, lambda: json_bytes(answer(words)), "application/json"))

    return endpoint


def _gated(
    gate: asyncio.Semaphore, endpoint: Callable[[Request], Response]
) -> Callable[[Request], Awaitable[Response]]:
    async def wait(request: Request) -> Response:
        async with gate:
            return await run_in_threadpool(endpoint, request)

    return wait


def _csv(lib: Library, table: Callable[[Words], tuple[list[str], list[list[Any]]]]) -> Callable[[Request], Response]:
    def endpoint(request: Request) -> Response:
        words = Words(request.query_params)
        name = re.sub(
            r"[^\w.-]+",
            "-",
            "_".join([request.url.path.rsplit("/", 1)[1], *request.query_params.values()]),
            flags=re.ASCII,
        )
        headers = {"content-disposition": f'attachment; filename="{name[:120]}.csv"'}
        tag = f"{lib.key()} {request.url.path}?{request.url.query}"
        return _guarded(
            lambda: _tagged(request, tag, lambda: csv_bytes(*table(words)), "text/csv; charset=utf-8", **headers)
        )

    return endpoint


def _guarded(make: Callable[[], Response]) -> Response:
    try:
        return make()
    except Refused as refused:
        return _refused(refused)
    except UserError as error:
        return _refused(refusal(error))


def _refused(refused: Refused) -> Response:
    return Response(json_bytes(refused.body), refused.status, {"cache-control": "no-store"}, "application/json")


def _not_found(request: Request, error: Exception) -> Response:
    return _refused(Refused(404, "there is nothing at this address"))


def _only_reads(request: Request, error: Exception) -> Response:
    return _refused(Refused(405, "this server only reads"))


def _broken(request: Request, error: Exception) -> Response:
    return _refused(Refused(500, f"the server failed: {type(error).__name__}; its console says more"))
