"""Which edit of the ledger is found by what: real edits by another process, and the table of the page that says so.

What finds an edit: the *anchor* (the next exact read, and the daemon by itself), the ledger's own hash *chain*
(`EventLog.verify_chain`), the *seals* (`verify`, by the daemon or, without one, by the client).
"""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pmm_cached import maintenance
from pmm_cached.follower import Follower, all_folds
from pmm_cached.logs import configure
from pmm_cached.settings import Settings
from pmm_cached.status import Status
from pmm_shm import errors
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.projection.cursor import LogChanged
from pmm_shm.projection.verification import VerifyReport
from pmm_shm.store.writer import StoreWriter
from pmm_shm_client import Cache, connect
from tests.conftest import StartDaemon
from tests.support import ledgers
from tests.support.answers import everything, replayed
from tests.support.command import run
from tests.support.daemons import Daemon, environment, until

PAGE = ledgers.ROOT / "docs" / "RELIABILITY.md"
NEVER = ("--verify-every", "0")
EARLY, MIDDLE, NEWEST = 10, 150, 303
IN_THE_SECOND_BLOCK, IN_THE_LAST_BLOCK = 1_500, 2_400
PLACES = (EARLY, MIDDLE, NEWEST, IN_THE_SECOND_BLOCK, IN_THE_LAST_BLOCK)
FORMULAS: dict[str, str | None] = {"full": "full", "content": "content", "no chain": None}
WRONG_HASH = "0" * 64


# Edits.

EDITS = {
    "`id`, the order kept": "UPDATE events SET id = :id - 1 WHERE id = :id",
    "`id`, the order changed": "UPDATE events SET id = -:id WHERE id = :id",
    "`ts`": "UPDATE events SET ts = '2031-01-01T00:00:00+00:00' WHERE id = :id",
    "`kind`": "UPDATE events SET kind = 'user' WHERE id = :id",
    "`content`": "UPDATE events SET content = 'edited' WHERE id = :id",
    "`meta`, another value": """UPDATE events SET meta = '{"source": "reply"}' WHERE id = :id""",
    "`meta`, white space only": """UPDATE events SET meta = '{"source":   "user"}' WHERE id = :id""",
    "`prev_hash`": f"UPDATE events SET prev_hash = '{WRONG_HASH}' WHERE id = :id",
    "`hash`": f"UPDATE events SET hash = '{WRONG_HASH}' WHERE id = :id",
    "a further column": "UPDATE events SET note = 'edited' WHERE id = :id",
    "a row removed": "DELETE FROM events WHERE id = :id",
    "a row without a hash added": (
        "INSERT INTO events (id, ts, kind, content, meta) VALUES (:id - 1, 't', 'autonomy_directive', 'added', '{}')"
    ),
}
ADDED = "a row without a hash added"
OF_THE_CHAIN = ("`prev_hash`", "`hash`")


class Case(NamedTuple):
    """One edit of the event `event_id`, in a ledger with this chain."""

    formula: str
    edit: str
    event_id: int

    @property
    def where(self) -> str:
        return "newest" if self.event_id == NEWEST else "past"


CASES = [
    Case(formula, edit, event_id)
    for formula in FORMULAS
    for edit in EDITS
    for event_id in (EARLY, MIDDLE, NEWEST)
    if not (formula == "no chain" and edit in OF_THE_CHAIN) and not (edit == ADDED and event_id == NEWEST)
]


