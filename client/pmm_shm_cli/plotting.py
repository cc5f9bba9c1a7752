"""Draws the history of the scores: IAS and GAS over the events, with the stages and the changes of the name.

The same history gives the same bytes from the same version of the library, which is matplotlib (the extra `plot`): no
date, no random ids. A name is drawn only where it is asked for.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pmm_shm.errors import MissingExtraError
from pmm_shm.folds.history import FIRST_STAGE, Point
from pmm_shm_client.results import History
from pmm_shm_terminal.timeline import bands, ends

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["svg", "png"]

# Two colours of Okabe and Ito's palette, told apart by every kind of colour vision and in grey; the curves differ in
# their dashes, too.
_IAS_COLOUR, _GAS_COLOUR = "#0072B2", "#D55E00"
_STAGE_COLOURS = {"S0": "#F4F4F4", "S1": "#DCE5DF", "S2": "#B5CDBF", "S3": "#82AE95", "S4": "#4F8B6C"}
_STAGE_TEXT = {"S4": "white"}
_INK, _QUIET = "#222222", "#6E6E6E"
_SIZE_INCHES = (7.0, 3.5)
_PNG_DPI = 200
_STAGE_LABEL_SHARE = 0.035
_GAP_SHARE = 0.005
_CHAR_SHARE = 0.014
_NAME_CHARS = 16
# Of `Any` type: from one version of matplotlib to the next, the type of its parameters differs.
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.edgecolor": _QUIET,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.6,
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _QUIET,
    "xtick.labelcolor": _INK,
    "ytick.color": _QUIET,
    "ytick.labelcolor": _INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.hashsalt": "pmm-shm",
    "svg.fonttype": "path",
    "path.simplify": False,
}


def plotted(history: History, file_format: Format, title: str | None = None, names: bool = False) -> bytes:
    """The figure as the bytes of a file.

    Parameters:
        title: printed above the figure; None for none.
        names: whether to print the names beside their changes.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return figure_bytes(file_format, lambda figure: _draw(figure, history, title, names))


def figure_bytes(file_format: Format, draw: Callable[[Figure], None]) -> bytes:
    """A figure in the style of all, filled by `draw`, as the bytes of a file.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    # Messages of the library, such as the place of its font cache, do not concern the caller.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        from pmm_shm.installation import extra_command

        raise MissingExtraError(f"pmm-shm plot needs matplotlib: {extra_command('plot')} ({error})") from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=_SIZE_INCHES, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06, hspace=0.0))
        draw(figure)
        out = io.BytesIO()
        # Without date and version of the library, the file changes only with its content.
        metadata = {"Creator": "pmm-shm", "Date": None} if file_format == "svg" else {"Software": "pmm-shm"}
        figure.savefig(out, format=file_format, dpi=_PNG_DPI, metadata=metadata)
    return out.getvalue()


def _draw(figure: Figure, history: History, title: str | None, names: bool) -> None:
    stages, changes, axes = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1, 16))
    first, last = ends(history)
    axes.set_xlim(first, last)
    _draw_stages(stages, history, last - first)
    _draw_names(changes, history, names, first, last)
    _draw_scores(axes, history, first, last)
    _dress(axes)
    for strip, label in ((stages, "stage"), (changes, "name")):
        _dress_strip(strip, label)
    if title is not None:
        stages.set_title(title, loc="left", fontsize=10, pad=7)
    _draw_key(stages, axes.get_legend_handles_labels()[0], sorted({band.stage for band in bands(history)}))


def _draw_key(strip: Axes, curves: list[Any], stages: list[str]) -> None:
    from matplotlib.patches import Patch

    boxes = [Patch(facecolor=_STAGE_COLOURS[stage], edgecolor=_QUIET, linewidth=0.4, label=stage) for stage in stages]
    place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.1), "borderaxespad": 0.0}
    space: dict[str, Any] = {"handlelength": 1.8, "columnspacing": 1.2, "handletextpad": 0.5}
    strip.legend(handles=[*curves, *boxes], ncols=7, frameon=False, fontsize=8, **place, **space)


def _draw_stages(strip: Axes, history: History, span: float) -> None:
    for first, last, stage in bands(history):
        strip.axvspan(first, last, facecolor=_STAGE_COLOURS[stage], edgecolor="none", linewidth=0)
        if last - first >= _STAGE_LABEL_SHARE * span:
            middle, colour = (first + last) / 2, _STAGE_TEXT.get(stage, _INK)
            strip.text(middle, 0.46, stage, ha="center", va="center", fontsize=7, color=colour)


def _draw_names(strip: Axes, history: History, names: bool, first: float, last: float) -> None:
    """A line at each change of the name, and the new name beside it if it fits."""
    strip.axvspan(first, last, facecolor=_STAGE_COLOURS[FIRST_STAGE], edgecolor="none", linewidth=0)
    ends = [*(change.event_id for change in history.names[1:]), last]
    for (event_id, name), end in zip(history.names, ends, strict=False):
        strip.axvline(event_id, color=_INK, linewidth=0.8)
        label = _label(name)
        if names and end - event_id >= len(label) * _CHAR_SHARE * (last - first):
            strip.text(event_id + _GAP_SHARE * (last - first), 0.46, label, ha="left", va="center", fontsize=7)


def _draw_scores(axes: Axes, history: History, first: float, last: float) -> None:
    for score, label, colour, dashes, width in (
        ("ias", "IAS", _IAS_COLOUR, "solid", 1.7),
        ("gas", "GAS", _GAS_COLOUR, (0, (4.5, 1.5)), 1.2),
    ):
        ids, lows, highs, values = _curve(history.points, score, first, last)
        if history.stride > 1:
            axes.fill_between(ids, lows, highs, step="post", color=colour, alpha=0.22, linewidth=0)
        axes.step(ids, values, where="post", color=colour, linestyle=dashes, linewidth=width, label=label)


def _curve(points: tuple[Point, ...], score: str, first: float, last: float) -> tuple[list[float], ...]:
    """(ids, lowest, highest, value) of the steps of one curve; between two samples a score stays what it was."""
    # Before the first sample both scores are 0.
    ids, lows, highs, values = [first], [0.0], [0.0], [0.0]
    for point in points:
        low, high = getattr(point, f"{score}_min"), getattr(point, f"{score}_max")
        ids += [point.first_id, point.last_id] if point.samples > 1 else [point.first_id]
        ends = [getattr(point, f"{score}_first"), getattr(point, f"{score}_last")][2 - min(point.samples, 2) :]
        # After its last sample, the range of a point ends.
        lows += [low, ends[-1]][2 - len(ends) :]
        highs += [high, ends[-1]][2 - len(ends) :]
        values += ends
    for column, end in ((ids, last), (lows, lows[-1]), (highs, highs[-1]), (values, values[-1])):
        column.append(end)
    return ids, lows, highs, values


def _label(name: str | None) -> str:
    if name is None:
        return "(none)"
    shown = "".join(char if char.isprintable() else "?" for char in name)
    return shown if len(shown) <= _NAME_CHARS else shown[: _NAME_CHARS - 1] + "…"


def _dress(axes: Axes) -> None:
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axes.set_ylabel("score")
    dress_ids(axes)


def dress_ids(axes: Axes) -> None:
    """An axis of event ids below, lines at the numbers, no frame."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlabel("event id")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}".replace(",", "\u2009")))
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _dress_strip(strip: Axes, label: str) -> None:
    strip.set_ylim(0, 1)
    strip.set_yticks([0.5], [label])
    strip.tick_params(axis="both", length=0, labelbottom=False)
    for side in strip.spines.values():
        side.set_visible(False)
