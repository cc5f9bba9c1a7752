"""Draws the numbers of a fold over the events: one curve for each key."""

from __future__ import annotations

from math import nan
from typing import TYPE_CHECKING

from pmm_shm.projection.courses import Courses
from pmm_shm_cli.plotting import Format, dress_ids, figure_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES_MAX = 8
# Okabe and Ito's palette, but for its yellow, which is pale on white; the curves differ in their dashes, too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#6E6E6E")
_DASHES = ("solid", (0, (4.5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
_LABEL_CHARS = 40


def plotted_courses(
    courses: Courses, keys: list[str], label: str, file_format: Format, title: str | None = None
) -> bytes:
    """The figure as the bytes of a file; the same courses give the same bytes.

    Parameters:
        keys: the curves to draw, at most `CURVES_MAX`.
        label: of the axis of numbers.
        title: printed above the figure; None for none.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        first, last = courses.first_id, max(courses.as_of, courses.first_id + 1)
        axes.set_xlim(first, last)
        for number, key in enumerate(keys):
            curve = courses.curves[key]
            ids = [event_id for event_id, _ in curve] + [last]
            values = [nan if value is None else value for _, value in curve]
            axes.step(
                ids,
                [*values, values[-1]],
                where="post",
                color=_COLOURS[number % len(_COLOURS)],
                linestyle=_DASHES[number % len(_DASHES)],
                linewidth=1.4,
                label=_shown(key),
            )
        dress_ids(axes)
        axes.set_ylabel(label)
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.02), ncols=4, frameon=False, fontsize=8)
        if title is not None:
            figure.suptitle(title, x=0.02, ha="left", fontsize=10)

    return figure_bytes(file_format, draw)


def _shown(key: str) -> str:
    text = "".join(char if char.isprintable() else "?" for char in key)
    # A label that begins with "_" would be left out of the legend.
    text = f" {text}" if text.startswith("_") else text
    return text if len(text) <= _LABEL_CHARS else text[: _LABEL_CHARS - 1] + "…"