def build(path: Path, count: int, formula: str | None) -> str:
    """`count` events, with a gap before each id that is edited; these are of a kind whose every column a fold reads."""
    connection = ledgers.connect(path)
    connection.execute("PRAGMA journal_mode = wal")
    ledgers.make_table(connection, hash_columns=formula is not None)
    connection.execute("ALTER TABLE events ADD COLUMN note TEXT DEFAULT 'as it was'")
    previous, event_id = None, 0
    connection.execute("BEGIN")
    for _ in range(count):
        event_id += 2 if event_id + 2 in PLACES else 1
        row: dict[str, Any] = {
            "id": event_id,
            "ts": ledgers.TS.format(event_id),
            "kind": "autonomy_directive" if event_id in PLACES else ("user", "autonomy_tick", "note")[event_id % 3],
            "content": f"content {event_id}",
            "meta": {"source": "user"},
        }
        if formula is not None:
            row["prev_hash"] = previous
            row["hash"] = previous = ledgers.reference_hash(formula, row)
        row["meta"] = json.dumps(row["meta"])
        names = ", ".join(row)
        connection.execute(f"INSERT INTO events ({names}) VALUES ({', '.join('?' * len(row))})", tuple(row.values()))
    connection.execute("COMMIT")
    connection.close()
    return str(path)


class Editor:
    """Another process, which edits a ledger with plain SQLite and keeps it open."""

    CODE = """
import json, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
for line in sys.stdin:
    connection.execute("BEGIN IMMEDIATE")
    for sql, values in json.loads(line):
        connection.execute(sql, values)
    connection.execute("COMMIT")
    print("done", flush=True)
"""

    def __init__(self, path: str) -> None:
        self._path = path
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.CODE, path],
            env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def edit(self, case: Case) -> Callable[[], None]:
        """Make an edit. Returns what undoes it."""
        connection = ledgers.connect(self._path)
        connection.row_factory = sqlite3.Row
        row = dict(connection.execute("SELECT * FROM events WHERE id = ?", (case.event_id,)).fetchone())
        connection.close()
        self._run([EDITS[case.edit], {"id": case.event_id}])
        ids = {"is": case.event_id, "before": case.event_id - 1, "minus": -case.event_id}
        marks = ", ".join(f":{name}" for name in row)
        return lambda: self._run(
            ["DELETE FROM events WHERE id IN (:is, :before, :minus)", ids],
            [f"INSERT INTO events ({', '.join(row)}) VALUES ({marks})", row],
        )

    def _run(self, *statements: list[Any]) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(statements) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


class Edited(NamedTuple):
    """A ledger with what edits it; `daemon` is None where only its last snapshot is there."""

    path: str
    editor: Editor
    daemon: Daemon | None


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Edited]]:
    """The ledger of one formula and size, verified and sealed, with a running daemon or a stopped one; made once."""
    made: dict[tuple[str, int, bool], Edited] = {}

    def get(formula: str, count: int = 300, *, served: bool) -> Edited:
        key = (formula, count, served)
        if key not in made:
            path = build(tmp_path_factory.mktemp("l") / "ledger.db", count, FORMULAS[formula])
            daemon = Daemon(path, *NEVER)
            made[key] = Edited(path, Editor(path), daemon if served else None)
            daemon.wait_ready()
            with connect(path) as cache:
                assert cache.verify().folds
            if not served:
                assert daemon.stop() == 0
        return made[key]

    yield get
    for one in made.values():
        one.editor.close()
        if one.daemon is not None:
            one.daemon.kill()


# What found it.

BLOCK = re.compile(r"^a row among the events (-?\d+) to (\d+) was changed, added or removed")
GONE = "event {}, the newest that was folded, is gone or has changed"


def blocks_of(path: str) -> list[tuple[int, int]]:
    """(first id, last id) of each block of rows, the newest one as far as it goes."""
    ids = [row[0] for row in ledgers.execute(path, "SELECT id FROM events ORDER BY id")]
    return [(ids[start], ids[start : start + 1_024][-1]) for start in range(0, len(ids), 1_024)]


def named_block(report: VerifyReport) -> tuple[int, int]:
    """The ids in the difference of a report, which is one line."""
    assert report.difference is not None
    assert "\n" not in report.difference
    found = BLOCK.match(report.difference)
    assert found, report.difference
    return int(found[1]), int(found[2])


