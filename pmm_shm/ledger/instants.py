"""Timestamps as instants, so that `ts` is compared by meaning and not by spelling.

One parser for all Python versions; `datetime.fromisoformat` learned "Z" and other spellings only with 3.11.
"""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta

_ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[Tt ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d+))?)?(Z|z|[+-]\d\d(?::?\d\d)?)?)?",
    re.ASCII,
)
_EPOCH = datetime(1970, 1, 1)
_MICROSECOND = timedelta(microseconds=1)
_OFFSET_MAX = timedelta(hours=24)


def now_us() -> int:
    """The current time in microseconds since 1970 UTC; for what is shown, and for what a user asks by age."""
    return time.time_ns() // 1_000


def instant_us(text: str) -> int | None:
    """Microseconds since 1970 UTC of an ISO 8601 date or time (UTC without an offset); None for other text."""
    match = _ISO.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, offset = match.groups()
    try:
        local = datetime(
            int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0),
            int((fraction or "0")[:6].ljust(6, "0")),
        )  # fmt: skip
    except ValueError:
        return None
    shift_us = _offset_us(offset) if offset else 0
    return None if shift_us is None else (local - _EPOCH) // _MICROSECOND - shift_us


def _offset_us(offset: str) -> int | None:
    if offset in ("Z", "z"):
        return 0
    hours, minutes = int(offset[1:3]), int(offset[3:].lstrip(":") or 0)
    if hours > 23 or minutes > 59:
        return None
    seconds = hours * 3600 + minutes * 60
    return (-seconds if offset[0] == "-" else seconds) * 1_000_000


def text_of_instant(instant: int) -> str:
    """An instant as ISO 8601 text, in UTC; of one before the year 1 or after 9999, the first or the last there is."""
    first, last = (datetime.min - _EPOCH) // _MICROSECOND, (datetime.max - _EPOCH) // _MICROSECOND
    return (_EPOCH + min(max(instant, first), last) * _MICROSECOND).isoformat(timespec="microseconds")


def first_date_text(instant: int) -> str:
    """A text that sorts before every spelling, with any offset, of `instant` and of all later instants."""
    try:
        return (_EPOCH + instant * _MICROSECOND - _OFFSET_MAX).date().isoformat()
    except OverflowError:
        return ""
