"""The daemon's index of words: whatever happens to daemon, ledger and file, a search finds what a scan finds."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pmm_shm import limits
from pmm_shm.instance.paths import Instance
from pmm_shm.store import boot
from pmm_shm.words.file import checked_record
from pmm_shm_client import Cache, EventLog, connect
from tests.support import daemons, ledgers, words
from tests.support.fork_daemon import ForkedDaemon
from tests.support.polling import until
from tests.support.privileges import open_folder
from tests.support.search_oracle import index

__all__ = ["open_folder"]
WORDS = ("garden", "letter", "INV-2291", "café", "東京", "Ana", "dentist", "invoice", "ticket", "plan")
QUERIES = ["garden", "INV-2291", "cafe", "東", "n7", "dentist"]
IS_ROOT = os.geteuid() == 0
GROUP, OTHER = 54_322, 54_321
AS_MEMBER = """
import json, os, sys
import pmm_cached.main, zmq
import pmm_shm_client.finding, pmm_shm_client.word_search
from pmm_shm_client import connect
ledger, gid, uid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.setgroups([gid]); os.setgid(uid); os.setuid(uid)
with connect(ledger) as cache:
    found = cache.search("n7", mode="words")
    print(json.dumps([[hit.event_id for hit in found], found.is_complete, found.indexed_here]))
"""


def messages(first: int, count: int) -> list[tuple[str, str, None]]:
    chosen = random.Random(first)
    return [
        ("user", " ".join([*chosen.sample(WORDS, 3), f"n{number}"]), None) for number in range(first, first + count)
    ]


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    path = str(tmp_path / "l.db")
    with EventLog(path) as log:
        log.append_many(messages(1, 200))
    return path


@pytest.fixture
def cache(ledger: str) -> Iterator[Cache]:
    with connect(ledger) as opened:
        yield opened


def file_of(ledger: str) -> Path:
    return Instance.of(ledger).words_file


def check_indexed(cache: Cache) -> None:
    """Everything is in the daemon's index, and a search finds it there."""
    index(cache.path)
    assert words.check(cache, QUERIES).indexed_here == 0
    numbers: Any = cache.stats()["daemon"]
    assert (numbers["words"]["problem"], numbers["words"]["rows"]) == (None, len(words.texts_of(cache.path)))
    assert numbers["words"]["size_bytes"] == file_of(cache.path).stat().st_size


def test_what_the_index_lacks_is_added(ledger: str, cache: Cache) -> None:
    words.check(cache, QUERIES)
    with ForkedDaemon(Path(ledger)) as daemon:
        check_indexed(cache)
        daemon.freeze()
        cache.append_many(messages(201, 30))
        assert words.check(cache, QUERIES).indexed_here == 30
        daemon.thaw()
        check_indexed(cache)
    # After a clean stop the index stays readable, and the next daemon goes on with it.
    assert words.check(cache, QUERIES).indexed_here == 0
    before = file_of(ledger).stat().st_ino
    with ForkedDaemon(Path(ledger)):
        check_indexed(cache)
    assert file_of(ledger).stat().st_ino == before


def test_the_index_has_no_texts_and_its_mode(ledger: str, cache: Cache) -> None:
    with ForkedDaemon(Path(ledger)):
        check_indexed(cache)
        assert stat.S_IMODE(file_of(ledger).stat().st_mode) == 0o640
        with sqlite3.connect(f"file:{file_of(ledger)}?mode=ro", uri=True) as handle:
            assert handle.execute("SELECT count(text) FROM words").fetchone() == (0,)
            assert handle.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_daemon_that_is_killed_again_and_again(ledger: str, cache: Cache) -> None:
    chosen, count = random.Random(5), 200
    for _ in range(6):
        daemon = ForkedDaemon(Path(ledger))
        cache.append_many(messages(count + 1, 150))
        count += 150
        time.sleep(chosen.random() * 0.1)
        daemon.kill()
        words.check(cache, QUERIES)
    # A cache that has met the journal of a killed daemon leaves the index alone for a while.
    with ForkedDaemon(Path(ledger)), connect(ledger) as other:
        check_indexed(other)


def test_an_edit(ledger: str, cache: Cache) -> None:
    with ForkedDaemon(Path(ledger)):
        check_indexed(cache)
        # An edit, which a verification finds.
        ledgers.execute(ledger, "UPDATE events SET content = 'dentist edited' WHERE id = 7")
        assert not cache.verify().ok
        until(lambda: is_of_now(cache), "the index is rebuilt")
        check_indexed(cache)


def two_ledgers(folder: Path) -> list[str]:
    """Two ledgers with as many events, and without files beside them, so that one can be moved over the other."""
    paths = [str(folder / name) for name in ("l.db", "other.db")]
    for path, first in zip(paths, (1, 1_001), strict=True):
        with EventLog(path) as log:
            log.append_many(messages(first, 200))
        ledgers.execute(path, "PRAGMA journal_mode = delete")
    return paths