def check_difference(case: Case, report: VerifyReport, block: tuple[int, int], bad_id: int | None) -> None:
    """The report names the block, and the event at which the chain is broken, where it is."""
    first_id, last_id = block
    assert named_block(report) == (min(first_id, -case.event_id) if "changed" in case.edit else first_id, last_id)
    assert ("the hash chain is broken at event" in str(report.difference)) == (bad_id is not None)
    assert bad_id is None or f"the hash chain is broken at event {bad_id}" in str(report.difference).split("; ")


def chain_says(case: Case, bad_id: int | None) -> list[str]:
    """The chain's part of a cell."""
    names = {case.event_id: "that event", case.event_id + 1: "the next event"}
    names |= {case.event_id - 1: "its new id", -case.event_id: "its new id"}
    return [] if bad_id is None else [f"chain ({names[bad_id]})"]


def first_bad_id(path: str) -> int | None:
    with EventLog(path) as log:
        return log.verify_chain().first_bad_id


def cells() -> dict[tuple[str, str, str], str]:
    """(edit, where, formula) to the cell of the page's table."""
    section = PAGE.read_text(encoding="utf-8").split("## Which edit is found by what\n")[1].split("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line[:2] == "| "]
    table = [[cell.strip() for cell in line] for line in lines if len(line) == 5]
    assert table[0] == ["edited", "where", *FORMULAS]
    return {
        (row[0], row[1], formula): cell
        for row in table[1:]
        if not row[0].startswith("---")
        for formula, cell in zip(FORMULAS, row[2:], strict=True)
    }


def seal_again(cache: Cache) -> None:
    """Until everything is published, verified and sealed: what was undone is a change as any other."""
    head = ledgers.execute(cache.path, "SELECT max(id) FROM events")[0][0]

    def is_sealed() -> bool:
        report = cache.verify()
        return report.ok and bool(report.folds) and report.as_of == head

    until(is_sealed, "what is published is verified and sealed again")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.formula}-{case.edit}-{case.event_id}")
def test_an_edit_beside_a_daemon_is_found_by_what_the_page_says(case: Case, edited: Callable[..., Edited]) -> None:
    """And exact reads equal a full replay as soon as it was noticed."""
    path, editor, daemon = edited(case.formula, served=True)
    assert daemon is not None
    block = blocks_of(path)[0]
    with connect(path) as cache, connect(path, consistency="snapshot") as published:
        before, numbers = everything(cache), daemon.stats()
        undo = editor.edit(case)
        bad_id = first_bad_id(path)
        found = chain_says(case, bad_id)
        if case.where == "newest":
            # At once, whether the daemon has noticed or not; and the daemon by itself.
            assert everything(cache) == replayed(path)
            until(lambda: daemon.stats()["history_breaks"] == numbers["history_breaks"] + 1, "the break is noticed")
            difference = GONE.format(NEWEST) + "; the ledger was replaced, cut or edited"
            assert daemon.stats()["last_difference"] == difference
            found.insert(0, "anchor")
        else:
            report = cache.verify()
            assert not report.ok
            check_difference(case, report, block, bad_id)
            assert daemon.stats()["last_difference"] == report.difference
            assert everything(cache) == replayed(path)
            if everything(cache) != before:
                assert "; fold " in str(report.difference)
            found.append("seal (its block)")
        until(lambda: daemon.stats()["rebuilds"] > numbers["rebuilds"] and daemon.stats()["is_published"])
        assert everything(cache) == everything(published) == replayed(path)
        assert cells()[case.edit, case.where, case.formula] == ", ".join(found)
        if case.where == "past":
            assert daemon.stats()["history_breaks"] == numbers["history_breaks"]
        undo()
        seal_again(cache)
        assert everything(cache) == replayed(path) == before


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.formula}-{case.edit}-{case.event_id}")
def test_an_edit_without_a_daemon_is_found_by_what_the_page_says(case: Case, edited: Callable[..., Edited]) -> None:
    """The snapshot rests; the client verifies, and then does without it."""
    path, editor, _ = edited(case.formula, served=False)
    block = blocks_of(path)[0]
    with connect(path) as cache:
        before = everything(cache)
        assert cache.verify().sealed_blocks == 1
        assert cache._reader.replays == 0
        undo = editor.edit(case)
        bad_id = first_bad_id(path)
        found = chain_says(case, bad_id)
        if case.where == "newest":
            assert everything(cache) == replayed(path)
            assert cache._reader.replays == 1
            assert cache.verify().difference == GONE.format(NEWEST)
            found.insert(0, "anchor")
        else:
            report = cache.verify()
            assert not report.ok
            check_difference(case, report, block, bad_id)
            found.append("seal (its block)")
        answers = everything(cache)
        assert answers == replayed(path)
        if case.where == "past" and answers != before:
            assert "; fold " in str(cache.verify().difference)
        assert cells()[case.edit, case.where, case.formula] == ", ".join(found)
        undo()
    with connect(path) as cache:
        assert cache.verify().ok
        assert everything(cache) == before


