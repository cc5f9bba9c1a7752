"""Lines that break between words, in a text that arrives in pieces."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

WIDTH_MIN = 10
"""Narrower terminals get lines of so many cells."""
_SURE = "LNPZ"
"""Letters, numbers, punctuation and spaces: all terminals give them the same width."""


class LineWrapper:
    """Wraps a text that arrives in pieces at its spaces, into lines of at most `width` cells.

    A word longer than a line is left to the terminal, which breaks it at the line's end: so it is copied whole. A line
    with emoji or combining characters is broken here: terminals differ in their widths, and the rows are counted.

    Parameters:
        write: called with the output.
        width: of the terminal, in cells.
        indent: cells before each line that this begins.
        column: cells before the text of the first line.
    """

    def __init__(self, write: Callable[[str], None], width: int, indent: int = 0, *, column: int | None = None) -> None:
        from rich.cells import cell_len

        self._write = write
        self._cells = cell_len
        self._indent = indent
        self._width = max(indent + WIDTH_MIN, width)
        self._column = indent if column is None else column
        self._has_text = False
        self._is_long = False
        self._is_sure = True
        self._word = ""
        self._spaces = ""
        self.rows = 0
        """The rows of the terminal below the first one so far."""

    def resize(self, width: int) -> None:
        """Wrap at another width from here on."""
        self._width = max(self._indent + WIDTH_MIN, width)

    def add(self, text: str) -> None:
        for char in text:
            if char in " \n":
                self.end()
                self._is_long = False
                if char == "\n":
                    self._break()
                else:
                    self._spaces += char
                continue
            self._word += char
            if not self._is_long and self._cells(self._word) >= self._width - self._indent:
                self.end()
                self._is_long = True
            elif self._cells(char) > 1:
                # Of a script without spaces.
                self.end()
        if self._is_long:
            self.end()

    def add_verbatim(self, text: str) -> None:
        """Write a part of a line as it is, and let the terminal break it."""
        self.end()
        self._put(self._spaces + text)
        self._spaces = ""

    def end(self) -> None:
        """Write the last word."""
        if not self._word:
            return
        needed = self._column + len(self._spaces) + self._cells(self._word)
        if self._has_text and not self._is_long and needed > self._width:
            self._break()
        self._put(self._spaces + self._word)
        self._word = self._spaces = ""

    def _put(self, text: str) -> None:
        written = 0
        for place, char in enumerate(text):
            cells = self._cells(char)
            if self._column + cells > self._width:
                if not self._is_sure:
                    self._write(text[written:place] + "\n")
                    written = place
                self.rows += 1
                self._column = 0
                self._is_sure = True
            self._column += cells
            self._is_sure = self._is_sure and _is_sure(char)
        self._write(text[written:])
        self._has_text = True

    def _break(self) -> None:
        self._write("\n" + " " * self._indent)
        self.rows += 1
        self._column = self._indent
        self._is_sure = True
        self._has_text = False
        self._spaces = ""


def _is_sure(char: str) -> bool:
    return char.isascii() or unicodedata.category(char)[0] in _SURE