def test_another_ledger_with_as_many_events(tmp_path: Path) -> None:
    paths = two_ledgers(tmp_path)
    with ForkedDaemon(Path(paths[0])), connect(paths[0]) as cache:
        check_indexed(cache)
        os.replace(paths[1], paths[0])
        until(lambda: is_of_now(cache), "it is noticed", limits.REPLACEMENT_NOTICED_S + 1.0)
        words.check(cache, [*QUERIES, "n1001"])
        until(lambda: cache.search("n1001", mode="words").indexed_here == 0, "it is indexed")
        check_indexed(cache)


def test_an_index_of_another_ledger_is_not_searched(tmp_path: Path) -> None:
    paths = two_ledgers(tmp_path)
    with ForkedDaemon(Path(paths[0])), connect(paths[0]) as cache:
        check_indexed(cache)
    os.replace(paths[1], paths[0])
    with connect(paths[0]) as cache:
        assert words.check(cache, [*QUERIES, "n1001"]).indexed_here == 200


def is_of_now(cache: Cache) -> bool:
    try:
        words.check(cache, [*QUERIES, "edited", "n1001"])
    except AssertionError:
        return False
    return True


def test_a_power_loss_ends_the_index(ledger: str, cache: Cache) -> None:
    daemon = ForkedDaemon(Path(ledger))
    check_indexed(cache)
    daemon.kill()
    mark = Instance.of(ledger).boot_file
    record = json.loads(mark.read_text())
    mark.write_text(json.dumps({**record, "boot_id": "another"}))
    assert not boot.is_trusted(mark)
    # The pages of the file may be anything.
    with open(file_of(ledger), "r+b") as file:
        file.seek(4_096)
        file.write(os.urandom(8_192))
    with connect(ledger) as later:
        assert words.check(later, QUERIES).indexed_here == 200
        with ForkedDaemon(Path(ledger)):
            check_indexed(later)


@pytest.mark.parametrize("content", [b"", b"nonsense" * 2_000], ids=["empty", "nonsense"])
def test_a_file_that_is_no_index_is_made_anew(ledger: str, cache: Cache, content: bytes) -> None:
    with ForkedDaemon(Path(ledger)):
        check_indexed(cache)
    file_of(ledger).write_bytes(content)
    with connect(ledger) as other:
        assert words.check(other, QUERIES).indexed_here == 200
        with ForkedDaemon(Path(ledger)):
            index(ledger)
            with connect(ledger) as later:
                check_indexed(later)


def test_an_index_with_damaged_records_is_made_anew(ledger: str, cache: Cache) -> None:
    with ForkedDaemon(Path(ledger)):
        check_indexed(cache)
    with sqlite3.connect(file_of(ledger)) as handle:
        handle.execute(words.DAMAGE)
        assert handle.execute("PRAGMA quick_check").fetchone() == ("ok",)
    with pytest.raises(sqlite3.DatabaseError, match="malformed"):
        checked_record(file_of(ledger))
    with ForkedDaemon(Path(ledger)):
        check_indexed(cache)
        assert checked_record(file_of(ledger)) is not None


@pytest.mark.parametrize("what", ["removed", "damaged"])
def test_an_index_that_is_lost_while_it_is_searched(ledger: str, cache: Cache, what: str) -> None:
    with ForkedDaemon(Path(ledger)):
        check_indexed(cache)
    if what == "removed":
        file_of(ledger).unlink()
    else:
        with closing(sqlite3.connect(file_of(ledger))) as handle, handle:
            handle.execute("UPDATE words_data SET block = x'00'")
    found = words.check(cache, QUERIES)
    assert (found.is_complete, found.indexed_here) == (True, 200)


def numbered(cache: Cache) -> list[int]:
    """The events that are found by their own number."""
    return [number for number in range(1, 201) if number in event_ids(cache.search(f"n{number}", mode="words"))]


def event_ids(found: Any) -> list[int]:
    return [hit.event_id for hit in found]


def test_damage_under_a_running_daemon_ends_with_the_next_verification(ledger: str, cache: Cache) -> None:
    with ForkedDaemon(Path(ledger)):
        check_indexed(cache)
        with closing(sqlite3.connect(file_of(ledger))) as handle, handle:
            handle.execute(words.DAMAGE)
        with connect(ledger) as other:
            # An error would be noticed at once.
            assert len(numbered(other)) < 200
            assert cache.verify().ok
            until(lambda: len(numbered(other)) == 200, "it is made anew")
        # `other` may have met the file while it was made, and leaves it alone for a while.
        check_indexed(cache)
        # What is sound stays.
        sound = file_of(ledger).stat().st_ino
        assert cache.verify().ok
        check_indexed(cache)
        assert file_of(ledger).stat().st_ino == sound


