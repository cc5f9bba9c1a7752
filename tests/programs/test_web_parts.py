"""Parts of the page: lists and counts of events against the rows themselves, values as HTML, and the guard."""

from __future__ import annotations

import html
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("starlette")
pytest.importorskip("jinja2")

from pmm_shm.errors import ConfigError
from pmm_shm.folds.contract import Fold
from pmm_shm.folds.state import State
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.rows import Event
from pmm_shm.projection.courses import Courses
from pmm_shm.projection.replay import Progress
from pmm_shm_cli import synthetic
from pmm_shm_client import Cache, connect
from pmm_shm_terminal.tokens import token_in
from pmm_shm_web import chart, course, facets, jobs, shown, stream
from pmm_shm_web.facets import KindCounter
from pmm_shm_web.folds import UserFolds
from pmm_shm_web.ledger import LedgerQueries
from pmm_shm_web.questions import position, stream_query
from pmm_shm_web.rendering import Renderer
from pmm_shm_web.stream import Stream, StreamQuery
from tests.support import ledgers
from tests.support.hazards import insert_hostile

KINDS = ("user", "response", "user", "tick", "note")


def fill(path: str, count: int) -> None:
    with EventLog(path) as log:
        log.append_many(
            {
                "kind": KINDS[n % 5],
                "content": f"text {n} Räder 50%_off",
                "ts": f"2026-01-01T{n // 60 % 24:02d}:{n % 60:02d}:00Z",
            }
            for n in range(count)
        )


@pytest.fixture(params=["indexed", "plain"])
def opened(request: pytest.FixtureRequest, ledger: str) -> Iterator[LedgerQueries]:
    """A ledger of 300 events with gaps, with its indexes and without, and a small span for scans."""
    fill(ledger, 300)
    ledgers.execute(ledger, "DELETE FROM events WHERE id BETWEEN 100 AND 120")
    if request.param == "plain":
        ledgers.execute(ledger, "DROP INDEX idx_events_kind_id")
    found = LedgerQueries(ledger, 5.0)
    with mock.patch.object(stream, "SPAN_IDS", 7), mock.patch.object(facets, "_SPAN_IDS", 7):
        yield found
    found.close()


def rows_of(path: str) -> list[Any]:
    return ledgers.execute(path, "SELECT id, ts, kind, content FROM events ORDER BY id DESC")


@pytest.mark.parametrize(
    ("query", "keeps"),
    [
        (StreamQuery(), lambda row: True),
        (StreamQuery(kind="user"), lambda row: row[2] == "user"),
        (StreamQuery(kind="nothing"), lambda row: False),
        (StreamQuery(text="TEXT 2"), lambda row: "text 2" in row[3]),
        (StreamQuery(text="50%_off"), lambda row: True),
        (StreamQuery(text="50%xoff"), lambda row: False),
        (StreamQuery(text="9 r", kind="tick"), lambda row: row[2] == "tick" and "9 r" in row[3].lower()),
        (StreamQuery(since="2026-01-01T01:00:00+01:00"), lambda row: True),
        (StreamQuery(since="2026-01-01T02:30:00Z"), lambda row: row[1] >= "2026-01-01T02:30"),
        (StreamQuery(until="2026-01-01T00:07:00Z"), lambda row: row[1] < "2026-01-01T00:07"),
        (StreamQuery(after=40, before=130), lambda row: 40 < row[0] < 130),
    ],
)
def test_pages_together_are_all_events_that_match(opened: LedgerQueries, query: StreamQuery, keeps: Any) -> None:
    wanted = [row[0] for row in rows_of(opened.path) if keeps(row)]
    found: list[int] = []
    query = query._replace(limit=23)
    for _ in range(100):
        page = Stream(opened).page(query)
        assert len(page.rows) <= 23
        found += [row.id for row in page.rows]
        if page.older_before is None:
            break
        query = query._replace(before=page.older_before)
    assert found == wanted


