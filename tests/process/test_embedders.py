"""The embedders: the default one bit by bit, and of the others that they fail clearly and never reach out on their own.

No test goes to the network: what speaks HTTP speaks to a server of this process.
"""

from __future__ import annotations

import errno
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pmm_shm.errors import EmbedderError, InvalidTextError
from pmm_shm.installation import extra_command
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.vectors.embedder import Embedder, embedded, embedded_each
from pmm_shm.vectors.local_bow import LocalBow
from pmm_shm.vectors.openai import OpenAIEmbedder
from pmm_shm.vectors.registry import find_embedder
from pmm_shm.vectors.wordllama import WordLlama
from tests.support.own_embedders import run_all
from tests.support.paraphrases import PAIRS
from tests.support.provider import KEY, Clock, Provider, embedder, failure, refusal

ROOT = Path(__file__).resolve().parents[2]


# local-bow.


def test_the_default_needs_no_numpy() -> None:
    code = "import sys; from pmm_shm.vectors.registry import find_embedder as f; f('local-bow').embed(['a']);"
    code += "print([m for m in ('numpy', 'openai', 'wordllama') if m in sys.modules])"
    assert python(code).stdout == "[]\n"


# wordllama.


def test_wordllama_loads_and_embeds_without_network_and_without_a_word_on_stderr(tmp_path: Path) -> None:
    code = """
import logging, os, socket, sys
asked = []
def refuse(*args, **kwargs):
    asked.append(args)
    raise OSError("no network here")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
sys.addaudithook(lambda event, args: asked.append(event) if event in ("socket.connect", "socket.getaddrinfo") else None)
from pmm_shm.vectors.embedder import embedded
from pmm_shm.vectors.registry import find_embedder
model = find_embedder("wordllama")
matrix = embedded(model, ["a dog barks", "the puppy is loud", "stock markets fell"])
import numpy as np
matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
a, b, c = matrix
print(matrix.shape, a @ b > a @ c, logging.getLogger().handlers, logging.getLogger().level == logging.WARNING, asked)
pid = os.fork()
if pid == 0:
    os._exit(0 if embedded(model, ["a child"] * 50).any() else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = python(code, HOME=str(tmp_path), HF_HOME=str(tmp_path / "hf"))
    assert (done.stdout, done.stderr) == ("(3, 256) True [] True []\n0\n", "")
    assert list(tmp_path.iterdir()) == []


def test_wordllama_gives_the_vectors_of_its_library() -> None:
    import wordllama

    library = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    texts = ["one", "Two words, and more of them; ", "日本語 😀", " ", "\n\t\r", "\0", "<s>", "<unk>", "word " * 900]
    expected = np.concatenate([library.embed([text]) for text in texts])
    matrix = embedded(WordLlama(), texts)
    assert matrix.tobytes() == expected.tobytes()
    # A text's vector does not depend on the texts beside it.
    assert matrix.tobytes() == np.concatenate([embedded(WordLlama(), [text]) for text in texts]).tobytes()


# Recall by meaning.


def found_first(embedder: Embedder) -> list[bool]:
    """Of each pair, whether its message is nearest to its question among all messages."""

    def unit(texts: Sequence[str]) -> NDArray[np.float64]:
        matrix = embedded(embedder, texts).astype(np.float64)
        normalised: NDArray[np.float64] = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        return normalised

    similarities = unit([question for _, question in PAIRS]) @ unit([message for message, _ in PAIRS]).T
    return [int(best) == index for index, best in enumerate(similarities.argmax(axis=1))]


def test_wordllama_finds_what_counting_words_does_not() -> None:
    assert len(PAIRS) >= 40
    assert len({text for pair in PAIRS for text in pair}) == 2 * len(PAIRS)
    by_words, by_meaning = found_first(LocalBow()), found_first(WordLlama())
    missed = [index for index, found in enumerate(by_words) if not found]
    assert len(missed) >= len(PAIRS) * 0.6
    assert sum(by_meaning[index] for index in missed) >= 0.8 * len(missed)


# openai, against a server of this process.


def test_openai_sends_what_compatible_servers_take_and_puts_vectors_in_order(provider: Provider) -> None:
    texts = ["one", "two", "three", " ", "vier \ud83d\ude00", "\ud800"]
    matrix = embedded(OpenAIEmbedder("openai:nomic-ai/nomic-embed/3"), texts)
    readable = ["one", "two", "three", " ", "vier 😀", "\ufffd"]
    assert matrix.tolist() == [provider.vector(text) for text in readable]
    assert provider.requests == [
        {"model": "nomic-ai/nomic-embed", "input": readable, "encoding_format": "float", "path": "/v1/embeddings"}
    ]
    assert provider.keys == [f"Bearer {KEY}"]


def test_openai_splits_by_characters(provider: Provider, clock: Clock) -> None:
    texts = ["a" * 60_000, "b" * 40_000, "c", "d" * 300_000, *["e" * 10] * 100]
    matrix = embedded(embedder(clock), texts)
    assert [len(request["input"]) for request in provider.requests] == [2, 1, 1, 100]
    assert matrix.tolist() == [provider.vector(text) for text in texts]


@pytest.mark.parametrize(
    ("name", "dimension", "sent"),
    [
        ("openai:text-embedding-3-small", 1536, None),
        ("openai:text-embedding-3-small/1536", 1536, None),
        ("openai:text-embedding-3-large", 3072, None),
        ("openai:text-embedding-3-large/256", 256, 256),
        ("openai:text-embedding-ada-002", 1536, None),
        ("openai:org/model/7", 7, None),
        ("openai:model:tag/7", 7, None),
    ],
)
def test_openai_names(provider: Provider, name: str, dimension: int, sent: int | None) -> None:
    provider.dimension = dimension
    model = find_embedder(name)
    assert (model.name, model.dimension, model.batch_max, model.takes_empty) == (name, dimension, 128, False)
    assert embedded(model, ["a"]).shape == (1, dimension)
    assert provider.requests[0].get("dimensions") == sent


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_openai_tries_again_what_may_pass(provider: Provider, clock: Clock, status: int) -> None:
    provider.answers[:0] = [refusal(status), refusal(status)]
    assert embedded(embedder(clock), ["a"]).tolist() == [provider.vector("a")]
    assert len(provider.requests) == 3
    assert len(clock.sleeps) == 2
    assert 0.25 <= clock.sleeps[0] <= 0.5 <= clock.sleeps[1] <= 1.0


def test_openai_waits_as_long_as_the_endpoint_says(provider: Provider, clock: Clock) -> None:
    answers = [refusal(429, retry_after=value) for value in ("7", "Wed, 21 Oct 2015 07:28:00 GMT", "-1", "nan")]
    provider.answers[:0] = answers
    embedded(embedder(clock), ["a"])
    assert clock.sleeps[0] == 7.0
    assert all(0 < seconds < 5 for seconds in clock.sleeps[1:])
    # What is beyond the deadline is not waited for.
    provider.answers[:0] = [refusal(429, retry_after="100")]
    before = clock.now
    assert "given up after 1 attempt within 60 s" in failure(embedder(clock), provider=provider)
    assert clock.now == before


def test_openai_gives_up_by_its_deadline_over_all_requests(provider: Provider, clock: Clock) -> None:
    provider.answers = [refusal(500, "out\nof order")]
    text = failure(embedder(clock, deadline_s=20.0), provider=provider)
    assert "status 500: out of order: given up after" in text
    assert 10 <= sum(clock.sleeps) <= 20
    assert max(clock.sleeps) <= 8.25
    # Two requests of one call have one deadline.
    count = len(provider.requests)
    clock.sleeps.clear()
    provider.answers = [refusal(500)] * 4 + [provider.vectors, refusal(500)]
    failure(embedder(clock, deadline_s=20.0), ["a" * 100_000, "b"], provider=provider)
    assert sum(clock.sleeps) <= 20
    assert len(provider.requests) > count + 5


@pytest.mark.parametrize("status", [401, 404])
def test_openai_does_not_try_again_what_stays(provider: Provider, clock: Clock, status: int) -> None:
    provider.answers = [refusal(status, f"Incorrect API key provided: {KEY}.")]
    text = failure(embedder(clock), provider=provider)
    assert f"status {status}: Incorrect API key provided: ***." in text
    assert ("check OPENAI_API_KEY" in text) == (status == 401)
    assert (len(provider.requests), clock.sleeps) == (1, [])


@pytest.mark.parametrize("status", [400, 403, 413, 422, 451])
def test_openai_an_endpoint_that_refuses_every_text(provider: Provider, clock: Clock, status: int) -> None:
    """A wrong setting must not look like a wrong text."""
    provider.answers = [refusal(status, f"Incorrect API key provided: {KEY}.")]
    text = failure(embedder(clock), ["a"], provider=provider)
    assert f"status {status}: Incorrect API key provided: ***." in text
    assert [request["input"] for request in provider.requests] == [["a"], ["text"]]
    assert clock.sleeps == []
    provider.requests.clear()
    with pytest.raises(EmbedderError, match=f"status {status}"):
        embedded_each(embedder(clock), list("abcdefgh"))
    assert [len(request["input"]) for request in provider.requests] == [8, 4, 2, 1, 1]


def test_openai_without_credit_is_not_tried_again(provider: Provider, clock: Clock) -> None:
    provider.answers = [refusal(429, "You exceeded your quota", "insufficient_quota")]
    assert "check the account's credit" in failure(embedder(clock), provider=provider)
    assert len(provider.requests) == 1


def test_openai_nobody_listens(provider: Provider, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://me:secret@127.0.0.1:{free.getsockname()[1]}/v1")
        text = failure(embedder(clock, deadline_s=3.0))
    assert "no connection" in text
    assert "given up after" in text
    assert "secret" not in text
    assert len(clock.sleeps) >= 2
    assert sum(clock.sleeps) < 3.0


def test_openai_waits_for_no_connection_beyond_its_deadline(
    provider: Provider, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failed attempts take time, too, and leave less of it for the waits between them."""
    began = clock.now

    def slow_connect(*args: Any, **options: Any) -> Any:
        clock.now += 2.4
        raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))

    monkeypatch.setattr(socket, "create_connection", slow_connect)
    text = failure(embedder(clock, deadline_s=20.0), provider=provider)
    assert "no connection: " in text
    assert "given up after 5 attempts within 20 s" in text
    assert clock.now - began < 20.0


