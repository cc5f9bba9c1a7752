"""The results: figures with their goals, timings, curves; as JSON, and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.table import Table

from pmm_shm_cli.commands.bench import duration
from pmm_shm_cli.timing import Timing

FORMAT = 1
Verdict = Literal["met", "missed", "stated"]


class Goal(NamedTuple):
    """The target of a figure."""

    sign: Literal["<=", ">="]
    bound: float

    def is_met(self, value: float) -> bool:
        return value <= self.bound if self.sign == "<=" else value >= self.bound


def at_most(bound: float) -> Goal:
    return Goal("<=", bound)


def at_least(bound: float) -> Goal:
    return Goal(">=", bound)


@dataclass(frozen=True)
class Figure:
    """One number, with its goal where it has one; `p99` is the same ratio of the two p99, where there are such."""

    what: str
    value: float
    unit: str
    goal: Goal | None = None
    p99: float | None = None

    @property
    def verdict(self) -> Verdict:
        return "stated" if self.goal is None else "met" if self.goal.is_met(self.value) else "missed"


@dataclass
class Row:
    """One row of the table: its figures, the times behind them, and costs against a size.

    Attributes:
        times: (what, timing) in order.
        curves: side to ledger size to p50 in microseconds.
        tables: title to rows of named values.
    """

    number: int
    title: str
    target: str
    figures: list[Figure] = field(default_factory=list)
    times: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    curves: dict[str, dict[int, float]] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def figure(
        self, what: str, value: float, unit: str = "×", goal: Goal | None = None, p99: float | None = None
    ) -> None:
        self.figures.append(Figure(what, value, unit, goal, p99))

    def time(self, what: str, timings: Mapping[str, Timing]) -> None:
        for timing in timings.values():
            self.times.append((what, timing.as_dict()))

    def point(self, curve: str, events: int, timing: Timing) -> None:
        self.curves.setdefault(curve, {})[events] = timing.p50_us

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def as_dict(self) -> dict[str, Any]:
        figures = [
            {**asdict(one), "goal": None if one.goal is None else list(one.goal), "verdict": one.verdict}
            for one in self.figures
        ]
        return {
            "number": self.number,
            "title": self.title,
            "target": self.target,
            "figures": figures,
            "times": [{"section": what, **times} for what, times in self.times],
            "curves": {
                name: {str(events): us for events, us in points.items()} for name, points in self.curves.items()
            },
            "tables": self.tables,
            "notes": self.notes,
        }


def shown(report: Mapping[str, Any], console: Console) -> None:
    """The report, as `as_dict` of its rows has it, for people."""
    for row in report["rows"]:
        console.print(f"\n[bold]{row['number']}. {row['title']}[/bold]", highlight=False)
        figures = Table()
        for name, justify in (("figure", "left"), ("measured", "right"), ("p99", "right"), ("target", "right")):
            figures.add_column(name, justify=justify)  # type: ignore[arg-type]
        figures.add_column("")
        for one in row["figures"]:
            figures.add_row(*cells(one))
        console.print(figures)
        if row["times"]:
            times = Table("what", "side")
            for name in ("p50", "p99", "calls"):
                times.add_column(name, justify="right")
            for one in row["times"]:
                values = (duration(one["p50_us"]), duration(one["p99_us"]), f"{one['calls']:,}")
                times.add_row(one["section"], one["name"], *values)
            console.print(times)
        for title, rows in row["tables"].items():
            made = Table(*rows[0], title=title)
            for values in rows:
                made.add_row(*(cell(value) for value in values.values()))
            console.print(made)
        for note in row["notes"]:
            console.print(note, markup=False, highlight=False)
    console.print(f"\n{report['machine']}", markup=False, highlight=False)


def cells(figure: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """What, measured, p99, target, verdict."""
    unit, goal = figure["unit"], figure["goal"]
    p99 = "" if figure["p99"] is None else number(figure["p99"], unit)
    target = "" if goal is None else f"{'≤' if goal[0] == '<=' else '≥'} {number(goal[1], unit)}"
    return figure["what"], number(figure["value"], unit), p99, target, figure["verdict"]


def number(value: float, unit: str) -> str:
    """`1.25 ×`, `12,345 ×`, `0.2 %`"""
    text = f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"
    return f"{text} {unit}".strip()


def cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "–" if value is None else "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"
    return str(value)
