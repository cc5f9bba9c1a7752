"""Chats to look at: what they appended, and an endpoint that answers as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.vectors import local_bow
from pmm_shm_chat.provider import OpenAIResponder
from pmm_shm_chat.responder import Message, Usage
from pmm_shm_client.cache import Cache


class Says:
    """A responder with one answer, in pieces; it keeps what it was asked."""

    name = "says"
    usage: Usage | None = None

    def __init__(self, *pieces: str, error: BaseException | None = None) -> None:
        self.pieces = pieces
        self.error = error
        self.asked: tuple[str, list[Message], str] | None = None
        self.is_closed = False

    def stream(self, context: str, history: Sequence[Message], user_text: str) -> Iterator[str]:
        self.asked = context, list(history), user_text
        try:
            yield from self.pieces
            if self.error is not None:
                raise self.error
        finally:
            self.is_closed = True


Events = list[tuple[str, str, dict[str, Any]]]


def events(ledger: str, after_id: int = 0) -> Events:
    with EventLog(ledger, create=False) as log:
        return [(one["kind"], one["content"], one["meta"]) for one in log.read_after_id(after_id=after_id)]


def index(event_id: int, text: str) -> tuple[str, str, dict[str, Any]]:
    return "embedding_indexed", "", {"eid": event_id, "digest": local_bow.digest(text)}


def check_sound(ledger: str) -> None:
    """The chain holds, and no fold has anything to complain of."""
    with EventLog(ledger, create=False) as log, Cache(ledger) as cache:
        assert log.verify_chain().ok
        warnings: list[Any] = []
        cache.self_model(on_warn=warnings.append)
        assert warnings == []
        assert cache.self_model(strict=True)


BLOCK = """# Context (layout 1)
Name: Echo
Traits: O 0.50
Now: IAS 0.100 GAS 0.200 stage S0
Last tick: none
## Open commitments
- write to Ana
- review the plan.
## Directives
none"""


class Endpoint:
    """A server on this machine; `answer` writes what a request gets."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.done = threading.Event()
        self.has_begun = threading.Event()
        self.answer: Callable[[Endpoint, BaseHTTPRequestHandler], None] = lambda own, handler: own.events(
            handler, "Hel", "lo ", "né"
        )
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.paths.append(self.path)
                outer.requests.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                outer.answer(outer, self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.done.set()
        self.server.shutdown()
        self.server.server_close()

    def begin(self, handler: BaseHTTPRequestHandler, kind: str = "text/event-stream", status: int = 200) -> None:
        handler.send_response(status)
        handler.send_header("content-type", kind)
        handler.end_headers()

    def send(self, handler: BaseHTTPRequestHandler, *events: Any) -> None:
        for event in events:
            data = event if isinstance(event, str) else json.dumps(event)
            handler.wfile.write(f"data: {data}\n\n".encode())
            handler.wfile.flush()

    def events(self, handler: BaseHTTPRequestHandler, *pieces: str, end: str | None = "[DONE]") -> None:
        self.begin(handler)
        self.send(handler, *map(delta, pieces), *([] if end is None else [end]))

    def refuse(self, status: int, message: str) -> None:
        def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
            own.begin(handler, "application/json", status)
            handler.wfile.write(json.dumps({"error": {"message": message}}).encode())

        self.answer = answer


def delta(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


KEY = "sk-secret-0123456789"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    pytest.importorskip("openai")
    made = Endpoint()
    monkeypatch.setenv("OPENAI_BASE_URL", made.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield made
    made.close()


def heard(responder: OpenAIResponder, history: Sequence[Message] = ()) -> list[str]:
    return list(responder.stream("the context", history, "hi \ud800"))
