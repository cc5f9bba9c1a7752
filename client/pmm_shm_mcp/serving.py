"""Serves over standard streams, or over streamable HTTP on the loopback address behind a token.

Invariant: over HTTP nothing runs for a request without the token, or with a foreign `Host` or `Origin` (the SDK checks
these two).
"""

from __future__ import annotations

import asyncio
import hmac
import io
import json
import os
import re
import select
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, BinaryIO, NoReturn

import uvicorn
from mcp.server.transport_security import DEFAULT_MAX_REQUEST_BODY_SIZE

from pmm_shm.errors import ConfigError
from pmm_shm_mcp.memory import Memory
from pmm_shm_mcp.tools import server
from pmm_shm_terminal import exits

HOST = "127.0.0.1"
PATH = "/mcp"
_STOP_S = 1
_END_S = 3
_BODY_BYTES_MAX = DEFAULT_MAX_REQUEST_BODY_SIZE
_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]


# Escapes in JSON: a pair of surrogates, a lone one, any other.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<lone>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


class RepairedLines(io.RawIOBase):
    """Lines of JSON in which each lone surrogate is U+FFFD: half an emoji, where a model or a client cut a text.

    The SDK drops a line that it cannot read, and the client would wait for ever.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = memoryview(_ESCAPE.sub(_repaired, self._source.readline()))
        part, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def _repaired(escape: re.Match[bytes]) -> bytes:
    return rb"\ufffd" if escape["lone"] else escape[0]


def serve_streams(memory: Memory) -> None:
    """Serve the one client at stdin and stdout, until it closes one of them or a signal ends the process.

    Raises:
        ConfigError: this process has no stdin or no stdout.
    """
    # A missing stdout has been replaced by one that leads nowhere.
    if None in (sys.stdin, sys.__stdout__):
        raise ConfigError("no stdin or stdout: an assistant starts this command, and talks to it there")
    if sys.stdin.isatty():
        print(
            "pmm-shm: waits for the messages of an assistant, which starts this command; Ctrl-D ends", file=sys.stderr
        )
    sys.stdin = io.TextIOWrapper(io.BufferedReader(RepairedLines(sys.stdin.buffer)), encoding="utf-8")
    # The SDK diverts descriptor 1 while it serves.
    answers = os.dup(1)
    threading.Thread(target=_leave_without_reader, args=(memory, answers), daemon=True).start()

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, _leave, memory, 128 + number)
        try:
            await server(memory).run_stdio_async()
        except Exception as error:
            if not _is_broken_pipe(error):
                raise
            _leave(memory, exits.FAILURE)

    asyncio.run(serve())


def _leave_without_reader(memory: Memory, answers: int) -> None:
    """End when nobody can read the answers any more: a dead client's end of stdin may live on in a child of it."""
    poll = select.poll()
    poll.register(answers, 0)
    poll.poll()
    _leave(memory, exits.FAILURE)


def _is_broken_pipe(error: Exception) -> bool:
    """Whether it is that alone; task groups wrap it."""
    inner: tuple[Exception, ...] = getattr(error, "exceptions", ())
    return all(map(_is_broken_pipe, inner)) if inner else isinstance(error, BrokenPipeError)


def _leave(memory: Memory, code: int) -> NoReturn:
    """End at once: an orderly end would wait for the thread that reads stdin, or for calls that wait for the ledger."""
    # An append that waits for a busy ledger holds the cache. It has written nothing yet.
    closing = threading.Thread(target=memory.close, daemon=True)
    closing.start()
    closing.join(_STOP_S)
    os._exit(code)


def serve_http(memory: Memory, port: int, token: str, said: Callable[[str], None]) -> None:
    """Serve any number of clients on the loopback address, until a signal ends the process.

    Parameters:
        port: 0 for a free one.
        said: called with the address once it is open.

    Raises:
        ConfigError: the port is taken, or may not be used.
    """
    # A session would only be lost when the server restarts: each request stands by itself.
    app = server(memory).streamable_http_app(streamable_http_path=PATH, stateless_http=True, host=HOST)
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
        except OSError as error:
            raise ConfigError(f"--http: cannot listen on port {port}: {error.strerror}") from None
        listening.listen()
        said(f"http://{HOST}:{listening.getsockname()[1]}{PATH}")
        config = uvicorn.Config(
            # The guard knows requests, and nothing here needs WebSockets.
            TokenGuard(app, token),
            ws="none",
            log_level="warning",
            access_log=False,
        )
        asyncio.run(_serve(uvicorn.Server(config), listening, memory))
    finally:
        listening.close()


async def _serve(server: uvicorn.Server, listening: socket.socket, memory: Memory) -> NoReturn:
    """Until a signal, and then no longer than `_END_S`: calls may wait for a busy ledger."""
    loop = asyncio.get_running_loop()
    code = exits.FAILURE

    def stop(number: int) -> None:
        nonlocal code
        code = 128 + number
        server.should_exit = True
        loop.call_later(_END_S, _leave, memory, code)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop, number)
    await server.serve([listening])
    _leave(memory, code)


class TokenGuard:
    """ASGI middleware that answers 401 without the token; repairs bodies as `RepairedLines` does lines.

    It refuses all methods but POST. By GET a client would wait for messages of the server, which sends none; DELETE
    would end a session, and there are none.
    """

    def __init__(self, app: _App, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] == "http" and not self._is_allowed(scope):
            await _refuse(send, 401, "the token is missing or wrong", (b"www-authenticate", b"Bearer"))
        elif scope["type"] == "http" and scope["method"] != "POST":
            await _refuse(send, 405, "this server takes messages by POST, and keeps no session", (b"allow", b"POST"))
        else:
            await self._app(scope, _repaired_body(receive), send)

    def _is_allowed(self, scope: _Scope) -> bool:
        given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, token = given[0].partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)


async def _refuse(send: _Send, status: int, reason: str, header: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", b"application/json"), header]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": reason}).encode() + b"\n"})


def _repaired_body(receive: _Receive) -> _Receive:
    """`receive` with the whole body in its first message: an escape may lie across two."""
    begun = False

    async def received() -> MutableMapping[str, Any]:
        nonlocal begun
        message = await receive()
        if begun or message["type"] != "http.request":
            return message
        begun = True
        body = bytearray(message.get("body", b""))
        # The SDK refuses a longer one.
        while message.get("more_body") and len(body) <= _BODY_BYTES_MAX:
            message = await receive()
            if message["type"] != "http.request":
                return message
            body += message.get("body", b"")
        return {**message, "body": _ESCAPE.sub(_repaired, bytes(body))}

    return received
