"""A fold's numbers over the life of the log: one small drawing for each key, as an SVG without scripts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from pmm_shm.projection.courses import Courses
from pmm_shm_web.chart import WIDTH, Box

HEIGHT = 60
"""Of a drawing, in its own units."""
MARGIN = 4
CURVES_SHOWN = 12
LINKS = 50
"""Parts of a drawing that lead to a position."""


class Curve(NamedTuple):
    """The course of one number.

    Attributes:
        lines: the points of each stretch without a gap.
        low, high: the least and the greatest value.
        last: the value at the end; None where the key is gone.
    """

    key: str
    lines: tuple[str, ...]
    low: float
    high: float
    last: float | None


class FoldDrawing(NamedTuple):
    """The curves of a fold, the first `CURVES_SHOWN` of `total`; a link's label is an event id."""

    curves: tuple[Curve, ...]
    total: int
    links: tuple[Box, ...]
    first_id: int
    last_id: int


def drawing(courses: Courses) -> FoldDrawing:
    """The courses as the parts of SVGs."""
    first, last = courses.first_id, max(courses.as_of, courses.first_id + 1)
    shown = list(courses.curves.items())[:CURVES_SHOWN]
    curves = tuple(_curve(key, course, first, last) for key, course in shown)
    links = min(LINKS, last - first)
    step = (last - first) / links
    boxes = tuple(
        Box(round(WIDTH * n / links, 1), WIDTH / links, str(int(first + (n + 1) * step))) for n in range(links)
    )
    return FoldDrawing(curves, len(courses.curves), boxes, first, last)


def _curve(key: str, course: list[tuple[int, float | None]], first: int, last: int) -> Curve:
    values = [value for _, value in course if value is not None]
    low, high = min(values, default=0.0), max(values, default=0.0)

    def point(event_id: int, value: float) -> str:
        # In halves: the difference of two numbers may be beyond what a float holds.
        share = (value / 2 - low / 2) / (high / 2 - low / 2) if high / 2 > low / 2 else 0.5
        y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * share
        return f"{WIDTH * (event_id - first) / (last - first):.1f},{y:.1f}"

    lines = tuple(" ".join(point(*corner) for corner in stretch) for stretch in _stretches(course, last))
    return Curve(key, lines, low, high, course[-1][1])


def _stretches(course: list[tuple[int, float | None]], last: int) -> Iterator[list[tuple[int, float]]]:
    """The corners of the steps, for each stretch in which the key was there."""
    ends = [event_id for event_id, _ in course[1:]] + [last]
    steps = [(event_id, end, value) for (event_id, value), end in zip(course, ends, strict=True)]
    for is_gap, stretch in groupby(steps, lambda step: step[2] is None):
        if not is_gap:
            yield [
                corner
                for start, end, value in stretch
                if value is not None
                for corner in ((start, value), (end, value))
            ]
