"""The finding of a check: its severity, its meaning, and its remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pmm_shm.remedies import Remedy

Severity = Literal["ok", "note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("ok", "note", "warning", "error")
"""From good to bad."""


Verdict = tuple[Severity, str, str, str, str]
"""A `Finding` without the name of its check."""


def ok(found: str, meaning: str) -> Verdict:
    """Nothing to do."""
    return "ok", found, meaning, "", ""


def note(found: str, meaning: str, remedy: Remedy) -> Verdict:
    """Worth knowing."""
    return "note", found, meaning, *remedy


def warning(found: str, meaning: str, remedy: Remedy) -> Verdict:
    """Works, but something should be changed."""
    return "warning", found, meaning, *remedy


def error(found: str, meaning: str, remedy: Remedy) -> Verdict:
    """Does not work."""
    return "error", found, meaning, *remedy


class DoctorCheck(NamedTuple):
    """One entry of the table of checks: a pure function of `SystemFacts` or, for one of the
    machine, of `MachineFacts`."""

    name: str
    look: Callable[[Any], Iterator[Verdict]]


@dataclass(frozen=True)
class Finding:
    """One finding; each text is one line.

    Attributes:
        check: the name of the check.
        found: the observation.
        meaning: its consequence.
        remedy: what to do about it; "" only if all is well.
        command: the remedy as a command for a shell; "" if it is none.

    Raises:
        ValueError: a text of several lines, or no remedy although something is wrong.
    """

    check: str
    severity: Severity
    found: str
    meaning: str
    remedy: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        if self.severity != "ok" and not self.remedy:
            raise ValueError(f"{self.check}: a finding without a remedy")
        for text in (self.found, self.meaning, self.remedy, self.command):
            if "\n" in text:
                raise ValueError(f"{self.check}: a text of several lines")


def one_line(text: object) -> str:
    """A text or error as one line."""
    return " ".join(str(text).split())