def test_the_table_is_complete() -> None:
    """Every edit of the tests is in it and no other; nothing is found by nobody."""
    table = cells()
    expected = {(case.edit, case.where, formula) for case in CASES for formula in FORMULAS}
    assert set(table) == expected
    for (edit, where, formula), cell in table.items():
        if formula == "no chain" and edit in OF_THE_CHAIN:
            assert cell == "no such column"
        else:
            assert ("anchor" in cell) if where == "newest" else ("seal" in cell)


# Full blocks.

LARGE = 2_500
LARGE_EDITS = ("`ts`", "`meta`, white space only", "`id`, the order kept", "a row removed", ADDED)


@pytest.mark.parametrize("served", [True, False], ids=["daemon", "alone"])
def test_the_block_that_was_edited_is_named(served: bool, edited: Callable[..., Edited]) -> None:
    """Two full blocks and an unfinished one: the edit is in the block that is named, and in no other."""
    path, editor, _ = edited("content", LARGE, served=served)
    blocks = blocks_of(path)
    assert blocks == [(1, 1_027), (1_028, 2_052), (2_053, 2_505)]
    for edit in LARGE_EDITS if not served else LARGE_EDITS[1:3]:
        for event_id, block in zip((EARLY, IN_THE_SECOND_BLOCK, IN_THE_LAST_BLOCK), blocks, strict=True):
            case = Case("content", edit, event_id)
            with connect(path) as cache:
                undo = editor.edit(case)
                check_difference(case, cache.verify(), block, first_bad_id(path))
                assert everything(cache) == replayed(path)
                undo()
                if served:
                    seal_again(cache)


@pytest.mark.parametrize("count", [1, 1_023, 1_024, 1_025])
def test_a_seal_grows_with_its_block(count: int, tmp_path: Path, start_daemon: StartDaemon) -> None:
    """One row, one too few for a full block, a full block, one more: nothing is unsealed, before and after it grew."""
    path = build(tmp_path / "ledger.db", count, None)
    start_daemon(path, *NEVER)
    with connect(path) as cache:
        for turn in range(3):
            head = cache.append("note", f"turn {turn}")
            cache.wait_for(head)
            assert cache.verify().ok
            blocks = blocks_of(path)
            assert cache.verify().sealed_blocks == len(blocks)
            # The newest but one: the newest has an anchor.
            ids = [row[0] for row in ledgers.execute(path, "SELECT id FROM events ORDER BY id DESC LIMIT 2")]
            block = next(block for block in blocks if block[0] <= ids[1] <= block[1])
            ledgers.execute(path, "UPDATE events SET note = 'edited' WHERE id = ?", ids[1])
            assert named_block(cache.verify()) == block
            seal_again(cache)


# What no seal covers yet.


