"""Readings of fields that several folds share: what `float`, `int` and a commitment id make of any JSON value."""

from __future__ import annotations

import re
from typing import Any

from pmm_shm import limits
from pmm_shm.ledger.rows import SHORT_INTEGER_DIGITS, parse_integer

_DIGITS = re.compile(r"\d(?:_?\d)*")


def to_float(value: Any) -> float | None:
    """`float(value)`; None where `float` refuses it."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def to_int(value: Any) -> int | None:
    """`int(value)`; None where `int` refuses it, or text has more digits than every Python converts."""
    try:
        if isinstance(value, str) and len(value) > SHORT_INTEGER_DIGITS:
            return _long_text_to_int(value)
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _long_text_to_int(text: str) -> int | None:
    """`int(text)` by the digits alone, which is what Python's limit counts, and whatever limit the host has set."""
    runs = _DIGITS.findall(text)
    if len(runs) != 1:
        return None
    digits = runs[0].replace("_", "")
    if len(digits) > limits.META_INTEGER_DIGITS_MAX:
        return None
    sign = int(text.replace(runs[0], "1"))  # With one digit in place of all, `int` judges the rest.
    return sign * parse_integer(digits)


def is_cid(value: Any) -> bool:
    """Whether a truthy value is a commitment id: text or an integer."""
    return type(value) is str or type(value) is int


def score_pair(meta: dict[str, Any]) -> tuple[Any, Any] | None:
    """(IAS, GAS) of `meta.telemetry`, as they stand there; None where it is not an object with both."""
    telemetry = meta.get("telemetry")
    if isinstance(telemetry, dict) and "IAS" in telemetry and "GAS" in telemetry:
        return telemetry["IAS"], telemetry["GAS"]
    return None
