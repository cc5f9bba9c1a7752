"""The output of a conversation: on a terminal with names, colours and wrapped words; elsewhere the answers alone.

Invariant: of the control characters in answers, names and commitments, only line breaks reach the terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from pmm_shm_terminal.output import console, printable

if TYPE_CHECKING:
    from rich.console import Console

    from pmm_shm_chat.progress import FollowUp

_MARKS = {
    "commitment_open": "+",
    "commitment_close": "✓",
    "identity_adopt": "•",
    "autonomy_directive": "!",
}
_CID_CHARS_MAX = 40
_WIDTH_MIN = 20


def readable(text: str) -> str:
    """The text with all characters but line breaks made printable."""
    lines = text.replace("\r\n", "\n").replace("\t", "    ").split("\n")
    return "\n".join(map(printable, lines))


class LineWrapper:
    """Wraps a text that arrives in pieces at its spaces, into lines of at most `width` cells.

    Parameters:
        write: called with the output.
        indent: cells before the text of the first line; all other lines are indented by as many.
    """

    def __init__(self, write: Callable[[str], None], width: int, indent: int) -> None:
        from rich.cells import cell_len

        self._write = write
        self._cells = cell_len
        self._width = max(_WIDTH_MIN, width - indent)
        self._margin = " " * indent
        self._column = 0
        self._word = ""
        self._spaces = ""

    def add(self, text: str) -> None:
        for char in text:
            if char == "\n":
                self.end()
                self._break()
            elif char == " ":
                self.end()
                self._spaces += char
            else:
                self._word += char
                if self._cells(self._word) >= self._width or self._cells(char) > 1:
                    # Longer than a line, or of a script without spaces.
                    self.end()

    def end(self) -> None:
        """Write the last word."""
        if not self._word:
            return
        if self._column and self._column + len(self._spaces) + self._cells(self._word) > self._width:
            self._break()
        shown = self._spaces + self._word
        self._write(shown)
        self._column += self._cells(shown)
        self._word = self._spaces = ""

    def _break(self) -> None:
        self._write("\n" + self._margin)
        self._column = 0
        self._spaces = ""


class PlainScreen:
    """Answers on stdout and nothing else, each when it is complete; notes on stderr."""

    is_terminal = False

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def welcome(self, lines: Sequence[str]) -> None:
        """Shows nothing: the reader of a pipe expects answers."""

    def begin(self, name: str) -> None:
        """Begin an answer."""

    def piece(self, text: str) -> None:
        self._pieces.append(text)

    def retract(self) -> None:
        """The pieces so far were thinking."""
        self._pieces.clear()

    def show_typed(self, text: str) -> None:
        """Shows nothing."""

    def end(self, is_interrupted: bool) -> None:
        text = "".join(self._pieces)
        self._pieces.clear()
        click.echo(readable(text))

    def follow_ups(self, events: Sequence[FollowUp]) -> None:
        """Shows nothing."""

    def note(self, text: str) -> None:
        click.echo(f"pmm-shm: {printable(' '.join(text.split()))}", err=True)


class TerminalScreen:
    """A conversation with a person at a terminal."""

    is_terminal = True

    def __init__(self) -> None:
        self._console: Console = console()
        encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
        self._is_utf8 = encoding.replace("-", "") == "utf8"
        self._mark = "›" if self._is_utf8 else ">"  # noqa: RUF001
        self._flow: LineWrapper | None = None
        self._has_text = False

    @property
    def prompt(self) -> str:
        """The prompt for `input`, with its colours marked as having no width for readline."""
        text = f"you {self._mark} "
        if self._console.color_system is None:
            return text
        return f"\001\033[1;32m\002{text}\001\033[0m\002"

    @property
    def more_prompt(self) -> str:
        """The prompt for a further line of a block."""
        return "  … " if self._is_utf8 else "... "

    def show_typed(self, text: str) -> None:
        """Show a text that was written elsewhere."""
        self._print("".join(f"  {line}\n" for line in readable(text).split("\n")), "dim")

    def welcome(self, lines: Sequence[str]) -> None:
        """Show lines above the first prompt."""
        for number, line in enumerate(lines):
            self._print(printable(line) + "\n", "bold" if number == 0 else "dim")

    def begin(self, name: str) -> None:
        """Begin an answer, with the name of the speaker."""
        from rich.cells import cell_len

        head = f"{printable(name)} {self._mark} "
        self._print(head, "bold cyan")
        self._flow = LineWrapper(self._print, self._console.width, cell_len(head))
        self._has_text = False

    def piece(self, text: str) -> None:
        if self._flow is not None:
            self._has_text = self._has_text or not text.isspace()
            self._flow.add(readable(text))

    def retract(self) -> None:
        """Say that the text so far was thinking."""
        if self._flow is not None:
            self._flow.end()
            self._print("\n  (the text above was thinking; it is not kept)\n", "dim")
            self._has_text = False
            self._flow = LineWrapper(self._print, self._console.width, 0)

    def end(self, is_interrupted: bool) -> None:
        if self._flow is not None:
            self._flow.end()
            self._flow = None
        self._print("\n")
        if is_interrupted:
            kept = "interrupted; the beginning is kept" if self._has_text else "no answer; /retry asks again"
            self._print(f"  ({kept})\n", "dim")

    def follow_ups(self, events: Sequence[FollowUp]) -> None:
        """Show the events that followed from a turn, one line each."""
        for event in events:
            mark = _MARKS.get(event.kind)
            if mark is not None:
                shown = mark if self._is_utf8 else "*"
                self._print(self._cut(f"  {shown} {_said(event)}") + "\n", "dim")

    def note(self, text: str) -> None:
        self._print(f"  {printable(' '.join(text.split()))}\n", "yellow")

    def _cut(self, line: str) -> str:
        """One printable line that fits."""
        from rich.cells import cell_len, set_cell_size

        line, width = printable(line), max(_WIDTH_MIN, self._console.width)
        return line if cell_len(line) <= width else set_cell_size(line, width - 1).rstrip() + "…"

    def _print(self, text: str, style: str | None = None) -> None:
        from rich.text import Text

        self._console.print(Text(text), style=style, end="", soft_wrap=True)
        self._console.file.flush()


Screen = PlainScreen | TerminalScreen


def _said(event: FollowUp) -> str:
    if event.kind == "identity_adopt":
        return f"name adopted: {event.content}"
    if event.kind == "autonomy_directive":
        return f"directive: {event.content}"
    change = "opened" if event.kind == "commitment_open" else "closed"
    return f"commitment {change} ({str(event.meta['cid'])[:_CID_CHARS_MAX]}): {event.content.partition(': ')[2]}"
