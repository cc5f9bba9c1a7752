"""`pmm-shm stop`: the daemon of one ledger ends, and nothing else does."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from pmm_shm.instance.paths import Instance
from tests.conftest import StartDaemon
from tests.support import daemons
from tests.support.command import is_one_line, run


def test_it_ends_and_reads_go_on(ledger: str, tmp_path: Path, start_daemon: StartDaemon) -> None:
    other = start_daemon(str(daemons.ledgers.build(tmp_path / "other.db")))
    daemon = start_daemon(ledger)
    ran = run("stop", ledger)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"{os.path.realpath(ledger)}: the daemon (pid {daemon.pid}) has ended\n"
    assert daemon.process.wait(daemons.DEADLINE_S) == 0
    assert other.stats()["pid"] == other.pid
    assert run("append", ledger, "user", "x").code == 0
    assert run("read", ledger, "metrics").code == 0
    again = start_daemon(ledger)
    assert json.loads(run("stop", "--json", env={"PMM_DB": ledger}).out) == {
        "ledger": os.path.realpath(ledger),
        "pid": again.pid,
    }


def test_without_a_daemon_it_is_3(ledger: str, tmp_path: Path, start_daemon: StartDaemon) -> None:
    for _ in range(2):
        ran = run("stop", ledger)
        assert (ran.code, ran.out) == (3, "")
        assert is_one_line(ran.err)
        assert "start" not in ran.err
        # The record of one that was killed names no process to end.
        if not Instance.of(ledger).directory.exists():
            start_daemon(ledger).kill()
    ran = run("stop", str(tmp_path / "none.db"))
    assert (ran.code, ran.out) == (1, "")
    assert "no such file" in ran.err


def test_one_that_does_not_end_in_time_is_4(ledger: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger)
    daemon.freeze()
    ran = run("stop", ledger, "--timeout", "0.2")
    assert (ran.code, ran.out) == (4, "")
    assert is_one_line(ran.err)
    assert f"(pid {daemon.pid}) did not end within" in ran.err
    daemon.thaw()
    assert daemon.process.wait(daemons.DEADLINE_S) == 0


def test_the_record_alone_names_no_process(ledger: str, start_daemon: StartDaemon) -> None:
    """Its pid may be that of another process by now, or one of another container."""
    daemon = start_daemon(ledger)
    with subprocess.Popen(["sleep", "60"]) as other:
        record = Instance.of(ledger).endpoints_file
        text = record.read_text(encoding="utf-8")
        assert f'"pid": {daemon.pid}' in text
        record.write_text(text.replace(f'"pid": {daemon.pid}', f'"pid": {other.pid}'), encoding="utf-8")
        assert json.loads(run("stop", ledger, "--json").out)["pid"] == daemon.pid
        assert daemon.process.wait(daemons.DEADLINE_S) == 0
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize("suffix", ["", "-cache"])
def test_the_daemon_of_a_ledger_that_is_gone_ends_or_is_not_found(
    ledger: str, start_daemon: StartDaemon, suffix: str
) -> None:
    daemon = start_daemon(ledger)
    os.rename(ledger + suffix, ledger + suffix + ".moved")
    ran = run("stop", ledger)
    if suffix:
        assert ran.code == 3
        os.rename(ledger + suffix + ".moved", ledger + suffix)
    else:
        assert (ran.code, ran.err) == (0, "")
        assert daemon.process.wait(daemons.DEADLINE_S) == 0
