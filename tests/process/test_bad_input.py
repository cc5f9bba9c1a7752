"""Wrong files, wrong settings, wrong messages: one clear line, and nothing created or damaged."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

import pmm_cached.main
from pmm_shm import limits
from pmm_shm.errors import (
    ConfigError,
    LedgerError,
    LedgerNotFoundError,
    NotALedgerError,
    PmmShmError,
    UnknownFoldError,
)
from pmm_shm.wire import protocol
from pmm_shm.wire.endpoints import Endpoints, find_endpoints
from pmm_shm_client import EventLog, build_self_model_cached, connect, get_or_compute_ias_gas
from tests.conftest import StartDaemon
from tests.support import answers, daemons, ledgers
from tests.support.daemons import Daemon
from tests.support.messages import one_line
from tests.support.privileges import as_nobody

FAILURE, USAGE = 1, 2


# Files that are no ledgers.


def make_text(path: Path) -> None:
    path.write_text("this is no database, however long it may be\n" * 100, encoding="utf-8")


def make_short_text(path: Path) -> None:
    path.write_bytes(b"xy")


def make_cut_header(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 84)


def make_other_database(path: Path) -> None:
    ledgers.execute(path, "CREATE TABLE other (id INTEGER PRIMARY KEY)")


def make_without_columns(path: Path) -> None:
    ledgers.execute(path, "CREATE TABLE events (id INTEGER PRIMARY KEY, ts TEXT, kind TEXT)")


def make_empty(path: Path) -> None:
    path.touch()


def make_database_without_tables(path: Path) -> None:
    ledgers.execute(path, "PRAGMA user_version = 3")


def make_directory(path: Path) -> None:
    path.mkdir()


def make_nothing(path: Path) -> None:
    """Nothing stands there."""


def make_dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("absent"))


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


REFUSED_BY_ALL = {
    "text": (make_text, NotALedgerError, "not a database"),
    "short text": (make_short_text, NotALedgerError, "not a database"),
    "cut header": (make_cut_header, NotALedgerError, ""),
    "no events table": (make_other_database, NotALedgerError, "`events`"),
    "missing columns": (make_without_columns, NotALedgerError, "content, meta"),
    "directory": (make_directory, NotALedgerError, "not a regular file"),
    "pipe": (make_pipe, NotALedgerError, "not a regular file"),
}
REFUSED_BY_READERS = {
    "empty": (make_empty, NotALedgerError, "empty"),
    "no tables": (make_database_without_tables, NotALedgerError, "without tables"),
    "missing": (make_nothing, LedgerNotFoundError, "no such file"),
    "dangling link": (make_dangling_link, LedgerNotFoundError, "no such file"),
}
ALL = REFUSED_BY_ALL | REFUSED_BY_READERS


def listing(folder: Path) -> dict[str, str]:
    """Every path below `folder`, with the digest of each file; read by another process, for SQLite's locks' sake."""
    code = (
        "import hashlib, json, os, sys\n"
        "found = {}\n"
        "for where, folders, files in os.walk(sys.argv[1]):\n"
        "    for name in folders: found[os.path.join(where, name)] = 'folder'\n"
        "    for name in files:\n"
        "        path = os.path.join(where, name)\n"
        "        is_file = os.path.isfile(path) and not os.path.islink(path)\n"
        "        found[path] = hashlib.sha256(open(path, 'rb').read()).hexdigest() if is_file else 'special'\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(folder)], capture_output=True, text=True, check=True, timeout=30
    )
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", ALL)
def test_connect_refuses_what_is_no_ledger_and_leaves_it_alone(tmp_path: Path, case: str) -> None:
    make, error, part = ALL[case]
    path = tmp_path / "ledger.db"
    make(path)
    before = listing(tmp_path)
    for autostart in (False, True):
        with pytest.raises(error) as caught:
            connect(path, autostart=autostart)
        one_line(caught.value, "absent" if case == "dangling link" else str(path), part)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("case", REFUSED_BY_ALL)
def test_an_event_log_refuses_what_it_cannot_make_a_ledger_of(tmp_path: Path, case: str) -> None:
    make, error, part = ALL[case]
    path = tmp_path / "ledger.db"
    make(path)
    before = listing(tmp_path)
    with pytest.raises(error) as caught:
        EventLog(path)
    one_line(caught.value, str(path), part)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("case", ALL)
def test_pmm_cached_refuses_what_is_no_ledger_with_exit_code_1(tmp_path: Path, case: str) -> None:
    make, _, part = ALL[case]
    path = tmp_path / "ledger.db"
    make(path)
    before = listing(tmp_path)
    done = daemons.run_daemon(str(path))
    assert (done.returncode, done.stdout) == (FAILURE, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("pmm-cached: ")
    assert part in done.stderr
    assert listing(tmp_path) == before


@pytest.mark.parametrize("path", ["", ":memory:", "file:ledger.db", "led\0ger.db"])
def test_a_path_that_is_not_of_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    for action in (EventLog, connect):
        with pytest.raises(ConfigError) as caught:
            action(path)
        one_line(caught.value)
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("folder", ["absent", "ledger.db"])
def test_a_ledger_below_what_is_no_folder_is_refused(ledger: str, folder: str) -> None:
    path = Path(ledger).with_name(folder) / "inner.db"
    before = listing(Path(ledger).parent)
    for action in (EventLog, connect):
        with pytest.raises(LedgerError) as caught:
            action(path)
        one_line(caught.value, str(path))
    assert daemons.run_daemon(str(path)).returncode == FAILURE
    assert listing(Path(ledger).parent) == before


def test_a_folder_that_is_missing_is_not_taken_for_one_without_permission(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"no such directory: .*/absent; make it first"):
        EventLog(tmp_path / "absent" / "ledger.db")


def test_a_line_break_in_a_path_does_not_break_the_line(tmp_path: Path) -> None:
    done = daemons.run_daemon(str(tmp_path / "two\nlines.db"))
    assert (done.returncode, done.stderr) == (FAILURE, f"pmm-cached: {tmp_path}/two lines.db: no such file\n")


def test_damage_in_the_middle_of_a_ledger_is_one_of_our_errors(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with EventLog(path) as log:
        log.append_many([("commitment_open", "", {"cid": cid, "text": "t" * 100}) for cid in range(1, 501)])
    ledgers.execute(path, "PRAGMA journal_mode = delete")
    with open(path, "r+b") as file:
        file.seek(8 * 4096)
        file.write(b"\xff" * 8 * 4096)
    before = listing(tmp_path)
    with connect(path) as cache, pytest.raises(LedgerError) as caught:
        cache.frame()
    one_line(caught.value, str(path))
    assert listing(tmp_path) == before


# Permissions: root may do everything, so another user tries.


def protect(folder: Path, ledger: Path) -> None:
    ledger.chmod(0o444)
    folder.chmod(0o555)


def test_an_unwritable_folder_can_be_read_and_neither_created_in_nor_appended_in(open_folder: Path) -> None:
    path = open_folder / "ledger.db"
    ledgers.build(path, 3, journal="delete")
    protect(open_folder, path)
    before = listing(open_folder)
    read = as_nobody("read", path)
    assert (read.stdout, read.stderr, read.returncode) == ("3 3\n", "", 0)
    for action, target in (("append", path), ("create", open_folder / "new.db"), ("autostart", path)):
        done = as_nobody(action, target)
        assert (done.returncode, done.stderr) == (3, "")
        assert len(done.stdout.splitlines()) == 1
        assert str(target) in done.stdout
    daemon = as_nobody("pmm-cached", path)
    assert (daemon.returncode, daemon.stdout) == (FAILURE, "")
    assert len(daemon.stderr.splitlines()) == 1
    assert "PMM_SHM_DIR" in daemon.stderr
    open_folder.chmod(0o755)
    assert listing(open_folder) == before


def test_a_ledger_that_may_not_be_read_is_a_clear_error(open_folder: Path) -> None:
    path = open_folder / "ledger.db"
    ledgers.build(path, 3, journal="delete")
    path.chmod(0o000)
    done = as_nobody("read", path)
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.startswith("LedgerUnreadableError: ")
    assert str(path) in done.stdout
    daemon = as_nobody("pmm-cached", path)
    assert (daemon.returncode, len(daemon.stderr.splitlines())) == (FAILURE, 1)
    assert {entry.name for entry in open_folder.iterdir()} == {"ledger.db"}


def test_readers_of_another_user_do_without_a_snapshot_they_cannot_open(
    open_folder: Path, start_daemon: StartDaemon
) -> None:
    path = open_folder / "ledger.db"
    ledgers.build(path, 3, journal="delete")
    start_daemon(str(path))
    done = as_nobody("read", path)
    assert (done.stdout, done.stderr, done.returncode) == ("3 3\n", "", 0)


# Settings.


@pytest.mark.parametrize("flag", ["PMM_USE_PROJECTION_CACHE", "PMM_USE_METRICS_CACHE", "PMM_USE_EMBEDDING_CACHE"])
def test_pmm_cached_refuses_a_wrong_flag_with_exit_code_2(ledger: str, flag: str) -> None:
    before = listing(Path(ledger).parent)
    done = daemons.run_daemon(ledger, env=daemons.environment(**{flag: "sometimes"}))
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert done.stderr == f"pmm-cached: {flag}: expected true or false, got 'sometimes'\n"
    assert listing(Path(ledger).parent) == before


@pytest.mark.parametrize("flag", ["PMM_USE_PROJECTION_CACHE", "PMM_USE_METRICS_CACHE"])
def test_clients_refuse_a_wrong_flag(ledger: str, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    monkeypatch.setenv(flag, "sometimes")
    before = listing(Path(ledger).parent)
    drop_in = build_self_model_cached if "PROJECTION" in flag else get_or_compute_ias_gas
    with EventLog(ledger) as log:
        for action in (lambda: connect(ledger), lambda: drop_in(log)):
            with pytest.raises(ConfigError) as caught:
                action()
            one_line(caught.value, flag, "'sometimes'")
    assert {path for path in listing(Path(ledger).parent) if not path.endswith(("-wal", "-shm"))} == set(before)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "PMM_DB"),
        ([""], "empty text"),
        (["LEDGER", "extra"], "extra"),
        (["LEDGER", "--nonsense"], "--nonsense"),
        (["LEDGER", "--verify-every", "-1"], "--verify-every"),
        (["LEDGER", "--verify-every", "often"], "--verify-every"),
        (["LEDGER", "--verify-budget", "0"], "--verify-budget"),
        (["LEDGER", "--verify-budget", "1.5"], "--verify-budget"),
        (["LEDGER", "--slow-poll-ms", "0"], "--slow-poll-ms"),
        (["LEDGER", "--map-size", "1"], "--map-size"),
        (["LEDGER", "--log-level", "loud"], "--log-level"),
    ],
)
def test_pmm_cached_refuses_wrong_usage_with_exit_code_2(
    ledger: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    part: str,
) -> None:
    before = listing(Path(ledger).parent)
    arguments = [ledger if argument == "LEDGER" else argument for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["pmm-cached", *arguments])
    with pytest.raises(SystemExit) as caught:
        pmm_cached.main.main()
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (USAGE, "")
    assert part in err
    assert (err[:12], err.count("\n")) == ("pmm-cached: ", 1)
    assert listing(Path(ledger).parent) == before


@pytest.mark.parametrize("option", ["--embedder", "--folds"])
def test_pmm_cached_refuses_an_unknown_name_with_exit_code_2(ledger: str, option: str) -> None:
    done = daemons.run_daemon(ledger, option, "nosuch")
    assert done.returncode == USAGE
    assert (done.stderr.startswith("pmm-cached: "), done.stderr.count("\n")) == (True, 1)
    assert "'nosuch'" in done.stderr


def test_pmm_cached_answers_help_and_version() -> None:
    for option in ("--help", "--version"):
        done = daemons.run_daemon(option)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout


def test_pmm_cached_takes_the_ledger_of_PMM_DB(ledger: str) -> None:
    make_text(Path(ledger).with_name("text.db"))
    done = daemons.run_daemon(env=daemons.environment(PMM_DB=ledger.replace("ledger.db", "text.db")))
    assert done.returncode == FAILURE
    assert "text.db" in done.stderr


@pytest.mark.parametrize("name", ["nope", "", "decode", "Metrics", "x" * 1_000, "self_model\n"])
def test_an_unknown_fold_is_refused(ledger: str, name: str) -> None:
    before = set(listing(Path(ledger).parent))
    with connect(ledger) as cache, pytest.raises(UnknownFoldError) as caught:
        cache.fold(name)
    assert "no fold" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path for path in listing(Path(ledger).parent) if not path.endswith(("-wal", "-shm"))} == before


# The store.


@pytest.mark.parametrize(
    ("name", "garbage"),
    [
        ("data.mdb", b""),
        ("data.mdb", b"\xff" * 10_000),
        ("endpoints.json", b"{}"),
        ("endpoints.json", b"\xff"),
        ("boot.json", b"[1, 2"),
    ],
)
def test_garbage_in_the_instance_directory_neither_breaks_reads_nor_the_next_daemon(
    ledger: str, start_daemon: StartDaemon, name: str, garbage: bytes
) -> None:
    with EventLog(ledger) as log:
        log.append("identity_adopt", "Ada", {})
    daemon = start_daemon(ledger)
    daemon.stop()
    target = daemon.instance.directory / name
    replacement = target.with_name("garbage")
    replacement.write_bytes(garbage)
    replacement.replace(target)
    with connect(ledger) as cache:
        assert cache.identity().name == "Ada"
        with pytest.raises(PmmShmError):
            cache.wait_for(100, 0.1)
        start_daemon(ledger)
        cache.wait_for(cache.append("identity_adopt", "Eve", {}), 30.0)
        assert answers.everything(cache) == answers.replayed(ledger)
        assert cache.verify().as_of == 2


def test_a_daemon_that_cannot_publish_says_so_and_goes_on_when_there_is_room(
    ledger: str, start_daemon: StartDaemon
) -> None:
    """A limit on the size of files stands for a full disk."""
    with EventLog(ledger) as log, connect(ledger) as cache:
        log.append("identity_adopt", "Ada", {})
        daemon = start_daemon(ledger)
        room = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
        size = (daemon.instance.directory / "data.mdb").stat().st_size
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (size + 65_536, room[1]))
        text = "t" * 300
        ids = log.append_many([("commitment_open", "", {"cid": cid, "text": text}) for cid in range(1, 2_001)])
        numbers = daemons.until(lambda: (found := daemon.stats())["health"] == "degraded" and found)
        assert str(daemon.instance.directory) in numbers["problem"]
        assert numbers["as_of"] < ids[-1]
        assert len(cache.commitments().open) == 2_000
        assert cache.identity(consistency="snapshot").name == "Ada"
        with pytest.raises(PmmShmError):
            cache.invalidate()
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, room)
        cache.wait_for(ids[-1], 30.0)
        daemons.until(lambda: daemon.stats()["health"] == "healthy", "the daemon has recovered")
        assert cache.verify()
        assert answers.everything(cache) == answers.replayed(ledger)


def test_a_rebuild_that_fails_shows_in_the_stats(tmp_path: Path, start_daemon: StartDaemon) -> None:
    path = str(tmp_path / "ledger.db")
    with EventLog(path) as log:
        text = "t" * 300
        log.append_many([("commitment_open", "", {"cid": cid, "text": text}) for cid in range(1, 2_001)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        daemon = start_daemon(path, wait=False, forked=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    daemons.until(daemon.answers)
    numbers = daemons.until(lambda: (found := daemon.stats())["health"] == "degraded" and found)
    assert numbers["problem"].startswith("rebuild failed: ")
    assert not numbers["is_published"]
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, before)
    daemon.wait_ready()
    daemons.until(lambda: daemon.stats()["problem"] is None, "the daemon has recovered")


# Messages.


def request(**changes: Any) -> bytes:
    """A good ping, but for the changes; None removes."""
    message = {"v": protocol.VERSION, "id": 7, "ledger": [1, 1], "command": "ping", "args": {}, **changes}
    packed: bytes = msgpack.packb({key: value for key, value in message.items() if value is not None})
    return packed


MALFORMED: dict[str, list[bytes]] = {
    "nothing": [b""],
    "garbage": [b"\xff\xfe\xfd garbage \x00" * 20],
    "half a message": [request()[:-3]],
    "a message and more": [request() + b"\x00"],
    "JSON": [b'{"v": 2, "id": 7, "ledger": null, "command": "ping", "args": {}}'],
    "no map": [msgpack.packb([1, 7, "ping", {}])],
    "a number": [msgpack.packb(7)],
    "two frames": [request(), request()],
    "three frames": [b"", request(), b""],
    "an empty frame before": [b"", request()],
    "another version": [request(v=protocol.VERSION + 1)],
    "no version": [request(v=None)],
    "a version of text": [request(v="2")],
    "an unknown command": [request(command="shutdown")],
    "a long unknown command": [request(command="x" * 10_000)],
    "a command of another type": [request(command=1)],
    "a command of bytes": [request(command=b"ping")],
    "no command": [request(command=None)],
    "an id of text": [request(id="7")],
    "a negative id": [request(id=-1)],
    "an id that is true": [request(id=True)],
    "no id": [request(id=None)],
    "args of another type": [request(args=[1])],
    "no args": [request(args=None)],
    "no ledger": [request(ledger=None)],
    "a ledger of text": [request(ledger="agent.db")],
    "a ledger of one number": [request(ledger=[1])],
    "a ledger of negative numbers": [request(ledger=[-1, 1])],
    "args that a ping has not": [request(args={"x": 1})],
    "wait without args": [request(command="wait")],
    "wait for text": [request(command="wait", args={"event_id": "1", "timeout_ms": 1})],
    "wait for a float": [request(command="wait", args={"event_id": 1.5, "timeout_ms": 1})],
    "wait for a negative time": [request(command="wait", args={"event_id": 1, "timeout_ms": -1})],
    "wait for years": [request(command="wait", args={"event_id": 1, "timeout_ms": 10**15})],
    "wait with one too many": [request(command="wait", args={"event_id": 1, "timeout_ms": 1, "x": 1})],
    "deep nesting": [b"\x91" * 5_000 + b"\xc0"],
    "a length that is a lie": [b"\xdf\xff\xff\xff\xff"],
    "an extension": [request(args={"x": msgpack.ExtType(5, b"x")})],
    "as large as may be": [b"\xc1" * limits.MESSAGE_BYTES_MAX],
    "verify on the ordinary socket": [request(command="verify", args={"fold": None})],
    "invalidate on the ordinary socket": [request(command="invalidate", args={"fold": None})],
}
ADMIN_MALFORMED = {
    "verify without args": [request(command="verify")],
    "verify a number": [request(command="verify", args={"fold": 1})],
    "verify an empty name": [request(command="verify", args={"fold": ""})],
    "invalidate a long name": [request(command="invalidate", args={"fold": "x" * 65})],
    "an unknown command": [request(command="eval", args={"fold": "__import__('os')"})],
    "garbage": [b"\x00\x01\x02"],
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon that all malformed messages go to: it has to survive them one after the other."""
    path = str(tmp_path_factory.mktemp("served") / "ledger.db")
    EventLog(path).close()
    # Without the periodic verification, so that nothing but messages changes its numbers.
    daemon = Daemon(path, "--verify-every", "0")
    try:
        daemon.wait_ready()
        yield daemon
    finally:
        daemon.kill()


