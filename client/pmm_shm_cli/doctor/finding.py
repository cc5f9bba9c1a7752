"""What the doctor says: one finding, what it means, and what mends it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Literal

Severity = Literal["ok", "note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("ok", "note", "warning", "error")
"""From good to bad."""


@dataclass(frozen=True)
class Finding:
    """One finding; each text is one line.

    Attributes:
        check: what was looked at, as a name with hyphens.
        found: what is there.
        meaning: what follows from it.
        remedy: what to do about it; "" only where all is well.
        command: the remedy as a command for a shell, where it is one.

    Raises:
        ValueError: a text of several lines, or something that is not well and has no remedy.
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


def command(*words: object) -> str:
    """Words as a line for a shell."""
    return shlex.join(map(str, words))


def one_line(error: object) -> str:
    """The text of an error, as one line."""
    return " ".join(str(error).split())
