"""`pmm-shm log`: what is listed, in which order, and what `-f` prints while others append."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pexpect
import pytest

from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.restore import restore
from tests.support import daemons, ledgers
from tests.support.command import COMMAND, is_one_line, run

KINDS = ("user", "response", "note")


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    """30 events, one a minute, the last one now; every third is a note."""
    now = datetime.now(timezone.utc)
    with EventLog(tmp_path / "agent.db") as log:
        log.append_many(
            {
                "kind": KINDS[number % 3],
                "content": f"text {number}",
                "ts": (now - timedelta(minutes=30 - number)).isoformat(),
            }
            for number in range(1, 31)
        )
    return str(tmp_path / "agent.db")


def ids(out: str) -> list[int]:
    return [int(line.split()[0]) for line in out.splitlines()]


def listed(*arguments: str) -> list[int]:
    ran = run("log", *arguments)
    assert (ran.code, ran.err) == (0, "")
    return ids(ran.out)


def down(first: int, last: int) -> list[int]:
    return list(range(first, last - 1, -1))


def test_the_newest_come_first_and_a_few_of_them(ledger: str) -> None:
    assert listed(ledger) == down(30, 11)
    assert listed(ledger, "-n", "3") == [30, 29, 28]
    assert listed(ledger, "-n", "3", "--reverse") == [28, 29, 30]
    assert listed(ledger, "-n", "0") == down(30, 1)
    assert listed(ledger, "-n", "0", "--reverse") == list(range(1, 31))
    ran = run("log", "-n", "1", env={"PMM_DB": ledger})
    assert re.fullmatch(r"     30  20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ  user              text 30\n", ran.out)


def test_of_one_kind(ledger: str) -> None:
    assert listed(ledger, "--kind", "note", "-n", "2") == [29, 26]
    assert listed(ledger, "--kind", "none") == []


def test_since_an_id_or_a_time(ledger: str) -> None:
    assert listed(ledger, "--since", "5") == down(30, 6)
    assert listed(ledger, "--since", "5", "-n", "2") == [30, 29]
    assert listed(ledger, "--since", "30") == listed(ledger, "--since", "99999999999999999999"[:19]) == []
    assert listed(ledger, "--since", "-3", "--kind", "note", "--reverse") == list(range(2, 31, 3))
    assert listed(ledger, "--since", "270s") == down(30, 26)
    assert listed(ledger, "--since", "10.5m", "--kind", "note") == [29, 26, 23, 20]
    assert listed(ledger, "--since", "1h") == down(30, 1)
    there = datetime.now(timezone(timedelta(hours=5))) - timedelta(seconds=150)
    assert listed(ledger, "--since", there.isoformat()) == [30, 29, 28]
    for wrong in ("yesterday", "5x", ""):
        ran = run("log", ledger, "--since", wrong)
        assert (ran.code, ran.out) == (2, "")
        assert is_one_line(ran.err)


def test_a_ledger_without_indexes_and_clocks_that_go_back(tmp_path: Path) -> None:
    path = ledgers.build(tmp_path / "a.db", 1_300)
    ledgers.execute(path, "UPDATE events SET ts = '2030-01-01T00:00:00Z' WHERE id IN (3, 1290)")
    ledgers.execute(path, "UPDATE events SET ts = 'no time' WHERE id = 1295")
    assert listed(path, "--since", "2029-01-01") == [1290, 3]
    assert listed(path, "--since", "2029-01-01", "--kind", "note") == [3]
    assert listed(path, "-n", "0", "--kind", "other") == down(1_300, 1)[::2]


def test_json_has_the_whole_event(ledger: str) -> None:
    with EventLog(ledger) as log:
        log.append("user", "two\nlines é", {"a": [1]})
        newest = log.read_tail(1)
    out = run("log", ledger, "-n", "1", "--json").out
    assert out.count("\n") == 1
    assert [json.loads(out)] == newest


def test_one_line_for_each_event_whatever_is_in_it(tmp_path: Path) -> None:
    path = ledgers.build_hostile(tmp_path / "a.db", hashed=False)
    ledgers.execute(path, "UPDATE events SET content = char(27) || '[2J' || char(10) || 'x', ts = char(7) WHERE id = 1")
    ran = run("log", path, "-n", "0")
    assert ids(ran.out) == down(18, 1)
    assert ran.out.splitlines()[-1].endswith("\\x1b[2J\\nx")


def test_lines_fit_a_terminal(ledger: str) -> None:
    with EventLog(ledger) as log:
        log.append("user", "wide 文字 " * 50, {"a": 1})
        log.append("user", "short", {"a": "b" * 200})
    env = daemons.environment(COLUMNS=None, LINES=None, NO_COLOR="1", LC_ALL="C.UTF-8")
    child = pexpect.spawn(
        sys.executable, [*COMMAND[1:], "log", ledger, "-n", "3"], env=env, dimensions=(24, 70), encoding="utf-8"
    )
    child.expect(pexpect.EOF)
    child.close()
    from rich.cells import cell_len

    lines = child.before.splitlines()
    assert ids("\n".join(lines)) == [32, 31, 30]
    assert [cell_len(line) for line in lines[:1]] == [70]
    assert 68 <= cell_len(lines[1]) <= 70
    assert lines[0].endswith("…")
    assert 'short  {"a": "bbb' in lines[0]


@contextmanager
def following(ledger: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [*COMMAND, "log", ledger, "-f", *arguments],
        env=daemons.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def next_ids(child: subprocess.Popen[str], count: int) -> list[int]:
    assert child.stdout is not None
    return [int(child.stdout.readline().split()[0]) for _ in range(count)]


def test_it_follows_what_others_append_and_a_restore(ledger: str, tmp_path: Path) -> None:
    backup = str(tmp_path / "backup.db")
    assert run("backup", ledger, backup).code == 0
    with following(ledger, "-n", "2") as child, EventLog(ledger) as log:
        assert next_ids(child, 2) == [29, 30]
        log.append("user", "now")
        assert next_ids(child, 1) == [31]
        log.append_many([("note", str(number), None) for number in range(1_200)])
        assert next_ids(child, 1_200) == list(range(32, 1_232))
        restore(backup, ledger, keep=False)
        assert child.stderr is not None
        assert (
            child.stderr.readline()
            == f"pmm-shm: {os.path.realpath(ledger)}: restored, replaced or cut; at event 30 now\n"
        )
        log.append("user", "after the restore")
        assert next_ids(child, 1) == [31]
        child.send_signal(signal.SIGINT)
        assert child.wait(daemons.DEADLINE_S) == 130
        assert child.stderr.read() == ""


def test_it_follows_one_kind_from_an_empty_ledger_on(tmp_path: Path) -> None:
    path = str(tmp_path / "new.db")
    with EventLog(path) as log, following(path, "--kind", "note", "--json") as child:
        # It may not have looked yet: what was appended before counts as well.
        log.append_many([("user", "a", None), ("note", "b", None)])
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["id"] == 2
        log.append("note", "c")
        assert json.loads(child.stdout.readline())["id"] == 3


def test_without_a_ledger(tmp_path: Path) -> None:
    ran = run("log", str(tmp_path / "none.db"))
    assert (ran.code, ran.out) == (1, "")
    assert is_one_line(ran.err)
