"""`pmm-shm doctor` on the index of words and on the embedder: what it finds, and what helps."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sqlite3
from pathlib import Path

import pytest

from pmm_shm.instance.paths import Instance
from pmm_shm.vectors import wordllama
from pmm_shm_cli.doctor import Finding, gather
from pmm_shm_client import EventLog
from tests.support import words
from tests.support.doctor import TIMEOUT_S, by_check, examined, worst
from tests.support.fork_daemon import ForkedDaemon
from tests.support.search_oracle import index


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    path = str(tmp_path / "l.db")
    with EventLog(path) as log:
        log.append_many([("user", f"the garden {number}", None) for number in range(50)])
    return path


def indexed(ledger: str, *arguments: str) -> None:
    """Let a daemon index all events, and stop."""
    with ForkedDaemon(Path(ledger), *arguments):
        index(ledger)


def found(ledger: str) -> Finding:
    return worst(examined(ledger), "words")


def test_an_index_that_is_well_behind_or_missing(ledger: str) -> None:
    assert "words" not in examined(ledger)
    with ForkedDaemon(Path(ledger)):
        index(ledger)
        assert (found(ledger).severity, found(ledger).found) == ("ok", "up to event 50")
        Instance.of(ledger).words_file.unlink()
        removed = found(ledger)
        assert (removed.severity, "removed" in removed.found) == ("warning", True)
        assert removed.command.startswith(f"rm {Instance.of(ledger).words_file} && kill -TERM ")
    assert (found(ledger).severity, found(ledger).command) == ("note", f"pmm-cached {ledger} &")
    indexed(ledger)
    with EventLog(ledger) as log:
        log.append("user", "later", {})
    assert (found(ledger).severity, found(ledger).found) == ("note", "1 events behind the log")
    indexed(ledger, "--word-kinds", "none")
    with ForkedDaemon(Path(ledger), "--word-kinds", "none"):
        assert (found(ledger).severity, found(ledger).found) == ("ok", "the daemon keeps none")


@pytest.mark.parametrize("what", ["pages", "words", "nonsense", "version"])
def test_the_remedy_of_an_index_that_cannot_be_read(ledger: str, what: str) -> None:
    indexed(ledger)
    file = Instance.of(ledger).words_file
    if what == "version":
        with sqlite3.connect(file) as handle:
            handle.execute("UPDATE state SET format = format + 1")
    elif what == "words":
        with sqlite3.connect(file) as handle:
            # Each page is sound.
            handle.execute(words.DAMAGE)
    elif what == "nonsense":
        file.write_bytes(b"nonsense" * 2_000)
    else:
        with open(file, "r+b") as damaged:
            damaged.seek(2 * 4_096)
            damaged.write(os.urandom(4_096))
    ill = found(ledger)
    assert (ill.severity, ill.found.startswith(f"{file}: ")) == ("warning", True)
    assert shlex.split(ill.command) == ["rm", str(file), "&&", "pmm-cached", ledger, "&"]
    file.unlink()
    indexed(ledger)
    assert found(ledger).severity == "ok"


def test_an_index_that_the_daemon_cannot_write(ledger: str) -> None:
    with ForkedDaemon(Path(ledger)):
        index(ledger)
        facts = gather(ledger, TIMEOUT_S)
    assert facts.state is not None
    assert facts.state.daemon is not None
    counts = {**facts.state.daemon["words"], "problem": "database is\nlocked"}
    ill = dataclasses.replace(facts.state, daemon={**facts.state.daemon, "words": counts})
    assert worst(by_check(dataclasses.replace(facts, state=ill)), "words").found == (
        "it cannot be written: database is locked"
    )


def test_what_a_better_embedder_would_give(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with ForkedDaemon(Path(ledger)):
        index(ledger)
        assert worst(examined(ledger), "embedder").found == (
            "local-bow finds words, not meanings; PMM_EMBEDDER=auto takes wordllama, which is installed"
        )
        monkeypatch.setattr(wordllama, "is_installed", lambda: False)
        assert "when it is installed: " in worst(examined(ledger), "embedder").found
    with ForkedDaemon(Path(ledger), "--embedder", "wordllama"):
        index(ledger)
        assert "embedder" not in examined(ledger)
