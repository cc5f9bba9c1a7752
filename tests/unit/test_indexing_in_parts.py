"""The log is read for an index in small parts, as if it were read at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmm_cached.reading import read_in_parts
from pmm_shm import limits
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.tail import START, Position
from pmm_shm.vectors import local_bow
from pmm_shm.vectors.events import DEFAULT_KINDS, EventTextBatch, EventTextReader
from pmm_shm.words.texts import WORD_KINDS, WordTextReader
from pmm_shm_client import EventLog
from tests.support.profiles import examples

Drafts = st.lists(
    st.tuples(st.sampled_from(["user", "note", "reflection", "embedding_indexed"]), st.integers(1, 40)), max_size=40
)


@settings(max_examples=examples(40), deadline=None)
@given(Drafts, st.integers(1, 7), st.integers(1, 50), st.integers(0, 45))
def test_parts_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory, drafts: list[tuple[str, int]], part: int, rows_max: int, until_id: int
) -> None:
    path = str(tmp_path_factory.mktemp("parts") / "l.db")
    with EventLog(path) as log:
        # Some events name earlier ones, which then count as indexed: also those of an earlier part.
        log.append_many(
            [
                (kind, f"text {number}", {"eid": named, "digest": local_bow.digest(f"text {named}")})
                for number, (kind, named) in enumerate(drafts, 1)
            ]
        )
    connection = Connection(path, "ro")
    pauses: list[None] = []
    try:
        with pytest.MonkeyPatch.context() as patches:
            patches.setattr(limits, "INDEX_EVENTS_PER_READ", part)
            vectors = EventTextReader(connection, DEFAULT_KINDS, local_bow.NAME)
            words = WordTextReader(connection, WORD_KINDS)
            with connection.lock:
                for reader in (vectors, words):
                    whole = reader.read(START, limits.TAIL_ROWS_MAX, until_id)
                    pauses.clear()
                    found = read_in_parts(reader.read, START, rows_max, until_id, lambda: pauses.append(None))  # type: ignore[type-var]
                    if found.is_complete:
                        assert found == whole
                    else:
                        assert [one[0] for one in found.texts] == sorted({one[0] for one in found.texts})
                        assert {one[0] for one in found.texts} <= {one[0] for one in whole.texts}
                        assert len(pauses) == -(-rows_max // part) - 1
    finally:
        connection.close()


def test_a_log_that_does_not_continue_ends_it() -> None:
    reads: list[int] = []

    def read(after: Position, rows_max: int, until_id: int) -> EventTextBatch:
        reads.append(rows_max)
        return EventTextBatch([], after, len(reads) < 2, False)

    found = read_in_parts(read, START, 1_000, 5_000, lambda: None)
    assert (found.is_anchored, reads) == (False, [limits.INDEX_EVENTS_PER_READ] * 2)


def test_a_file(tmp_path: Path) -> None:
    """An event that a later part names has the source of the later row."""
    with EventLog(tmp_path / "l.db") as log:
        for number in range(1, 4):
            log.append("user", f"text {number}", {})
        log.append("embedding_indexed", "", {"eid": 1, "digest": local_bow.digest("text 1")})
    connection = Connection(str(tmp_path / "l.db"), "ro")
    try:
        with pytest.MonkeyPatch.context() as patches, connection.lock:
            patches.setattr(limits, "INDEX_EVENTS_PER_READ", 2)
            reader = EventTextReader(connection, DEFAULT_KINDS, local_bow.NAME)
            found = read_in_parts(reader.read, START, 100, 4, lambda: None)
            assert found == reader.read(START, 100, 4)
            assert [(one.event_id, one.vector is None) for one in found.texts] == [(1, False), (2, True), (3, True)]
    finally:
        connection.close()
