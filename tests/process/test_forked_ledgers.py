"""PMM under `pmm-shm run` on a ledger that PMM has forked before: it goes on, and says once where the fork is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pmm_shm.ledger.eventlog import EventLog
from tests.support import daemons, ledgers, standin_package
from tests.support.command import run

CHAT = [sys.executable, "-m", "pmm_shm_cli", "run", "--no-daemon", "-m", "pmm.cli.chat"]
WORKERS = """
import os
from pmm.cli.chat import main
children = []
if os.environ["PMM_SHM"] == "on":
    for _ in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            children = []
            break
main()
for _ in children:
    os.wait()
"""


@pytest.fixture
def forked(tmp_path: Path) -> str:
    """A ledger whose events 5 and 6 follow event 4."""
    path = ledgers.build(tmp_path / "agent.db", 5)
    (previous,) = ledgers.execute(path, "SELECT prev_hash FROM events WHERE id = 5")[0]
    row = {"id": 6, "ts": ledgers.TS.format(6), "kind": "user", "content": "hi", "meta": {}, "prev_hash": previous}
    values = [*list(row.values())[:4], "{}", previous, ledgers.reference_hash("full", row)]
    ledgers.execute(path, "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", *values)
    return path


def environment(path: str, **changes: str) -> dict[str, str]:
    pythonpath = os.pathsep.join([str(standin_package.ROOT), daemons.environment()["PYTHONPATH"]])
    return daemons.environment(PYTHONPATH=pythonpath, PMM_DB=path, **changes)


@pytest.mark.parametrize("target", [["-m", "pmm.cli.chat"], ["workers.py"]], ids=["one", "three"])
def test_it_goes_on_at_the_newest_row_and_says_so_once(forked: str, target: list[str]) -> None:
    folder = Path(forked).parent
    (folder / "workers.py").write_text(WORKERS)
    ended = subprocess.run(
        [*CHAT[:5], *target],
        env=environment(forked, PMM_SHM="on"),
        cwd=folder,
        input="hello\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    (line,) = [one for one in ended.stderr.splitlines() if "fork" in one]
    assert line.startswith(f"pmm-shm: {forked}: the hash chain forks: events 5 and 6 have the same predecessor")
    assert "nothing needs to be repaired" in line
    with EventLog(forked, create=False) as log:
        report = log.verify_chain()
        newest = log.read_tail(1)[0]["id"]
    assert (report.first_bad_id, report.fork, report.forks) == (None, (5, 6), 1)
    assert newest > 6
    first_own = ledgers.execute(forked, "SELECT prev_hash FROM events WHERE id = 7")
    assert first_own == ledgers.execute(forked, "SELECT hash FROM events WHERE id = 6")


def test_a_linear_ledger_is_not_mentioned(tmp_path: Path) -> None:
    path = ledgers.build(tmp_path / "agent.db", 5)
    ended = subprocess.run(
        CHAT, env=environment(path), input="hello\n", capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "fork" not in ended.stderr


def test_verify_and_doctor_say_the_same(forked: str) -> None:
    ran = run("verify", forked)
    assert ran.code == 5
    assert "events 5 and 6 have the same predecessor" in ran.err
    found = run("doctor", forked, env={"COLUMNS": "200"}).out
    assert "warning hash-chain: it forks: events 5 and 6 have the same predecessor" in found
    assert "nothing needs to be repaired" in found
