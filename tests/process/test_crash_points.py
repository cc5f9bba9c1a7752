"""A process dies at each crash point in turn: nothing that was acknowledged is lost, and the next start is correct.

The process is a real one, under a workload that leads it to the point; a point that none of these reaches fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

from pmm_shm import limits
from pmm_shm.crash_points import POINTS
from pmm_shm.errors import DaemonAbsentError, DaemonError, EmbedderError, SnapshotUnavailableError
from pmm_shm.instance.paths import Instance
from pmm_shm.store.environment import close, open_reader
from pmm_shm.store.layout import GENERATION_PREFIX, HEADER_KEY, Header
from pmm_shm.wire import protocol
from pmm_shm_client import EventLog, commands, connect
from tests.support import ledgers, words
from tests.support.answers import everything, replayed
from tests.support.crash import die_at
from tests.support.daemons import until
from tests.support.fork_daemon import ForkedDaemon
from tests.support.forking import in_child
from tests.support.search_oracle import blob, expected, index, stored

DEADLINE_S = 20.0
WORDS = ["event", "7", "12", "80"]
SMALL_MAP = ("--map-size", str(1 << 16))
MODES = {
    ".": 0o2700, "data.mdb": 0o640, "lock.mdb": 0o660, "daemon.lock": 0o600, "boot.json": 0o640,
    "endpoints.json": 0o640, "words.db": 0o640, "words.db-journal": 0o640
}  # fmt: skip


# What a process is doing when it dies.


@dataclass
class World:
    """A ledger, and what its writers were told.

    Attributes:
        contents: of the acknowledged events; each must be there once.
        options: of every daemon.
        is_edited: somebody has changed rows, so that the chain is broken.
    """

    ledger: str
    point: str
    time_of: int
    contents: list[str] = field(default_factory=list)
    options: tuple[str, ...] = ()
    is_edited: bool = False

    @property
    def instance(self) -> Instance:
        return Instance.of(self.ledger)

    def victim(self, *options: str) -> ForkedDaemon:
        return ForkedDaemon(
            Path(self.ledger),
            *("--verify-every", "0", *self.options, *options),
            dies_at=(self.point, self.time_of),
            log=self.ledger + ".log",
        )

    def append(self, count: int = 4, size: int = 10) -> None:
        with EventLog(self.ledger) as log:
            log.append_many(some_events(len(self.contents), count, size, self.contents))

    def until_dead(self, victim: ForkedDaemon, act: Callable[[], None] = lambda: None) -> None:
        """Act again and again until the point is reached."""
        deadline = time.monotonic() + DEADLINE_S
        with victim:
            while victim.is_alive:
                assert time.monotonic() < deadline, f"{self.point} is not reached for the {self.time_of}. time"
                with contextlib.suppress(DaemonError, EmbedderError):
                    act()
                victim.join(0.005)
            assert victim.join(0) == -signal.SIGKILL, Path(self.ledger + ".log").read_text(encoding="utf-8")

    def command(self, command: str) -> None:
        commands.call(self.instance, command, {"fold": None}, 0.1)


def some_events(start: int, count: int, size: int, contents: list[str]) -> list[tuple[str, str, dict[str, object]]]:
    """Events of all kinds that matter; their contents are new ones, and noted."""
    events: list[tuple[str, str, dict[str, object]]] = []
    for number in range(start, start + count):
        content = f"event {number} " + "x" * size
        contents.append(content)
        kinds: list[tuple[str, dict[str, object]]] = [
            ("user", {}),
            ("commitment_open", {"cid": f"c{number}", "text": "t" * size}),
            ("trait_update", {"trait": "o", "delta": 0.001}),
            ("autonomy_tick", {"telemetry": {"IAS": 0.5, "GAS": 0.25}, "stage": "S1"}),
            ("autonomy_directive", {"source": "reply"}),
            ("commitment_close", {"cid": f"c{number - 4}"}),
        ]
        kind, meta = kinds[number % len(kinds)]
        events.append((kind, content, meta))
    return events


def starting(world: World) -> None:
    """A daemon's first start."""
    shutil.rmtree(world.instance.directory)
    world.until_dead(world.victim())


def starting_on_a_longer_log(world: World) -> None:
    """A first start that has more vectors than a tail holds."""
    shutil.rmtree(world.instance.directory)
    # One of six has a vector.
    world.append(8 * limits.VECTOR_TAIL_ROWS)
    world.until_dead(world.victim())


