"""The embedders: the default one bit by bit, and of the others that they fail clearly and never reach out on their own.

No test goes to the network: what speaks HTTP speaks to a server of this process.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pmm_shm.errors import ConfigError, EmbedderError, InvalidTextError, UnknownModelError
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.vectors import local_bow, registry
from pmm_shm.vectors import wordllama as wordllama_module
from pmm_shm.vectors.embedder import Embedder, checked_text, embedded
from pmm_shm.vectors.function import FunctionEmbedder
from pmm_shm.vectors.local_bow import LocalBow
from pmm_shm.vectors.openai import OpenAIEmbedder
from pmm_shm.vectors.registry import find_embedder
from pmm_shm.vectors.wordllama import WordLlama
from tests.support.paraphrases import PAIRS

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = json.loads((ROOT / "tests" / "support" / "golden" / "embeddings-1.json").read_text(encoding="utf-8"))
KEY = "sk-test-0123456789"
TEXTS = st.one_of(
    st.none(),
    st.text(max_size=300),
    # Lone surrogates, and letters whose lower case is ASCII: the Kelvin sign, I with a dot.
    st.text(st.one_of(st.characters(), st.sampled_from("\ud800\udfff\u212a\u0130 aAzZ09-_")), max_size=300),
    st.lists(st.sampled_from(["alpha", "Beta", "42", "x"]), max_size=200).map(" ".join),
)


# local-bow.


def reference(text: str | None) -> list[float]:
    """The specification, word for word."""
    t = "" if text is None else text
    tokens = [""]
    for character in t.lower():
        if character in "abcdefghijklmnopqrstuvwxyz0123456789":
            tokens[-1] += character
        else:
            tokens.append("")
    bow = [0.0] * 64
    for token in tokens:
        if token:
            bow[int(hashlib.sha1(token.encode("utf-8")).hexdigest()[:8], 16) % 64] += 1.0
    norm = reference_norm(bow)
    bow = [x / norm for x in bow]
    twenty = hashlib.sha1(t.encode("utf-8", "surrogatepass")).digest()
    noise = [twenty[i % 20] / 255.0 for i in range(32)]
    mix = [0.9 * bow[i] + 0.1 * noise[i] for i in range(32)]
    norm = reference_norm(mix)
    return [x / norm for x in mix]


def reference_norm(vector: list[float]) -> float:
    total = 0.0
    for x in vector:
        total = total + x * x
    return math.sqrt(total) if total != 0.0 else 1.0


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_golden_vector_and_digest_to_the_last_bit(case: dict[str, Any]) -> None:
    vector = local_bow.vector(case["text"])
    assert [x.hex() for x in vector] == [float(x).hex() for x in case["vector"]]
    assert all(type(x) is float for x in vector)
    assert local_bow.digest(case["text"]) == local_bow.digest_of(case["vector"]) == case["digest"]
    assert [x.hex() for x in reference(case["text"])] == [x.hex() for x in vector]


@given(TEXTS)
def test_local_bow_is_the_specification_for_any_text(text: str | None) -> None:
    expected = reference(text)
    assert [x.hex() for x in local_bow.vector(text)] == [x.hex() for x in expected]
    assert local_bow.digest(text) == hashlib.sha1(str(expected).encode()).hexdigest()[:8]
    served = embedded(LocalBow(), [checked_text(text)])
    assert served.dtype == np.float32
    assert served[0].tobytes() == np.array(expected, np.float64).astype(np.float32).tobytes()


def test_more_tokens_than_are_kept_and_longer_ones() -> None:
    texts = [" ".join(f"w{number}" for number in range(start, start + 3_000)) for start in range(0, 30_000, 3_000)]
    texts += ["a" * 70 + " " + "b" * 64, "z " * 50_000]
    for text in [*texts, *texts[:2]]:
        assert local_bow.vector(text) == reference(text)
    assert len(local_bow._index_of.__self__) <= local_bow._CACHED_TOKENS_MAX  # type: ignore[attr-defined]
    assert max(map(len, local_bow._index_of.__self__)) <= 64  # type: ignore[attr-defined]


def test_local_bow_in_many_threads_while_tokens_are_forgotten() -> None:
    wrong: list[str] = []

    def work(seed: int) -> None:
        for number in range(300):
            text = " ".join(f"t{seed}x{number}x{k}" for k in range(20))
            if local_bow.vector(text) != reference(text):
                wrong.append(text)

    run_all([lambda seed=seed: work(seed) for seed in range(4)])
    assert wrong == []


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


@given(st.text(st.one_of(st.characters(), st.sampled_from(" \t\n\0\ud800\udfff")), min_size=1, max_size=50))
def test_wordllama_has_a_vector_for_any_text_but_the_empty_one(text: str) -> None:
    vector = embedded(WordLlama(), [checked_text(text, WordLlama())])
    assert np.isfinite(vector).all()
    assert vector.any()


def test_wordllama_and_texts_without_tokens_or_with_many() -> None:
    with pytest.raises(InvalidTextError, match="empty"):
        checked_text("", WordLlama())
    with pytest.raises(InvalidTextError, match="without a token"):
        WordLlama().embed(["a", ""])
    # Surrogates that make a pair are the character; a long text is cut into pieces.
    pair, character = embedded(WordLlama(), ["\ud83d\ude00", "😀"])
    assert pair.tobytes() == character.tobytes()
    long, short = embedded(WordLlama(), ["cats and dogs " * 20_000, "cats and dogs " * 20])
    assert float(long @ short / np.linalg.norm(long) / np.linalg.norm(short)) > 0.999


def test_wordllama_is_loaded_once_by_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[int] = []
    load = wordllama_module._load

    def counted() -> Any:
        loads.append(1)
        return load()

    monkeypatch.setattr(wordllama_module, "_model", None)
    monkeypatch.setattr(wordllama_module, "_load", counted)
    results: list[Any] = []
    run_all([lambda: results.append(WordLlama().embed(["hello"]).tobytes())] * 8)
    assert len(loads) == 1
    assert len(results) == 8
    assert len(set(results)) == 1


def test_wordllama_missing_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordllama_module, "_model", None)
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with pytest.raises(EmbedderError, match=r"not installed .*pip install 'pmm-shm\[wordllama\]'"):
        embedded(find_embedder("wordllama"), ["a"])
    broken = ModuleType("wordllama")
    broken.__file__ = "/nowhere/wordllama/__init__.py"
    monkeypatch.setitem(sys.modules, "wordllama", broken)
    with pytest.raises(EmbedderError, match="does not load: AttributeError"):
        WordLlama().embed(["a"])


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
    for name in [name for name in os.environ if name.startswith("OPENAI_") or name.lower().endswith("_proxy")]:
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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("openai:", "expected openai:MODEL"),
        ("openai:/256", "expected openai:MODEL"),
        ("openai:m", "append it: openai:m/DIMENSION"),
        ("openai:nomic-ai/nomic-embed", "append it: openai:nomic-ai/nomic-embed/DIMENSION"),
        ("openai:m/0", "append it"),
        ("openai:m/99999", "dimension must be an integer from 1 to"),
        ("openai:m/" + "9" * 100, "append it"),
        ("openai:text-embedding-3-small/4096", "dimension 1536"),
        ("openai:text-embedding-ada-002/512", "dimension 1536"),
        ("openai:" + "m" * 200, "printable"),
        ("openai:m\n/3", "printable"),
    ],
)
def test_openai_names_that_mean_nothing(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_embedder(name)


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


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_openai_does_not_try_again_what_stays(provider: Provider, clock: Clock, status: int) -> None:
    provider.answers = [refusal(status, f"Incorrect API key provided: {KEY}.")]
    text = failure(embedder(clock), provider=provider)
    assert f"status {status}: Incorrect API key provided: ***." in text
    assert ("check OPENAI_API_KEY" in text) == (status in (401, 403))
    assert (len(provider.requests), clock.sleeps) == (1, [])


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


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"index": 0, "embedding": [1, 2, 3]}], "1 vectors with 1 indices, and 2 texts"),
        ([{"index": i, "embedding": [1, 2, 3]} for i in range(3)], "3 vectors"),
        ([{"index": 0, "embedding": [1, 2, 3]}] * 2, "2 vectors with 1 indices"),
        ([{"index": i, "embedding": [1, 2, 3]} for i in (1, 2)], "2 vectors with 2 indices"),
        ([{"index": i, "embedding": [1, 2, 3]} for i in (True, "1")], "with 0 indices"),
        ([{"index": i, "embedding": [1, 2]} for i in (0, 1)], "dimension 2, expected 3: name the model openai:m/2"),
        ([{"index": i, "embedding": "AAAA"} for i in (0, 1)], "expected a list of numbers for each vector, got str"),
        ([{"index": i, "embedding": [1, 2, math.nan]} for i in (0, 1)], "NaN or infinity"),
        ([{"index": i, "embedding": [1, 2, None]} for i in (0, 1)], "NaN or infinity"),
        ([{"index": i, "embedding": [1, 2, "x"]} for i in (0, 1)], "ValueError"),
        ([{"index": i, "embedding": [1, 2, [3]]} for i in (0, 1)], "ValueError"),
        ([1, 2], "an answer without vectors"),
        (None, "an answer without vectors"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_openai_answers_that_are_no_vectors(provider: Provider, clock: Clock, entries: Any, message: str) -> None:
    provider.answers = [lambda request: provider.data(entries)]
    assert message in failure(embedder(clock))
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
    monkeypatch.setenv("OPENAI_BASE_URL", provider.url)
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    assert embedded(model, ["a"]).shape == (1, 3)


def test_openai_missing(provider: Provider, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    assert "pip install 'pmm-shm[openai]'" in failure(embedder(clock))
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


# A user's function.


def test_function_gets_a_list_and_gives_vectors() -> None:
    seen: list[Any] = []

    def lengths(texts: list[str]) -> list[tuple[int, float]]:
        seen.append(texts)
        return [(len(text), 1.0) for text in texts]

    model = FunctionEmbedder("mine-1", 2, lengths, batch_max=5, takes_empty=True)
    assert (model.name, model.dimension, model.batch_max, model.takes_empty) == ("mine-1", 2, 5, True)
    assert embedded(model, ("a", "")).tolist() == [[1, 1], [0, 1]]
    assert seen == [["a", ""]]
    assert FunctionEmbedder("mine-1", 2, lambda texts: np.ones((1, 2))).takes_empty is False


@pytest.mark.parametrize(
    "returned",
    [None, 1, "ab", [], [[1, 2]], [[1, 2], [1]], [[1, 2, 3]] * 2, [1, 2], [["a", "b"]] * 2, [[1, math.nan]] * 2,
     [[1, math.inf]] * 2, [[None, 1]] * 2, [[[1, 2]], [[1, 2]]], {"a": [1, 2]}, iter([[1, 2]] * 2), [[1, 10**400]] * 2],
)  # fmt: skip
def test_function_that_returns_no_vectors(returned: Any) -> None:
    with pytest.raises(EmbedderError, match="'mine-1'"):
        embedded(FunctionEmbedder("mine-1", 2, lambda texts: returned), ["a", "b"])


@pytest.mark.parametrize("error", [ValueError("bad"), KeyError("k"), MemoryError(), EmbedderError("'mine-1' is tired")])
def test_function_that_raises(error: Exception) -> None:
    def fail(texts: list[str]) -> Any:
        raise error

    with pytest.raises(EmbedderError, match="'mine-1'"):
        embedded(FunctionEmbedder("mine-1", 2, fail), ["a"])


@pytest.mark.parametrize(
    "arguments",
    [("", 2, len), ("a\nb", 2, len), ("n" * 129, 2, len), ("n", 0, len), ("n", 10**6, len), ("n", True, len),
     ("n", 2.0, len), ("n", 2, len, 0), ("n", 2, len, 1_000), ("n", 2, "len"), (7, 2, len)],
)  # fmt: skip
def test_function_embedders_beyond_the_limits(arguments: Any) -> None:
    with pytest.raises(ConfigError):
        FunctionEmbedder(*arguments)


# The registry.

USERS = """
import asyncio
from pmm_shm.vectors.embedder import Embedder
from pmm_shm.vectors.function import FunctionEmbedder
from pmm_shm.vectors.local_bow import LocalBow
from pmm_shm.vectors.registry import find_embedder
from pmm_shm.errors import ConfigError

