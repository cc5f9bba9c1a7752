"""The benchmarks run: every row on tiny ledgers; a wrong answer ends them; the page is that of its data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import page, plots
from bench.__main__ import run
from bench.peers.in_process import InProcess
from bench.rows import ROWS
from bench.scale import QUICK
from pmm_shm_cli.benchmark import WrongAnswerError
from pmm_shm_client.results import Metrics
from tests.support import ledgers

DOCS = ledgers.ROOT / "docs"
TINY = QUICK._replace(events=(100, 200), naive_events_max=200)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(list(ROWS), TINY, tmp_path_factory.mktemp("bench"))


def test_every_row_is_measured(report: dict[str, Any]) -> None:
    assert [row["number"] for row in report["rows"]] == list(ROWS) == list(range(1, len(ROWS) + 1))
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