def starting_where_paths_are_long(world: World) -> None:
    """A first start that has to put its sockets elsewhere."""
    folder = Path(world.ledger).with_name("l" * 100)
    folder.mkdir()
    with EventLog(world.ledger) as log:
        log.close()
    os.rename(world.ledger, folder / "ledger.db")
    shutil.rmtree(world.instance.directory)
    world.ledger = str(folder / "ledger.db")
    world.until_dead(world.victim())


def starting_again(world: World) -> None:
    """A start upon what another daemon has left, and on with what comes."""
    world.append()
    world.until_dead(world.victim(), world.append)


def starting_after_a_power_loss(world: World) -> None:
    world.instance.boot_file.write_text(json.dumps({"boot_id": "another", "clean": False}))
    world.until_dead(world.victim())


def following(world: World) -> None:
    """Commits one after the other."""
    world.until_dead(world.victim(), lambda: world.append(1))


def stopping(world: World) -> None:
    """SIGTERM to a daemon that serves."""
    victim = world.victim()

    def act() -> None:
        commands.call(world.instance, protocol.PING, {}, 1.0)
        os.kill(victim.pid, signal.SIGTERM)

    world.until_dead(victim, act)


def growing(world: World) -> None:
    """More state than the map holds."""
    world.options = SMALL_MAP
    world.until_dead(world.victim(), lambda: world.append(20, 2_000))


def growing_in_a_rebuild(world: World) -> None:
    world.append(150, 1_000)
    world.options = SMALL_MAP
    shutil.rmtree(world.instance.directory)
    world.until_dead(world.victim())


def rebuilding(world: World) -> None:
    """A rebuild beside what is published, while events come."""

    def act() -> None:
        world.append(1)
        world.command(protocol.INVALIDATE)

    world.until_dead(world.victim(), act)


def verifying(world: World) -> None:
    """A verification that passes, of more than one block of rows."""
    world.append(1_100)
    world.until_dead(world.victim(), lambda: world.command(protocol.VERIFY))


def finding_an_edit(world: World) -> None:
    """A verification that fails."""
    world.is_edited = True
    ledgers.execute(world.ledger, """UPDATE events SET meta = '{"trait": "o", "delta": 0.04}' WHERE id = 3""")
    world.until_dead(world.victim(), lambda: world.command(protocol.VERIFY))


def meeting_another_log(world: World) -> None:
    """The newest event is gone: what is published is of another history."""
    ledgers.execute(world.ledger, "DELETE FROM events WHERE id = (SELECT max(id) FROM events)")
    world.contents.pop()
    world.append(2)
    world.until_dead(world.victim())


def storing_texts(world: World) -> None:
    """Workers embed texts."""
    count = 0

    def act() -> None:
        nonlocal count
        count += 1
        with connect(world.ledger) as cache:
            cache.embed(f"text {count}")

    world.until_dead(world.victim(), act)


def shrinking_texts(world: World) -> None:
    """A start with a smaller bound than what is stored."""
    with serving(world), connect(world.ledger) as cache:
        cache.embed_many([f"text {number}" for number in range(10)])
    world.options = ("--text-vectors-max", "3")
    world.until_dead(world.victim())


def importing(world: World) -> None:
    """The ledger has a table of embeddings."""
    ledgers.execute(
        world.ledger, "CREATE TABLE event_embeddings (eid INTEGER PRIMARY KEY, embedding BLOB, created_at REAL)"
    )
    for event_id in (1, 2, 7):
        ledgers.execute(
            world.ledger, "INSERT INTO event_embeddings VALUES (?, ?, ?)", event_id, blob(1.0, event_id, 0.5), event_id
        )
    world.until_dead(world.victim())


def _append_until_dead(ledger: str, dies_at: tuple[str, int], told: str) -> None:
    """A writer that notes each batch before it appends, and each that was acknowledged."""
    notes = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    number = 0
    with EventLog(ledger, timeout=5.0) as log:
        die_at(*dies_at)
        for size in (1, 3, 1, 5) * 100:
            batch = [f"own {number + place}" for place in range(size)]
            number += size
            os.write(notes, (json.dumps(["begun", batch]) + "\n").encode())
            log.append_many([("user", content, {}) for content in batch])
            os.write(notes, (json.dumps(["acknowledged", batch]) + "\n").encode())