def test_what_is_newer_than_the_last_verification_has_no_seal(tmp_path: Path, start_daemon: StartDaemon) -> None:
    """The page says who finds an edit of it: the chain, a fold that reads it, or nobody."""
    path = build(tmp_path / "ledger.db", 300, "content")
    daemon = start_daemon(path, *NEVER)
    with connect(path) as cache:
        assert cache.verify().ok
        verified = daemon.stats()["verified_as_of"]
        edited = cache.append("autonomy_directive", "be brief", {"source": "user"})
        cache.append("note", "the newest")
        cache.wait_for(edited + 1)
        assert verified == edited - 1
        text = ledgers.execute(path, "SELECT meta FROM events WHERE id = ?", edited)[0][0]

        def edit(column: str, value: str) -> VerifyReport:
            ledgers.execute(path, f"UPDATE events SET {column} = ? WHERE id = ?", value, edited)
            return cache.verify()

        # By nobody. What finds it later is the seal that the next verification makes: of the row as it is then.
        assert edit("meta", text.replace(":", ":   ")).ok
        assert first_bad_id(path) is None
        assert named_block(edit("meta", text))[1] == edited + 1
        until(lambda: daemon.stats()["rebuilds"] == 2 and daemon.stats()["is_published"])
        # No seal is left: a fold finds what it reads, and the chain what it covers.
        assert daemon.stats()["verified_as_of"] == 0
        assert str(edit("content", "be long").difference).startswith("fold directives: ")
        assert first_bad_id(path) == edited
        until(lambda: everything(cache) == replayed(path))


# Breaks of history.


def test_a_break_of_history_is_counted_told_and_sealed_anew(tmp_path: Path, start_daemon: StartDaemon) -> None:
    """While the daemon runs, and while it did not; a verification afterwards says that all is well."""
    path = build(tmp_path / "ledger.db", 300, "full")
    with connect(path) as cache:
        everything(cache)
        daemon = start_daemon(path)
        until(lambda: daemon.stats()["verified_as_of"] == NEWEST, "the first verification")
        for turn in range(2):
            if turn:
                assert daemon.stop() == 0
            ledgers.execute(path, "UPDATE events SET note = ? WHERE id = ?", f"turn {turn}", NEWEST)
            if turn:
                daemon = start_daemon(path)
            until(lambda d=daemon: d.stats()["history_breaks"] == 1, "the break is noticed")
            # By itself: nobody appends a thousand events.
            until(lambda d=daemon: d.stats()["verified_as_of"] == NEWEST, "what is there now is verified and sealed")
            assert cache.verify().ok
            numbers = daemon.stats()
            difference = GONE.format(NEWEST) + "; the ledger was replaced, cut or edited"
            assert (numbers["history_breaks"], numbers["last_difference"]) == (1, difference)
            assert (numbers["verifications_failed"], numbers["sealed_blocks"]) == (0, 1)
            lines = [json.loads(line) for line in daemon.log.read_text(encoding="utf-8").splitlines()]
            warnings = [line for line in lines if line["level"] == "warning"]
            assert [(line["event"], line["difference"]) for line in warnings] == [("history broken", difference)]
            assert everything(cache) == replayed(path)


class Workshop:
    """The daemon's maintenance in this process, with everything published: a test may step in between."""

    def __init__(self, path: str, verify_every_events: int = 0) -> None:
        instance = Instance.of(path)
        instance.directory.mkdir()
        self.status, self.flips, self.resets = Status(path), 0, 0
        self.standstill = threading.Lock()
        self.writer = StoreWriter(instance)
        self.follower = Follower(path, self.writer, all_folds(), self.status)
        self.maintenance = maintenance.Maintenance(
            path, self.writer, self.follower, self.follower.missing(), self.status,
            Settings(verify_every_events=verify_every_events),
            configure("json", "error"), self.standstill, self._flipped, self._reset, lambda: None, lambda reason: None,
        )  # fmt: skip
        self.maintenance.start()
        self.maintenance.rebuild(None, "nothing is published")
        until(lambda: self.flips == 1, "everything is published")

    def _flipped(self) -> None:
        self.flips += 1

    def _reset(self) -> None:
        self.resets += 1

    def seals(self) -> list[Any]:
        """The seals that are kept."""
        with self.writer.snapshot() as snapshot:
            return list(snapshot.seals())

    def verify(self) -> None:
        """Verify everything, and wait for it."""
        done = threading.Event()
        self.maintenance.verify(None, lambda result, error: done.set())
        assert done.wait(30)

    def close(self) -> None:
        assert self.maintenance.stop(10)
        self.follower.close()
        self.writer.close()


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    """One with a ledger of 300 events."""
    made = Workshop(build(tmp_path / "ledger.db", 300, "full"))
    yield made
    made.close()