def test_openai_soon_gives_up_where_nothing_listens(
    provider: Provider, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at once: an endpoint may just start again."""
    began = clock.now
    connect, refusals = socket.create_connection, [2]

    def refused_at_first(*args: Any, **options: Any) -> Any:
        if refusals[0]:
            refusals[0] -= 1
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        return connect(*args, **options)

    monkeypatch.setattr(socket, "create_connection", refused_at_first)
    assert embedded(embedder(clock), ["a"]).tolist() == [provider.vector("a")]
    refusals[0] = 100
    text = failure(embedder(clock), provider=provider)
    assert "Connection refused: given up after 3 attempts within 2 s; is it running?" in text
    assert clock.now - began < 4.0


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"index": 0, "embedding": [1, 2, 3]}], "1 vectors with 1 indices, and 2 texts"),
        ([{"index": i, "embedding": [1, 2, 3]} for i in range(3)], "3 vectors"),
        ([{"index": 0, "embedding": [1, 2, 3]}] * 2, "2 vectors with 1 indices"),
        ([{"index": i, "embedding": [1, 2, 3]} for i in (1, 2)], "2 vectors with 2 indices"),
        ([{"index": i, "embedding": [1, 2, 3]} for i in (True, "one")], "with 0 indices"),
        ([{"index": i, "embedding": [1, 2]} for i in (0, 1)], "dimension 2, expected 3: name the model openai:m/2"),
        ([{"index": i, "embedding": "AAAA"} for i in (0, 1)], "expected a list of numbers for each vector, got str"),
        ([{"index": i, "embedding": [1, 2, math.nan]} for i in (0, 1)], "NaN or infinity"),
        ([{"index": i, "embedding": [1, 2, None]} for i in (0, 1)], "NaN or infinity"),
        ([{"index": i, "embedding": [1, 2, "x"]} for i in (0, 1)], "without numbers"),
        ([{"index": i, "embedding": [1, 2, [3]]} for i in (0, 1)], "without numbers"),
        ([1, 2], "an answer without vectors"),
        (None, "an answer without vectors"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_openai_answers_that_are_no_vectors(provider: Provider, clock: Clock, entries: Any, message: str) -> None:
    provider.answers = [lambda request: provider.data(entries)]
    with pytest.raises((EmbedderError, InvalidTextError), match=re.escape(message)):
        embedded(embedder(clock), ["a", "b"])
    assert len(provider.requests) == 1


@pytest.mark.parametrize("body", [b"<html>not here</html>", b"", b"[" * 5_000, b"[]", b'"text"', b"\xff\xfe"])
def test_openai_answers_that_are_something_else(provider: Provider, clock: Clock, body: bytes) -> None:
    provider.answers = [lambda request: (200, {"content-type": "text/html"}, body)]
    assert "an answer" in failure(embedder(clock), provider=provider)
    assert len(provider.requests) == 1


def test_openai_asks_once_more_for_an_answer_that_breaks_off(provider: Provider, clock: Clock) -> None:
    def breaks_off(request: object) -> tuple[int, dict[str, str], bytes]:
        return 200, {"transfer-encoding": "chunked"}, b'7\r\n{"data"\r\nnot a size\r\n'

    provider.answers[:0] = [breaks_off]
    assert embedded(embedder(clock), ["a"]).tolist() == [provider.vector("a")]
    assert len(provider.requests) == 2
    provider.answers = [breaks_off]
    text = failure(embedder(clock), provider=provider)
    assert "the answer broke off: " in text
    assert "given up after 2 attempts within 60 s" in text


def test_openai_answer_without_end_is_cut_off(provider: Provider, clock: Clock) -> None:
    provider.answers = [lambda request: (200, {}, b" " * (3 << 20))]
    assert "an answer of more than" in failure(embedder(clock), provider=provider)


def test_openai_silence_and_trickle_end_by_the_deadline(provider: Provider) -> None:
    """In real time, for it is the transport that must not wait."""
    released = threading.Event()

    def silent(request: object) -> tuple[int, dict[str, str], bytes]:
        released.wait(10)
        return 200, {}, b""

    provider.answers = [silent]
    began = time.monotonic()
    text = failure(OpenAIEmbedder("openai:m/3", deadline_s=0.4), provider=provider)
    assert "no answer within 0.2 s: given up" in text
    assert time.monotonic() - began < 5
    released.set()

    with socket.create_server(("127.0.0.1", 0)) as server:

        def trickle() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9999\r\n\r\n")
                try:
                    while True:
                        connection.sendall(b" ")
                        time.sleep(0.01)
                except OSError:
                    pass

        thread = threading.Thread(target=trickle, daemon=True)
        thread.start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}/v1")
            began = time.monotonic()
            text = failure(OpenAIEmbedder("openai:m/3", deadline_s=1.0))
        assert "the answer did not end within 1 s: given up after 1 attempt" in text
        assert time.monotonic() - began < 5
        thread.join(10)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("OPENAI_API_KEY", "", "no OPENAI_API_KEY: set it"),
        ("OPENAI_API_KEY", "  ", "no OPENAI_API_KEY: set it"),
        ("OPENAI_API_KEY", f"{KEY}\nx", "OPENAI_API_KEY contains characters that no key has"),
        ("OPENAI_API_KEY", f"{KEY}é", "OPENAI_API_KEY contains characters that no key has"),
        ("OPENAI_ORG_ID", "é", "OPENAI_ORG_ID contains characters that no key has: correct it, or unset it"),
        ("OPENAI_PROJECT_ID", "a\nb", "OPENAI_PROJECT_ID contains characters that no key has"),
        ("OPENAI_BASE_URL", "localhost:8080/v1", "OPENAI_BASE_URL cannot be used: ValueError: it does not begin with"),
        ("OPENAI_BASE_URL", "http://[::1/v1", "OPENAI_BASE_URL cannot be used"),
        ("OPENAI_BASE_URL", "http://me:secret@host:port/v1", "OPENAI_BASE_URL cannot be used"),
    ],
)
def test_openai_settings_that_mean_nothing(
    provider: Provider, clock: Clock, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert message in failure(embedder(clock))
    assert provider.requests == []
    # Corrected, the same embedder works.
    model = embedder(clock)
    failure(model)
    monkeypatch.delenv(variable)
    monkeypatch.setenv("OPENAI_BASE_URL", provider.url)
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    assert embedded(model, ["a"]).shape == (1, 3)


def test_openai_missing(provider: Provider, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    assert extra_command("openai") in failure(embedder(clock))
    assert provider.requests == []


def test_openai_connections_are_not_shared_with_a_forked_child(provider: Provider) -> None:
    code = """
import os
from pmm_shm.vectors.registry import find_embedder
model = find_embedder("openai:m/3")
model.embed(["a"])
pid = os.fork()
if pid == 0:
    mine = find_embedder("openai:m/3")
    mine.embed(["b"])
    os._exit(0 if mine is model and len(model._clients) == 2 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), len(model._clients))
