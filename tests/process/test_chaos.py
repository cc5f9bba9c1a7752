"""The checks of a chaos run find what they are there to find."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pmm_shm_client import connect
from tests.chaos import checks as chaos_checks
from tests.chaos.__main__ import Chaos
from tests.chaos.report import Wanted
from tests.chaos.work import Progress
from tests.conftest import StartDaemon
from tests.support import daemons, ledgers
from tests.support.chaos_runs import noted


def test_too_little_time_is_a_failure_where_it_was_asked_for() -> None:
    arguments = ["--seed", "5", "--seconds", "0", "--stops", "0", "--must-finish"]
    ran = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *arguments],
        cwd=ledgers.ROOT,
        env=daemons.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=daemons.DEADLINE_S * 2,
        check=False,
    )
    left = re.search("what is left of it: (.+)", ran.stderr)
    assert left is not None, ran.stderr
    assert Path(left[1], "ledger.db").exists()
    shutil.rmtree(left[1])
    assert ran.returncode == 1
    assert "only {} of" in ran.stderr
    assert "seed 5 failed" in ran.stderr
    assert "run it again: python -m tests.chaos --seed 5 --seconds 0 --daemon-kills 300" in ran.stderr


def test_what_a_failed_client_said_is_kept(ledger: str) -> None:
    chaos = Chaos(Wanted(seed=5), str(Path(ledger).parent), io.StringIO())
    chaos.progress = Progress(chaos.folder)
    try:
        chaos._start_client("searcher-0")
        daemons.until(lambda: chaos.progress.of("searcher-0")[0] > 0, "the client to begin")
        # As a library does that aborts its process.
        os.kill(chaos._pid("searcher-0"), signal.SIGABRT)
        chaos._clients["searcher-0"].join(10)
        Path(ledger).rename(ledger + ".gone")
        chaos._start_client("reader-0")
        chaos._clients["reader-0"].join(10)
        with pytest.raises(AssertionError, match="searcher-0 failed with -6"):
            chaos._check_clients()
        text = chaos._failures()
        assert "searcher-0.0.stderr: Fatal Python error: Aborted" in text
        assert "in _searcher" in text or "in _work" in text
        assert "reader-0.0.failure: Traceback" in text
        assert "LedgerNotFoundError" in text
    finally:
        chaos._kill_everything()


# The checks.


def test_what_diverges_from_a_replay_is_found(ledger: str, start_daemon: StartDaemon) -> None:
    """A past row is edited: what was folded before is not what a replay gives now."""
    noted(ledger, ["a.0.1", "a.0.2"])
    daemon = start_daemon(ledger, "--verify-every", "0")
    with connect(ledger) as cache:
        frame = cache.frame()
        chaos_checks.check_exact(cache)
        assert chaos_checks.check_published(cache) == chaos_checks.published_id(cache) == 2
        assert chaos_checks.check_slots(cache, daemon.pid) >= 2
        chaos_checks.check_all_equal(cache, {})
        ledgers.execute(ledger, "UPDATE events SET content = 'y' WHERE id = 1")
        assert "recent" in str(chaos_checks.difference_from_replay(cache, frame))
        with pytest.raises(AssertionError, match="what is published at 2 diverges"):
            chaos_checks.check_published(cache)
        with pytest.raises(AssertionError, match="diverges: recent"):
            chaos_checks.check_all_equal(cache, {})


def leave_slots(ledger: str, count: int) -> None:
    """In the table of readers: those of a process that has ended within its reads."""
    code = (
        "import os, sys\n"
        "from pmm_shm_client import connect\n"
        "caches = [connect(sys.argv[1]) for _ in range(int(sys.argv[2]))]\n"
        "for cache in caches:\n"
        "    transaction = cache._reader.snapshots.begin()\n"
        "    assert transaction.__enter__() is not None\n"
        "os._exit(0)\n"
    )
    ran = daemons.run_python(code, ledger, str(count))
    assert ran.returncode == 0, ran.stderr


def test_a_slot_of_a_dead_process_is_found_until_the_daemon_clears_it(ledger: str, start_daemon: StartDaemon) -> None:
    noted(ledger, ["a.0.1"])
    daemon = start_daemon(ledger)

    with connect(ledger) as cache:
        cache.frame()
        leave_slots(ledger, 4)
        with pytest.raises(AssertionError, match="slots of dead processes are left"):
            chaos_checks.check_slots(cache, daemon.pid)
        daemon.stats()
        assert chaos_checks.check_slots(cache, daemon.pid) >= 1
