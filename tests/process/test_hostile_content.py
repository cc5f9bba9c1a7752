"""Content of 10 MB, and a ledger whose file is cut: bounded time and memory, one clear error, and on it goes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from pmm_shm import errors
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_client import connect
from tests.conftest import StartDaemon
from tests.support import ledgers
from tests.support.answers import everything, replayed
from tests.support.daemons import run_python, until
from tests.support.hazards import HOSTILE_KINDS, insert_hostile

NEVER = ("--verify-every", "0")
HUGE_BYTES = 10_000_000
MEMORY_BYTES_MAX = 300 << 20
SECONDS_MAX = 20.0


def peak_bytes(pid: int) -> int:
    """The most memory that a process ever had."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) << 10


def append_hashed(path: str) -> None:
    with EventLog(path) as log:
        log.append("user", "x" * HUGE_BYTES)


def insert_foreign(path: str, value: str) -> None:
    ledgers.execute(path, f"INSERT INTO events (ts, kind, content, meta) VALUES ('t', 'user', {value}, '{{}}')")


WRITERS = {
    "hashed": append_hashed,
    "text": lambda path: insert_foreign(path, f"replace(hex(zeroblob({HUGE_BYTES // 2})), '0', 'x')"),
    "blob": lambda path: insert_foreign(path, f"zeroblob({HUGE_BYTES})"),
}
READER = """
import json, sys
from pmm_shm_client import connect
from tests.support.answers import everything
with connect(sys.argv[1]) as cache:
    answers = everything(cache)
    ok = cache.verify().ok
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(json.dumps([cache._reader.replays, ok, int(peak) << 10]))
"""


@pytest.mark.parametrize("writer", WRITERS)
def test_events_of_10_mb_take_bounded_time_and_memory(ledger: str, writer: str, start_daemon: StartDaemon) -> None:
    """Alone, appended under a daemon, and published; the daemon verifies and seals them."""
    WRITERS[writer](ledger)

    def read(replays: int) -> None:
        began = time.monotonic()
        ended = run_python(READER, ledger)
        assert ended.returncode == 0, ended.stderr
        found, ok, peak = json.loads(ended.stdout)
        assert (found, ok) == (replays, True)
        assert peak < MEMORY_BYTES_MAX
        assert time.monotonic() - began < SECONDS_MAX

    read(1)
    daemon = start_daemon(ledger, *NEVER)
    WRITERS[writer](ledger)
    head = ledgers.execute(ledger, "SELECT max(id) FROM events")[0][0]
    began = time.monotonic()
    daemon.wait_published(head)
    with connect(ledger) as cache:
        assert everything(cache) == replayed(ledger)
        report = cache.verify()
        assert (report.ok, report.as_of, cache.verify().sealed_blocks) == (True, head, 1)
    assert time.monotonic() - began < SECONDS_MAX
    read(0)
    assert daemon.stats()["problem"] is None
    assert peak_bytes(daemon.pid) < MEMORY_BYTES_MAX


def test_a_file_that_was_cut_is_one_clear_error_and_its_backup_heals(
    ledger: str, tmp_path: Path, start_daemon: StartDaemon
) -> None:
    """Half of the ledger's file is gone: reads and appends refuse, the daemon says so; a backup is followed."""
    ledgers.execute(ledger, "PRAGMA journal_mode = delete")
    with EventLog(ledger) as log:
        log.append_many([("user", f"message {number} " + "x" * 200, {}) for number in range(1_000)])
    backup = str(tmp_path / "backup.db")
    Path(backup).write_bytes(ledgers.read_bytes(ledger))
    daemon = start_daemon(ledger, *NEVER)
    with connect(ledger) as cache:
        expected = everything(cache)
        # By another process: here, closing the file would drop SQLite's locks.
        code = "import os, sys; os.truncate(sys.argv[1], os.path.getsize(sys.argv[1]) // 2 // 4096 * 4096)"
        assert run_python(code, ledger).returncode == 0
        with pytest.raises(errors.LedgerError) as refusal:
            replayed(ledger)
        assert "\n" not in str(refusal.value)
        os.replace(backup, ledger)

        def is_healed() -> bool:
            try:
                return everything(cache) == expected
            except errors.LedgerError:
                return False  # The old file's damage, until the new one is noticed.

        until(is_healed, "the backup is read")
        assert replayed(ledger) == expected
        head = cache.append("user", "on top")
        daemon.wait_published(head)
        assert everything(cache) == replayed(ledger)
        until(lambda: daemon.stats()["problem"] is None, "the daemon is well again")


def test_every_hostile_value_is_in_the_fixture(tmp_path: Path) -> None:
    """Each item of the list of hazards, as an event of every kind that some fold reads."""
    path = str(tmp_path / "ledger.db")
    connection = ledgers.connect(path)
    ledgers.make_table(connection, strict=False)
    connection.close()
    insert_hostile(path)
    connection = ledgers.connect(path)
    connection.text_factory = bytes
    rows = connection.execute("SELECT kind, content, meta, hash, typeof(content), typeof(meta) FROM events").fetchall()
    connection.close()
    for kind in HOSTILE_KINDS:
        own: list[Any] = [row[1:] for row in rows if row[0] == kind.encode()]
        metas = [meta for _, meta, _, _, _ in own if isinstance(meta, bytes)]
        assert any(meta.count(b'{"a":') >= 3_000 for meta in metas), "deep objects"
        assert any(meta.count(b"[") >= 100_000 for meta in metas), "deep lists, deeper than any stack"
        assert any(b"9" * 5_000 in meta for meta in metas), "an integer of 5,000 digits"
        assert any(str(1 << 80).encode() in meta for meta in metas), "an integer over 64 bits"
        assert any(b"NaN" in meta for meta in metas)
        assert any(meta.count(b'"cid"') == 2 for meta in metas), "duplicate keys that folds read"
        assert any(b"\\ud800" in meta for meta in metas), "lone surrogates"
        assert b"[1, 2]" in metas, "a list at the top"
        assert any(b"\xff" in meta for meta in metas), "no UTF-8 in meta"
        assert any(content is not None and b"\xff" in bytes(content) for content, *_ in own), "no UTF-8 in content"
        assert {b"blob", b"null"} <= {row[3] for row in own}, "content of another type"
        assert {b"blob", b"null"} <= {row[4] for row in own}, "meta of another type"
        assert all(row[2] is None for row in own), "no hash"
    assert max(len(row[1]) for row in rows if row[1] is not None) == HUGE_BYTES
