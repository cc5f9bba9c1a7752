"""Markdown as it looks on a terminal.

Code is shown at the left edge, also within a list. Its lines stay whole, and so do addresses: they can be copied.

Invariant: what is formatted has no control characters, not even those that Markdown's entities stand for.
"""

from __future__ import annotations

import re
from typing import ClassVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, ListItem, Markdown, Paragraph, TableElement
from rich.segment import Segment, Segments
from rich.style import Style
from rich.syntax import ANSISyntaxTheme, Syntax
from rich.table import Table
from rich.text import Text

from pmm_shm_chat.markdown import parsed, readable

_CODE = "code"
"""In the meta of a style: the language and the text of the code that belongs in this place."""
_WORD = "word"
"""In the meta of a style: the word of which the first part is in this place."""
_COLOURS = ANSISyntaxTheme(
    {
        ("Comment",): Style(dim=True),
        ("Keyword",): Style(color="magenta"),
        ("Literal", "String"): Style(color="green"),
        ("Literal", "Number"): Style(color="cyan"),
        ("Name", "Class"): Style(bold=True),
        ("Name", "Function"): Style(bold=True),
        ("Generic", "Deleted"): Style(color="red"),
        ("Generic", "Inserted"): Style(color="green"),
    }
)
"""The terminal's own, on a light background or a dark one."""
_Line = list[Segment]


def formatted(block: str, console: Console) -> Segments:
    """A block of Markdown, formatted for a terminal; without blank lines around it, and no line break at its end.

    Lines of code, and words, may be longer than the lines of the terminal.
    """
    # A link is its text and its address: one that can be clicked might hide where it leads.
    whole = _Whole(block, hyperlinks=False)
    whole.parsed = parsed(block)
    lines: list[_Line] = []
    for line in console.render_lines(whole, pad=False):
        codes = [found for one in line if (found := _code_of(one)) is not None]
        # The mark of a list may stand beside the code.
        _add(lines, [one for one in line if not one.control and _code_of(one) is None])
        for language, code in codes:
            _add(lines, [])
            parts = _highlighted(language, code).split("\n", allow_blank=True)
            lines += [[one for one in part.render(console) if one.text] for part in parts]
            _add(lines, [])
    while lines and not lines[-1]:
        lines.pop()
    shown = [Segment(readable(_word_of(one)), one.style) for line in lines for one in (Segment.line(), *line)]
    return Segments(shown[1:])


def _add(lines: list[_Line], line: _Line) -> None:
    """Add a line without the spaces at its end; no blank line to begin with, or after another."""
    while line and not line[-1].text.strip():
        line.pop()
    if line:
        line[-1] = Segment(line[-1].text.rstrip(), line[-1].style)
    if line or (lines and lines[-1]):
        lines.append(line)


def _code_of(part: Segment) -> tuple[str, str] | None:
    """The language and the code in this place."""
    return None if part.style is None else part.style.meta.get(_CODE)


def _word_of(part: Segment) -> str:
    """The text of this place, or the whole word of which it is the first part."""
    return part.text if part.style is None else str(part.style.meta.get(_WORD, part.text))


def _highlighted(language: str, code: str) -> Text:
    syntax = Syntax(code, language, theme=_COLOURS)
    text = syntax.highlight(code)
    # The highlighter ends it with a line break.
    text.right_crop(len(text) - len(code))
    if not text.spans:
        text.stylize("cyan")
    return text


class _Code(CodeBlock):
    """One line in place of the code."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("…", style=Style(meta={_CODE: (self.lexer_name, self.text.plain.rstrip())}))


class _Paragraph(Paragraph):
    """With the first part in place of each word that is longer than a line, such as an address."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, text, end = options.max_width, self.text, 0
        self.text = Text()
        for word in re.finditer(rf"(?<!\S)[!-~]{{{width + 1},}}(?!\S)", text.plain):
            style = text.get_style_at_offset(console, word.start())
            self.text.append_text(text[end : word.start()])
            self.text.append(word[0][:width], style + Style(meta={_WORD: word[0]}))
            end = word.end()
        self.text.append_text(text[end:])
        yield from super().__rich_console__(console, options)


class _Heading(Heading):
    """At the left edge, as all else."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.text


class _ListItem(ListItem):
    """With a dot behind its number, as it was written."""

    def render_number(self, console: Console, options: ConsoleOptions, number: int, last_number: int) -> RenderResult:
        numeral, *rest = super().render_number(console, options, number, last_number)
        assert isinstance(numeral, Segment)
        yield Segment(f"{number}.".rjust(len(numeral.text) - 1) + " ", numeral.style)
        yield from rest


class _Table(TableElement):
    """Breaks a long word, or a text without spaces, where rich would cut it."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for made in super().__rich_console__(console, options):
            if isinstance(made, Table):
                for column in made.columns:
                    column.overflow = "fold"
            yield made


class _Whole(Markdown):
    elements: ClassVar = {
        **Markdown.elements,
        "fence": _Code,
        "code_block": _Code,
        "paragraph_open": _Paragraph,
        "heading_open": _Heading,
        "list_item_open": _ListItem,
        "table_open": _Table,
    }