def _kill_a_writer(world: World) -> None:
    told = world.ledger + ".told"
    process = in_child(_append_until_dead, world.ledger, (world.point, world.time_of), told)
    process.join(DEADLINE_S)
    assert process.exitcode == -signal.SIGKILL, process.exitcode
    notes = [json.loads(line) for line in Path(told).read_text(encoding="utf-8").splitlines()]
    acknowledged = [content for what, batch in notes if what == "acknowledged" for content in batch]
    world.contents += acknowledged
    assert notes[-1][0] == "begun"
    if world.point == "append.committed":
        world.contents += notes[-1][1]
    else:
        gone = {row[0] for row in ledgers.execute(world.ledger, "SELECT content FROM events")}
        assert not gone & set(notes[-1][1]), "what was not committed is there"


def appending(world: World) -> None:
    """A writer, without a daemon."""
    _kill_a_writer(world)


def appending_beside_a_daemon(world: World) -> None:
    with serving(world):
        _kill_a_writer(world)


def appending_to_a_rollback_journal(world: World) -> None:
    ledgers.execute(world.ledger, "PRAGMA journal_mode = delete")
    with serving(world):
        _kill_a_writer(world)


def _create_and_die(ledger: str, dies_at: tuple[str, int]) -> None:
    die_at(*dies_at)
    EventLog(ledger).close()


def creating(world: World) -> None:
    """A process makes a ledger; another one, later, does the same and goes on."""
    shutil.rmtree(world.instance.directory)
    world.ledger += "-new"
    world.contents = []
    process = in_child(_create_and_die, world.ledger, (world.point, world.time_of))
    process.join(DEADLINE_S)
    assert process.exitcode == -signal.SIGKILL, process.exitcode
    world.append(10)


class Case(NamedTuple):
    """Where a process dies, and doing what.

    Attributes:
        time_of: when the point is reached for which time.
        is_kept: the next daemon goes on from what was published; otherwise it may rebuild.
    """

    point: str
    time_of: int
    work: Callable[[World], None]
    is_kept: bool

    def __str__(self) -> str:
        return f"{self.point}-{self.time_of}-{self.work.__name__}"


def _cases() -> Iterator[Case]:
    def both(name: str, time_of: int, work: Callable[[World], None], is_kept: bool) -> Iterator[Case]:
        for when in ("inside", "committed"):
            yield Case(f"{name}.{when}", time_of, work, is_kept)

    # The ledger's writers.
    for point in ("append.inside", "append.committed"):
        yield Case(point, 1, appending, True)
        yield Case(point, 6, appending_beside_a_daemon, True)
        yield Case(point, 2, appending_to_a_rollback_journal, True)
    for point in ("opened", "journal", "inside", "committed"):
        yield Case(f"create_ledger.{point}", 1, creating, False)
    # The start.
    for point in (
        "instance.made",
        "instance.opened",
        "daemon_lock.opened",
        "daemon_lock.locked",
        "daemon_lock.emptied",
    ):
        yield Case(point, 1, starting, False)
    yield Case("daemon_lock.written", 1, starting, False)
    for point in ("opened", "locked", "emptied", "written"):
        yield Case(f"daemon_lock.{point}", 1, starting_again, True)
    yield Case("socket_directory.made", 1, starting_where_paths_are_long, False)
    for point in ("before", "data_removed", "removed"):
        yield Case(f"remove_environment.{point}", 1, starting_after_a_power_loss, False)
    for point in ("before", "made", "written", "renamed"):
        # The records that a first start writes: that the store is in use, and the sockets.
        yield Case(f"replace_file.{point}", 1, starting, False)
        yield Case(f"replace_file.{point}", 2, starting, False)
        # Another one says first that it opens the store: from then on, until it has, the next one makes it anew.
        yield Case(f"replace_file.{point}", 1, starting_again, point != "renamed")
        yield Case(f"replace_file.{point}", 2, starting_again, point == "renamed")
        yield Case(f"replace_file.{point}", 3, starting_again, True)
        yield Case(f"replace_file.{point}", 4, stopping, True)
    for point in (
        "open_environment.before",
        "open_environment.data_made",
        "open_environment.files_made",
        "open_environment.opened",
        "open.inside",
        "open.committed",
    ):
        for work in (starting, starting_again, starting_after_a_power_loss):
            yield Case(point, 1, work, False)
    for point in ("synced", "closed", "marked"):
        yield Case(f"close.{point}", 1, stopping, True)
    for socket in (1, 2, 3):
        yield Case("socket.before", socket, starting_again, True)
        yield Case("socket.bound", socket, starting_again, True)
    yield from both("text_vectors.count", 1, starting_again, True)
    yield from both("text_vectors.evict", 1, shrinking_texts, True)
    yield from both("indexer.served", 1, starting_again, True)
    yield from both("event_vectors.open", 1, starting, True)
    yield Case("words.made", 1, starting, True)
    yield from both("words", 1, starting, True)
    yield from both("words", 3, following, True)
    # The follower, and the tables behind it.
    yield from both("publish", 1, starting_again, True)
    yield from both("publish", 4, following, True)
    yield from both("event_vectors.block", 1, starting_on_a_longer_log, True)
    yield from both("event_vectors.apply", 1, starting, True)
    yield from both("event_vectors.apply", 3, following, True)
    yield from both("imports.seen", 1, importing, True)
    yield from both("text_vectors.put", 1, storing_texts, True)
    yield from both("text_vectors.put", 3, storing_texts, True)
    # Rebuilds.
    for work in (starting, rebuilding):
        is_kept = work is rebuilding
        yield from both("begin_generation", 1, work, is_kept)
        yield from both("begin_generation", 4, work, is_kept)
        yield from both("flush_shadow", 1, work, is_kept)
        yield from both("flush_shadow", 2, work, is_kept)
        yield Case("flip.before_last_flush", 1, work, is_kept)
        yield Case("flip.flushed", 1, work, is_kept)
        yield Case("flip.inside", 1, work, is_kept)
        yield Case("flip.committed", 1, work, True)
        yield Case("flip.adopted", 1, work, True)
    # The first one is that of the start, which finds nothing.
    yield from both("delete_old_generation", 2, rebuilding, True)
    yield from both("delete_old_generation", 6, rebuilding, True)
    # Verification, and other logs.
    yield from both("put_seals", 1, verifying, True)
    yield Case("void.inside", 1, finding_an_edit, True)
    yield Case("void.committed", 1, finding_an_edit, False)
    for work in (finding_an_edit, meeting_another_log):
        yield from both("end_history", 1, work, False)
        for name in ("event_vectors.clear", "imports.forget", "indexer.history_ended"):
            # The rebuild runs beside it, and may be done.
            yield from both(name, 1, work, False)
    # The map.
    for point in ("grow.before", "grow.grown"):
        yield Case(point, 1, growing_in_a_rebuild, False)
        yield Case(point, 1, growing, True)
        yield Case(point, 2, growing, True)