def test_a_log_that_is_cut_while_it_is_rebuilt_is_a_break_of_history(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rebuild of one fold notices what the follower has not come to notice yet."""
    path, status, run = workshop.status.ledger, workshop.status, maintenance.Rebuild.run

    def run_and_cut(rebuild: maintenance.Rebuild) -> None:
        run(rebuild)
        ledgers.execute(path, "DELETE FROM events WHERE id > 200")

    monkeypatch.setattr(maintenance.Rebuild, "run", run_and_cut)
    workshop.maintenance.rebuild("stage", "asked for")
    until(lambda: status.history_breaks == 1, "the break is noticed")
    assert status.last_difference == GONE.format(NEWEST) + "; the ledger was replaced, cut or edited"
    assert workshop.resets == 1
    until(lambda: workshop.flips == 3 and status.is_published, "what was asked for and everything are rebuilt")
    with connect(path, consistency="snapshot") as published:
        assert everything(published) == replayed(path)


def test_no_seal_outlives_its_history(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verification passes, and before it keeps its seals the history ends."""
    workshop.verify()
    assert len(workshop.seals()) == workshop.status.sealed_blocks == 1
    verify = maintenance.verify

    def verify_and_break(*arguments: Any) -> Any:
        verified = verify(*arguments)
        assert verified.report.ok
        assert verified.seals
        with workshop.standstill:
            workshop.maintenance.end_history()
        return verified

    monkeypatch.setattr(maintenance, "verify", verify_and_break)
    with EventLog(workshop.status.ledger) as log:
        log.append("note")
    with workshop.standstill:
        assert workshop.follower.step().rows == 1
    workshop.verify()
    assert (workshop.seals(), workshop.status.sealed_blocks, workshop.status.verified_as_of) == ([], 0, 0)
    monkeypatch.undo()
    until(lambda: workshop.flips == 2, "the rebuild")
    workshop.verify()
    assert len(workshop.seals()) == 1


# What fails again and again.


def test_a_rebuild_that_never_ends_is_put_off(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job is answered, others are done in between, and the attempts become rare."""
    attempts: list[float] = []

    def fail(_: maintenance.Rebuild) -> None:
        attempts.append(time.monotonic())
        raise LogChanged

    monkeypatch.setattr(maintenance, "_RETRY_S", 0.01)
    monkeypatch.setattr(maintenance, "_RETRY_S_MAX", 1.0)
    monkeypatch.setattr(maintenance.Rebuild, "run", fail)
    answers: list[str | None] = []
    workshop.maintenance.rebuild(None, "asked for", lambda result, error: answers.append(error))
    until(lambda: answers, "the answer")
    assert "has changed 5 times" in str(answers)
    assert str(workshop.status.rebuild_problem).startswith("rebuild failed")
    # A verification does not wait for it.
    workshop.verify()
    assert workshop.status.verifications_passed == 1
    began = time.monotonic()
    until(lambda: time.monotonic() > began + 1.5, "more attempts")
    assert len(attempts) <= 5 * 8
    monkeypatch.undo()
    # Solved: what has waited is done at once.
    workshop.maintenance.try_again()
    until(lambda: workshop.status.rebuild_problem is None, "the rebuild")
    assert workshop.flips == 2


def test_a_verification_that_fails_is_put_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[float] = []

    def fail(*_: Any) -> Any:
        attempts.append(time.monotonic())
        raise TypeError("no reason")

    monkeypatch.setattr(maintenance, "verify", fail)
    monkeypatch.setattr(maintenance, "_RETRY_S", 0.01)
    monkeypatch.setattr(maintenance, "_RETRY_S_MAX", 1.0)
    made = Workshop(build(tmp_path / "ledger.db", 300, "full"), verify_every_events=1)
    try:
        made.status.events_folded += 1
        made.maintenance.events_published()
        began = time.monotonic()
        until(lambda: time.monotonic() > began + 1.5, "more attempts")
        assert 3 <= len(attempts) <= 10
    finally:
        made.close()


def test_a_history_that_breaks_at_the_same_event_again_and_again(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rebuild that follows a break at once comes later, each time that it has not helped."""
    monkeypatch.setattr(maintenance, "_RETRY_S", 0.05)
    monkeypatch.setattr(maintenance, "_RETRY_S_MAX", 1.0)
    began = time.monotonic()
    for breaks in range(1, 6):
        with workshop.standstill:
            workshop.maintenance.end_history()
        until(lambda count=breaks: workshop.flips == 1 + count and workshop.follower.live, "the rebuild")
    # 0, 0.05, 0.1, 0.2 and 0.4 s.
    assert time.monotonic() - began > 0.7


# Without a daemon, and by hand.


def test_a_process_does_without_what_it_found_wrong(tmp_path: Path, start_daemon: StartDaemon) -> None:
    """Exact reads replay, and what is published is not given out; a daemon's rebuild brings it back."""
    path = build(tmp_path / "ledger.db", 300, "content")
    daemon = start_daemon(path, *NEVER)
    editor = Editor(path)
    with connect(path) as cache, connect(path) as other:
        seal_again(cache)
        assert daemon.stop() == 0
        before = everything(cache)
        editor.edit(Case("content", "`content`", EARLY))
        # Memos, tracks and snapshots of this process are of the wrong state; a verification of one fold is enough.
        assert everything(cache) == before
        cache.metrics(consistency="snapshot")
        report = cache.verify("stage")
        assert named_block(report) == (1, NEWEST)
        assert everything(cache) == replayed(path) != before
        assert cache._reader.replays == 1
        with pytest.raises(errors.SnapshotUnavailableError, match="found wrong"):
            cache.metrics(consistency="snapshot")
        # It cannot tell others.
        assert everything(other) == before
        daemon = start_daemon(path, "--verify-every", "1", "--verify-budget", "1")
        until(lambda: daemon.stats()["rebuilds"] == 1 and daemon.stats()["is_published"], "the daemon found it, too")
        assert everything(cache) == replayed(path) != before
        replays = cache._reader.replays
        appended = cache.append("user", "and goes on")
        daemon.wait_published(appended)
        assert cache.metrics(consistency="snapshot").as_of == appended
        assert everything(cache) == replayed(path)
        assert cache._reader.replays == replays
    editor.close()


def test_pmm_shm_verify_names_the_place_in_one_line(tmp_path: Path, start_daemon: StartDaemon) -> None:
    """Exit code 5; the block where only a seal tells, the event where the chain tells, and each once."""
    path = build(tmp_path / "ledger.db", 300, "content")
    start_daemon(path, *NEVER)
    block = f"a row among the events 1 to {NEWEST} was changed, added or removed"
    fold = f"fold directives: table 'texts', key 'content {EARLY}' differs from the replay"
    editor = Editor(path)
    for edit, places in (
        ("a further column", [block]),
        ("`meta`, another value", [block, f"the hash chain is broken at event {EARLY}", fold]),
    ):
        with connect(path) as cache:
            seal_again(cache)
        undo = editor.edit(Case("content", edit, EARLY))
        ended = run("verify", path)
        assert ended.code == 5
        assert ended.err == f"pmm-shm: {path}: what is published is wrong: {'; '.join(places)}\n"
        undo()
    editor.close()
