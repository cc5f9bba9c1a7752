"""IAS and GAS over the life of the ledger: as numbers for the chart in the browser, and as an SVG without scripts."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from pmm_shm.folds.history import Point
from pmm_shm_client.results import History
from pmm_shm_terminal.timeline import bands, ends

WIDTH, HEIGHT = 1000, 220
"""Of the drawing, in its own units."""
COLUMN = 4
"""Points that are closer than this are drawn as one: the first paint waits for this drawing."""
TITLE_WIDTH_MIN = 60
TICKS_MAX = 6
LINKS = 50
"""Parts of the drawing that lead to a position."""


class Box(NamedTuple):
    """A band or a link of the drawing."""

    x: float
    width: float
    label: str


class Drawing(NamedTuple):
    """The SVG's parts.

    Attributes:
        ias, gas: the points of a line.
        stages: each stage with the path of its bands.
        titles: a box for each band that is wide enough for its name.
        names: the path of a mark at each change of the name.
        links: boxes, whose label is an event id.
        ticks: boxes without a width, whose label is an event id.
        at: x of the position that is shown; None for now.
    """

    ias: str
    gas: str
    stages: tuple[tuple[str, str], ...]
    titles: tuple[Box, ...]
    names: str
    links: tuple[Box, ...]
    ticks: tuple[Box, ...]
    at: float | None
    first_id: int
    last_id: int

    def as_of(self, event_id: int | None) -> Drawing:
        """The same with a mark at the position that is shown."""
        return self if event_id is None else self._replace(at=_x(event_id, self.first_id, self.last_id))


def _column(x: float) -> int:
    return round(x / COLUMN) * COLUMN


def _x(event_id: float, first: float, last: float) -> float:
    return round(WIDTH * (min(max(event_id, first), last) - first) / (last - first), 1)


def numbers(history: History) -> dict[str, Any]:
    """The history in columns, for a chart that draws steps: between two samples a score stays what it was."""
    # Before the first sample both scores are 0.
    ids = [int(ends(history)[0])]
    columns: dict[str, list[float]] = {"ias": [0.0], "gas": [0.0]}
    for point in history.points:
        ids += [point.first_id, point.last_id] if point.last_id > point.first_id else [point.last_id]
        for score, values in columns.items():
            values += _values(point, score)
    if history.as_of > ids[-1] or len(ids) == 1:
        ids.append(int(ends(history)[1]))
        for values in columns.values():
            values.append(values[-1])
    return {
        "as_of": history.as_of,
        "stride": history.stride,
        "ids": ids,
        **columns,
        "stages": [list(band) for band in bands(history)],
        "names": [[change.event_id, change.name] for change in history.names],
    }


def _values(point: Point, score: str) -> list[float]:
    last = getattr(point, f"{score}_last")
    return [getattr(point, f"{score}_first"), last] if point.last_id > point.first_id else [last]


def drawing(history: History) -> Drawing:
    """The history as the parts of an SVG."""
    first, last = ends(history)

    def x(event_id: float) -> float:
        return _x(event_id, first, last)

    columns = numbers(history)
    lines = {score: _line([x(one) for one in columns["ids"]], columns[score]) for score in ("ias", "gas")}
    spans = [Box(left := _column(x(band.first)), _column(x(band.last)) - left, band.stage) for band in bands(history)]
    paths: dict[str, str] = {}
    # In columns, and as one path for each stage: a long life has a thousand bands.
    for span in spans:
        if span.width > 0:
            paths[span.label] = paths.get(span.label, "") + f"M{span.x} 0h{span.width}v{HEIGHT}h-{span.width}z"
    stages = tuple(paths.items())
    titles = tuple(span for span in spans if span.width >= TITLE_WIDTH_MIN)
    links = min(LINKS, max(1, int(last - first)))
    step = (last - first) / links
    boxes = (Box(x(first + n * step), WIDTH / links, str(int(first + (n + 1) * step))) for n in range(links))
    marks = dict.fromkeys(_column(x(change.event_id)) for change in history.names)
    names = "".join(f"M{mark} {HEIGHT}v-8" for mark in marks)
    ticks = tuple(Box(x(one), 0.0, f"{one:,}") for one in _round_ids(int(first), int(last)))
    return Drawing(lines["ias"], lines["gas"], stages, titles, names, tuple(boxes), ticks, None, int(first), int(last))


def _round_ids(first: int, last: int) -> list[int]:
    """Up to `TICKS_MAX` ids at round distances."""
    unit = 10 ** max(0, len(str(last - first)) - 2)
    step = next(unit * n for n in (1, 2, 5, 10, 20, 50) if (last - first) // (unit * n) < TICKS_MAX)
    return list(range(-(-first // step) * step, last + 1, step))


def _line(xs: list[float], scores: list[float]) -> str:
    """The corners of a line of steps; scores from 0 at the bottom to 1 at the top.

    Of the values within one column the line has the first, the extremes and the last.
    """
    columns: dict[int, list[float]] = {}
    for x, value in zip(xs, scores, strict=True):
        columns.setdefault(_column(x), []).append(round(HEIGHT * (1 - min(1.0, max(0.0, value))), 1))
    corners: list[str] = []
    before = None
    for x, ys in columns.items():
        passed = (before, ys[0], min(ys), max(ys), ys[-1])
        corners += (f"{x},{y:g}" for y, _ in itertools.groupby(y for y in passed if y is not None))
        before = ys[-1]
    return " ".join(corners)