def test_an_index_is_opened_beside_a_reader(ledger: str, cache: Cache) -> None:
    with ForkedDaemon(Path(ledger)):
        check_indexed(cache)
    with closing(sqlite3.connect(file_of(ledger), isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM words").fetchone() == (200,)
        with ForkedDaemon(Path(ledger)):
            check_indexed(cache)


def test_other_kinds_and_none(ledger: str, cache: Cache) -> None:
    cache.append("note", "a garden of n7", {})
    with ForkedDaemon(Path(ledger), "--word-kinds", "note"):
        index(ledger)
        assert [hit.event_id for hit in cache.search("n7", mode="words")] == [201]
        cache.append("note", "another n7", {})
        assert {hit.event_id for hit in cache.search("n7", mode="words")} == {201, 202}
    with ForkedDaemon(Path(ledger), "--word-kinds", "none"):
        index(ledger)
        assert not file_of(ledger).exists()
        words.check(cache, QUERIES)
    with ForkedDaemon(Path(ledger)):
        check_indexed(cache)


def test_on_both_sides_of_a_fork(ledger: str, cache: Cache) -> None:
    with ForkedDaemon(Path(ledger)):
        check_indexed(cache)
        pid = os.fork()
        if pid == 0:
            try:
                words.check(cache, QUERIES)
                cache.append("user", "the child's n7", {})
                words.check(cache, QUERIES)
                os._exit(0)
            except BaseException:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        words.check(cache, QUERIES)
        check_indexed(cache)


def test_a_copy_of_a_running_instance_is_not_believed(ledger: str, cache: Cache, tmp_path: Path) -> None:
    with ForkedDaemon(Path(ledger)):
        check_indexed(cache)
        copy = tmp_path / "copy"
        copy.mkdir()
        shutil.copytree(f"{ledger}-cache", copy / "l.db-cache", ignore=shutil.ignore_patterns("*.sock"))
        ledgers.execute(ledger, "VACUUM INTO ?", str(copy / "l.db"))
    with connect(copy / "l.db") as other:
        assert words.check(other, QUERIES).indexed_here == 200


@pytest.mark.skipif(not IS_ROOT, reason="another user can be made by root only")
@pytest.mark.parametrize("when", ["running", "stopped", "killed"])
def test_a_member_of_the_group_reads_it(open_folder: Path, when: str) -> None:
    path = open_folder / "l.db"
    with EventLog(path) as log:
        log.append_many(messages(1, 50))
    ledgers.execute(path, "PRAGMA journal_mode = delete")
    os.chown(path, -1, GROUP)
    path.chmod(0o640)
    daemon = ForkedDaemon(path)
    index(str(path))
    if when == "stopped":
        daemon.stop()
    elif when == "killed":
        daemon.kill()
    try:
        ended = daemons.run_python(AS_MEMBER, str(path), str(GROUP), str(OTHER))
        assert ended.returncode == 0, ended.stderr
        assert json.loads(ended.stdout) == [[7], True, 0]
    finally:
        daemon.kill()


def test_a_writer_within_a_commit_holds_up_no_search_for_long(
    ledger: str, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WORD_INDEX_WAIT_S", 0.05)
    with ForkedDaemon(Path(ledger)):
        check_indexed(cache)
    with connect(ledger) as other:
        holder = sqlite3.connect(file_of(ledger), isolation_level=None)
        try:
            holder.execute("BEGIN EXCLUSIVE")
            began = time.monotonic()
            assert words.check(other, QUERIES).indexed_here == 200
            assert time.monotonic() - began < 2.0
        finally:
            holder.close()


def test_a_reader_that_is_stopped_holds_up_only_the_index(ledger: str, cache: Cache) -> None:
    with ForkedDaemon(Path(ledger)):
        check_indexed(cache)
        holder = sqlite3.connect(f"file:{file_of(ledger)}?mode=ro", uri=True, isolation_level=None)
        holder.execute("BEGIN")
        holder.execute("SELECT count(*) FROM state").fetchall()
        cache.append_many(messages(201, 10))
        assert cache.wait_for(210) >= 210
        words.check(cache, QUERIES)
        until(lambda: "locked" in (problem(cache) or ""), "the daemon says so")
        words.check(cache, QUERIES)
        holder.close()
        until(lambda: problem(cache) is None, "it goes on", 30.0)
        check_indexed(cache)


def problem(cache: Cache) -> str | None:
    numbers: Any = cache.stats()["daemon"]
    found: str | None = numbers["words"]["problem"]
    return found


def test_two_processes_search_while_the_daemon_indexes(ledger: str, cache: Cache) -> None:
    with ForkedDaemon(Path(ledger)):
        pid = os.fork()
        if pid == 0:
            try:
                for _ in range(8):
                    cache.append_many(messages(random.randrange(10_000), 20))
                    words.check(cache, QUERIES[:2])
                os._exit(0)
            except BaseException:
                os._exit(1)
        ended = (0, 0)
        while ended == (0, 0):
            with connect(ledger) as other:
                other.search("garden", mode="words")
            ended = os.waitpid(pid, os.WNOHANG)
        assert os.waitstatus_to_exitcode(ended[1]) == 0
        check_indexed(cache)
