"""The benchmarks run: every row on tiny ledgers; a wrong answer ends them; the page is that of its data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import page, plots
from bench.__main__ import run
from bench.peers import MissingPeerError, memcached, open_stores, put_answer, redis_server
from bench.peers.in_process import InProcess
from bench.report import Row, at_least, at_most
from bench.rows import ROWS
from bench.scale import QUICK
from pmm_shm_cli import timing
from pmm_shm_cli.benchmark import WrongAnswerError, copy_ledger, require_equal
from pmm_shm_client import connect
from pmm_shm_client.results import Metrics
from tests.support import daemons, ledgers

DOCS = ledgers.ROOT / "docs"
TINY = QUICK._replace(events=(100, 200), naive_events_max=200)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(list(ROWS), TINY, tmp_path_factory.mktemp("bench"))


def test_every_row_is_measured(report: dict[str, Any]) -> None:
    assert [row["number"] for row in report["rows"]] == list(ROWS) == list(range(1, 13))
    for row in report["rows"]:
        assert row["figures"], row["title"]
        for figure in row["figures"]:
            assert isinstance(figure["value"], float), figure
            assert figure["verdict"] in ("met", "missed", "stated")
        for one in row["times"]:
            assert one["p50_us"] > 0, one
            assert one["calls"] > 0
    text = json.dumps(report)
    assert json.loads(text) == json.loads(json.dumps(json.loads(text)))
    assert str(Path.home()) not in text
    assert os.uname().nodename not in text
    # Whatever is installed here: it is there, or a line says that it is not.
    repeated = report["rows"][0]
    for peer, client in (("diskcache", "diskcache"), ("memcached", "pymemcache"), ("redis", "redis")):
        is_measured = any(peer in one["name"] for one in repeated["times"])
        left_out = [note for note in repeated["notes"] if "left out" in note and (peer in note or client in note)]
        assert is_measured != bool(left_out), peer
    assert {int(size) for points in repeated["curves"].values() for size in points} == set(TINY.events)


def test_each_row_has_its_target_where_it_is_measured(report: dict[str, Any]) -> None:
    """Those that hang on a size are only set there."""
    without = {row["number"] for row in report["rows"] if all(one["goal"] is None for one in row["figures"])}
    assert without == {6, 11, 12}


def test_the_page_and_its_plots(report: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "BENCHMARKS.md").write_text((DOCS / "BENCHMARKS.md").read_text(encoding="utf-8"), encoding="utf-8")
    page.write(tmp_path, report)
    written = (tmp_path / "BENCHMARKS.md").read_text(encoding="utf-8")
    before, between, after = page.parts(written)
    assert between == page.measured(json.loads((tmp_path / "bench" / page.DATA).read_text(encoding="utf-8")))
    assert (before, after) == page.parts((DOCS / "BENCHMARKS.md").read_text(encoding="utf-8"))[::2]
    assert plots.plotted(report) == sorted(plots.PLOTTED)
    pytest.importorskip("matplotlib")
    for folder in ("bench", "again"):
        plots.write(report, tmp_path / folder)
    drawn, again = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).glob("*.svg")} for folder in ("bench", "again")
    )
    assert drawn == again
    assert len(drawn) == len(plots.PLOTTED)


def test_the_committed_page_is_that_of_the_committed_data() -> None:
    report = json.loads((DOCS / "bench" / page.DATA).read_text(encoding="utf-8"))
    assert page.parts((DOCS / "BENCHMARKS.md").read_text(encoding="utf-8"))[1] == page.measured(report)
    assert [row["number"] for row in report["rows"]] == list(ROWS)
    assert {path.name for path in (DOCS / "bench").glob("*.svg")} == set(map(plots.name_of, plots.plotted(report)))


def _wrong_metrics(read: Callable[[InProcess], Metrics]) -> Callable[[InProcess], Metrics]:
    def wrong(self: InProcess) -> Metrics:
        right = read(self)
        return Metrics(right.ias + 2**-50, right.gas, right.as_of)

    return wrong


def test_a_wrong_answer_of_a_peer_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InProcess, "metrics", _wrong_metrics(InProcess.metrics))
    with pytest.raises(WrongAnswerError, match="in-process cache, metrics"):
        run([1], TINY._replace(events=(100,)), tmp_path)
    assert not list(tmp_path.glob("work-*"))


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


def bench_command(*arguments: str, **variables: str | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pmm_shm_cli", "bench", *arguments],
        env=daemons.environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=daemons.DEADLINE_S * 2,
        check=False,
    )


def test_the_command_measures_a_copy(tmp_path: Path) -> None:
    ledger = ledgers.build(tmp_path / "own.db", 50, journal="delete")
    os.chmod(tmp_path / "own.db", 0o444)
    before = ledgers.read_bytes(ledger)
    # Without caches this shell would measure nothing.
    # Sockets need a short path.
    with tempfile.TemporaryDirectory() as work:
        done = bench_command(ledger, "--seconds", "0", "--json", TMPDIR=work, PMM_USE_METRICS_CACHE="false")
        assert not list(Path(work).iterdir())
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert [one["what"] for one in report["comparisons"]][:4:3] == ["metrics, nothing new", "metrics after an append"]
    for one in report["comparisons"]:
        assert one["times_faster"]["p50"] > (10 if "nothing new" in one["what"] else 0), one
    assert report["events"] == 50
    assert report["full_replay"]["p50_us"] > 0
    assert ledgers.read_bytes(ledger) == before
    assert [path.name for path in tmp_path.iterdir()] == ["own.db"]


def test_answers_that_differ_are_not_timed(tmp_path: Path) -> None:
    one, other = (ledgers.build(tmp_path / f"{count}.db", count) for count in (4, 5))
    with connect(one) as first, connect(other) as second, pytest.raises(WrongAnswerError, match="others with caches"):
        require_equal(first, second)


def test_the_command_without_a_ledger(tmp_path: Path) -> None:
    done = bench_command(str(tmp_path / "none.db"))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert "none.db" in done.stderr


def test_a_copy_that_does_not_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = ledgers.build(tmp_path / "own.db")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1 << 10))
    with pytest.raises(OSError, match="the copy needs"):
        copy_ledger(ledger, tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()
