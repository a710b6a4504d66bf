"""The one thing that may be sent: a picture, kept in memory for a while."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sbm_jax.errors import UserError
from sbm_jax.serve.answers import Refused, json_bytes
from sbm_jax.serve.live import Live
from sbm_jax.serve.security import MOST_BYTES


def upload_route(live: Live) -> Route:
    async def upload(request: Request) -> Response:
        try:
            answer = await run_in_threadpool(live.upload, await read_body(request))
        except Refused as refused:
            return Response(json_bytes(refused.body), refused.status, media_type="application/json")
        except UserError as error:
            return Response(json_bytes({"error": str(error), "command": ""}), 415, media_type="application/json")
        return Response(json_bytes(answer), media_type="application/json", headers={"cache-control": "no-store"})

    return Route("/api/upload", upload, methods=["POST"])


async def read_body(request: Request) -> bytes:
    """The body; what it claims to be long does not matter. Raises Refused as soon as it is too long."""
    parts, total = [], 0
    async for part in request.stream():
        total += len(part)
        if total > MOST_BYTES:
            raise Refused(413, f"a picture may have {MOST_BYTES >> 20} MB at most")
        parts.append(part)
    return b"".join(parts)
