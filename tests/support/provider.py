"""An endpoint for embeddings in this process, and embedders that ask it."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pmm_shm.errors import EmbedderError
from pmm_shm.vectors.embedder import Embedder, embedded
from pmm_shm.vectors.openai import OpenAIEmbedder

KEY = "sk-test-0123456789"


class Provider:
    """A fake endpoint. `answers` are used up one by one, the last one for ever; each makes status, headers and body."""

    def __init__(self, dimension: int = 3) -> None:
        self.dimension = dimension
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.answers: list[Callable[[dict[str, Any]], tuple[int, dict[str, str], bytes]]] = [self.vectors]
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # One write for head and body: two would cost 40 ms.
            wbufsize = -1

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                provider.requests.append({**request, "path": self.path})
                provider.keys.append(self.headers["authorization"])
                answers = provider.answers
                status, headers, body = (answers.pop(0) if len(answers) > 1 else answers[0])(request)
                self.send_response(status)
                for name, value in {"content-type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # The client went away: that is what some tests are about.

        self._server = Server(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.address}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def vector(self, text: str) -> list[float]:
        digest = hashlib.sha256(text.encode()).digest()
        return [digest[i % 32] / 256 for i in range(self.dimension)]

    def vectors(self, request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        """The right answer, in an order of its own."""
        data = [
            {"object": "embedding", "index": i, "embedding": self.vector(t)} for i, t in enumerate(request["input"])
        ]
        return self.data(data[1::2] + data[::2])

    @staticmethod
    def data(entries: Any) -> tuple[int, dict[str, str], bytes]:
        return 200, {}, json.dumps({"object": "list", "data": entries, "model": "m", "usage": {}}).encode()


def refusal(status: int, message: str = "no", code: str | None = None, **headers: str) -> Callable[[Any], Any]:
    body = json.dumps({"error": {"message": message, "type": "x", "code": code}}).encode()
    return lambda request: (status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


class Clock:
    """Time that passes only by sleeping: by `time.sleep`, which the SDK calls between its attempts."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    provider = Provider()
    for name in [
        name for name in os.environ if name.startswith(("OPENAI_", "SSL_")) or name.lower().endswith("_proxy")
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPENAI_BASE_URL", provider.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    yield provider
    provider.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock


def embedder(clock: Clock, name: str = "openai:m/3", deadline_s: float = 60.0) -> OpenAIEmbedder:
    return OpenAIEmbedder(name, deadline_s=deadline_s, clock=clock)


def failure(model: Embedder, texts: Sequence[str] = ("a", "b"), provider: Provider | None = None) -> str:
    """The message of the error: one line, with the endpoint, without the key."""
    with pytest.raises(EmbedderError) as caught:
        embedded(model, texts)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert len(text) < 500
    assert KEY not in text
    assert KEY not in repr(caught.value.__cause__)
    if provider is not None:
        assert provider.url in text
    return text
