"""Markdown in answers, block by block.

A block is shown as plain text while it comes, and formatted in its place when it is complete. So nothing waits for the
end of an answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pmm_shm_terminal.output import printable

if TYPE_CHECKING:
    from markdown_it.token import Token

# A block of code may begin right behind the mark of a list; code within one line, as in ```x```, begins none.
_FENCE = re.compile(r"((?: *(?:[-*+]|\d{1,9}[.)]) )* *)(`{3,}(?!.*`)|~{3,})(.*)")
_PLAIN = frozenset({"paragraph_open", "paragraph_close", "inline", "text", "hardbreak"})
_LOST = ("html_block", "html_inline", "image", "reference")
"""The rules whose words rich does not show."""
_ESCAPED = frozenset("*_`~#>|+-.!<&")
"""The characters before which a backslash is Markdown's, not one of a formula."""
_CONTINUES = 2
"""A line with so many spaces before it may belong to the list above the blank line."""
_BLOCK_CHARS_MAX = 50_000


def readable(text: str) -> str:
    """The text with all characters but line breaks made printable."""
    lines = text.replace("\r\n", "\n").replace("\t", "    ").split("\n")
    return "\n".join(map(printable, lines))


class Blocks:
    """Splits a text that arrives in pieces at the blank lines before lines without an indent, outside of code."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._line = ""
        self._fence: str | None = None

    @property
    def is_in_code(self) -> bool:
        """Whether the line so far is within code, or ends it."""
        return self._fence is not None

    def add(self, text: str) -> Iterator[tuple[str, str | None]]:
        """Each part of the text, up to a line break or the end, and the block that ended before it, or None."""
        first, *rest = text.split("\n")
        yield from self._add_part(first)
        for part in rest:
            self._end_line()
            yield "\n", None
            yield from self._add_part(part)

    def _add_part(self, part: str) -> Iterator[tuple[str, str | None]]:
        if not part:
            return
        is_first_word = part.strip() != "" and not self._line.strip()
        self._line += part
        is_indented = self._line.startswith(" " * _CONTINUES)
        is_after_blank = self._fence is None and self._lines and not self._lines[-1].strip()
        yield part, self._take() if is_first_word and is_after_blank and not is_indented else None

    def _end_line(self) -> None:
        line, self._line = self._line, ""
        if (fence := _FENCE.match(line)) is not None:
            before, mark, rest = fence.groups()
            if self._fence is None:
                self._fence = mark
            elif mark.startswith(self._fence) and not before.strip() and not rest.strip():
                self._fence = None
        self._lines.append(line)

    def end(self) -> str | None:
        """The last block, if there is one."""
        if self._line:
            self._lines.append(self._line)
        self._line, self._fence = "", None
        return self._take()

    def _take(self) -> str | None:
        lines, self._lines = self._lines, []
        while lines and not lines[0].strip():
            lines.pop(0)
        return "\n".join(lines).rstrip() or None


def is_markdown(block: str) -> bool:
    """Whether a block is more than plain words."""
    if len(block) > _BLOCK_CHARS_MAX:
        return False
    return any(one.type not in _PLAIN for token in parsed(block) for one in (token, *(token.children or ())))


def parsed(block: str) -> list[Token]:
    """The tokens of a block, without losing a word of it: tags, images, references and formulas are text.

    Line breaks within a paragraph stay: models do not wrap their lines.
    """
    from markdown_it import MarkdownIt

    parser = MarkdownIt().enable(["strikethrough", "table"]).disable(list(_LOST))
    # It would join what a backslash stands before with the text around it.
    parser.disable("text_join", ignoreInvalid=True)
    tokens = parser.parse(block)
    for token in tokens:
        if token.children:
            token.children = _inlines(token.children)
    return tokens


def _inlines(tokens: list[Token]) -> list[Token]:
    """With line breaks and the backslashes of formulas, and without a link around an address that is its own text."""
    kept: list[Token] = []
    is_bare = False
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "softbreak":
            token.type = "hardbreak"
        if token.type == "text_special":
            token.type = "text"
            if token.info == "escape" and token.content not in _ESCAPED:
                token.content = token.markup
        if token.type == "link_open":
            text = following.content if following is not None else ""
            is_bare = token.markup == "autolink" or token.attrs.get("href") == text
        if not (is_bare and token.type in ("link_open", "link_close")):
            kept.append(token)
    return kept
