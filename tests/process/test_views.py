"""Views at some length: patched, they equal new ones, and one more entry does not decode all others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.store.snapshot import LmdbBase
from pmm_shm_client import connect
from tests.support.answers import everything, replayed
from tests.support.publishing import Publisher, fill


def test_one_more_commitment_does_not_decode_ten_thousand(
    ledger: str, publish: Callable[[str], Publisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted at the base: keys fetched, and entries of a table scanned."""
    reads: Counter[str] = Counter()
    get, scan = LmdbBase.get, LmdbBase.scan

    def counting_get(self: LmdbBase, key: bytes) -> bytes | None:
        reads["get"] += 1
        return get(self, key)

    def counting_scan(self: LmdbBase, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        for pair in scan(self, prefix):
            reads["scan"] += 1
            yield pair

    opened = {"kind": "commitment_open", "content": "c", "meta": {}}
    with EventLog(ledger) as log:
        log.append_many([{**opened, "meta": {"cid": f"c{n}", "text": "t"}} for n in range(10_000)])
        publisher = publish(ledger)
        monkeypatch.setattr(LmdbBase, "get", counting_get)
        monkeypatch.setattr(LmdbBase, "scan", counting_scan)
        with connect(ledger) as cache:
            assert len(cache.commitments().open) == 10_000
            assert reads["scan"] >= 10_000
            for number in range(6):
                reads.clear()
                log.append("commitment_open", "c", {"cid": f"new {number}", "text": "t"})
                log.append("commitment_close", "", {"cid": f"c{number}"})
                if number % 2:
                    publisher.publish()
                    reads.clear()
                assert list(cache.commitments().open)[-1] == f"new {number}"
                assert f"c{number}" not in cache.commitments().open
                assert reads["scan"] == 0
                assert reads["get"] < 30
            assert everything(cache) == replayed(ledger)
        # A catch-up of three events, and nothing but the scores read.
        log.append_many([{**opened, "meta": {"cid": "x", "text": "t"}}] * 3)
        with connect(ledger) as cache:
            reads.clear()
            assert cache.metrics().as_of == 10_015
            assert cache._reader.events_folded == 3
            assert reads["scan"] == 0
            assert reads["get"] < 30


@pytest.mark.parametrize("name", ["self_model", "directives", "recent", "history"])
def test_a_patched_view_equals_a_new_one(ledger: str, name: str, publish: Callable[[str], Publisher]) -> None:
    publisher = publish(ledger)
    with connect(ledger) as cache:
        for number in range(200):
            fill(ledger, 1, number)
            if number % 3 == 0:
                publisher.publish()
            cache.fold(name)
            if number % 20 == 19:
                assert everything(cache) == replayed(ledger)
