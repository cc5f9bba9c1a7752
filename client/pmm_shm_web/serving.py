"""Runs the page: a socket on this host alone, and uvicorn."""

from __future__ import annotations

import contextlib
import socket
import webbrowser
from collections.abc import Callable
from typing import NamedTuple

import uvicorn

from pmm_shm_terminal.exits import FAILURE, CommandFailed
from pmm_shm_terminal.tokens import new_token
from pmm_shm_web.app import make_app
from pmm_shm_web.guard import Access
from pmm_shm_web.site import Site

ADDRESS = "127.0.0.1"
_GRACE_S = 1


class WebSettings(NamedTuple):
    """How to serve: the port (0 for a free one), further values of `Host`, the token (None for a new one), and folds to
    show beside the registered ones.
    """

    port: int
    hosts: tuple[str, ...] = ()
    token: str | None = None
    opens: bool = False
    folds: tuple[str, ...] = ()


class _PageServer(uvicorn.Server):
    """Ends the endless answers of live parts first: uvicorn waits for all of them."""

    def __init__(self, config: uvicorn.Config, on_exit: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_exit = on_exit

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_exit()
        await super().shutdown(sockets)


def serve(path: str, settings: WebSettings, say: Callable[[str], None]) -> None:
    """Serve the page of a ledger until a signal ends it.

    Parameters:
        say: is told the address, with the token.

    Raises:
        LedgerError: there is no usable ledger.
        CommandFailed: the port is taken.
    """
    site = Site.of(path, settings.folds)
    with contextlib.closing(site), _listening(settings.port) as listener:
        port = listener.getsockname()[1]
        token = settings.token or new_token()
        site.warm_up()
        app = make_app(site, Access.of(site.path, port, token, settings.hosts))
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            http="h11",
            loop="asyncio",
            timeout_graceful_shutdown=_GRACE_S,
        )
        address = f"http://{ADDRESS}:{port}/?token={token}"
        say(address)
        if settings.opens:
            webbrowser.open(address)
        _PageServer(config, site.live.close).run([listener])


def _listening(port: int) -> socket.socket:
    """A listening socket; the kernel keeps requests until the server takes them."""
    # The protocol is named: asyncio sends without delay only through sockets that name it.
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((ADDRESS, port))
        made.listen(128)
    except OSError as error:
        made.close()
        raise CommandFailed(f"port {port}: {error.strerror}; choose another with --port", FAILURE) from error
    return made
