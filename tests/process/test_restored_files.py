"""`pmm-shm restore`: in one transaction, while real writers, readers and the daemon use the ledger."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from pmm_shm import errors
from pmm_shm.ledger import restore as restoring
from pmm_shm.ledger.restore import restore
from pmm_shm_client import connect
from tests.support import ledgers
from tests.support.answers import everything, replayed
from tests.support.restoring import HEAD, JOURNALS, check_refused_for_room, without_hashes
from tests.support.workers import journal_of, make

# What a restore does.


@pytest.mark.parametrize("journal", JOURNALS)
@pytest.mark.parametrize("page_bytes", [1_024, 8_192])
def test_a_backup_of_another_page_size(tmp_path: Path, journal: str, page_bytes: int) -> None:
    ledger = make(str(tmp_path / "ledger.db"), "Old", 300, journal)
    backup = str(tmp_path / "backup.db")
    ledgers.execute(make(backup, "New", 200, "delete"), "SELECT 1")
    connection = ledgers.connect(backup)
    connection.execute(f"PRAGMA page_size = {page_bytes}")
    connection.execute("VACUUM")
    connection.close()
    with connect(ledger) as cache:
        everything(cache)
        rows = ledgers.raw_rows(backup)
        assert restore(backup, ledger).events == HEAD + 200
        assert ledgers.execute(ledger, "PRAGMA page_size") == [(4_096,)]
        assert ledgers.raw_rows(ledger) == rows
        assert journal_of(ledger) == journal
        assert everything(cache) == replayed(ledger)
    assert [name for name in os.listdir(tmp_path) if "restoring" in name] == []


def test_a_missing_ledger_is_made(place: tuple[str, str], tmp_path: Path) -> None:
    _, backup = place
    os.chmod(backup, 0o640)
    missing = str(tmp_path / "made.db")
    done = restore(backup, missing)
    assert done == restoring.Restored(missing, os.path.realpath(backup), HEAD + 50, HEAD + 50, None)
    assert ledgers.raw_rows(missing) == ledgers.raw_rows(backup)
    assert os.stat(missing).st_mode & 0o777 == 0o640
    os.chmod(backup, 0o440)
    protected = str(tmp_path / "protected.db")
    restore(backup, protected)
    assert os.stat(protected).st_mode & 0o777 == 0o640
    os.unlink(protected)
    empty = str(tmp_path / "empty.db")
    Path(empty).touch()
    assert restore(backup, empty).safety_copy is None
    assert ledgers.raw_rows(empty) == ledgers.raw_rows(backup)
    left = [name for name in os.listdir(tmp_path) if name not in ("here", "there")]
    assert sorted(left) == ["empty.db", "made.db"]


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
def test_no_ledger_is_made_beside_what_is_left_of_another(place: tuple[str, str], suffix: str) -> None:
    ledger, backup = place
    os.unlink(ledger)
    left = Path(ledger + suffix)
    left.write_bytes(b"events that are nowhere else")
    with pytest.raises(errors.LedgerReplacedError, match=f"Put the ledger back.*move {ledger}{suffix} away, then"):
        restore(backup, ledger)
    assert os.listdir(os.path.dirname(ledger)) == [left.name]
    left.rename(f"{backup}.saved")
    restore(backup, ledger)
    assert ledgers.raw_rows(ledger) == ledgers.raw_rows(backup)


# A backup that is no good changes nothing.


def test_a_backup_that_does_not_fit_is_restored_by_the_remedy(place: tuple[str, str]) -> None:
    ledger, backup = place
    without_hashes(backup)
    with pytest.raises(
        errors.NotALedgerError, match="stop all users of the ledger, move it, its -wal and its -shm away"
    ):
        restore(backup, ledger)
    os.rename(ledger, ledger + ".away")
    restore(backup, ledger)
    assert ledgers.raw_rows(ledger) == ledgers.raw_rows(backup)


# A busy ledger, and a full disk.


@pytest.mark.parametrize("journal", JOURNALS)
def test_a_file_that_may_not_grow(tmp_path: Path, journal: str) -> None:
    ledger = make(str(tmp_path / "ledger.db"), "Old", 300, journal)
    backup = make(str(tmp_path / "backup.db"), "New", 6_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, before[1]))
    try:
        check_refused_for_room(ledger, backup, True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
