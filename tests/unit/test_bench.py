"""The parts of the benchmarks: sides, goals, peers that are missing; the page is that of its data."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import page, plots
from bench.peers import MissingPeerError, memcached, open_stores, put_answer, redis_server
from bench.report import Row, at_least, at_most
from bench.rows import ROWS
from pmm_shm_cli import timing
from pmm_shm_cli.benchmark import WrongAnswerError, copy_ledger, require_equal
from pmm_shm_client import connect
from pmm_shm_client.results import Metrics
from tests.support import ledgers

DOCS = ledgers.ROOT / "docs"


def test_the_committed_page_is_that_of_the_committed_data() -> None:
    report = json.loads((DOCS / "bench" / page.DATA).read_text(encoding="utf-8"))
    assert page.parts((DOCS / "BENCHMARKS.md").read_text(encoding="utf-8"))[1] == page.measured(report)
    assert [row["number"] for row in report["rows"]] == list(ROWS)
    assert {path.name for path in (DOCS / "bench").glob("*.svg")} == set(map(plots.name_of, plots.plotted(report)))


class _Forgetful:
    """A store that keeps only half."""

    name = "forgetful"

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def put(self, key: str, value: bytes) -> None:
        self._values[key] = value.replace(b"as_of", b"as_if")

    def get(self, key: str) -> bytes | None:
        return self._values.get(key)

    def close(self) -> None:
        self._values.clear()


def test_a_store_must_give_back_what_it_got() -> None:
    with pytest.raises(WrongAnswerError, match="forgetful, metrics"):
        put_answer(_Forgetful(), "metrics", Metrics(0.5, 0.5, 7))


@pytest.fixture
def no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")


def test_missing_servers_are_one_line_each(tmp_path: Path, no_servers: None) -> None:
    for client, kind, program in (
        ("redis", redis_server.Redis, "redis-server"),
        ("pymemcache", memcached.Memcached, "memcached"),
    ):
        pytest.importorskip(client)
        with pytest.raises(MissingPeerError, match=f"{program} is not installed: left out"):
            kind(tmp_path)
    with open_stores(tmp_path) as (stores, missing):
        assert not {"redis", "memcached"} & {store.name for store in stores}
        assert len(missing) >= 2


def test_goals() -> None:
    row = Row(1, "", "")
    row.figure("a", 1.0, goal=at_most(1.0))
    row.figure("b", 1.01, goal=at_most(1.0))
    row.figure("c", 8.0, goal=at_least(8.0))
    row.figure("d", 7.99, goal=at_least(8.0))
    row.figure("e", 0.0)
    assert [one.verdict for one in row.figures] == ["met", "missed", "met", "missed", "stated"]


def test_sides_take_turns() -> None:
    calls: list[str] = []
    timings = timing.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, 1)
    assert "".join(calls) == "abbaab"
    assert [one.calls for one in timings.values()] == [3, 3]
    calls.clear()
    timing.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 1, {"a": 2, "b": 1})
    assert "".join(calls) == "aaaab"


def test_ratios_are_those_of_the_rounds() -> None:
    slow = timing.timing("slow", [10.0, 40.0, 90.0], [10.0] * 98 + [1_000.0] * 2)
    fast = timing.timing("fast", [10.0, 20.0, 30.0], [10.0] * 99 + [500.0])
    assert timing.ratio(slow, fast) == (2.0, 100.0)
    assert timing.p99([3.0]) == 3.0
    assert timing.p99(list(map(float, range(1, 101)))) == 99.0


# `pmm-shm bench`.


def test_answers_that_differ_are_not_timed(tmp_path: Path) -> None:
    one, other = (ledgers.build(tmp_path / f"{count}.db", count) for count in (4, 5))
    with connect(one) as first, connect(other) as second, pytest.raises(WrongAnswerError, match="others with caches"):
        require_equal(first, second)


def test_a_copy_that_does_not_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = ledgers.build(tmp_path / "own.db")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1 << 10))
    with pytest.raises(OSError, match="the copy needs"):
        copy_ledger(ledger, tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()
