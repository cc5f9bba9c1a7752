"""Endpoints as they are: those that answer loosely, refuse texts or are slow, and what is between them and us."""

from __future__ import annotations

import contextlib
import math
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmm_shm.errors import EmbedderError, InvalidTextError
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.limits import INDEX_REQUEST_S
from pmm_shm.openai_client import message_of
from pmm_shm.vectors.embedder import embedded, embedded_each
from pmm_shm.vectors.in_flight import InFlight
from pmm_shm.vectors.openai import OpenAIEmbedder
from pmm_shm_client import connect
from tests.support.command import run
from tests.support.fork_daemon import ForkedDaemon
from tests.support.provider import Clock, Provider, embedder, failure, refusal
from tests.support.search_oracle import index, stored, tables
from tests.support.searching import NEVER
from tests.support.waiting import SLACK_S


@pytest.mark.parametrize("piece", ["<script", "<title", "<style>", "<", "<title> "])
@pytest.mark.parametrize("between", ["", " " * 100_000])
def test_any_page_is_read_in_no_time(piece: str, between: str) -> None:
    began = time.process_time()
    message_of(f"{piece}{between}" * (1 if between else 100_000))
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("variables", "messages"),
    [
        ({"ALL_PROXY": "socks5://me:hunter2@127.0.0.1:1080"}, ["the proxy in ALL_PROXY cannot be used", "unset it"]),
        ({"all_proxy": "gopher://x"}, ["the proxy in all_proxy cannot be used"]),
        (
            {"HTTP_PROXY": "http://me:hunter2@127.0.0.1:9"},
            ["the proxy in HTTP_PROXY)", "name 127.0.0.1 in NO_PROXY"],
        ),
        ({"http_proxy": "127.0.0.1:9"}, ["check http_proxy"]),
        ({"ALL_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:8"}, ["check ALL_PROXY"]),
        ({"SSL_CERT_FILE": "/gone/cacert.pem"}, ["SSL_CERT_FILE=/gone/cacert.pem cannot be used: FileNotFoundError"]),
        ({"SSL_CERT_FILE": __file__}, ["SSL_CERT_FILE=", "unset it"]),
        ({"SSL_CERT_FILE": "/"}, ["SSL_CERT_FILE=/ cannot be used"]),
    ],
)
def test_openai_settings_of_the_network_are_named(
    provider: Provider, clock: Clock, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], messages: list[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    text = failure(embedder(clock, deadline_s=0.4), provider=provider)
    assert all(message in text for message in messages)
    assert "OPENAI_BASE_URL" not in text
    assert "hunter2" not in text
    # For another host the same proxy is no matter.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    if not any("cannot be used" in message or "SSL" in message for message in messages):
        assert embedded(embedder(clock), ["a"]).shape == (1, 3)


def test_openai_an_answer_of_the_proxy(provider: Provider, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://models.example/v1")
    monkeypatch.setenv("HTTP_PROXY", f"http://me:hunter2hunter2@{provider.address}")
    provider.answers = [refusal(407, "who is me:hunter2hunter2@?")]
    text = failure(embedder(clock))
    assert "status 407: who is ***@?: check the user and password in HTTP_PROXY" in text
    for status in (403, 503):
        provider.answers = [refusal(status, "not this host")]
        text = failure(embedder(clock, deadline_s=0.4), ["a"])
        assert f"status {status}: not this host" in text
        assert "or check HTTP_PROXY: the answer may be the proxy's" in text
    # A page to log in, with status 200.
    provider.answers = [lambda request: (200, {"content-type": "text/html"}, b"<html>who are you?</html>")]
    text = failure(embedder(clock))
    assert "not JSON: check OPENAI_BASE_URL: it often ends in /v1; or check HTTP_PROXY: the answer may be" in text


def test_openai_a_certificate_that_is_not_trusted(
    clock: Clock, provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate")
    pem = str(tmp_path / "own.pem")
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {pem} -out {pem}.crt"
    subprocess.run(command.split(), check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{pem}.crt", pem)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            for _ in range(2):
                with contextlib.suppress(OSError), server.accept()[0] as connection:
                    context.wrap_socket(connection, server_side=True)

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        monkeypatch.setenv("OPENAI_BASE_URL", f"https://127.0.0.1:{server.getsockname()[1]}/v1")
        text = failure(embedder(clock))
        assert "its certificate is not trusted: " in text
        assert "given up after 1 attempt within 60 s; name its authority's in SSL_CERT_FILE" in text
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
        assert "check the certificates in SSL_CERT_DIR" in failure(embedder(clock))
        thread.join(10)


@pytest.mark.parametrize("word", ["a", "o", "none"])
def test_openai_short_words_are_no_secrets(
    provider: Provider, clock: Clock, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", word)
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://{word}:{word}@{provider.address}/v1")
    provider.answers = [refusal(401, "not one of our keys")]
    assert "status 401: not one of our keys: check OPENAI_API_KEY" in failure(embedder(clock), provider=provider)


@pytest.mark.parametrize(
    ("indices", "is_clear"),
    [
        ([None, None, None], True),
        ([None, 1, 2], True),
        ([2, None, 1], True),
        ([2, 0, 1], True),
        ([0, None, 2], False),
        ([None, None, 2], False),
        ([0, None, None], False),
        ([None, 1, 1], False),
    ],
)
@pytest.mark.parametrize("is_null", [False, True])
def test_openai_indices_that_are_left_out(
    provider: Provider, clock: Clock, indices: list[int | None], is_clear: bool, is_null: bool
) -> None:
    texts = ["a", "b", "c"]
    entries = [
        {"embedding": provider.vector(texts[place if index is None and indices.count(None) > 1 else index or 0])}
        | ({"index": index} if index is not None or is_null else {})
        for place, index in enumerate(indices)
    ]
    provider.answers = [lambda request: provider.data(entries)]
    if is_clear:
        assert embedded(embedder(clock), texts).tolist() == [provider.vector(text) for text in texts]
    else:
        with pytest.raises(InvalidTextError, match="indices, and 3 texts were sent"):
            embedded(embedder(clock), texts)


@pytest.mark.parametrize("form", [str, float])
def test_openai_indices_in_another_form(provider: Provider, clock: Clock, form: Callable[[int], Any]) -> None:
    def answer(request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        entries = [{"index": form(i), "embedding": provider.vector(t)} for i, t in enumerate(request["input"])]
        return provider.data(entries[::-1])

    provider.answers = [answer]
    texts = [f"text {number}" for number in range(12)]
    assert embedded(embedder(clock), texts).tolist() == [provider.vector(text) for text in texts]


@pytest.mark.parametrize("wrong", ["always 0", "from 1"])
def test_openai_indices_that_are_wrong_cost_requests_and_nothing_else(
    provider: Provider, clock: Clock, wrong: str
) -> None:
    def answer(request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        vectors = enumerate(map(provider.vector, request["input"]), 1)
        return provider.data([{"index": i if wrong == "from 1" else 0, "embedding": vector} for i, vector in vectors])

    provider.answers = [answer]
    model = embedder(clock)
    assert np.array(embedded_each(model, ["a", "b", "c"])).tolist() == [provider.vector(text) for text in "abc"]
    assert model.batch_max == 1


# What is refused.

Answer = Callable[[dict[str, Any]], tuple[int, dict[str, str], bytes]]


def refuses(provider: Provider, status: int = 400, batch_max: int = 128, chars_max: int = 1 << 20) -> Answer:
    """An endpoint that refuses long texts, texts with "forbidden" in them, and large batches."""

    def answer(request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        texts = request["input"]
        if len(texts) > batch_max or sum(map(len, texts)) > chars_max or any("forbidden" in text for text in texts):
            return refusal(status, "the input is not acceptable")(request)
        if any("zeros" in text for text in texts):
            vectors = [[0.0] * 3 if "zeros" in text else provider.vector(text) for text in texts]
            return provider.data([{"index": i, "embedding": vector} for i, vector in enumerate(vectors)])
        return provider.vectors(request)

    return answer


BAD_TEXTS = {"too long": "word " * 1_000, "forbidden": "forbidden", "zeros": "zeros"}


@pytest.mark.parametrize("bad", BAD_TEXTS)
@pytest.mark.parametrize("status", [400, 403, 413, 422, 451])
def test_a_refused_text_is_found_among_others(provider: Provider, clock: Clock, bad: str, status: int) -> None:
    provider.answers = [refuses(provider, status, chars_max=4_000)]
    texts = [f"text {number}" for number in range(20)]
    texts[13] = BAD_TEXTS[bad]
    model = embedder(clock)
    outcomes = embedded_each(model, texts)
    refused = outcomes.pop(13)
    assert isinstance(refused, InvalidTextError)
    assert ("a vector of zeros" if bad == "zeros" else f"status {status}") in str(refused)
    assert str(refused).endswith("; it accepts other texts")
    assert [one.tolist() for one in outcomes if not isinstance(one, InvalidTextError)] == [
        provider.vector(text) for text in texts if text != BAD_TEXTS[bad]
    ]
    assert model.batch_max == 128
    # Two for each halving, and one to see that the endpoint accepts another text.
    assert len(provider.requests) <= 12
    assert clock.sleeps == []


@pytest.mark.parametrize("vector", [None, [], [math.nan] * 3, [1.0, None, 2.0], "AAAA", "left out", "error"])
def test_a_text_without_a_usable_vector_is_found_among_others(provider: Provider, clock: Clock, vector: Any) -> None:
    """Endpoints report it in the vector, not by a status: NaN becomes null in some."""

    def answer(request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        texts = request["input"]
        if vector == "error" and "bad" in texts:
            return 200, {}, b'{"error": {"message": "the model made NaN"}}'
        vectors = [vector if text == "bad" else provider.vector(text) for text in texts]
        return provider.data([{"index": i, "embedding": v} for i, v in enumerate(vectors) if v != "left out"])

    provider.answers = [answer]
    texts = [f"text {number}" for number in range(20)]
    texts[13] = "bad"
    model = embedder(clock)
    outcomes = embedded_each(model, texts)
    assert isinstance(outcomes.pop(13), InvalidTextError)
    assert np.array(outcomes).tolist() == [provider.vector(text) for text in texts if text != "bad"]
    assert (model.batch_max, clock.sleeps) == (128, [])
    # Where all texts fare like this, the endpoint has failed.
    provider.answers = [lambda request: answer({"input": ["bad"] * len(request["input"])})]
    failure(embedder(clock), ["a"], provider=provider)


@pytest.mark.parametrize("limits", [{"batch_max": 5}, {"chars_max": 40}, {"batch_max": 1}])
def test_a_batch_that_is_too_large_is_halved_once_and_for_all(
    provider: Provider, clock: Clock, limits: dict[str, int]
) -> None:
    provider.answers = [refuses(provider, 413, **limits)]
    texts = [f"text {number:02}" for number in range(40)]
    model = embedder(clock)
    for _ in range(2):
        provider.requests.clear()
        assert np.array(embedded_each(model, texts)).tolist() == [provider.vector(text) for text in texts]
    assert model.batch_max == (1 if limits.get("batch_max") == 1 else 5)
    assert len(provider.requests) == len(texts) // model.batch_max


def test_a_text_at_which_the_endpoint_fails_each_time_is_refused(provider: Provider, clock: Clock) -> None:
    provider.answers = [refuses(provider, 500)]
    (outcome,) = embedded_each(embedder(clock), ["forbidden"])
    assert isinstance(outcome, InvalidTextError)
    assert "status 500" in str(outcome)
    provider.answers = [refusal(500)]
    with pytest.raises(EmbedderError, match="status 500"):
        embedded_each(embedder(clock), ["forbidden"])


def test_an_endpoint_that_has_zeros_for_all_texts_has_failed(provider: Provider, clock: Clock) -> None:
    provider.answers = [lambda request: provider.data([{"embedding": [0.0] * 3} for _ in request["input"]])]
    assert "a vector of zeros" in failure(embedder(clock), ["a"], provider=provider)


@pytest.mark.parametrize("bad", BAD_TEXTS)
def test_a_refused_event_holds_up_no_other(ledger: str, provider: Provider, bad: str) -> None:
    provider.answers = [refuses(provider, batch_max=4, chars_max=4_000)]
    texts = ["before", BAD_TEXTS[bad], *(f"after {number}" for number in range(30))]
    with EventLog(ledger) as events:
        events.append_many([{"kind": "user", "content": text, "meta": {}} for text in texts])
    model, log = "openai:m/3", Path(f"{ledger}.log")
    with (
        ForkedDaemon(Path(ledger), *NEVER, "--embedder", model, log=log),
        connect(ledger, embedder=OpenAIEmbedder(model)) as cache,
    ):
        assert index(ledger)["as_of"] == len(texts)
        assert stored(ledger)[model].keys() == set(range(1, len(texts) + 1)) - {2}
        numbers = tables(ledger)
        assert (numbers["problem"], numbers["tables"][model]["refused"]) == (None, 1)
        assert numbers["tables"][model]["last_refusal"].startswith("event 2: embedder 'openai:m/3': ")
        for options in ([], ["-v"]):
            shown = " ".join(run("status", *options, ledger).out.split())
            assert "1 skipped: the embedder refuses them; event 2: embedder 'openai:m/3': " in shown
        assert log.read_text(encoding="utf-8").count("events skipped") == 1
        hits = cache.search("after 7", 1)
        assert (hits[0].event_id, hits.as_of, hits.is_complete, hits.embedded_here) == (10, len(texts), True, 0)
        # A new one, too.
        cache.append("user", BAD_TEXTS[bad] + "!")
        cache.append("user", "the last one")
        index(ledger)
        assert tables(ledger)["tables"][model]["refused"] == 2
        assert cache.search("the last one", 1)[0].event_id == len(texts) + 2
    # The next daemon tries again.
    provider.answers = [provider.vectors]
    with (
        ForkedDaemon(Path(ledger), *NEVER, "--embedder", model),
        connect(ledger, embedder=OpenAIEmbedder(model)) as cache,
    ):
        index(ledger)
        assert stored(ledger)[model].keys() == set(range(1, len(texts) + 3))
        assert tables(ledger)["tables"][model]["refused"] == 0
        assert cache.search("after 7", 1).is_complete


def test_a_worker_skips_what_is_refused(ledger: str, provider: Provider) -> None:
    provider.answers = [refuses(provider, batch_max=2)]
    model = OpenAIEmbedder("openai:worker/3")
    with ForkedDaemon(Path(ledger), *NEVER, "--embedder", model.name) as daemon:
        index(ledger)
        daemon.kill()
    texts = ["one", "two", "forbidden", "three", "four"]
    with connect(ledger, embedder=model) as cache:
        for text in texts:
            cache.append("user", text)
        hits = cache.search("four", 1)
        assert (hits[0].event_id, hits.as_of, hits.is_complete, hits.embedded_here) == (5, 5, True, 4)
        with pytest.raises(InvalidTextError, match="status 400"):
            cache.embed_many(["two", "forbidden", "new"])
        # What was computed beside it is kept.
        provider.requests.clear()
        assert cache.embed_many(["two", "new"]).shape == (2, 3)
        assert provider.requests == []


# How many requests at a time.


class Watched:
    """An endpoint that takes its time, and counts the requests in flight."""

    def __init__(self, provider: Provider, per_request_s: float, per_text_s: float, in_flight_max: int = 100) -> None:
        self.provider = provider
        self.per_request_s, self.per_text_s, self.in_flight_max = per_request_s, per_text_s, in_flight_max
        self.lock = threading.Lock()
        self.in_flight: list[int] = []
        self.now = 0
        self.began: list[float] = []
        self.refused_at: list[float] = []

    def __call__(self, request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        with self.lock:
            self.now += 1
            self.in_flight.append(self.now)
            self.began.append(time.monotonic())
            is_refused = self.now > self.in_flight_max
            if is_refused:
                self.refused_at.append(time.monotonic())
        if not is_refused:
            time.sleep(self.per_request_s + self.per_text_s * len(request["input"]))
        with self.lock:
            self.now -= 1
        return refusal(429, retry_after="0.5")(request) if is_refused else self.provider.vectors(request)


@pytest.mark.parametrize(("per_request_s", "per_text_s"), [(0.1, 0.0), (0.1, 0.01), (0.0, 0.1)])
def test_a_backlog_takes_several_requests_at_a_time(
    ledger: str, provider: Provider, per_request_s: float, per_text_s: float
) -> None:
    watched = Watched(provider, per_request_s, per_text_s)
    provider.answers = [watched]
    with EventLog(ledger) as log:
        log.append_many([{"kind": "user", "content": f"text {number}", "meta": {}} for number in range(150)])
    with ForkedDaemon(Path(ledger), *NEVER, "--embedder", "openai:m/3"):
        index(ledger)
        took_s = time.monotonic() - watched.began[0]
        assert len(stored(ledger)["openai:m/3"]) == 150
    assert watched.in_flight[:2] == [1, 1]
    assert 2 <= max(watched.in_flight) <= 8
    sizes = [len(request["input"]) for request in provider.requests]
    assert sum(sizes) == 150
    assert max(sizes) > 1
    one_by_one_s = sum(per_request_s + per_text_s * size for size in sizes)
    assert took_s < one_by_one_s / 2 + SLACK_S


def test_a_backlog_for_an_endpoint_with_a_long_latency_takes_few_requests(ledger: str, provider: Provider) -> None:
    """One text costs it as much time as a hundred."""
    provider.answers = [Watched(provider, 1.5 * INDEX_REQUEST_S, 0.0)]
    with EventLog(ledger) as log:
        log.append_many([{"kind": "user", "content": f"text {number}", "meta": {}} for number in range(100)])
    with ForkedDaemon(Path(ledger), *NEVER, "--embedder", "openai:m/3"):
        index(ledger)
        assert len(stored(ledger)["openai:m/3"]) == 100
    assert len(provider.requests) <= 40


def test_an_overloaded_endpoint_gets_fewer_requests_and_its_time(ledger: str, provider: Provider) -> None:
    watched = Watched(provider, 0.02, 0.0, in_flight_max=2)
    provider.answers = [watched]
    with EventLog(ledger) as log:
        log.append_many([{"kind": "user", "content": f"text {number}", "meta": {}} for number in range(150)])
    with ForkedDaemon(Path(ledger), *NEVER, "--embedder", "openai:m/3"):
        index(ledger)
        assert tables(ledger)["problem"] is None
        assert len(stored(ledger)["openai:m/3"]) == 150
    assert 1 <= len(watched.refused_at) <= len(watched.began) / 3
    first = watched.refused_at[0]
    # Those that were on their way; without a pause there would be dozens.
    assert len([began for began in watched.began if first + 0.1 < began < first + 0.45]) <= 3


def test_in_flight_grows_with_answers_and_is_halved_by_overloads() -> None:
    clock = Clock()
    in_flight = InFlight(8, clock)
    assert in_flight.limit == 1
    limits = []
    for _ in range(9):
        in_flight.answered()
        limits.append(in_flight.limit)
    assert limits == [2, 3, 4, 5, 6, 7, 8, 8, 8]
    began = in_flight.enter(clock.now + 1)
    assert began is not None
    # One overload, however many attempts notice it.
    clock.now += 1
    for _ in range(8):
        in_flight.overloaded(began, 2.0)
    assert (in_flight.limit, in_flight.was_overloaded(began)) == (4, True)
    # Nobody waits for what would be too late.
    assert in_flight.enter(clock.now + 1.9) is None
    for _ in range(4):
        in_flight.answered()
    assert in_flight.limit == 4
    in_flight.answered()
    assert in_flight.limit == 5
    clock.now += 3
    for _ in range(9):
        in_flight.overloaded(clock.now)
        clock.now += 1
    assert (in_flight.limit, in_flight.was_overloaded(clock.now)) == (1, False)
    in_flight.leave()
    assert in_flight.enter(clock.now + 1) == clock.now