model.embed(["c"])
"""
    done = python(code, OPENAI_API_KEY=KEY, OPENAI_BASE_URL=provider.url)
    assert (done.stdout, done.stderr) == ("0 1\n", "")
    assert [request["input"] for request in provider.requests] == [["a"], ["b"], ["c"]]


def test_openai_in_many_threads(provider: Provider) -> None:
    model = OpenAIEmbedder("openai:m/3")
    results: dict[str, Any] = {}
    run_all([lambda text=str(n): results.update({text: model.embed([text])}) for n in range(8)])
    assert results == {text: [provider.vector(text)] for text in map(str, range(8))}
    assert len(model._clients) == 1


# The registry.


@pytest.mark.parametrize("name", ["users_exits:x", "users_embedders:exits"])
@pytest.mark.usefixtures("users_module")
def test_a_daemon_does_not_end_in_silence_with_its_embedder(name: str, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    EventLog(str(ledger)).close()
    command = [sys.executable, "-m", "pmm_cached", "--embedder", name, str(ledger)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "server")])}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(f"pmm-cached: embedder {name!r}: ")
    assert "Traceback" not in ended.stderr


def test_a_child_forked_in_the_middle_is_not_locked_out() -> None:
    code = """
import os, threading
from pmm_shm.vectors import registry, wordllama
registry.find_embedder("local-bow")
held, go_on = threading.Event(), threading.Event()
def hold():
    with registry._lock, wordllama._loading:
        held.set()
        go_on.wait(60)
thread = threading.Thread(target=hold)
thread.start()
held.wait(60)
pid = os.fork()
if pid == 0:
    registry.find_embedder("wordllama").embed(["a"])
    os._exit(0)
go_on.set()
thread.join()
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert python(code).stdout == "0\n"


# Helpers.


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, without settings and proxies."""
    settings = ("OPENAI_", "PMM_", "http_", "https_", "all_", "HTTP_", "HTTPS_", "ALL_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
    env |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **variables}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
