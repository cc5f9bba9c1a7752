"""The output of a conversation: on a terminal with names, colours and wrapped words; elsewhere the answers alone.

Invariant: of the control characters in answers, names and commitments, only line breaks reach the terminal.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from pmm_shm_chat.line_editor import quiet
from pmm_shm_chat.markdown import Blocks, is_markdown, readable
from pmm_shm_chat.waiting import Spinner
from pmm_shm_chat.wrapping import WIDTH_MIN, LineWrapper
from pmm_shm_terminal.output import console, printable

if TYPE_CHECKING:
    from rich.console import Console

    from pmm_shm_chat.progress import FollowUp
    from pmm_shm_chat.responder import Usage

_MARKS = {
    "commitment_open": "+",
    "commitment_close": "✓",
    "identity_adopt": "•",
    "autonomy_directive": "!",
}
_CID_CHARS_MAX = 40
_MARGIN = "  "
_HEAD_SHARE = 3
"""A name that takes more than this part of a line stands above its answer."""


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

    def moved(self) -> None:
        """Nothing has to be found again."""

    def end(self, is_interrupted: bool) -> None:
        text = "".join(self._pieces)
        self._pieces.clear()
        if text:
            # With its tabs, which code may need.
            click.echo("\t".join(map(readable, text.split("\t"))))

    def follow_ups(self, events: Sequence[FollowUp]) -> None:
        """Shows nothing."""

    def cost(self, seconds: float, usage: Usage, is_estimated: bool) -> None:
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
        self._formats = self._is_utf8 and self.has_colours
        self._head = ""
        self._blocks = Blocks()
        self._is_first_block = True
        self._spinner: Spinner | None = None
        self._flow: LineWrapper | None = None
        self._width = 0
        self._is_moved = False
        self._has_text = False
        self._held = ""
        self._answering = contextlib.ExitStack()

    @property
    def prompt(self) -> str:
        """The prompt for a text."""
        return f"you {self._mark} "

    @property
    def has_colours(self) -> bool:
        return self._console.color_system is not None

    @property
    def is_dumb(self) -> bool:
        """Whether the terminal cannot move its cursor."""
        return self._console.is_dumb_terminal

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
            self._wrapped(line, "", "bold" if number == 0 else "dim")

    def begin(self, name: str) -> None:
        """Begin an answer, with the name of the speaker; until its first piece a spinner turns."""
        self._head = f"{printable(name)} {self._mark} "
        self._flow = None
        self._has_text = False
        self._held = ""
        self._answering.enter_context(quiet(self.is_dumb))
        if self._is_utf8 and not self.is_dumb:
            self._spinner = Spinner(self._write)

    def piece(self, text: str) -> None:
        # Line breaks wait: for the second half of \r\n, and at the end of an answer for ever.
        held = self._held + text
        text = held.rstrip("\r\n")
        self._held = held[len(text) :]
        if not text:
            return
        if self._flow is None:
            self._begin_text()
        assert self._flow is not None
        self._has_text = self._has_text or not text.isspace()
        self._notice_resize()
        for part, block in self._blocks.add(readable(text)):
            if block is not None:
                self._format(block, is_last=False)
            if self._blocks.is_in_code and part != "\n":
                self._flow.add_verbatim(part)
            else:
                self._flow.add(part)

    def retract(self) -> None:
        """Say that the text so far was thinking."""
        if self._flow is not None:
            self._flow.end()
            self._print("\n  (the text above was thinking; it is not kept)\n", "dim")
            self._has_text, self._held = False, ""
            self._width, self._is_moved = self._console.width, False
            self._flow = LineWrapper(self._print, self._width)
            self._blocks, self._is_first_block = Blocks(), False

    def _begin_text(self) -> None:
        from rich.cells import cell_len

        self._stop_spinner()
        self._width, self._is_moved = self._console.width, False
        column = cell_len(self._head)
        is_below = column > min(self._width // _HEAD_SHARE, self._width - WIDTH_MIN)
        head = LineWrapper(lambda part: self._print(part, "bold cyan"), self._width)
        head.add_verbatim(self._head)
        if is_below:
            # A long name, or a narrow terminal.
            head.add("\n")
        self._flow = LineWrapper(self._print, self._width, column=0 if is_below else column)
        self._flow.rows = head.rows
        self._blocks = Blocks()
        self._is_first_block = True

    def _format(self, block: str, is_last: bool) -> None:
        """Put the formatted block in the place of its plain text, if it is Markdown and still on the screen.

        After a change of the terminal's width, nobody knows where the text began.
        """
        assert self._flow is not None
        self._flow.end()
        self._notice_resize()
        is_moved, self._is_moved = self._is_moved, False
        rows, is_first, self._is_first_block = self._flow.rows, self._is_first_block, False
        self._flow.rows = 0
        # Lines of `WIDTH_MIN` cells on a narrower terminal take more rows than were counted.
        is_countable = not is_moved and self._width >= WIDTH_MIN
        if not self._formats or not is_countable or rows + 1 >= self._console.height or not is_markdown(block):
            return
        from pmm_shm_chat.formatting import formatted

        self._write("\r" + (f"\x1b[{rows}A" if rows else "") + "\x1b[J")
        if is_first:
            self._print(self._head.rstrip() + "\n", "bold cyan")
        # Not wrapped a second time: the terminal breaks long lines of code.
        self._console.print(formatted(block, self._console), end="", soft_wrap=True)
        if not is_last:
            self._print("\n\n")

    def moved(self) -> None:
        """Something else wrote to the terminal: the text of this block stays as it came."""
        self._is_moved = True

    def _notice_resize(self) -> None:
        width = self._console.width
        if width != self._width and self._flow is not None:
            self._width, self._is_moved = width, True
            self._flow.resize(width)

    def _stop_spinner(self) -> None:
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None

    def end(self, is_interrupted: bool) -> None:
        self._stop_spinner()
        self._answering.close()
        if self._flow is not None:
            self._flow.end()
            block = self._blocks.end()
            if block is not None:
                self._format(block, is_last=True)
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

    def cost(self, seconds: float, usage: Usage, is_estimated: bool) -> None:
        """Show what an answer took."""
        about = "about " if is_estimated else ""
        tokens = f"{about}{usage.prompt_tokens:,} tokens in, {usage.answer_tokens:,} out"
        self._print(f"{_MARGIN}({seconds:.1f} s, {tokens})\n", "dim")

    def note(self, text: str) -> None:
        self._wrapped(" ".join(text.split()), _MARGIN, "yellow")

    def _wrapped(self, line: str, margin: str, style: str) -> None:
        wrapper = LineWrapper(lambda part: self._print(part, style), self._console.width, len(margin))
        self._print(margin)
        wrapper.add(printable(line))
        wrapper.end()
        self._print("\n")

    def _cut(self, line: str) -> str:
        """One printable line that fits."""
        from rich.cells import cell_len, set_cell_size

        line, width = printable(line), max(WIDTH_MIN, self._console.width)
        return line if cell_len(line) <= width else set_cell_size(line, width - 1).rstrip() + "…"

    def _print(self, text: str, style: str | None = None) -> None:
        from rich.text import Text

        self._console.print(Text(text), style=style, end="", soft_wrap=True)
        self._console.file.flush()

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()


Screen = PlainScreen | TerminalScreen


def _said(event: FollowUp) -> str:
    if event.kind == "identity_adopt":
        return f"name adopted: {event.content}"
    if event.kind == "autonomy_directive":
        return f"directive: {event.content}"
    change = "opened" if event.kind == "commitment_open" else "closed"
    return f"commitment {change} ({str(event.meta['cid'])[:_CID_CHARS_MAX]}): {event.content.partition(': ')[2]}"
