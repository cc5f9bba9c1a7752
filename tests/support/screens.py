"""What a terminal shows after it got some output: as much of one as the chat uses."""

from __future__ import annotations

import re
from unicodedata import east_asian_width

_PARTS = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b[=>]|[\r\n]|[^\x1b\r\n]+|\x1b")


def screen_of(output: str) -> list[str]:
    """The lines, wide characters as one; fails at a control sequence that is not known here."""
    lines: list[list[str]] = [[]]
    row = column = 0
    for match in _PARTS.finditer(output):
        text, number, command = match[0], match[1], match[2]
        if text == "\n":
            row += 1
            if row == len(lines):
                lines.append([])
        elif text == "\r":
            column = 0
        elif command == "A":
            row -= int(number or 1)
        elif command == "C":
            column += int(number or 1)
        elif command == "J":
            assert number in ("", "0")
            del lines[row][column:], lines[row + 1 :]
        elif command == "K":
            assert number in ("", "0")
            del lines[row][column:]
        elif command in ("m", "h", "l"):
            pass
        else:
            assert "\x1b" not in text, ascii(text)
            for char in text:
                line = lines[row]
                line += [" "] * (column - len(line))
                line[column : column + 1] = [char]
                column += 1
                if east_asian_width(char) in "WF":
                    line[column : column + 1] = [""]
                    column += 1
    return ["".join(line).rstrip() for line in lines]
