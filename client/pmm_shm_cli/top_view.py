"""The layout of a frame of `pmm-shm top`, at any size of the terminal.

The charts and the table of processes share the lines that the fixed ones leave: the table gets what it needs up to a
third, and the charts grow into the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from pmm_shm_cli.charts import ChartValue, bars, curve
from pmm_shm_cli.sampling import Series
from pmm_shm_cli.status_view import duration, headline, served, size, source_line
from pmm_shm_terminal.answer_names import WHY_NOT_APPLICABLE
from pmm_shm_terminal.output import printable

_LABEL, _FIGURE = 12, 12
_NOTE_COLUMNS = 60
# Lines at any height: headline, blank, blank, four facts.
_FIXED_LINES = 7
_RATES, _SCORES = 4, 2
_TABLE_SHARE = 3

SORTS = ("cpu", "memory", "behind", "pid")
"""The columns that the processes can be sorted by, in the order of the key."""
KEYS: Mapping[str, str] = {
    "?": "show or hide this list",
    "p, space": "pause, and go on",
    "s": "sort the processes by the next column",
    "r": "reverse the order",
    "q, Esc": "quit",
}


@dataclass(frozen=True)
class Display:
    """What the keys change."""

    sort: str = SORTS[0]
    is_reversed: bool = False
    is_paused: bool = False
    shows_keys: bool = False


def frame(
    found: dict[str, Any],
    series: Series,
    width: int,
    height: int,
    *,
    display: Display | None = None,
    hint: str = "",
    plain: bool = False,
) -> RenderableType:
    """One frame; `found` is a sample of `top`, `plain` means a terminal without Unicode."""
    display = display or Display()
    first = headline(found)
    hint = "paused, p goes on" if display.is_paused else hint
    if hint and first.cell_len + len(hint) + 2 <= width:
        first.append(" " * (width - first.cell_len - len(hint)))
        first.append(hint, "bold" if display.is_paused else "dim")
    problems = _problems(found)
    lines: list[Any] = [first, *problems, Text("")]
    if display.shows_keys:
        lines += _key_lines()
    # One line of those above, and a blank one, are fixed.
    left = height - _FIXED_LINES - (len(lines) - 2)
    table = _process_lines(found, display, max(0, (left - _RATES - _SCORES) // _TABLE_SHARE))
    rate_lines, score_lines = _heights(left - len(table), plain)
    lines += [*_rates(series, width, rate_lines, plain), Text("")]
    if found.get("not_applicable"):
        lines.append(Text.assemble(("scores".ljust(_LABEL), "cyan"), WHY_NOT_APPLICABLE))
    elif found.get("shape") is None:
        lines += _scores(series, width, score_lines, plain)
    lines += [*_facts(found), *table]
    return Group(*[_fitted(line, width) for line in lines][: max(1, height)])


def _heights(left: int, plain: bool) -> tuple[int, int]:
    """The lines of one rate, and of one score (0: one line without a curve), of those that are left for all."""
    if plain:
        return max(1, (left - _SCORES) // _RATES), 0
    rate_lines = max(1, left // (2 * _RATES))
    return rate_lines, max(0, (left - _RATES * rate_lines) // _SCORES)


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


def _key_lines() -> list[Any]:
    return [*(Text.assemble((key.ljust(_LABEL), "bold"), words) for key, words in KEYS.items()), Text("")]


def _rates(series: Series, width: int, height: int, plain: bool) -> list[Any]:
    rows = (
        ("events/s", series.events, ""),
        ("reads/s", series.reads, "" if series.served_rate is None else f"{series.served_rate:.1%} served"),
        ("commands/s", series.commands, ""),
        ("commits/s", series.commits, ""),
    )
    return [line for name, values, note in rows for line in _charted(name, values, note, width, height, plain)]


def _charted(name: str, values: Sequence[ChartValue], note: str, width: int, height: int, plain: bool) -> list[Any]:
    newest = values[-1] if values else None
    figure = "–" if newest is None else f"{newest:,.1f}" if newest < 100 else f"{newest:,.0f}"
    head = Text.assemble((name.ljust(_LABEL), "cyan"), figure.rjust(_FIGURE))
    head.append(f"  {note:<14} " if width >= _NOTE_COLUMNS else "  ", "dim")
    lines = []
    for number, drawn in enumerate(bars(values, max(0, width - head.cell_len), height, plain=plain)):
        lines.append(Text.assemble(head if number == 0 else " " * head.cell_len, (drawn, "green")))
    return lines


def _scores(series: Series, width: int, height: int, plain: bool) -> list[Any]:
    lines: list[Any] = []
    for name, values, style in (("IAS", series.ias, "magenta"), ("GAS", series.gas, "blue")):
        newest = values[-1] if values else None
        figure = "–" if newest is None else f"{newest:.3f}"
        if plain or height == 0:
            lines += _charted(name, values, "", width, 1, plain)
            continue
        for number, drawn in enumerate(curve(values, max(0, width - _LABEL - 7), height)):
            label = f"{name} {figure}" if number == 0 else ""
            mark = "1.0" if number == 0 else "0.0" if number == height - 1 else ""
            lines.append(Text.assemble((label.ljust(_LABEL), "cyan"), (f"{mark:>4} ", "dim"), (drawn, style)))
    return lines


def _facts(found: dict[str, Any]) -> list[Any]:
    daemon, readers = found["daemon"], found["readers"]
    if daemon is None:
        return []
    sizes, workers = daemon["sizes"], daemon["workers"]
    busy = [reader for reader in readers if reader["behind_txns"] is not None]
    shown = ", ".join(f"{reader['pid']} {reader['command'] or ''}".rstrip() for reader in busy or readers)
    rows = (
        (
            "daemon",
            f"pid {daemon['pid']}, up {duration(daemon['uptime_ms'])}, lag {daemon['lag_ms']:,} ms, "
            f"verifications: {daemon['verifications_passed']:,} passed, {daemon['verifications_failed']:,} failed",
        ),
        (
            "memory",
            f"{size(sizes['resident_bytes'])} resident; data.mdb {size(sizes['store_disk_bytes'])}; ledger "
            f"{size(sizes['ledger_bytes'])} + wal {size(sizes['wal_bytes'])}",
        ),
        *([] if daemon.get("replica") is None else [("source", source_line(daemon["replica"]))]),
        ("workers", f"{workers['live']:,} live of {workers['seen']:,}; reads: {served(found['reads'])}"),
        ("readers", f"{len(readers):,} attached, {len(busy):,} reading: {shown}" if readers else "none attached"),
    )
    return [Text.assemble((name.ljust(_LABEL), "cyan"), printable(text)) for name, text in rows]


def _process_lines(found: dict[str, Any], display: Display, lines_max: int) -> list[Any]:
    """The daemon and the processes that read, with a blank line and a header; nothing where there is no room."""
    processes = sorted(found["processes"], key=lambda one: _rank(one, display.sort), reverse=not display.is_reversed)
    rows_max = lines_max - 2
    if rows_max < 1 or not processes:
        return []
    titles = {"pid": "pid", "cpu": "cpu", "memory": "memory", "behind": "behind"}
    titles[display.sort] += " ^" if display.is_reversed else " v"
    head = f"{titles['pid']:>10} {titles['cpu']:>8} {titles['memory']:>10} {titles['behind']:>10}  process"
    lines = [Text(""), Text(head, "bold")]
    for one in processes[:rows_max]:
        cpu = "–" if one["cpu_percent"] is None else f"{one['cpu_percent']:.1f} %"
        behind = "–" if one["behind_txns"] is None else f"{one['behind_txns']:,}"
        memory = size(one["resident_bytes"])
        lines.append(Text(f"{one['pid']:>10} {cpu:>8} {memory:>10} {behind:>10}  {printable(one['command'] or '?')}"))
    return lines


def _rank(process: dict[str, Any], sort: str) -> tuple[float, int]:
    value = process[{"cpu": "cpu_percent", "memory": "resident_bytes", "behind": "behind_txns", "pid": "pid"}[sort]]
    return (-1.0 if value is None else float(value)), process["pid"]