def send(path: str, frames: list[bytes], deadline_s: float = daemons.DEADLINE_S) -> Any:
    """The daemon's answer to raw frames."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect("ipc://" + path)
        dealer.send_multipart(frames)
        assert dealer.poll(int(deadline_s * 1_000)), "no answer"
        return msgpack.unpackb(dealer.recv())


def check_refused(daemon: Daemon, path: Callable[[Endpoints], str], frames: list[bytes]) -> None:
    before = daemon.stats()
    answer = send(path(find_endpoints(daemon.instance)), frames)
    assert (answer["ok"], answer["error"]["code"]) == (False, "malformed")
    assert len(answer["error"]["message"]) <= 1_000
    after = daemon.stats()
    assert after["malformed_messages"] == before["malformed_messages"] + 1
    # This look at the stats itself, and nothing else.
    assert after["commands"] == before["commands"] + 1
    assert (after["rebuilds"], after["verifications_passed"]) == (before["rebuilds"], before["verifications_passed"])


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_message_is_answered_counted_and_does_nothing(served: Daemon, case: str) -> None:
    check_refused(served, lambda endpoints: endpoints.commands, MALFORMED[case])


@pytest.mark.parametrize("case", ADMIN_MALFORMED)
def test_a_malformed_administrative_message_does_nothing(served: Daemon, case: str) -> None:
    check_refused(served, lambda endpoints: endpoints.admin, ADMIN_MALFORMED[case])


def test_a_message_over_the_limit_costs_its_sender_the_connection(served: Daemon) -> None:
    with pytest.raises(AssertionError, match="no answer"):
        send(find_endpoints(served.instance).commands, [b"\x00" * (limits.MESSAGE_BYTES_MAX + 1)], 0.2)
    with connect(served.instance.ledger) as cache:
        event_id = cache.append("debug", "", {})
        assert cache.wait_for(event_id, 30.0) >= event_id


def test_bytes_that_are_not_even_the_transports_are_survived(served: Daemon) -> None:
    endpoints = find_endpoints(served.instance)
    for path in (endpoints.commands, endpoints.admin, endpoints.announcements):
        for data in (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(4_096), b"\xff" + b"\0" * 8 + b"\x7f"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
                raw.connect(path)
                try:
                    raw.sendall(data)
                except OSError:
                    continue
    with connect(served.instance.ledger) as cache:
        assert cache.verify()
        assert cache.stats()["daemon"]["pid"] == served.pid


def test_a_flood_of_garbage_keeps_nobody_from_being_served(served: Daemon) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect("ipc://" + find_endpoints(served.instance).commands)
        before = served.stats()["malformed_messages"]
        for number in range(3_000):
            try:
                dealer.send(b"garbage %d" % number, zmq.NOBLOCK)
            except zmq.Again:
                pass
        with connect(served.instance.ledger) as cache:
            event_id = cache.append("debug", "", {})
            assert cache.wait_for(event_id, 30.0) >= event_id
        daemons.until(lambda: served.stats()["malformed_messages"] > before + 500)
    assert len(served.log.read_text(encoding="utf-8").splitlines()) < 200


# A second daemon.


def test_a_second_daemon_exits_and_the_first_goes_on(ledger: str, start_daemon: StartDaemon) -> None:
    first = start_daemon(ledger)
    link = Path(ledger).with_name("link.db")
    link.symlink_to(ledger)
    for path in (ledger, str(link)):
        done = daemons.run_daemon(path)
        assert (done.returncode, done.stdout) == (FAILURE, "")
        assert len(done.stderr.splitlines()) == 1
        assert f"pid {first.pid}" in done.stderr
        assert ledger in done.stderr
    with connect(ledger) as cache:
        event_id = cache.append("identity_adopt", "Ada", {})
        assert cache.wait_for(event_id, 30.0) == event_id
        assert cache.stats()["daemon"]["pid"] == first.pid
        assert cache.verify()


def test_a_daemon_takes_over_from_a_killed_one(ledger: str, start_daemon: StartDaemon) -> None:
    start_daemon(ledger).kill()
    second = start_daemon(ledger)
    with connect(ledger) as cache:
        event_id = cache.append("identity_adopt", "Ada", {})
        assert cache.wait_for(event_id, 30.0) == event_id
        assert cache.stats()["daemon"]["pid"] == second.pid


def test_the_ledger_is_never_written_by_daemon_and_readers(tmp_path: Path, start_daemon: StartDaemon) -> None:
    path = ledgers.build(tmp_path / "ledger.db", 30, journal="delete")
    before = hashlib.sha256(ledgers.read_bytes(path)).hexdigest()
    daemon = start_daemon(path)
    with connect(path) as cache:
        cache.frame()
        cache.invalidate()
        assert cache.verify()
    daemon.stop()
    assert hashlib.sha256(ledgers.read_bytes(path)).hexdigest() == before
