"""Ledgers of PMM 2 and of November 2025 beside the programs that keep them, and the commands on them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_client import connect
from tests.conftest import StartDaemon
from tests.support import daemons, ledgers, pmm2
from tests.support.answers import everything, replayed
from tests.support.command import is_one_line, run

EXTRA: list[tuple[str, str, dict[str, Any]]] = [
    ("user", "hello", {}),
    ("commitment_open", "", {"cid": "c", "text": "t"}),
]
PLAIN = {"COLUMNS": "200"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pmm2.build(tmp_path_factory.mktemp("pmm2") / "l.db", 5, EXTRA)


def lease_holder(path: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.pmm2", path, str(count)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ledgers.ROOT,
        env=daemons.environment(),
    )


def printed(holder: subprocess.Popen[str]) -> Iterator[int]:
    assert holder.stdout is not None
    return map(int, holder.stdout)


def test_reads_are_exact_while_its_writer_appends(tmp_path: Path, start_daemon: StartDaemon) -> None:
    path = pmm2.build(tmp_path / "l.db", 5, EXTRA)
    daemon = start_daemon(path)
    with connect(path) as cache, EventLog(path) as log:
        last_id = 0
        with lease_holder(path, 300) as holder:
            for last_id in printed(holder):
                recent = cache.recent()
                # Its writer may have appended more since it printed.
                assert recent.as_of >= last_id
                assert recent.messages[-1].content == f"message {recent.as_of - 8}"
            assert holder.wait(20) == 0
        assert last_id == 307
        daemon.wait_published(last_id)
        snapshot = cache.recent(consistency="snapshot")
        assert snapshot.as_of == last_id
        assert everything(cache.frame()) == replayed(path)
        assert [hit.event_id for hit in cache.search("hello", 1)] == [6]
        assert cache.verify()
        assert log.verify_chain().ok
    numbers = daemon.stats()
    assert numbers["quarantined"] == 0
    assert numbers["health"] == "healthy"
    daemon.stop()


def test_a_ledger_of_2025_takes_events_from_both(tmp_path: Path, start_daemon: StartDaemon) -> None:
    path = pmm2.build_of_2025(tmp_path / "l.db")
    daemon = start_daemon(path)
    with connect(path) as cache:
        with lease_holder(path, 50) as holder:
            ours = [cache.append("response", f"answer {number}") for number in range(50)]
            theirs = list(printed(holder))
            assert holder.wait(20) == 0
        assert sorted(ours + theirs) == list(range(6, 106))
        assert cache.recent().as_of == 105
    with EventLog(path) as log:
        report = log.verify_chain()
        assert (report.ok, report.formula, report.rows_checked) == (True, "content", 105)
    daemon.stop()


@pytest.mark.parametrize("what", ["identity", "metrics", "stage", "history"])
def test_an_answer_that_does_not_apply(path: str, what: str) -> None:
    found = [json.loads(run(name, path, what, "--json").out) for name in ("read", "replay")]
    assert found[0] == found[1]
    assert found[0].pop("not_applicable") == [what]
    assert found[0].pop("as_of") == 7
    assert set(found[0].values()) == {None}
    shown = run("read", path, what, env=PLAIN).out
    assert "does not apply" in shown
    assert "PMM 2" in shown
    assert "0.0" not in shown


def test_parts_that_do_not_apply(path: str) -> None:
    for what, names in (("self-model", ["identity"]), ("frame", ["identity", "metrics", "stage"])):
        found = [json.loads(run(name, path, what, "--json").out) for name in ("read", "replay")]
        assert found[0] == found[1]
        assert found[0]["not_applicable"] == names
        model = found[0].get("self-model", found[0])
        assert model["identity"] is None
        assert model["commitments"]["open"] == {"c": {"cid": "c", "text": "t"}}
        shown = run("read", path, what, env=PLAIN).out
        assert shown.count("does not apply") == len(names)
        assert "open commitments: 1" in shown
    for what in ("commitments", "recent", "directives"):
        assert "not_applicable" not in run("read", path, what, "--json").out


def test_status_and_context(path: str) -> None:
    found = json.loads(run("status", path, "--json").out)
    assert found["not_applicable"] == ["identity", "metrics", "stage", "history"]
    for options in ((), ("--verbose",)):
        shown = run("status", path, *options, env=PLAIN).out
        assert "writer lease of PMM 2" in shown
        assert "identity, metrics, stage, history" in shown
        assert "OCEAN traits, IAS, GAS" in shown
    assert "do not apply to a ledger of PMM 2" in run("context", path).out
    found = json.loads(run("context", path, "--json").out)
    assert (found["ias"], found["stage"], found["traits"]) == (None, None, None)
    found = json.loads(run("top", path, "--json", "--once").out.splitlines()[0])
    assert (found["scores"], found["not_applicable"][0]) == (None, "identity")


def test_commands_that_need_what_it_has_not(path: str) -> None:
    for words in (("plot", path), ("explain", path, "metrics"), ("explain", path, "identity.name")):
        ran = run(*words)
        assert ran.code == 1
        assert is_one_line(ran.err)
        assert "PMM 2" in ran.err
    assert list(json.loads(run("explain", path, "--json").out)["subjects"]) == ["commitment c"]
    assert run("log", path, "-n", "2").out.count("\n") == 2


def test_a_chat_with_it(path: str) -> None:
    before = ledgers.raw_rows(path)
    ran = run("chat", path, "--no-autostart", input="/metrics\n/stats\nhello\n", env=PLAIN)
    assert ran.code == 1
    assert is_one_line(ran.err)
    assert "writer lease of PMM 2" in ran.err
    assert "does not apply" in ran.out
    assert "ias" not in ran.out
    assert ledgers.raw_rows(path) == before


def test_others_are_as_before(tmp_path: Path) -> None:
    path = ledgers.build(tmp_path / "l.db")
    for words in (("read", path, "metrics"), ("read", path, "frame"), ("status", path), ("context", path)):
        ran = run(*words, "--json")
        assert "not_applicable" not in ran.out
        assert "PMM 2" not in run(*words).out


def test_the_command_append_says_who_may(path: str) -> None:
    before = ledgers.raw_rows(path)
    ran = run("append", path, "user", "hello")
    assert (ran.code, ran.out) == (1, "")
    assert is_one_line(ran.err)
    assert "writer lease of PMM 2" in ran.err
    assert ledgers.raw_rows(path) == before