def test_a_scan_that_takes_too_long_says_where_it_stopped(opened: LedgerQueries) -> None:
    with mock.patch.object(stream, "SCAN_S", 0.0):
        page = Stream(opened).page(StreamQuery(text="text 5 "))
    assert page.rows == ()
    assert page.scanned_to is not None
    assert page.older_before == page.scanned_to <= 300
    assert [row.id for row in Stream(opened).page(StreamQuery(text="text 5 ", before=page.older_before)).rows] == [6]


def test_content_is_cut_in_sql(ledger: str) -> None:
    with EventLog(ledger) as log:
        log.append("user", "x" * 3_000_000, {"long": "y" * 200_000})
    opened = LedgerQueries(ledger, 5.0)
    statements: list[Any] = []
    with mock.patch.object(LedgerQueries, "rows", autospec=True, side_effect=_noting(LedgerQueries.rows, statements)):
        (row,) = Stream(opened).page(StreamQuery()).rows
        event = Stream(opened).event(1)
    opened.close()
    assert (row.content, row.content_chars) == ("x" * stream.CONTENT_CHARS, 3_000_000)
    assert event is not None
    assert event["cut"] == ["content", "meta"]
    assert len(event["content"]) == stream.EVENT_CHARS
    assert all(len(value) <= stream.EVENT_CHARS for row in statements for value in row if isinstance(value, str))


def _noting(function: Any, seen: list[Any]) -> Any:
    def noting(*arguments: Any) -> Any:
        found = function(*arguments)
        seen.extend(found.rows)
        return found

    return noting


def test_counts_by_kind_follow_the_log(opened: LedgerQueries) -> None:
    counter = KindCounter(opened)

    def counted() -> dict[str, int]:
        for _ in range(200):
            found = counter.counts()
            if found.is_complete:
                assert [number for _, number in found.kinds] == sorted((n for _, n in found.kinds), reverse=True)
                return dict(found.kinds)
        raise AssertionError("never complete")

    def wanted() -> dict[str, int]:
        return dict(Counter(row[2] for row in rows_of(opened.path)))

    assert counted() == wanted()
    with EventLog(opened.path) as log:
        log.append_many([("user", "", None), ("new kind", "", None)])
    assert counted() == wanted()
    # Events that are gone, as after a restore.
    ledgers.execute(opened.path, "DELETE FROM events WHERE id > 250")
    assert counted() == wanted()
    # Near the start, near the end, and far from both: there it needs an index.
    for event_id, is_near in ((60, True), (190, True), (125, False)):
        with mock.patch("pmm_shm_web.facets.PAST_STEP_IDS", 62):
            until = counter.counts_until(event_id)
        if is_near or opened.read(opened.has_kind_index):
            assert until is not None
            assert dict(until.kinds) == dict(Counter(row[2] for row in rows_of(opened.path) if row[0] <= event_id))
        else:
            assert until is None
        counter._past.clear()


def test_counts_after_a_restore_in_place_and_more_appends(opened: LedgerQueries) -> None:
    """The head is higher than before, but another history leads to it."""
    counter = KindCounter(opened)
    while not counter.counts().is_complete:
        pass
    counter.counts_until(250)
    ledgers.execute(opened.path, "DELETE FROM events WHERE id > 200")
    ledgers.execute(opened.path, "UPDATE sqlite_sequence SET seq = 200")
    with EventLog(opened.path) as log:
        log.append_many([("restored", "other", None)] * 150)
    while not (found := counter.counts()).is_complete:
        pass
    assert dict(found.kinds) == dict(Counter(row[2] for row in rows_of(opened.path)))
    until = counter.counts_until(260)
    if until is not None:
        assert dict(until.kinds) == dict(Counter(row[2] for row in rows_of(opened.path) if row[0] <= 260))


