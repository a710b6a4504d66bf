"""The server itself: bound to this machine, quiet, ended by Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import uvicorn

from sbm_jax.errors import UserError
from sbm_jax.serve.app import make_app
from sbm_jax.serve.library import Library

ADDRESS = "127.0.0.1"


class Quiet(uvicorn.Server):
    """Says where it listens once it does."""

    def __init__(self, config: uvicorn.Config, say: Callable[[str], None]):
        super().__init__(config)
        self.say = say

    async def startup(self, sockets: list[Any] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            port = self.servers[0].sockets[0].getsockname()[1]
            self.say(f"http://{ADDRESS}:{port}/")


def serve(lib: Library, live: Any | None, port: int, say: Callable[[str], None]) -> None:
    """Serve until interrupted. port: 0 for any that is free. Raises UserError where the port cannot be had."""
    config = uvicorn.Config(
        make_app(lib, live),
        host=ADDRESS,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=2,
        loop="asyncio",
        http="h11",
    )
    server = Quiet(config, say)
    try:
        server.run()
    except KeyboardInterrupt:
        return
    except SystemExit as end:  # uvicorn's way to say that it could not bind
        if not server.started:
            raise UserError(
                f"port {port} of {ADDRESS} cannot be had; choose another with --port, 0 for any free one"
            ) from end
        raise