def ones(texts):
    return [[1.0, 1.0]] * len(texts)

instance = FunctionEmbedder("of-module", 2, ones)
made = []

def factory():
    made.append(1)
    return FunctionEmbedder("of-factory", 2, ones)

def nested():
    find_embedder("users_embedders:factory")
    return FunctionEmbedder("of-nested", 2, ones)

class Subclass(Embedder):
    name = "of-class"
    dimension = 2
    def embed(self, texts):
        return ones(texts)

class Space:
    inner = instance

class Nameless(Embedder):
    def embed(self, texts):
        return []

class Abstract(Embedder):
    name, dimension = "abstract", 2

class Wide(Subclass):
    dimension = 10**9

class Impostor(Subclass):
    name = "local-bow"

local = LocalBow()
number = 7

def needs_arguments(a):
    return instance

def makes_nothing():
    return None

def raises():
    raise RuntimeError("two\\nlines")

def exits():
    raise SystemExit("no key")

def is_cancelled():
    raise asyncio.CancelledError

def is_interrupted():
    raise KeyboardInterrupt

def refuses():
    raise ConfigError("no such file")
"""


@pytest.fixture
def users_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "users_embedders.py").write_text(USERS, encoding="utf-8")
    (tmp_path / "users_broken.py").write_text("1 / 0\n", encoding="utf-8")
    (tmp_path / "users_exits.py").write_text("import sys\nsys.exit(0)\n", encoding="utf-8")
    (tmp_path / "users_interrupted.py").write_text("raise KeyboardInterrupt\n", encoding="utf-8")
    (tmp_path / "users_needy.py").write_text("import no_such_package_at_all\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_instances", {})
    yield
    for name in ("users_embedders", "users_broken", "users_exits", "users_interrupted", "users_needy"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("local-bow", "local-bow"),
        ("wordllama", "wordllama"),
        ("openai:text-embedding-3-small", "openai:text-embedding-3-small"),
        ("users_embedders:instance", "of-module"),
        ("users_embedders:factory", "of-factory"),
        ("users_embedders:nested", "of-nested"),
        ("users_embedders:Subclass", "of-class"),
        ("users_embedders:Space.inner", "of-module"),
        ("users_embedders:local", "local-bow"),
    ],
)
@pytest.mark.usefixtures("users_module")
def test_embedders_by_name(name: str, model: str) -> None:
    found = find_embedder(name)
    assert found.name == model
    assert find_embedder(name) is found


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("users_embedders:absent", ConfigError, "has no 'absent'"),
        ("users_embedders:Space.absent", ConfigError, "has no 'Space.absent'"),
        ("users_embedders:number", ConfigError, "expected an Embedder, a subclass of it or a factory, got int"),
        ("users_embedders:makes_nothing", ConfigError, "calling it gave no Embedder but NoneType"),
        ("users_embedders:Nameless", ConfigError, "no attribute 'name'"),
        ("users_embedders:Wide", ConfigError, "dimension must be"),
        ("users_embedders:Impostor", ConfigError, "another embedder's name"),
        ("users_embedders:refuses", ConfigError, "no such file"),
        ("users_embedders:Abstract", EmbedderError, "calling it failed: TypeError"),
        ("users_embedders:needs_arguments", EmbedderError, "calling it failed: TypeError"),
        ("users_embedders:raises", EmbedderError, "calling it failed: RuntimeError: two lines"),
        ("users_embedders:exits", EmbedderError, "calling it failed: SystemExit: no key"),
        ("users_embedders:is_cancelled", EmbedderError, "calling it failed: CancelledError"),
        ("users_exits:x", EmbedderError, "does not import: SystemExit: 0"),
        ("users_broken:x", EmbedderError, "does not import: ZeroDivisionError"),
        ("users_needy:x", EmbedderError, "does not import: ModuleNotFoundError.*no_such_package_at_all"),
        ("no_such_package_at_all:x", ConfigError, "there is no module 'no_such_package_at_all'"),
        ("os.nothing.deeper:x", ConfigError, "there is no module 'os.nothing'"),
        (":x", ConfigError, "expected package.module:attribute"),
        ("os:", ConfigError, "expected package.module:attribute"),
        ("os:path:join", ConfigError, "expected package.module:attribute"),
        ("../evil:x", ConfigError, "expected package.module:attribute"),
        (".relative:x", ConfigError, "expected package.module:attribute"),
        ("no-such", UnknownModelError, "'no-such'.*local-bow, wordllama, openai:MODEL.*package.module:attribute"),
        ("Local-Bow", UnknownModelError, "'Local-Bow'"),
        ("imported-768", UnknownModelError, "'imported-768'"),
        ("", ConfigError, "1 to 128 printable"),
        (None, ConfigError, "1 to 128 printable"),
        (7, ConfigError, "1 to 128 printable"),
    ],
)
@pytest.mark.usefixtures("users_module")
def test_names_that_lead_nowhere(name: Any, error: type[Exception], message: str) -> None:
    for _ in range(2):
        with pytest.raises(error, match=message) as caught:
            find_embedder(name)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["users_embedders:is_interrupted", "users_interrupted:x"])
@pytest.mark.usefixtures("users_module")
def test_an_interrupt_goes_through(name: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        find_embedder(name)


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


@pytest.mark.usefixtures("users_module")
def test_a_factory_is_called_once_by_many_threads() -> None:
    found: list[Embedder] = []
    run_all([lambda: found.append(find_embedder("users_embedders:factory"))] * 8)
    assert len(found) == 8
    assert len(set(map(id, found))) == 1
    assert sys.modules["users_embedders"].made == [1]


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


def run_all(works: Sequence[Callable[[], Any]]) -> None:
    """Run all at once, each in a thread."""
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, without settings and proxies."""
    settings = ("OPENAI_", "PMM_", "http_", "https_", "all_", "HTTP_", "HTTPS_", "ALL_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
    env |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **variables}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
