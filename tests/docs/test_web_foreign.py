"""`pmm-shm web` on the log of another program: its folds, its events, and nothing of an agent."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest

from pmm_shm_client import connect
from tests.support import foreign_logs
from tests.support.foreign_logs import BLOB, sums_of, toml_of
from tests.support.fork_daemon import ForkedDaemon
from tests.support.program_logs import LOGS, recorded
from tests.support.web import WebServer, path_of, serving, words

pytest.importorskip("starlette")
COUNT = 30


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    """The page of a log whose shape the daemon has recorded."""
    folder = tmp_path_factory.mktemp("web")
    path, shape = folder / "app.db", folder / "blob.toml"
    BLOB.make(path, COUNT).close()
    shape.write_text(toml_of(BLOB.shape), encoding="utf-8")
    with ForkedDaemon(path, "--shape", str(shape)):
        with connect(path) as cache:
            cache.wait_for(COUNT)
        with serving(path, folder) as made:
            yield made


def test_the_page_shows_the_folds_and_nothing_of_an_agent(server: WebServer) -> None:
    page = words(server.page())
    assert "app.db" in page
    assert "read by the shape blob 1" in page
    for name, value in sums_of(COUNT).items():
        assert f"{name} {value} why?" in page
    for strange in ("IAS", "GAS", "Stage", "Traits", "commitments", "directives", "Context preview", "the mind"):
        assert strange not in page
    assert "No event of this log is indexed" in page
    assert 'name="q"' not in server.page()
    assert "cents" in page  # meta, in place of a content


def test_the_past_and_why(server: WebServer) -> None:
    assert f"a {sums_of(10)['a']} why?" in words(server.page("/?at=10"))
    assert server.api("/folds", query="?at=10")["folds"] == {"sums": sums_of(10)}
    argument = quote(json.dumps(["sums", "a"]))
    why = words(server.page(f"/why?subject=fold&argument={argument}&at=10"))
    assert f"Why: sums a Close As of event 10: {sums_of(10)['a']} . 3 events concern it." in why
    assert server.api("/kinds", query="?at=10")["kinds"] == {"paid": 10}


def test_the_numbers_of_a_fold_over_the_log(server: WebServer) -> None:
    page = server.page("/course?fold=sums")
    sums = sums_of(COUNT)
    shown = words(page)
    assert f"a {sums['a']}, from 3 to {sums['a']}" in shown
    assert f"b {sums['b']}, from 1 to {sums['b']}" in shown
    assert page.count("<polyline") == 3
    assert 'href="/?at=15"' in page
    assert server.ask("/course", query="?fold=nothing").status == 400


def test_events_are_filtered_by_what_is_in_their_meta(server: WebServer) -> None:
    rows = server.api("/events", query="?text=" + quote('"account": "b"'))["rows"]
    assert [row["id"] for row in rows] == [n for n in range(COUNT, 0, -1) if "abc"[n % 3] == "b"]
    assert all(row["content"] == "" and '"cents"' in row["meta"] for row in rows)


def test_what_has_no_meaning_is_refused(server: WebServer) -> None:
    for path in ("/identity", "/context", "/metrics"):
        reply = server.ask("/api/v1" + path, query="?text=hello")
        assert reply.status == 400
        assert "it has: sums" in reply.json["error"]
    assert server.api("/chart") is None
    assert server.ask("/commitments").status == 400


def test_the_next_commit_of_the_program_is_on_the_page(server: WebServer) -> None:
    with closing(sqlite3.connect(path_of(server), isolation_level=None)) as handle:
        BLOB.pay(handle, COUNT + 1, "new", 77)
    try:
        assert "new 77 why?" in words(server.page())
    finally:
        with closing(sqlite3.connect(path_of(server), isolation_level=None)) as handle:
            handle.execute("DELETE FROM stored_events WHERE originator = 'new'")


def test_a_shape_that_is_not_recorded_is_given(tmp_path: Path) -> None:
    path = recorded(LOGS["llm"], tmp_path)
    with serving(path, tmp_path, "--shape", "llm") as server:
        page = words(server.page())
        assert "read by the shape llm 1" in page
        assert "No fold is kept for this log" in page
        assert f"pmm-cached --shape llm {path}" in words(server.page("/operations"))
        found = server.api("/doctor")
        assert (found["ok"], found["problem"]) == (True, None)
    named = ["--fold", f"{foreign_logs.__name__}:Sums"]
    with serving(path, tmp_path, "--shape", "llm", *named) as server:
        assert server.api("/folds")["folds"] == {"sums": {}}
