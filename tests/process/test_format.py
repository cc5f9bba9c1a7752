"""`docs/FORMAT.md` against what a daemon writes: decoded here by that page alone, with plain lmdb, msgpack and zmq."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import stat
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import pytest
import zmq

from tests.conftest import StartDaemon
from tests.support import ledgers
from tests.support.format_page import (
    PAGE,
    Pair,
    Socket,
    insert,
    store_of,
    value_of,
)

LONG_DIRECTIVE = "keep " * 200 + "going"
BIG = 1 << 80
FOLDS = {"self_model", "metrics", "stage", "directives", "recent", "history", "decode"}
META_OF = {"c-open": {"cid": "c-open", "text": "write", "big": BIG, "nan": float("nan"), "half": "\ud800"}}


# What the page says of keys and values, written down a second time.


class Part(NamedTuple):
    """Fold (or "any"), "cell" or "table", name."""

    fold: str
    sort: str
    name: str


def documented() -> set[Part]:
    rows = re.findall(r"^\| (?:`(\w+)`|(any)) \| (cell|table) \| `(\w+)` \|", PAGE, re.MULTILINE)
    return {Part(fold or everyone, sort, name) for fold, everyone, sort, name in rows}


def raw_rows(path: str) -> list[list[Any]]:
    connection = sqlite3.connect(path)
    try:
        columns = "id, ts, kind, content, meta, prev_hash, hash"
        return [list(row) for row in connection.execute(f"SELECT {columns} FROM events ORDER BY id")]
    finally:
        connection.close()


def digest(*rows: Any) -> bytes:
    return hashlib.blake2b(b"".join(map(msgpack.packb, rows)), digest_size=16).digest()


# A ledger that fills every part.


def fill(path: str) -> int:
    telemetry = {"telemetry": {"IAS": 0.5, "GAS": 0.25}, "stage": "S1"}
    return insert(
        path,
        *[("note", "é", {})] * 2_100,
        ("identity_adopt", " Echo ", {"confidence": 0.95}),
        ("trait_update", "", {"trait": "openness", "delta": 0.2}),
        ("commitment_open", "write", META_OF["c-open"]),
        ("commitment_open", "second", {"cid": BIG, "text": "second"}),
        ("commitment_open", "third", {"cid": 7, "text": "third"}),
        ("evidence_candidate", "", {"cid": "c-open"}),
        ("commitment_close", "", {"cid": 7}),
        ("commitment_expire", "", {"cid": BIG}),
        ("commitment_close", "", {"cid": [1]}),
        ("invariant_violation", "", {"code": "X", "details": {"commitment_id": 7}}),
        ("autonomy_tick", "", telemetry),
        ("reflection", "my name", telemetry),
        ("autonomy_directive", LONG_DIRECTIVE, {"source": "User", "origin_eid": 3}),
        ("user", "hello", {}),
        ("trait_update", "", "[not an object]"),
    )


@pytest.fixture
def published(ledger: str, start_daemon: StartDaemon) -> tuple[str, Path]:
    """(ledger, instance directory) of a daemon that has published, verified and sealed a filled ledger."""
    fill(ledger)
    daemon = start_daemon(ledger)
    with Socket(Path(f"{ledger}-cache"), "admin") as socket:
        assert socket.ask("verify", {"fold": None})["result"]["ok"]
    daemon.wait_published(insert(ledger, ("commitment_snooze", "", {"cid": "c-open", "until_tick": 9})))
    return ledger, Path(f"{ledger}-cache")


def test_header(published: tuple[str, Path]) -> None:
    path, directory = published
    store, rows = store_of(directory), raw_rows(path)
    header = store.header
    fields = set(re.findall(r"^\| `(\w+)` \|", PAGE.split("### Header")[1].split("###")[0], re.MULTILINE))
    assert set(header) == fields
    assert (header["format"], header["void"], len(header["uuid"])) == (2, False, 16)
    assert (header["event_id"], header["anchor"]) == (rows[-1][0], digest(rows[-1]))
    assert set(header["folds"]) == FOLDS
    assert header["next_generation"] > max(store.generations)
    for name, (version, parameters, generation) in header["folds"].items():
        assert (version, store.generations[generation]) == (1 if name == "decode" else 2, name)
        unpacked = value_of(parameters)
        if name == "self_model":
            assert unpacked == {"max_trait_delta": 0.05}
        elif name == "decode":
            kinds = [kind for kind, _ in unpacked["kinds"]]
            assert kinds == sorted(kinds)
            assert ["autonomy_directive", ["content", "meta"]] in unpacked["kinds"]
        else:
            assert unpacked == {}


def test_every_part_is_documented_and_every_documented_part_is_there(published: tuple[str, Path]) -> None:
    store = store_of(published[1])
    found = {Part(fold, "cell", name) for fold, name in store.cells}
    found |= {Part(fold, "table", name) for fold, name in store.tables}
    quarantined = {part for part in found if part.name == "quarantine"}
    assert {part.fold for part in quarantined} == {"self_model", "decode"}
    # There was no other stage.
    not_yet = {Part("history", "table", "stages")}
    assert (
        found - quarantined
        == {part for part in documented() if part.fold != "any" and not part.fold.startswith("pmm_")} - not_yet
    )
    assert {part for part in documented() if part.fold == "any"} == {
        Part("any", "cell", "quarantine"),
        Part("any", "table", "quarantine"),
    }


def test_states(published: tuple[str, Path]) -> None:
    path, directory = published
    store, first = store_of(directory), 2_101
    cells, tables = store.cells, store.tables
    assert cells["self_model", "identity"] == ["Echo", True]
    assert cells["self_model", "traits"] == [[0.7, 0.5, 0.5, 0.5, 0.5], [0.55, 0.5, 0.5, 0.5, 0.5]]
    place, meta = tables["self_model", "open"]["c-open"]
    assert place == 0
    # NaN is not equal to itself.
    assert repr(meta) == repr({**META_OF["c-open"], "snoozed_until": 9})
    assert list(tables["self_model", "open"]) == ["c-open"]
    expired = [3, {"text": "second", "expired_at": first + 7, "reason": "timeout"}]
    assert tables["self_model", "expired"] == {BIG: expired}
    assert tables["self_model", "evidence"] == {"c-open": True}
    assert tables["self_model", "warnings"] == {0: [7, first + 6]}
    assert cells["self_model", "commitments"] == [4, 1, [7, first + 6]]
    assert cells["self_model", "quarantine"] == len(tables["self_model", "quarantine"]) == 1
    assert tables["metrics", "penalties"] == {Pair(("X", "7")): True}
    assert tables["metrics", "opened_queue"][0] == [0, "write"]
    assert cells["metrics", "scores"][2:6] == [1, 0, "echo", 0]
    assert cells["stage", "pairs"] == [[0.5, 0.25], [0.5, 0.25]]
    ts = ledgers.TS.format(1)
    record = [ts, ts, first + 12, first + 12, 1, ["user"], 3, 1]
    assert tables["directives", "texts"] == {LONG_DIRECTIVE: record}
    assert tables["recent", "messages"] == {first + 13: [ts, "user", "hello"]}
    assert cells["recent", "telemetry"] == [first + 10, 0.5, 0.25, "S1"]
    assert tables["history", "names"] == {0: [first, "Echo"]}
    *counts, newest = cells["history", "course"]
    assert counts == [1, len(tables["history", "points"]), "S0", 0, 1]
    assert newest[:4] == [first + 11, first + 11, 1, "S0"]
    assert cells["history", "scores"] == cells["metrics", "scores"]
    ((event_id, reason),) = tables["decode", "quarantine"].values()
    assert (event_id, reason) == (first + 14, "meta: not JSON")
    assert raw_rows(path)[-1][0] == first + 15


def test_seals(published: tuple[str, Path]) -> None:
    path, directory = published

    def sealed(*blocks: list[list[Any]]) -> list[Any]:
        return [[block[0][0], block[-1][0], digest(*block)] for block in blocks]

    # One event more was published since the verification.
    rows = raw_rows(path)
    assert store_of(directory).seals == sealed(rows[:1_024], rows[1_024:2_048], rows[2_048:-1])
    with Socket(directory, "admin") as socket:
        assert socket.ask("verify", {"fold": None})["result"]["sealed_blocks"] == 3
        assert store_of(directory).seals == sealed(rows[:1_024], rows[1_024:2_048], rows[2_048:])
        # The block fills, and another begins.
        last = insert(path, *[("note", "", {})] * 1_000)
        assert socket.ask("wait", {"event_id": last, "timeout_ms": 30_000})["result"]["reached"]
        assert socket.ask("verify", {"fold": "stage"})["result"]["sealed_blocks"] == 3
        rows = raw_rows(path)
        assert store_of(directory).seals == sealed(rows[:1_024], rows[1_024:2_048], rows[2_048:3_072], rows[3_072:])


def test_touched_records(published: tuple[str, Path]) -> None:
    path, directory = published
    store = store_of(directory)
    newest = store.header["sequence"]
    assert store.touched[newest] == [raw_rows(path)[-2][0], {"self_model": [False, {"open": ["c-open"]}]}]


def test_at_most_256_touched_records(published: tuple[str, Path], start_daemon: StartDaemon) -> None:
    path, directory = published
    with Socket(directory, "commands") as socket:
        for _ in range(260):
            last = insert(path, ("user", "again", {}))
            assert socket.ask("wait", {"event_id": last, "timeout_ms": 30_000})["result"]["reached"]
    assert len(store_of(directory).touched) == 256


def test_a_rebuild_takes_new_generations_and_drops_the_touched_records(published: tuple[str, Path]) -> None:
    directory = published[1]
    before = store_of(directory)
    with Socket(directory, "admin") as socket:
        result = socket.ask("invalidate", {"fold": "metrics"})["result"]
    assert result == {"as_of": before.header["event_id"], "folds": ["metrics"]}
    after = store_of(directory)
    assert after.header["folds"]["metrics"][2] == before.header["next_generation"]
    assert after.touched == {}
    assert after.generations.keys() == {entry[2] for entry in after.header["folds"].values()}


def test_files(published: tuple[str, Path]) -> None:
    directory = published[1]
    endpoints = json.loads((directory / "endpoints.json").read_text(encoding="utf-8"))
    pid, identity = endpoints.pop("pid"), endpoints.pop("directory")
    status = os.stat(directory)
    assert identity == [status.st_dev, status.st_ino]
    assert not any(os.path.isabs(path) for path in endpoints.values()) or len(str(directory)) > 60
    listed = set(re.findall(r"`([\w.-]+)`", "".join(re.findall(r"^\| (`.+?) \| 0\d+ \|", PAGE, re.MULTILINE))))
    # Under a long path the sockets lie elsewhere.
    sockets = {os.path.basename(path) for path in endpoints.values()}
    # A journal is there while the index is written; the last two are a replica's.
    # The shape is that of another program's log.
    there = {file.name for file in directory.iterdir()} | {"words.db-journal", "shape.json"}
    assert there | sockets | {"daemon.log", "replicator.json", "replicator.lock"} == listed
    assert (directory / "daemon.lock").read_text(encoding="ascii") == f"{pid}\n"
    modes = {name: stat.S_IMODE(os.stat(directory / path).st_mode) for name, path in endpoints.items()}
    assert modes == {"commands": 0o660, "admin": 0o600, "announcements": 0o660, "reports": 0o660}
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    boot = directory / "boot.json"
    assert json.loads(boot.read_text(encoding="ascii")) == {"boot_id": boot_id, "directory": identity, "clean": False}


def test_a_stopped_daemon_leaves_a_clean_mark_and_no_sockets(ledger: str, start_daemon: StartDaemon) -> None:
    assert start_daemon(ledger).stop() == 0
    directory = Path(f"{ledger}-cache")
    assert json.loads((directory / "boot.json").read_text(encoding="ascii"))["clean"] is True
    endpoints = json.loads((directory / "endpoints.json").read_text(encoding="utf-8"))
    assert not any(
        os.path.exists(directory / endpoints[name]) for name in ("commands", "admin", "announcements", "reports")
    )
    header = store_of(directory).header
    assert (header["event_id"], header["anchor"]) == (None, b"")


def test_the_directory_under_a_base(
    ledger: str, tmp_path: Path, start_daemon: StartDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMM_SHM_DIR", str(tmp_path / "base"))
    start_daemon(ledger)
    real = os.path.realpath(ledger)
    name = f"{os.path.basename(real)}-{hashlib.blake2b(os.fsencode(real), digest_size=6).hexdigest()}"
    assert store_of(tmp_path / "base" / name).header["format"] == 2
    assert not os.path.exists(f"{ledger}-cache")


def test_messages(published: tuple[str, Path]) -> None:
    path, directory = published
    as_of = raw_rows(path)[-1][0]
    with Socket(directory, "commands") as socket:
        pong = socket.ask("ping", {})
        assert (pong["id"], pong["ok"], pong["result"]["as_of"]) == (5, True, as_of)
        for refused in (
            socket.ask("verify", {"fold": None}),
            socket.ask("ping", {}, version=3),
            socket.ask("ping", {"more": 1}),
        ):
            assert (refused["id"], refused["ok"], refused["error"]["code"]) == (5, False, "malformed")
    with Socket(directory, "admin") as socket:
        unknown = socket.ask("verify", {"fold": "nothing"})
        assert (unknown["id"], unknown["error"]["code"]) == (5, "unknown_fold")
        report = socket.ask("verify", {"fold": "metrics"})["result"]
        assert set(report) == {"ok", "as_of", "folds", "events", "sealed_blocks", "difference"}


def test_announcements(published: tuple[str, Path]) -> None:
    path, directory = published
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.SUBSCRIBE, b"")
        socket.setsockopt(zmq.RCVTIMEO, 1_000)
        endpoints = json.loads((directory / "endpoints.json").read_text(encoding="utf-8"))
        socket.connect(f"ipc://{directory / endpoints['announcements']}")
        # The subscription takes a moment to arrive, and messages are hints.
        for _ in range(30):
            last = insert(path, ("user", "listen", {}))
            try:
                message = msgpack.unpackb(socket.recv())
            except zmq.Again:
                continue
            assert (set(message), message["v"]) == ({"v", "as_of", "sequence"}, 2)
            assert message["as_of"] <= last
            return
    pytest.fail("no announcement")
