"""A ledger, its daemon and its readers as a state machine, against a full replay."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pmm_shm.errors import SnapshotUnavailableError
from pmm_shm_client import Cache, EventLog, connect
from tests.support.fork_daemon import ForkedDaemon
from tests.support.golden_cases import answers_of, canonical, make_ledger
from tests.support.polling import until

cids = st.sampled_from(["a", "b", "c", 7, "7", -3])
texts = st.sampled_from(
    ["", "x", "my name is Echo", "identity is what I do here", "Name changed to: Vela", " rule  1 ", "é\n"]
)
odd = st.sampled_from([None, True, 0, -1, 3.5, "0.4", "nan", 1e400, [1], {"a": [1]}, 10**30, "\ud800", ""])
KINDS = [
    "identity_adopt",
    "identity_change",
    "identity_clear",
    "trait_update",
    "commitment_open",
    "commitment_open",
    "evidence_candidate",
    "commitment_close",
    "commitment_expire",
    "commitment_snooze",
    "reflection",
    "invariant_violation",
    "autonomy_tick",
    "autonomy_tick",
    "autonomy_directive",
    "user",
    "response",
    "debug",
]


@st.composite
def events(draw: st.DrawFn) -> tuple[str, str, dict[str, Any]]:
    """Events of every kind that a fold knows, with plausible and implausible fields."""
    kind = draw(st.sampled_from(KINDS))
    fields = {
        "cid": cids,
        "text": st.one_of(texts, odd),
        "name": st.one_of(texts, odd),
        "confidence": st.one_of(st.sampled_from([0.9, 0.2, 1]), odd),
        "trait": st.sampled_from(["o", "openness", " N ", "", None]),
        "delta": st.one_of(st.sampled_from([0.04, -0.2, {"o": 0.1, "C": "-0.3"}]), odd),
        "telemetry": st.one_of(st.fixed_dictionaries({"IAS": st.floats(0, 1), "GAS": st.floats(0, 1)}), odd),
        "stage": st.sampled_from(["S1", None]),
        "source": st.one_of(st.sampled_from([" Reply ", "user"]), odd),
        "origin_eid": odd,
        "evidence_type": st.sampled_from(["done", " DONE ", "blocked", None, 5]),
        "reason": odd,
        "until_tick": odd,
        "code": st.sampled_from(["A", None]),
        "details": st.one_of(st.fixed_dictionaries({"commitment_id": cids}), odd),
    }
    chosen = draw(st.lists(st.sampled_from(sorted(fields)), unique=True, max_size=7))
    if kind.startswith(("commitment", "evidence")):
        chosen = sorted({*chosen, "cid", "text"})
    return kind, draw(texts), {name: draw(fields[name]) for name in chosen}


def everything(source: Any) -> str:
    """All answers, `recent` and the position too."""
    recent = source.recent()
    answers = {**answers_of(source, []), "as_of": recent.as_of, "recent": [recent.messages, recent.reflections]}
    return canonical({**answers, "telemetry": recent.telemetry})


def replayed_answers(path: Path) -> str:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PMM_USE_PROJECTION_CACHE", "false")
        environment.setenv("PMM_USE_METRICS_CACHE", "false")
        with connect(path) as oracle:
            return everything(oracle)


hostile_metas: list[Any] = [
    "",
    "null",
    "[]",
    "{",
    '{"cid": "a", "text": ' + "[" * 200 + "]" * 200 + "}",
    '{"cid": "a", "text": "t", "n": ' + "9" * 5_000 + "}",
    '{"cid": "a", "text": NaN, "cid": "b"}',
    '{"cid": "\\ud800", "text": "t"}',
    b"\xff\xfe",
    b"{}",
]
hostile_contents: list[Any] = ["", "x", b"\x00\xff", b"blob", "\x00nul"]


class SharedState(RuleBasedStateMachine):
    """One ledger, one daemon or none, two caches, one event log, and foreign writers."""

    @initialize(journal=st.sampled_from(["wal", "delete"]))
    def begin(self, journal: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="pmm-shm-"))
        self.path = self.directory / "pmm.db"
        self.journal = journal
        self.written = 0
        make_ledger(self.path, journal)
        self.daemon: ForkedDaemon | None = None
        self.is_suspended = False
        self.caches: list[Cache] = [connect(self.path), connect(self.path, freshness="data_version")]
        self.log = EventLog(self.path)

    def teardown(self) -> None:
        if not hasattr(self, "path"):
            return
        if self.daemon is not None:
            self.daemon.__exit__()
        for cache in self.caches:
            cache.close()
        self.log.close()
        shutil.rmtree(self.directory)

    # Appends.

    @rule(event=events(), which=st.integers(0, 2))
    def append(self, event: tuple[str, str, dict[str, Any]], which: int) -> None:
        writer: Any = [*self.caches, self.log][which]
        own = writer.append(*event)
        assert self.caches[which % 2].metrics().as_of == own

    @rule(batch=st.lists(events(), min_size=1, max_size=6))
    def append_many(self, batch: list[tuple[str, str, dict[str, Any]]]) -> None:
        self.log.append_many(batch)

    @rule(
        kind=st.sampled_from(
            ["commitment_open", "commitment_close", "autonomy_tick", "reflection", "identity_adopt", "user"]
        ),
        content=st.sampled_from(hostile_contents),
        meta=st.sampled_from(hostile_metas),
        gap=st.sampled_from([1, 1, 7, 10**6]),
    )
    def foreign_append(self, kind: str, content: Any, meta: Any, gap: int) -> None:
        def as_text(value: Any) -> str:
            return "CAST(? AS TEXT)" if isinstance(value, bytes) and value.startswith(b"\xff") else "?"

        self.written += 1
        self.foreign(
            "INSERT INTO events (id, ts, kind, content, meta) VALUES "
            f"((SELECT coalesce(max(id), 0) FROM events) + ?, ?, ?, ?, {as_text(meta)})",
            (gap, f"2026-01-01T00:00:00.{self.written:06d}Z", kind, content, meta),
        )

    @rule(rolled_back=st.booleans())
    def foreign_rollback_or_checkpoint(self, rolled_back: bool) -> None:
        connection = sqlite3.connect(self.path, timeout=10, isolation_level=None)
        if rolled_back:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO events (ts, kind, content, meta) VALUES ('', 'autonomy_tick', '', '{}')")
            connection.execute("ROLLBACK")
        else:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        connection.close()

    # The daemon.

    @precondition(lambda self: self.daemon is None)
    @rule(verify_every=st.sampled_from(["0", "1"]))
    def start_daemon(self, verify_every: str) -> None:
        self.daemon = ForkedDaemon(self.path, "--verify-every", verify_every)
        self.is_suspended = False

    @precondition(lambda self: self.daemon is not None)
    @rule(kill=st.booleans())
    def end_daemon(self, kill: bool) -> None:
        assert self.daemon is not None
        if kill:
            self.daemon.kill()
        else:
            assert self.daemon.stop() == 0
        self.daemon.__exit__()
        self.daemon = None

    # Whoever is stopped within a statement on a rollback-journal ledger keeps its writers out: that is SQLite's own.
    @precondition(lambda self: self.daemon is not None and self.journal == "wal")
    @rule()
    def suspend_or_resume_daemon(self) -> None:
        assert self.daemon is not None
        if self.is_suspended:
            self.daemon.thaw()
        else:
            self.daemon.freeze()
        self.is_suspended = not self.is_suspended

    @precondition(lambda self: self.daemon is not None and not self.is_suspended)
    @rule(fold=st.sampled_from([None, "self_model", "metrics", "recent"]))
    def invalidate(self, fold: str | None) -> None:
        self.caches[0].invalidate(fold, timeout=30.0)

    @precondition(lambda self: self.daemon is not None and not self.is_suspended)
    @rule()
    def what_is_published_becomes_exact(self) -> None:
        wanted = replayed_answers(self.path)
        until(lambda: self.published() == wanted, "the daemon to publish the ledger as it is")
        assert self.caches[1].verify(timeout=30.0)

    @precondition(lambda self: self.daemon is None)
    @rule()
    def verify_at_rest(self) -> None:
        report = self.caches[0].verify()
        assert report.ok or "is gone or has changed" in str(report.difference)

    # What happens to the ledger.

    @rule(share=st.floats(0, 1), reuse_ids=st.booleans())
    def truncate(self, share: float, reuse_ids: bool) -> None:
        with EventLog(self.path) as log:
            ids = [event["id"] for event in log.read_all()]
        keep = ids[: int(len(ids) * share)]
        last = keep[-1] if keep else 0
        self.foreign("DELETE FROM events WHERE id > ?", (last,))
        if reuse_ids:
            self.foreign("UPDATE sqlite_sequence SET seq = ? WHERE name = 'events'", (last,))

    @precondition(lambda self: not self.is_suspended)
    @rule(batch=st.lists(events(), max_size=5), journal=st.sampled_from(["wal", "delete"]))
    def replace(self, batch: list[tuple[str, str, dict[str, Any]]], journal: str) -> None:
        if self.journal == "wal" and not self.empty_the_wal():
            return
        other = self.directory / "other.db"
        make_ledger(other, journal)
        with EventLog(other) as log:
            # Something that tells this ledger from the one before: noticing is what the caches are waited for.
            self.written += 1
            log.append_many([("user", f"ledger {self.written}", {}), *batch])
        os.replace(other, self.path)
        self.journal = journal
        wanted = replayed_answers(self.path)
        for cache in self.caches:
            until(lambda cache=cache: everything(cache.frame()) == wanted, "a cache to notice", 5.0)
        if self.daemon is not None:
            # Who sees neither the one replacement nor the other, refuses what then lies in the -wal that he knows.
            until(lambda: self.published() == wanted, "the daemon to notice", 30.0)

    # The promise.

    @invariant()
    def every_answer_equals_a_replay(self) -> None:
        if not hasattr(self, "path"):
            return
        wanted = replayed_answers(self.path)
        for cache in self.caches:
            assert everything(cache) == wanted
            assert everything(cache.frame()) == wanted
            assert cache.frame().as_of == self.head()

    def head(self) -> int:
        connection = sqlite3.connect(self.path, timeout=10)
        try:
            return int(connection.execute("SELECT coalesce(max(id), 0) FROM events").fetchall()[0][0])
        finally:
            connection.close()

    def published(self) -> str | None:
        with connect(self.path, consistency="snapshot") as snapshot:
            try:
                return everything(snapshot.frame())
            except SnapshotUnavailableError:
                return None

    def foreign(self, sql: str, parameters: tuple[Any, ...]) -> None:
        connection = sqlite3.connect(self.path, timeout=10)
        try:
            connection.execute(sql, parameters)
            connection.commit()
        finally:
            connection.close()

    def empty_the_wal(self) -> bool:
        connection = sqlite3.connect(self.path, timeout=2, isolation_level=None)
        try:
            return connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0][0] == 0
        finally:
            connection.close()


def bounded(examples: int) -> settings:
    return settings(
        max_examples=examples, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
    )
