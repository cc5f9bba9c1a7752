"""Markdown in answers, block by block.

A block is shown as plain text while it comes, and formatted in its place when it is complete. So nothing waits for the
end of an answer.

Invariant: what is formatted has no control characters either, not even those that Markdown's entities stand for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar

from pmm_shm_terminal.output import printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.segment import Segment, Segments

_FENCE = re.compile(r" {0,3}(```|~~~)")
_PLAIN = frozenset({"paragraph_open", "paragraph_close", "inline", "text", "softbreak"})
_BLOCK_CHARS_MAX = 50_000


def readable(text: str) -> str:
    """The text with all characters but line breaks made printable."""
    lines = text.replace("\r\n", "\n").replace("\t", "    ").split("\n")
    return "\n".join(map(printable, lines))


class Blocks:
    """Splits a text that arrives in pieces at the blank lines outside of code."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._line = ""
        self._fence: str | None = None

    def add(self, text: str) -> Iterator[tuple[str, str | None]]:
        """Each part of the text, up to a line break or the end, and the block that ends with it, or None."""
        first, *rest = text.split("\n")
        self._line += first
        yield first, None
        for part in rest:
            yield "\n", self._end_line()
            self._line = part
            yield part, None

    def _end_line(self) -> str | None:
        line, self._line = self._line, ""
        fence = _FENCE.match(line)
        if fence is not None:
            self._fence = None if self._fence == fence[1] else self._fence or fence[1]
        if line.strip() or self._fence is not None:
            self._lines.append(line)
            return None
        return self._take()

    def end(self) -> str | None:
        """The last block, if there is one."""
        if self._line:
            self._lines.append(self._line)
        self._line, self._fence = "", None
        return self._take()

    def _take(self) -> str | None:
        block, self._lines = "\n".join(self._lines), []
        return block or None


def is_markdown(block: str) -> bool:
    """Whether a block is more than plain words."""
    if len(block) > _BLOCK_CHARS_MAX:
        return False
    from markdown_it import MarkdownIt

    # As rich reads it.
    tokens = MarkdownIt().enable(["strikethrough", "table"]).parse(block)
    return any(one.type not in _PLAIN for token in tokens for one in (token, *(token.children or ())))


def formatted(block: str, console: Console, indent: int) -> Segments:
    """A block of Markdown, formatted for a terminal; without blank lines around it, and no line break at its end."""
    from rich.markdown import Markdown, TableElement
    from rich.padding import Padding
    from rich.segment import Segment, Segments
    from rich.table import Table

    class WholeTable(TableElement):
        """Breaks a long word, or a text without spaces, where rich would cut it."""

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for made in super().__rich_console__(console, options):
                if isinstance(made, Table):
                    for column in made.columns:
                        column.overflow = "fold"
                yield made

    class Whole(Markdown):
        elements: ClassVar = {**Markdown.elements, "table_open": WholeTable}

    # A link is its text and its address: one that can be clicked might hide where it leads.
    shown = Padding(Whole(block, hyperlinks=False), (0, 0, 0, indent))
    lines = [[one for one in line if not one.control] for line in console.render_lines(shown, pad=False)]
    while lines and _is_blank(lines[-1]):
        lines.pop()
    while lines and _is_blank(lines[0]):
        lines.pop(0)
    parts = [Segment(readable(one.text), one.style) for line in lines for one in (Segment.line(), *line)]
    return Segments(parts[1:])


def _is_blank(line: Iterable[Segment]) -> bool:
    return not any(one.text.strip() for one in line)
