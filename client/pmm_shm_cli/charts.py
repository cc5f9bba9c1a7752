"""Small charts of text: a line of bars, and a curve of braille dots. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

_BARS = " ▁▂▃▄▅▆▇█"
_PLAIN_BARS = " .:-=+*#%"
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Of a braille cell: the bits of the left and the right column, from the top."""
ChartValue = float | None


def spark(values: Sequence[ChartValue], width: int, *, plain: bool = False) -> str:
    """The newest values as bars from 0 to their largest, right-aligned; a gap where one is unknown."""
    bars = _PLAIN_BARS if plain else _BARS
    shown = list(values)[-width:] if width > 0 else []
    largest = max((value for value in shown if value is not None), default=0.0)
    cells = []
    for value in shown:
        level = 0 if value is None or largest <= 0 else math.ceil(max(0.0, value) / largest * 8)
        # A known value has at least the lowest bar.
        cells.append(" " if value is None else bars[max(1, min(8, level))])
    return "".join(cells).rjust(max(0, width))


def bars(values: Sequence[ChartValue], width: int, height: int, *, plain: bool = False) -> list[str]:
    """As `spark`, in `height` lines, from the top."""
    if height <= 1:
        return [spark(values, width, plain=plain)]
    signs = _PLAIN_BARS if plain else _BARS
    shown = list(values)[-width:] if width > 0 else []
    largest = max((value for value in shown if value is not None), default=0.0)
    levels = []
    for value in shown:
        level = 0 if value is None or largest <= 0 else math.ceil(max(0.0, value) / largest * 8 * height)
        levels.append(0 if value is None else max(1, level))
    lines = ("".join(signs[min(8, max(0, level - 8 * line))] for level in levels) for line in reversed(range(height)))
    return [line.rjust(max(0, width)) for line in lines]


def curve(values: Sequence[ChartValue], width: int, height: int) -> list[str]:
    """The newest values, from 0 to 1, as a curve of braille cells, two values to a cell, right-aligned."""
    columns = width * 2
    newest = list(values)[-columns:] if columns > 0 else []
    shown: list[ChartValue] = [*([None] * (columns - len(newest))), *newest]
    dots, cells = height * 4, [[0] * width for _ in range(height)]
    before: int | None = None
    for column, value in enumerate(shown):
        if value is None:
            before = None
            continue
        share = min(max(value, 0.0), 1.0)
        row = round((1.0 - share) * (dots - 1))
        # A step is drawn as a line, so that a jump does not tear the curve.
        start = row if before is None else before + (1 if row > before else -1 if row < before else 0)
        for dot in range(min(start, row), max(start, row) + 1):
            cells[dot // 4][column // 2] |= _DOTS[column % 2][dot % 4]
        before = row
    return ["".join(chr(0x2800 + cell) if cell else " " for cell in line) for line in cells]