def test_counts_as_of_events_that_are_walked_to(opened: LedgerQueries) -> None:
    counter = KindCounter(opened)
    for event_id in (200, 201, 202, 201, 150, 110, 99, 300, 10**9, 0, 5):
        until = counter.counts_until(event_id)
        if until is None:
            continue
        assert dict(until.kinds) == dict(Counter(row[2] for row in rows_of(opened.path) if row[0] <= event_id))


def test_only_new_events_are_counted(opened: LedgerQueries) -> None:
    counter = KindCounter(opened)
    while not counter.counts().is_complete:
        pass
    with EventLog(opened.path) as log:
        log.append("user", "")
    with mock.patch.object(KindCounter, "_step", autospec=True, side_effect=KindCounter._step) as step:
        counter.counts()
    # One that counts, and at most one that finds nothing more.
    assert step.call_count <= 2


def test_a_replaced_ledger_is_counted_anew(opened: LedgerQueries, tmp_path: Path) -> None:
    counter = KindCounter(opened)
    while not counter.counts().is_complete:
        pass
    other = str(tmp_path / "other.db")
    with EventLog(other) as log:
        log.append_many([("other", "", None)] * 300)
    for suffix in ("-wal", "-shm"):
        Path(opened.path + suffix).unlink(missing_ok=True)
    os.replace(other, opened.path)
    with mock.patch("pmm_shm.limits.REPLACEMENT_NOTICED_S", 0.0):
        ledger = LedgerQueries(opened.path, 5.0)
        found = KindCounter(ledger).counts()
        ledger.close()
    assert dict(found.kinds) == {"other": 300}


def test_hostile_rows_are_listed_and_counted(tmp_path: Path) -> None:
    path = str(tmp_path / "hostile.db")
    connection = ledgers.connect(path)
    ledgers.make_table(connection, strict=False)
    connection.close()
    insert_hostile(path)
    count, last = ledgers.execute(path, "SELECT count(*), max(id) FROM events")[0]
    opened = LedgerQueries(path, 5.0)
    try:
        found, query = [], StreamQuery(limit=500)
        while True:
            page = Stream(opened).page(query)
            found += page.rows
            if page.older_before is None:
                break
            query = query._replace(before=page.older_before)
        assert len(found) == count
        for row in found:
            assert str(shown.shown(row.content)).startswith("<bdi>")
            event = Stream(opened).event(row.id)
            assert event is not None
            shown.shown_json(event).encode("utf-8")
        assert last == max(row.id for row in found)
        counted = KindCounter(opened).counts()
        assert sum(number for _, number in counted.kinds) + counted.others == count
    finally:
        opened.close()


# Values as HTML.


@pytest.mark.parametrize(
    "value",
    [
        "<script>alert(1)</script>",
        "\"'><img src=x onerror=alert(1)>",
        "\u202eevil\u2066\u2069\u2069 more",
        "\ud800 lone",
        "\x00\x1b[31m",
        "</bdi></pre>",
        {"<b>": "\u2069"},
        b"\xff\xfe",
        None,
        10**5_000,
        float("nan"),
    ],
    ids=range(11),
)
def test_a_value_is_text_apart_from_the_page(value: Any) -> None:
    for made in (str(shown.shown(value)), str(shown.shown_json(value))):
        inner = re.fullmatch(r"(?:<pre>)?<bdi>(.*)</bdi>(?:</pre>)?", made, re.DOTALL)
        assert inner is not None
        assert not set(inner[1]) & set("<>\"'")
        assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", html.unescape(inner[1]))


def test_a_long_value_is_cut() -> None:
    assert len(shown.shown("\u202e" * 1_000_000)) < 20_000
    assert len(shown.shown_json({"a": "b" * 1_000_000})) < 100_000


# Parameters.


@pytest.mark.parametrize("text", ["x", "1.0", "1e3", "9" * 30, "--1", "٣", str(1 << 63)])
def test_a_position_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="at: expected"):
        position({"at": text})


