"""An endpoint that does not answer: a search that words can answer does not wait for it, and none interrupts it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_shm import limits
from pmm_shm.vectors.function import FunctionEmbedder
from pmm_shm.vectors.openai import OpenAIEmbedder
from pmm_shm_client import Cache, EventLog, connect
from tests.support.daemons import environment, run_python
from tests.support.polling import until
from tests.support.provider import Provider

MODEL = "openai:m/3"
SAID = ("The garden is green.", "Invoice INV-2291 is due.", "Tea, please.")
WAIT_S = 0.2


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    path = str(tmp_path / "l.db")
    with EventLog(path) as log:
        log.append_many([("user", text, None) for text in SAID])
    return path


@pytest.fixture
def cache(ledger: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cache]:
    monkeypatch.setattr(limits, "SEARCH_EMBEDDER_S", WAIT_S)
    # One of its own: that of the name is one for the process, and keeps its endpoint.
    with connect(ledger, embedder=OpenAIEmbedder(MODEL)) as opened:
        yield opened


@pytest.fixture
def opened(provider: Provider) -> Iterator[threading.Event]:
    """The endpoint answers once it is set."""
    event = threading.Event()

    def answer(request: dict[str, Any]) -> Any:
        event.wait()
        return provider.vectors(request)

    provider.answers = [answer]
    yield event
    event.set()


def test_auto_has_the_hits_of_the_words_and_the_vectors_are_there_later(
    cache: Cache, provider: Provider, opened: threading.Event
) -> None:
    found = cache.search("garden", mode="auto")
    assert [(hit.event_id, hit.found_by) for hit in found] == [(1, "words")]
    remedy = "the mode hybrid waits longer, and says what is wrong"
    assert found.problem == f"embedder '{MODEL}': no answer within 0.2 s; {remedy}"
    assert found.is_complete
    # It is not asked again meanwhile, and not waited for again.
    again = cache.search("tea", mode="auto")
    assert again.problem == f"embedder '{MODEL}': still no answer to an earlier search; {remedy}"
    assert [hit.event_id for hit in again] == [3]
    assert cache.context("garden", recall=2, recall_mode="auto").recall_problem is not None
    # The package is slow to import, and the wait is short here.
    until(lambda: provider.requests)
    assert [one["input"] for one in provider.requests] == [["garden"]]
    opened.set()
    until(lambda: cache.search("garden", mode="auto").problem is None)
    assert [one["input"] for one in provider.requests].count(["garden"]) == 1
    assert {hit.found_by for hit in cache.search("garden", mode="auto")} == {"both", "meaning"}


@pytest.mark.parametrize(
    "options", [{"mode": "meaning"}, {"mode": "hybrid"}, {"mode": "auto", "model": MODEL}], ids=str
)
def test_a_search_that_needs_vectors_waits_for_them(cache: Cache, opened: threading.Event, options: Any) -> None:
    found: list[Any] = []
    search = threading.Thread(target=lambda: found.append(cache.search("garden", **options)))
    search.start()
    search.join(2 * WAIT_S)
    assert search.is_alive()
    opened.set()
    search.join()
    assert len(found[0]) == 3
    assert found[0].problem is None


def test_new_events_are_waited_for_no_longer(cache: Cache, provider: Provider, opened: threading.Event) -> None:
    opened.set()
    until(lambda: cache.search("garden", mode="auto").problem is None)
    opened.clear()
    cache.append("user", "Another garden.")
    found = cache.search("garden", mode="auto")
    assert {hit.event_id for hit in found} == {1, 4}
    assert "no answer within" in str(found.problem)


def test_a_search_that_a_signal_handler_ends_leaves_one_request(
    cache: Cache, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StruckError(Exception):
        pass

    def strike(*_: object) -> None:
        raise StruckError

    is_over = threading.Event()

    def answer(request: dict[str, Any]) -> Any:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        is_over.wait()
        return provider.vectors(request)

    provider.answers = [answer]
    monkeypatch.setattr(limits, "SEARCH_EMBEDDER_S", 2 * limits.PROVIDER_DEADLINE_S)
    before = signal.signal(signal.SIGUSR1, strike)
    try:
        with pytest.raises(StruckError):
            cache.search("garden", mode="auto")
        assert "still no answer to an earlier search" in str(cache.search("tea", mode="auto").problem)
        assert [one["input"] for one in provider.requests] == [["garden"]]
    finally:
        signal.signal(signal.SIGUSR1, before)
        is_over.set()


@pytest.mark.usefixtures("opened")
def test_a_child_asks_for_itself(cache: Cache) -> None:
    """The thread that waits is not in it."""
    cache.search("garden", mode="auto")
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, str(cache.search("tea", mode="auto").problem).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    with open(reading) as pipe:
        assert "no answer within 0.2 s" in pipe.read()


def test_an_embedder_in_this_process_stays_in_its_thread(ledger: str) -> None:
    threads: list[int] = []

    def embed(texts: list[str]) -> list[list[float]]:
        threads.append(threading.get_ident())
        return [[1.0, float(len(text))] for text in texts]

    with connect(ledger, embedder=FunctionEmbedder("own", 2, embed)) as cache:
        assert len(cache.search("garden", mode="auto")) == 3
    assert set(threads) == {threading.get_ident()}


@pytest.mark.usefixtures("opened")
def test_a_process_ends_without_the_answer(ledger: str, provider: Provider) -> None:
    code = f"""
import time
from pmm_shm import limits
from pmm_shm_client import connect
limits.SEARCH_EMBEDDER_S = {WAIT_S}
with connect({ledger!r}, embedder={MODEL!r}) as cache:
    print(cache.search("garden", mode="auto").problem)
"""
    began = time.monotonic()
    done = run_python(code, env={**environment(), "OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": "x"}, forked=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no answer within 0.2 s" in done.stdout
    assert time.monotonic() - began < limits.PROVIDER_DEADLINE_S / 2


@pytest.mark.usefixtures("opened")
def test_a_fork_waits_for_the_imports_of_the_request(ledger: str, provider: Provider) -> None:
    """In the child they would stay imported in part."""
    code = f"""
import os
from pmm_shm import limits
from pmm_shm_client import connect
limits.SEARCH_EMBEDDER_S = {WAIT_S}
with connect({ledger!r}, embedder={MODEL!r}) as cache:
    cache.search("garden", mode="auto")
    pid = os.fork()
    print(cache.search("tea", mode="auto").problem, flush=True)
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
"""
    done = run_python(code, env={**environment(), "OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": "x"}, forked=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no answer within 0.2 s" in done.stdout
    assert "still no answer to an earlier search" in done.stdout
