"""`pmm-shm bench` as a program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.scale import QUICK
from tests.support import daemons, ledgers

DOCS = ledgers.ROOT / "docs"
TINY = QUICK._replace(events=(100, 200), naive_events_max=200)


def bench_command(*arguments: str, **variables: str | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pmm_shm_cli", "bench", *arguments],
        env=daemons.environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=daemons.DEADLINE_S * 2,
        check=False,
    )


def test_the_command_measures_a_copy(tmp_path: Path) -> None:
    ledger = ledgers.build(tmp_path / "own.db", 50, journal="delete")
    os.chmod(tmp_path / "own.db", 0o444)
    before = ledgers.read_bytes(ledger)
    # Without caches this shell would measure nothing.
    # Sockets need a short path.
    with tempfile.TemporaryDirectory() as work:
        done = bench_command(ledger, "--seconds", "0", "--json", TMPDIR=work, PMM_USE_METRICS_CACHE="false")
        assert not list(Path(work).iterdir())
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert [one["what"] for one in report["comparisons"]][:4:3] == ["metrics, nothing new", "metrics after an append"]
    for one in report["comparisons"]:
        assert one["times_faster"]["p50"] > (10 if "nothing new" in one["what"] else 0), one
    assert report["events"] == 50
    assert report["full_replay"]["p50_us"] > 0
    assert ledgers.read_bytes(ledger) == before
    assert [path.name for path in tmp_path.iterdir()] == ["own.db"]


def test_the_command_without_a_ledger(tmp_path: Path) -> None:
    done = bench_command(str(tmp_path / "none.db"))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert "none.db" in done.stderr
