"""Two daemons that are started at once for one ledger."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pmm_shm.errors import DaemonError
from pmm_shm.instance.paths import Instance
from pmm_shm.wire.protocol import PING
from pmm_shm_client import connect
from pmm_shm_client.commands import call
from tests.support.answers import everything, replayed
from tests.support.daemons import DEADLINE_S, until
from tests.support.forking import ForkedProgram


def answering_pid(ledger: str) -> int | None:
    try:
        pid: int = call(Instance.of(ledger), PING, {}, 1.0)["pid"]
    except DaemonError:
        return None
    return pid


def serve_at() -> None:
    """`pmm-cached` in this process, from an instant of the monotonic clock on: the first argument."""
    from pmm_cached.main import main

    instant = float(sys.argv.pop(1))
    while time.monotonic() < instant:
        pass
    main()


@contextlib.contextmanager
def two_at_once(ledger: str, folder: Path, turn: int) -> Iterator[list[ForkedProgram]]:
    instant = time.monotonic() + 0.1
    arguments = ["pmm-cached", str(instant), "--log-level", "error", ledger]
    logs = [str(folder / f"{turn}-{name}") for name in "ab"]
    daemons = [ForkedProgram("tests.support.starts:serve_at", arguments, (os.devnull, log, log)) for log in logs]
    try:
        yield daemons
    finally:
        for daemon in daemons:
            daemon.kill()
            daemon.wait(DEADLINE_S)


def check_two_at_once(ledger: str, folder: Path, rounds: int) -> None:
    """Hazard 11: never both, never none; each second time after the former one was killed."""
    with connect(ledger) as cache:
        for turn in range(rounds):
            with two_at_once(ledger, folder, turn) as daemons:
                until(lambda both=daemons: any(one.poll() is not None for one in both), "one of them exits")  # type: ignore[misc]
                winner, loser = sorted(daemons, key=lambda one: one.poll() is not None)
                assert winner.poll() is None, f"turn {turn}: none serves"
                loser_name = "ab"[daemons.index(loser)]
                said = (folder / f"{turn}-{loser_name}").read_text(encoding="utf-8")
                assert loser.returncode == 1, said
                assert said.count("\n") == 1
                assert said.startswith(f"pmm-cached: {ledger}: another pmm-cached (pid ")
                until(lambda: answering_pid(ledger) is not None, "the winner answers")
                # The endpoint was not stolen, and the winner's record is what clients find.
                assert answering_pid(ledger) == winner.pid
                event_id = cache.append("user", f"turn {turn}")
                assert cache.wait_for(event_id, DEADLINE_S) >= event_id
                assert winner.poll() is None
                os.kill(winner.pid, signal.SIGKILL if turn % 2 else signal.SIGTERM)
                assert winner.wait(DEADLINE_S) == (-signal.SIGKILL if turn % 2 else 0)
        assert everything(cache) == replayed(ledger)
        assert cache.metrics().as_of == rounds
