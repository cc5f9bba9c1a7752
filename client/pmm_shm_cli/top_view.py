"""The layout of a frame of `pmm-shm top`, at any size of the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from pmm_shm_cli.charts import Value, curve, spark
from pmm_shm_cli.sampling import Series
from pmm_shm_cli.status_view import duration, headline, rate, size
from pmm_shm_terminal.output import printable

_LABEL, _FIGURE = 12, 12
_CURVE_LINES_MAX = 6
_NOTE_COLUMNS = 60
# Lines at any height: headline, blank, four rates, blank, four facts.
_FIXED_LINES = 12


def frame(
    found: dict[str, Any], series: Series, width: int, height: int, *, hint: str = "", plain: bool = False
) -> RenderableType:
    """One frame; `found` is a sample of `top`, `plain` means a terminal without Unicode."""
    first = headline(found)
    if hint and first.cell_len + len(hint) + 2 <= width:
        first.append(" " * (width - first.cell_len - len(hint)))
        first.append(hint, "dim")
    lines: list[RenderableType] = [first, *_problems(found), Text("")]
    lines += _rates(series, width, plain)
    lines.append(Text(""))
    left = height - _FIXED_LINES - len(_problems(found))
    lines += _scores(series, width, min(_CURVE_LINES_MAX, max(0, left // 2)), plain)
    lines += _facts(found["daemon"], found["readers"])
    return Group(*[_fitted(line, width) for line in lines][: max(1, height)])


def _fitted(line: Any, width: int) -> Any:
    line.no_wrap, line.overflow = True, "ellipsis"
    line.truncate(width, overflow="ellipsis")
    return line


def _problems(found: dict[str, Any]) -> list[Any]:
    lines = []
    for entry in found["remedies"][:2]:
        lines.append(Text(printable(entry["problem"]), "red"))
        if entry["command"] is not None:
            lines.append(Text.assemble(("type: ", "dim"), (printable(entry["command"]), "bold")))
    return lines


def _rates(series: Series, width: int, plain: bool) -> list[Any]:
    rows = (
        ("events/s", series.events, ""),
        ("reads/s", series.reads, "" if series.hit_rate is None else f"{series.hit_rate:.2%} hits"),
        ("commands/s", series.commands, ""),
        ("commits/s", series.commits, ""),
    )
    return [_charted(name, values, note, width, plain) for name, values, note in rows]


def _charted(name: str, values: Sequence[Value], note: str, width: int, plain: bool) -> Any:
    newest = values[-1] if values else None
    figure = "–" if newest is None else f"{newest:,.1f}" if newest < 100 else f"{newest:,.0f}"
    line = Text.assemble((name.ljust(_LABEL), "cyan"), figure.rjust(_FIGURE))
    line.append(f"  {note:<12} " if width >= _NOTE_COLUMNS else "  ", "dim")
    line.append(spark(values, max(0, width - line.cell_len), plain=plain), "green")
    return line


def _scores(series: Series, width: int, height: int, plain: bool) -> list[Any]:
    lines: list[Any] = []
    for name, values, style in (("IAS", series.ias, "magenta"), ("GAS", series.gas, "blue")):
        newest = values[-1] if values else None
        figure = "–" if newest is None else f"{newest:.3f}"
        if plain or height == 0:
            lines.append(_charted(name, values, "", width, plain))
            continue
        for number, drawn in enumerate(curve(values, max(0, width - _LABEL - 7), height)):
            label = f"{name} {figure}" if number == 0 else ""
            mark = "1.0" if number == 0 else "0.0" if number == height - 1 else ""
            lines.append(Text.assemble((label.ljust(_LABEL), "cyan"), (f"{mark:>4} ", "dim"), (drawn, style)))
    return lines


def _facts(daemon: dict[str, Any] | None, readers: list[dict[str, Any]]) -> list[Any]:
    if daemon is None:
        return []
    sizes, workers = daemon["sizes"], daemon["workers"]
    hits = workers["projection_hits"] + workers["metrics_hits"]
    misses = workers["projection_misses"] + workers["metrics_misses"]
    busy = [reader for reader in readers if reader["behind_txns"] is not None]
    shown = ", ".join(f"{reader['pid']} {reader['command'] or ''}".rstrip() for reader in busy or readers)
    rows = (
        (
            "daemon",
            f"pid {daemon['pid']}, up {duration(daemon['uptime_ms'])}, lag {daemon['lag_ms']:,} ms, "
            f"{daemon['verifications_passed']:,} verifications passed, {daemon['verifications_failed']:,} failed",
        ),
        (
            "memory",
            f"{size(sizes['resident_bytes'])} resident; data.mdb {size(sizes['store_disk_bytes'])}; ledger "
            f"{size(sizes['ledger_bytes'])} + wal {size(sizes['wal_bytes'])}",
        ),
        (
            "workers",
            f"{workers['live']:,} live of {workers['seen']:,}, {hits + misses:,} reads, {rate(hits, misses)} hits",
        ),
        ("readers", f"{len(readers):,} attached, {len(busy):,} reading: {shown}" if readers else "none attached"),
    )
    return [Text.assemble((name.ljust(_LABEL), "cyan"), printable(text)) for name, text in rows]
