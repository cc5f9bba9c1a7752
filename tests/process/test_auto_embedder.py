"""The embedder `auto`: the best one that is here; the store names the daemon's, and who lacks it searches by words."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmm_shm.errors import EmbedderError
from pmm_shm.vectors import wordllama
from pmm_shm_client import Cache, EventLog, connect
from tests.support.command import run
from tests.support.fork_daemon import ForkedDaemon
from tests.support.search_oracle import index, tables

SAID = ("The puppy chewed up my favourite pair of shoes.", "Invoice INV-2291 is due.", "It rains in Ghent.")
ASKED = "What did the dog destroy?"


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("auto") / "l.db")
    with EventLog(path) as log:
        log.append_many([("user", text, None) for text in SAID])
    return path


@pytest.fixture(scope="module")
def daemon(ledger: str) -> Iterator[None]:
    with ForkedDaemon(Path(ledger), "--embedder", "auto"):
        index(ledger)
        yield


@pytest.fixture
def _lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has no wordllama."""
    monkeypatch.setattr(wordllama, "_model", None)
    monkeypatch.setitem(sys.modules, "wordllama", None)


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("embedder", [None, "auto"])
def test_the_daemon_takes_the_best_and_workers_search_its_table(ledger: str, embedder: str | None) -> None:
    assert tables(ledger)["tables"].keys() == {"local-bow", "wordllama"}
    with connect(ledger, embedder=embedder) as cache:
        found = cache.search(ASKED, 1)
        assert (found[0].event_id, found.model, found.embedded_here) == (1, "wordllama", 0)
        # The table of another model stays searchable.
        assert cache.search(SAID[1], 1, model="local-bow")[0].event_id == 2


@pytest.mark.usefixtures("daemon", "_lacks_it")
@pytest.mark.parametrize("embedder", [None, "auto", "wordllama"])
def test_a_worker_without_it_searches_by_words_and_says_so(ledger: str, embedder: str | None) -> None:
    with connect(ledger, embedder=embedder) as cache:
        found = cache.search("What about INV-2291?", mode="auto")
        assert ([hit.event_id for hit in found], found.model) == ([2], "")
        assert "'wordllama': not installed" in str(found.problem)
        # The vectors of texts that another worker has asked about are there.
        with pytest.raises(EmbedderError, match="not installed"):
            cache.search("a text of nobody else", mode="meaning")
        context = cache.context("What about INV-2291?", recall=2, recall_mode="auto")
        assert [one.id for one in context.recalled] == [2]
        assert "found by words alone" in str(context.recall_problem)


@pytest.mark.usefixtures("daemon")
def test_the_commands(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMM_EMBEDDER", "auto")
    assert '"model": "wordllama"' in run("search", ledger, ASKED, "--mode", "meaning", "--json").out
    assert '"dimension": 256' in run("embed", ledger, "--text", ASKED, "--json").out
    assert "local-bow finds words" not in run("status", ledger, "-v").out


def told(tmp_path: Path) -> Cache:
    cache = connect(tmp_path / "l.db", create=True, embedder="auto")
    cache.append_many([("user", text, None) for text in SAID])
    return cache


def test_without_a_daemon_it_is_the_best_one_here(tmp_path: Path) -> None:
    with told(tmp_path) as cache:
        found = cache.search(ASKED, 1)
        assert (found[0].event_id, found.model) == (1, "wordllama")
        assert cache.embed("a").shape == (256,)


@pytest.mark.usefixtures("_lacks_it")
def test_without_it_the_default_one_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with told(tmp_path) as cache, caplog.at_level(logging.INFO):
        for _ in range(2):
            assert cache.search(ASKED, 1).model == "local-bow"
        assert cache.embed("a").shape == (32,)
    advice = "local-bow finds words, not meanings; PMM_EMBEDDER=auto takes wordllama, when it is installed: "
    assert [record.getMessage().startswith(advice) for record in caplog.records] == [True]


def test_who_chose_the_default_one_hears_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with told(tmp_path), connect(tmp_path / "l.db", embedder="local-bow") as cache, caplog.at_level(logging.INFO):
        cache.search(ASKED, 1)
    assert caplog.records == []


def test_a_command_says_what_it_would_give(tmp_path: Path) -> None:
    with told(tmp_path) as cache:
        path = cache.path
    said = run("search", path, ASKED, "--mode", "meaning").err
    assert (
        said == "pmm-shm: local-bow finds words, not meanings; PMM_EMBEDDER=auto takes wordllama, which is installed\n"
    )
    assert run("search", path, "INV-2291").err == ""
    chosen = run("search", path, ASKED, "--mode", "meaning", "--model", "local-bow")
    assert (chosen.code, chosen.err) == (0, "")
    assert run("search", path, ASKED, "--mode", "meaning", env={"PMM_EMBEDDER": "local-bow"}).err == ""
    with ForkedDaemon(Path(path)):
        index(path)
        assert "local-bow finds words, not meanings; PMM_EMBEDDER=auto takes wordllama" in run("status", path, "-v").out
