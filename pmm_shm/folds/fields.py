"""Conversions that several folds share: any JSON value as a float, an integer, a commitment id, a pair of scores."""

from __future__ import annotations

from pmm_shm import limits
from pmm_shm.late import late_imports
from pmm_shm.ledger.rows import SHORT_INTEGER_DIGITS, parse_integer
from pmm_shm.typed import Any


def to_float(value: Any) -> float | None:
    """`float(value)`; None if that fails."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def to_int(value: Any) -> int | None:
    """`int(value)`; None if that fails, or if text has more digits than `limits.META_INTEGER_DIGITS_MAX`."""
    try:
        if isinstance(value, str) and len(value) > SHORT_INTEGER_DIGITS:
            return _long_text_to_int(value)
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _long_text_to_int(text: str) -> int | None:
    """`int(text)`, independent of the host program's limit on the number of digits."""
    with late_imports:
        import re
    runs = re.findall(r"\d(?:_?\d)*", text)
    if len(runs) != 1:
        return None
    digits = runs[0].replace("_", "")
    if len(digits) > limits.META_INTEGER_DIGITS_MAX:
        return None
    sign = int(text.replace(runs[0], "1"))  # With one digit instead of all, `int` checks the rest.
    return sign * parse_integer(digits)


def is_cid(value: Any) -> bool:
    """Whether a truthy value is a commitment id: text or an integer."""
    return type(value) is str or type(value) is int


def score_pair(meta: dict[str, Any]) -> tuple[Any, Any] | None:
    """(IAS, GAS) of `meta.telemetry`, any JSON values; None if it is not an object with both."""
    telemetry = meta.get("telemetry")
    if isinstance(telemetry, dict) and "IAS" in telemetry and "GAS" in telemetry:
        return telemetry["IAS"], telemetry["GAS"]
    return None
