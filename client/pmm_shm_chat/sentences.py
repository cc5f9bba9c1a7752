"""The sentences of a text that are its author's own statements: without code, quotations and block quotes.

Invariant: doubtful sentences are left out; no text makes these functions raise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

SENTENCE_CHARS_MAX = 500
"""Longer sentences are ignored."""

_TEXT_CHARS_MAX = 1 << 16
_FENCES = ("```", "~~~")
_BULLET = r"[-*+•]\s+(?:\[ \]\s+)?|\(?(?:\d{1,3}|[A-Za-z])[.)]\s+"
_OPENS_BLOCK = re.compile(rf"{_BULLET}|\#{{1,6}}\s+|done\s*:", re.IGNORECASE)
_LEADING = re.compile(rf"(?:{_BULLET}|\#{{1,6}}\s+)?[*_]*")
_QUOTED = re.compile(
    '"[^"]*"|“[^”]*”|«[^»]*»|„[^“”]*[“”]|`[^`]*`|(?<!\\w)[\'‘](?=\\S).{0,300}?(?<=\\S)[\'’](?!\\w)'  # noqa: RUF001
)
_QUOTE_LEFT = re.compile('["“”«»„]')
_END = re.compile(r"""[.!?…]+['"’”»)\]*_]*(?=\s|$)|[。！？]+""")  # noqa: RUF001
_ABBREVIATION = re.compile(r"\b(?:dr|mr|mrs|ms|prof|st|vs|no|approx|e\.g|i\.e|cf)$", re.IGNORECASE)
_TRAILING = " \t.!?…。！？*_"  # noqa: RUF001


class Sentence(NamedTuple):
    """One sentence without its end marks: `text` with white space collapsed, and `masked`, of the same length, with
    quotations replaced by NUL."""

    text: str
    masked: str


def sentences(text: str) -> Iterator[Sentence]:
    """The sentences of a text in order, without questions."""
    for block in _blocks(text[:_TEXT_CHARS_MAX]):
        masked = _QUOTED.sub(lambda match: "\0" * len(match.group()), block)
        if _QUOTE_LEFT.search(masked):
            # A quotation begins or ends elsewhere, so that its extent is unknown.
            continue
        for start, end, is_question in _spans(masked):
            found = _trimmed(block[start:end], masked[start:end])
            if found.text and not is_question and len(found.text) <= SENTENCE_CHARS_MAX:
                yield found


def _blocks(text: str) -> Iterator[str]:
    """Paragraphs, list items and headings as one line each, without code and block quotes."""
    fence: str | None = None
    lines: list[str] = []
    for raw in text.splitlines():
        line = " ".join(raw.split())
        mark = next((mark for mark in _FENCES if line.startswith(mark)), None)
        is_code = fence is not None or mark is not None
        if mark is not None and fence in (None, mark):
            fence = mark if fence is None else None
        if is_code or not line or line.startswith(">") or _OPENS_BLOCK.match(line):
            if lines:
                yield " ".join(lines)
            lines = []
            if is_code or line.startswith(">"):
                continue
        if line.startswith("#"):
            yield line
        elif line:
            lines.append(line)
    if lines:
        yield " ".join(lines)


def _spans(masked: str) -> Iterator[tuple[int, int, bool]]:
    """(start, end, whether it is a question) of each sentence of a block."""
    # The marker of a list item, for example "1.", is not a sentence.
    start, marker = 0, _LEADING.match(masked)
    for end in _END.finditer(masked, marker.end() if marker else 0):
        if end.group()[0] == "." and _ABBREVIATION.search(masked, max(0, end.start() - 8), end.start()):
            continue
        yield start, end.end(), "?" in end.group() or "？" in end.group()  # noqa: RUF001
        start = end.end()
    yield start, len(masked), False


def _trimmed(text: str, masked: str) -> Sentence:
    start = len(masked) - len(masked.lstrip())
    marker = _LEADING.match(masked, start)
    start = marker.end() if marker else start
    end = len(masked.rstrip(_TRAILING))
    return Sentence(text[start:end], masked[start:end])
