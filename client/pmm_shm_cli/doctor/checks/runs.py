"""Checks of what the processes of PMM under `pmm-shm run` have reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from pmm_shm.remedies import remedy
from pmm_shm_cli.doctor.facts import SystemFacts
from pmm_shm_cli.doctor.finding import Verdict, note, ok, one_line, warning

_SHOWN_MAX = 5


def answers(facts: SystemFacts) -> Iterator[Verdict]:
    """How often the replacements answered, and why PMM's own functions did."""
    runs = facts.state.runs
    if not runs:
        return
    answered = sum(sum(run.answered.values()) for run in runs)
    reasons: Counter[str] = Counter()
    for run in runs:
        for counts in run.fallbacks.values():
            reasons.update(counts)
    by_pmm = f", {sum(reasons.values()):,} by PMM itself ({_most(reasons)})" if reasons else ""
    ended = sum(run.is_ended for run in runs)
    yield ok(
        f"processes of PMM in the last day: {len(runs)}, {ended} of them ended; {answered:,} calls answered{by_pmm}",
        "whatever cannot be answered exactly, PMM answers itself",
    )


def failures(facts: SystemFacts) -> Iterator[Verdict]:
    """Replacements that failed."""
    failed: Counter[str] = Counter()
    for run in facts.state.runs:
        for label, counts in run.fallbacks.items():
            failed.update({f"{label}: {why}": number for why, number in counts.items() if why.startswith("error: ")})
        failed.update(f"{label}: {why}" for label, why in run.kept.items() if _is_failure(why))
    if failed:
        yield warning(
            one_line(f"replacements failed: {_most(failed)}"),
            "PMM's own functions answer in their place, which is slower",
            remedy("report-fault"),
        )


def not_replaced(facts: SystemFacts) -> Iterator[Verdict]:
    """Names that stay PMM's own because the source is another."""
    names = {label for run in facts.state.runs for label, why in run.kept.items() if why.startswith("unknown source")}
    if names:
        shown = ", ".join(sorted(names)[:_SHOWN_MAX]) + (", ..." if len(names) > _SHOWN_MAX else "")
        yield note(
            one_line(f"another version of PMM: {len(names)} functions are its own: {shown}"),
            "these are as slow as without pmm-shm",
            remedy("other-pmm"),
        )


def _is_failure(why: str) -> bool:
    """Whether a name is not replaced because an error was raised: `install` keeps its class and its text."""
    return why.partition(":")[0].endswith("Error")


def _most(counts: Counter[str]) -> str:
    shown = ", ".join(f"{number:,} {one_line(what)}" for what, number in counts.most_common(_SHOWN_MAX))
    return shown + (", ..." if len(counts) > _SHOWN_MAX else "")
