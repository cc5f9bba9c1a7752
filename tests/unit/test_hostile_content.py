"""Content of 10 MB, and a ledger whose file is cut: bounded time and memory, one clear error, and on it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support import ledgers
from tests.support.hazards import HOSTILE_KINDS, insert_hostile

HUGE_BYTES = 10_000_000


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
