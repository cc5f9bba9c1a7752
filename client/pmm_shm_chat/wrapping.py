"""Lines that break between words, in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Callable

WIDTH_MIN = 20
"""Narrower terminals get lines of so many cells."""


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
        self._width = max(WIDTH_MIN, width - indent)
        self._indent = indent
        self._margin = " " * indent
        self._column = 0
        self._word = ""
        self._spaces = ""
        self.rows = 0
        """Line breaks so far."""

    def resize(self, width: int) -> None:
        """Wrap at another width from here on."""
        self._width = max(WIDTH_MIN, width - self._indent)

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
        self.rows += 1
        self._column = 0
        self._spaces = ""
