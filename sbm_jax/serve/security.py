"""What keeps other pages and other machines out: hosts, origins, methods, and a strict content policy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from sbm_jax.serve.answers import Refused, json_bytes

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

NAMES = ("127.0.0.1", "localhost")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
MOST_BYTES = 16 << 20  # of a picture that is sent


class Guard:
    """ASGI middleware. A request whose Host is not this server's own (a name that was rebound to 127.0.0.1), another method than
    GET and HEAD (POST where `posts` allows it, with the Origin of our own page), or a body that is too large is refused.
    """

    def __init__(self, app: App, posts: tuple[str, ...]):
        self.app, self.posts = app, posts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # a websocket is closed when nobody accepts it

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        try:
            self.check(scope)
        except Refused as refused:
            await _drain(scope, receive)
            await _answer(refused, guarded)
            return
        await self.app(scope, receive, guarded)

    def check(self, scope: Scope) -> None:
        """Raises Refused for what must not reach the application."""
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or hosts[0].lower() not in own_hosts(scope):
            raise Refused(421, "this server answers to 127.0.0.1 and localhost only")
        origins = _values(scope, b"origin")
        if any(origin.lower() not in {f"http://{host}" for host in own_hosts(scope)} for origin in origins):
            raise Refused(403, "requests of other pages are refused")
        if scope["path"] != "/" and any(
            site not in ("same-origin", "none") for site in _values(scope, b"sec-fetch-site")
        ):
            raise Refused(403, "requests of other pages are refused")
        if scope["method"] == "POST":
            if scope["path"] not in self.posts:
                raise Refused(405, "this server only reads")
            if len(origins) != 1:
                raise Refused(403, "a POST must say from which page it comes (Origin)")
            length = "".join(_values(scope, b"content-length"))
            if not (length.isascii() and length.isdigit()):
                raise Refused(411, "a POST must say how long it is")
            if int(length) > MOST_BYTES:
                raise Refused(413, f"a picture may have {MOST_BYTES >> 20} MB at most")
        elif scope["method"] not in ("GET", "HEAD"):
            raise Refused(405, "this server only reads")


def own_hosts(scope: Scope) -> set[str]:
    """The Host headers that mean this server: its names with the port it listens on."""
    port = (scope.get("server") or ("", 0))[1]
    return {f"{name}:{port}" for name in NAMES} | (set(NAMES) if port == 80 else set())


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


async def _drain(scope: Scope, receive: Receive) -> None:
    """Read a body that is not wanted: a connection closed on unread bytes is reset, and the refusal never arrives."""
    length = "".join(_values(scope, b"content-length"))
    more = length.isascii() and length.isdigit() and int(length) <= MOST_BYTES
    while more:
        message = await receive()
        more = message["type"] == "http.request" and message.get("more_body", False)


async def _answer(refused: Refused, send: Send) -> None:
    body = json_bytes(refused.body)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