def test_a_list_as_of_an_event_has_nothing_behind_it() -> None:
    assert stream_query({"at": "7"}).before == 8
    assert stream_query({"at": "7", "before": "5"}).before == 5
    assert stream_query({"since": "2026-01-02T03:04"}).since == "2026-01-02T03:04:00.000+00:00"
    for bad in ({"since": "soon"}, {"limit": "0"}, {"limit": "501"}, {"text": "x" * 501}):
        with pytest.raises(ConfigError):
            stream_query(bad)


# The token's file.


def test_a_token_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = token_in(str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert token_in(str(path)) == token
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="nobody else"):
        token_in(str(path))
    path.chmod(0o600)
    path.write_text("short\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="no token"):
        token_in(str(path))
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(OSError, match="symbolic"):
        token_in(str(link))


# Jobs.


def test_a_job_tells_its_progress_and_is_cancelled() -> None:
    made = jobs.Jobs()
    position_ = mock.Mock(as_of=5)

    def work(report: Progress) -> None:
        while True:
            report(position_)

    job = made.start("one", 10, work)
    assert made.start("one", 10, work) is job
    assert not job.wait(0.05)
    assert job.done == 5
    assert made.cancel(job.id)
    assert job.wait(5.0)
    assert isinstance(job.error, jobs.CancelledError)
    assert not made.cancel(job.id)


def test_a_job_that_nobody_asks_for_ends() -> None:
    made = jobs.Jobs()
    with mock.patch.object(jobs, "FORGOTTEN_S", 0.05):

        def work(report: Progress) -> None:
            while True:
                report(mock.Mock(as_of=1))

        job = made.start("one", None, work)
        assert job._ended.wait(5.0)
        assert isinstance(job.error, jobs.CancelledError)


# Pages of other ledgers.


def test_the_head_of_a_replica_says_so(ledger: str) -> None:
    fill(ledger, 3)
    with Cache(ledger) as cache:
        frame = cache.frame()
    replica = {
        "name": "<b>west</b>",
        "server": "db:5432",
        "timeline": 3,
        "lag_events": 1_234,
        "looked_ms": 2_500,
        "forks": 1,
        "lost_files": ["/x/<i>lost"],
        "difference": None,
        "problem": "the server <b>does not answer",
    }
    values = {"missing": (), "health": "healthy", "daemon": {"lag_events": 0}, "replica": replica}
    made = Renderer(why_not="", shape=None)("header.html", frame=frame, at=None, **values)
    text = " ".join(html.unescape(re.sub(r"<[^>]*>", "", bytes(made.body).decode("utf-8"))).split())
    assert (
        "A replica of <b>west</b> on db:5432, timeline 3: 1,234 events behind, confirmed 2.5 s ago, 1 fork. "
        "The page shows what this host has. the server <b>does not answer "
        "Events that were taken back are in /x/<i>lost."
    ) in text


@pytest.mark.parametrize(
    ("ts", "wanted"),
    [
        ("2026-01-02T03:04:05.123456+00:00", "2026-01-02 03:04:05"),
        ("2026-01-02T03:04:05Z", "2026-01-02 03:04:05"),
        # Not in UTC: as it is.
        ("2026-01-02T03:04:05+02:00", "2026-01-02T03:04:05+02:00"),
        ("", ""),
        ("<b>", "&lt;b&gt;"),
    ],
)
def test_a_time_is_shown_in_utc_or_as_it_is(ts: str, wanted: str) -> None:
    assert shown.time(ts) == f"<bdi>{wanted}</bdi>"


@pytest.mark.parametrize(("first", "last"), [(0, 1), (1, 2), (1, 9), (3, 3_000), (-50, 50), (1, 10**6), (7, 2**63 - 1)])
def test_ticks_of_the_drawing_are_round_and_within(first: int, last: int) -> None:
    ids = chart._round_ids(first, last)
    assert 1 <= len(ids) <= chart.TICKS_MAX + 1
    assert all(first <= one <= last for one in ids)
    steps = {after - before for before, after in itertools.pairwise(ids)}
    assert len(steps) <= 1
    assert all(str(step).rstrip("0") in ("1", "2", "5") for step in steps)


def test_the_drawing_has_few_corners_and_all_extremes(tmp_path: Path) -> None:
    ledger = tmp_path / "long.db"
    synthetic.generate(ledger, 4_000, 7)
    with Cache(ledger) as cache:
        history = cache.history()
    drawn, columns = chart.drawing(history), chart.numbers(history)
    for score in ("ias", "gas"):
        corners = [tuple(map(float, one.split(","))) for one in getattr(drawn, score).split()]
        assert len(corners) <= 5 * (chart.WIDTH / chart.COLUMN + 1)
        assert [x for x, _ in corners] == sorted(x for x, _ in corners)
        assert (corners[0][0], corners[-1][0]) == (0, chart.WIDTH)
        wanted = [round(chart.HEIGHT * (1 - value), 1) for value in columns[score]]
        ys = [y for _, y in corners]
        assert (ys[0], ys[-1], min(ys), max(ys)) == (wanted[0], wanted[-1], min(wanted), max(wanted))
        # Steps: from one corner to the next, only one of the two changes.
        assert all(a[0] == b[0] or a[1] == b[1] for a, b in itertools.pairwise(corners))
    widths = [int(one) for _, path in drawn.stages for one in re.findall(r"h(\d+)", path)]
    assert sum(widths) == chart.WIDTH


class Fails(Fold):
    """Has a view of an empty log only."""

    name = "fails"
    version = 1

    def apply(self, event: Event, state: State) -> None:
        state["is_used"] = True

    def view(self, state: State) -> Any:
        return {"ratio": 1 / (0 if state.get("is_used") else 1)}


def test_a_view_that_fails_is_a_line_and_the_page_goes_on(tmp_path: Path) -> None:
    with connect(tmp_path / "agent.db", create=True) as cache:
        cache.append("user", "hello")
        connection = Connection(str(tmp_path / "agent.db"), "ro")
        folds = UserFolds((f"{__name__}:Fails", "tests.support.foreign_logs:Sums"), connection)
        connection.close()
        for fold in folds.folds.values():
            cache.add_fold(fold)
        parts = {part.name: part for part in folds.parts(cache.frame())}
    assert "fold 'fails': `view` fails at event 1: ZeroDivisionError" in str(parts["fails"].problem)
    assert parts["sums"].problem is None


def test_the_course_of_a_number() -> None:
    curves: dict[str, list[tuple[int, float | None]]] = {
        "steps": [(1, 0.0), (51, 10.0)],
        "gap": [(1, 5.0), (21, None), (61, 7.0)],
        "wide": [(1, -1.7e308), (2, 1.7e308)],
        "flat": [(1, 3.0)],
    }
    drawn = course.drawing(Courses(curves, 1, 101, 1))
    steps, gap, wide, flat = drawn.curves
    assert steps.lines == ("0.0,56.0 500.0,56.0 500.0,4.0 1000.0,4.0",)
    assert (steps.low, steps.high, steps.last) == (0.0, 10.0, 10.0)
    assert gap.lines == ("0.0,56.0 200.0,56.0", "600.0,4.0 1000.0,4.0")
    assert wide.lines == ("0.0,56.0 10.0,56.0 10.0,4.0 1000.0,4.0",)
    assert flat.lines == ("0.0,30.0 1000.0,30.0",)
    assert (drawn.links[0].label, drawn.links[-1].label, len(drawn.links)) == ("3", "101", course.LINKS)
    one = course.drawing(Courses({"n": [(7, 1.0)]}, 7, 7, 1))
    assert one.curves[0].lines == ("0.0,30.0 1000.0,30.0",)
    many = course.drawing(Courses({str(n): [(1, 1.0)] for n in range(99)}, 1, 5, 1))
    assert (len(many.curves), many.total) == (course.CURVES_SHOWN, 99)
