"""Servers of `pmm-shm web`, and what a browser or another program asks of them."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pmm_shm_client import EventLog
from tests.support import daemons
from tests.support.forking import ForkedProgram

DEADLINE_S = 30.0
COUNT = 400
HOSTILE = "<script>alert('x')</script> \"quoted\" \u202eright\u2066 \u0627\u0644 <b>"


def fill(path: str) -> None:
    with EventLog(path) as log:
        events: list[Any] = [("identity_adopt", "Echo", {"name": "Echo", "confidence": 0.95})]
        for n in range(COUNT // 4):
            events += [
                ("user", f"Could you plan week {n}?", None),
                ("commitment_open", "", {"cid": f"c{n}", "text": f"plan week {n}"}),
                ("trait_update", "", {"trait": "openness", "delta": 0.01}),
                ("autonomy_tick" if n % 2 else "reflection", f"Who am I? Thought {n}", {}),
            ]
        log.append_many(events)
        log.append("identity_adopt", HOSTILE, {"name": HOSTILE, "confidence": 0.95})
        log.append("commitment_open", "", {"cid": HOSTILE, "text": HOSTILE, "<i>": HOSTILE})
        log.append("commitment_open", "", {"cid": 7, "text": "a number"})
        log.append("autonomy_directive", HOSTILE, {"source": "user"})
        log.append(HOSTILE[:60], HOSTILE, {HOSTILE: HOSTILE})


class Reply(NamedTuple):
    """The answer to one request; names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8")

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class WebServer:
    """`pmm-shm web` in a process of its own, on a free port."""

    def __init__(self, ledger: str | os.PathLike[str], folder: Path, *options: str) -> None:
        self.ledger = os.fspath(ledger)
        self._err = folder / "web.err"
        out = folder / "web.out"
        for path in (out, self._err):
            path.write_text("", encoding="utf-8")
        self.program = ForkedProgram(
            "pmm_shm_cli.main:main",
            ["pmm-shm", "web", str(ledger), "--port", "0", *options],
            (os.devnull, str(out), str(self._err)),
            folder,
            daemons.environment(),
        )

        def address() -> str:
            assert self.program.poll() is None, self.errors()
            return out.read_text(encoding="utf-8").strip()

        self.address = daemons.until(address, "the address of the page")
        parts = urlsplit(self.address)
        assert parts.port is not None
        self.port = parts.port
        self.token = parts.query.removeprefix("token=")
        self.cookie = self.ask("/", query=f"?token={self.token}", cookie="").headers["set-cookie"].partition(";")[0]

    def errors(self) -> str:
        """What it has said on stderr."""
        return self._err.read_text(encoding="utf-8")

    def ask(
        self,
        path: str,
        query: str = "",
        method: str = "GET",
        body: bytes | None = None,
        cookie: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request; without `cookie`, with that of the server's token."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        sent = {"Cookie": self.cookie if cookie is None else cookie, **(headers or {})}
        try:
            connection.request(method, path + query, body, {name: value for name, value in sent.items() if value})
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, found, response.read())
        finally:
            connection.close()

    def api(self, path: str, **options: Any) -> Any:
        """The JSON at an address of the API, asked for until it is ready."""

        def ready() -> Reply | None:
            reply = self.ask("/api/v1" + path, **options)
            return None if reply.status == 202 else reply

        reply = daemons.until(ready, path)
        assert reply.status == 200, reply.text
        return reply.json

    def page(self, path: str = "/") -> str:
        """A page, asked for until it does not show progress."""

        def ready() -> str | None:
            reply = self.ask(path)
            assert reply.status == 200, reply.text
            return None if 'class="waiting' in reply.text else reply.text

        return daemons.until(ready, path)

    def stop(self) -> int:
        """End it by SIGTERM; its exit code."""
        self.program.send_signal(signal.SIGTERM)
        return self.program.wait(DEADLINE_S)


def path_of(server: WebServer) -> str:
    """Its ledger."""
    return server.ledger


@contextmanager
def serving(ledger: str | os.PathLike[str], folder: Path, *options: str) -> Iterator[WebServer]:
    """A server that ends with the block; it must not have printed a traceback."""
    server = WebServer(ledger, folder, *options)
    try:
        yield server
        server.stop()
        assert "Traceback" not in server.errors(), server.errors()
    finally:
        server.program.kill()


def words(html: str) -> str:
    """The text of a page, in which runs of white space are one space."""
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())