CASES = list(_cases())


@pytest.fixture(scope="module")
def template() -> Iterator[tuple[Path, list[str]]]:
    """A ledger of some events with the instance that a stopped daemon has left, to be copied; and the contents."""
    with tempfile.TemporaryDirectory() as place:
        contents: list[str] = []
        world = World(f"{place}/ledger.db", "", 1, contents)
        world.append(60)
        with serving(world):
            index(world.ledger)
        yield Path(place), contents


@contextlib.contextmanager
def serving(world: World) -> Iterator[ForkedDaemon]:
    """A daemon that has published the head, and is stopped in the end."""
    with ForkedDaemon(Path(world.ledger), "--verify-every", "0", *world.options, log=world.ledger + ".log") as daemon:
        wait_published(world)
        yield daemon
        assert daemon.stop() == 0


def wait_published(world: World) -> None:
    head = ledgers.execute(world.ledger, "SELECT max(id) FROM events")[0][0]
    answer = commands.call(world.instance, protocol.WAIT, {"event_id": head, "timeout_ms": 20_000}, 25.0)
    assert answer["reached"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_process_dies_at(case: Case, template: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as place:
        monkeypatch.setenv("XDG_RUNTIME_DIR", place)
        folder = Path(place) / "w"
        shutil.copytree(template[0], folder)
        world = World(str(folder / "ledger.db"), case.point, case.time_of, list(template[1]))
        case.work(world)
        check_ledger(world)
        if case.point == "void.inside":
            find_the_edit_again(world)
        published = check_without_a_daemon(world)
        check_the_next_daemon(world, published, case.is_kept)
        check_ledger(world)


def test_every_point_has_a_case() -> None:
    # Those of a replica are in test_cluster.py.
    assert {case.point for case in CASES} == {point for point in POINTS if not point.startswith("replica.")}


def check_ledger(world: World) -> None:
    """The chain is linear, and each acknowledged event is there, once."""
    with EventLog(world.ledger) as log:
        found = [event["content"] for event in log.read_all()]
        report = log.verify_chain()
    assert sorted(found) == sorted(world.contents)
    assert report.ok or world.is_edited, report


def check_without_a_daemon(world: World) -> int | None:
    """Exact reads are, and what is published is of one position. Returns this; None where nothing is."""
    with connect(world.ledger) as cache, connect(world.ledger, consistency="snapshot") as snapshot:
        assert everything(cache) == replayed(world.ledger)
        words.check(cache, WORDS)
        try:
            frame = snapshot.frame()
        except SnapshotUnavailableError:
            return None
        return frame.as_of


def find_the_edit_again(world: World) -> None:
    """Nobody was told of the edit: the next verification finds it, and then a rebuild replaces what is published."""
    with serving(world), connect(world.ledger) as cache:
        assert not cache.verify().ok
        until(lambda: commands.call(world.instance, protocol.STATS, {}, 5.0)["rebuilds"], "the rebuild")


def check_the_next_daemon(world: World, published: int | None, is_kept: bool) -> None:
    """It answers, publishes the head, replays no more than it must, and cleans up."""
    with (
        serving(world) as daemon,
        connect(world.ledger) as cache,
        connect(world.ledger, consistency="snapshot") as snapshot,
    ):
        numbers = commands.call(world.instance, protocol.STATS, {}, 5.0)
        if is_kept:
            assert published is not None
            missed = ledgers.execute(world.ledger, "SELECT count(*) FROM events WHERE id > ?", published)[0][0]
            assert numbers["rebuilds"] == 0
            assert numbers["events_folded"] <= missed
        assert everything(cache) == everything(snapshot) == replayed(world.ledger)
        world.append(1)
        wait_published(world)
        assert everything(snapshot) == everything(cache) == replayed(world.ledger)
        assert cache.verify().ok
        index(world.ledger)
        assert words.check(cache, WORDS).indexed_here == 0
        for model, rows in stored(world.ledger).items():
            assert rows == expected(world.ledger, model), model
        until(lambda: not _left_over(world), "what a killed daemon left behind is deleted")
        assert not cache.stats()["daemon"]["problem"]
        assert daemon.is_alive
    assert modes(world.instance.directory) == MODES
    with pytest.raises(DaemonAbsentError):
        commands.call(world.instance, protocol.PING, {}, 1.0)
    # A job may take longer than a stop waits for it, on a busy machine: that is said, and harms nothing.
    is_clean = json.loads(world.instance.boot_file.read_text())["clean"]
    assert is_clean or "without the mark of a clean shutdown" in Path(world.ledger + ".log").read_text(encoding="utf-8")


def modes(directory: Path) -> dict[str, int]:
    """What is there, with the directory itself, and who may use it."""
    paths = {".": directory, **{path.name: path for path in directory.iterdir()}}
    return {name: stat.S_IMODE(path.stat().st_mode) for name, path in paths.items()}


def _left_over(world: World) -> set[int]:
    """Generations that are not live."""
    environment = open_reader(world.instance.directory)
    assert environment is not None
    try:
        with environment.read() as records, records.cursor() as cursor:
            header = Header.unpack(records.get(HEADER_KEY) or b"")
            keys = [key for key, _ in cursor if key[:1] == GENERATION_PREFIX]
    finally:
        close(environment)
    return {int.from_bytes(key[1:], "big") for key in keys} - {entry[2] for entry in header.folds.values()}


def test_a_rebuild_that_dies_again_and_again_leaves_one_generation_at_most(template: tuple[Path, list[str]]) -> None:
    """The next start deletes what the one before has begun."""
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(template[0], Path(place) / "w")
        world = World(f"{place}/w/ledger.db", "flip.flushed", 1, list(template[1]))
        sizes = []
        for _ in range(4):
            rebuilding(world)
            sizes.append(len(_left_over(world)))
        assert set(sizes) == {sizes[0]}
        check_the_next_daemon(world, check_without_a_daemon(world), True)


def test_a_hot_journal_of_a_dead_writer_is_sqlites_to_roll_back(template: tuple[Path, list[str]]) -> None:
    """A writer that died with pages already in the ledger: they are gone again for everybody."""
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(template[0], Path(place) / "w")
        world = World(f"{place}/w/ledger.db", "append.inside", 1, list(template[1]))
        connection = sqlite3.connect(world.ledger)
        connection.execute("PRAGMA journal_mode = delete")
        connection.close()
        process = in_child(_append_much_and_die, world.ledger)
        process.join(DEADLINE_S)
        assert process.exitcode == -signal.SIGKILL
        assert os.path.exists(world.ledger + "-journal")
        check_ledger(world)
        check_the_next_daemon(world, check_without_a_daemon(world), True)


def _append_much_and_die(ledger: str) -> None:
    die_at("append.inside", 1)
    with EventLog(ledger) as log:
        # More than SQLite's cache: pages are written before the commit.
        log.append_many([("user", f"lost {number} " + "y" * 10_000, {}) for number in range(600)])
