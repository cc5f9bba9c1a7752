"""`docs/BENCHMARKS.md`: the part between its two markers is generated from `docs/bench/report.json` alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench import plots
from bench.report import cell, cells
from pmm_shm_cli.commands.bench import duration

DATA = "report.json"
BEGIN = "<!-- measured: made by `make bench` -->"
END = "<!-- end of what was measured -->"


def write(docs: Path, report: Mapping[str, Any]) -> None:
    """Put a report into the page, and beside it the data that it is made of."""
    (docs / "bench").mkdir(exist_ok=True)
    (docs / "bench" / DATA).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    path = docs / "BENCHMARKS.md"
    before, _, after = parts(path.read_text(encoding="utf-8"))
    path.write_text(before + measured(report) + after, encoding="utf-8")


def parts(text: str) -> tuple[str, str, str]:
    """The page before, between and after the markers, which belong to the first and the last."""
    before, begin, rest = text.partition(BEGIN + "\n")
    between, end, after = rest.partition(END)
    assert begin, "the page has lost its first marker"
    assert end, "the page has lost its last marker"
    return before + begin, between, end + after


def measured(report: Mapping[str, Any]) -> str:
    """The part between the markers."""
    return "\n" + "\n".join(_lines(report)) + "\n"


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    yield from _machine(report)
    yield from _summary(report)
    drawn = plots.plotted(report)
    for row in report["rows"]:
        yield f"### {row['number']}. {row['title']}"
        yield ""
        yield f"Target: {row['target']}."
        yield ""
        if row["number"] in drawn:
            yield f"![{plots.PLOTTED[row['number']]}](bench/{plots.name_of(row['number'])})"
            yield ""
        yield from _table(
            ("figure", "measured", "p99", "target", ""), [cells(one) for one in row["figures"]], numbers=(1, 2, 3)
        )
        if row["times"]:
            times = [
                (one["section"], one["name"], duration(one["p50_us"]), duration(one["p99_us"]), f"{one['calls']:,}")
                for one in row["times"]
            ]
            yield from _table(("what", "side", "p50", "p99", "calls"), times, numbers=(2, 3, 4))
        for title, rows in row["tables"].items():
            yield f"{title[0].upper()}{title[1:]}:"
            yield ""
            values = [[cell(value) for value in one.values()] for one in rows]
            yield from _table(tuple(rows[0]), values, numbers=tuple(range(1, len(rows[0]))))
        for note in row["notes"]:
            yield note
            yield ""


def _machine(report: Mapping[str, Any]) -> Iterator[str]:
    facts = report["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    yield (
        f"Measured on {facts['cores']} cores ({facts['cpu']}, {facts['system']}, {facts['memory_mb']:,} MB), in "
        f"{report['minutes']} minutes. Load average at the beginning {_load(facts['load'])}, at the end "
        f"{_load(facts['load at the end'])}. {versions}."
    )
    yield ""


def _load(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _summary(report: Mapping[str, Any]) -> Iterator[str]:
    """Of each row, how many of its figures meet their target."""
    rows = []
    for row in report["rows"]:
        verdicts = [one["verdict"] for one in row["figures"] if one["verdict"] != "stated"]
        met = verdicts.count("met")
        verdict = (
            "stated" if not verdicts else "met" if met == len(verdicts) else f"missed: {met} of {len(verdicts)} met"
        )
        rows.append((str(row["number"]), row["title"], row["target"], verdict))
    yield from _table(("#", "what", "target", ""), rows, numbers=(0,))


def _table(header: tuple[str, ...], rows: Any, numbers: tuple[int, ...]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"| {' | '.join('---:' if place in numbers else '---' for place in range(len(header)))} |"
    for row in rows:
        yield f"| {' | '.join(text.strip() for text in row)} |"
    yield ""
