"""Readings of fields that several folds share: what `float`, `int` and a commitment id make of any JSON value."""

from __future__ import annotations

from typing import Any

from pmm_shm import limits


def to_float(value: Any) -> float | None:
    """`float(value)`; None where `float` refuses it."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def to_int(value: Any) -> int | None:
    """`int(value)`; None where `int` refuses it, or text has more digits than every Python converts."""
    if isinstance(value, str) and len(value) > limits.META_INTEGER_DIGITS_MAX:
        return None
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def is_cid(value: Any) -> bool:
    """Whether a truthy value is a commitment id: text or an integer."""
    return type(value) is str or type(value) is int


def score_pair(meta: dict[str, Any]) -> tuple[Any, Any] | None:
    """(IAS, GAS) of `meta.telemetry`, as they stand there; None where it is not an object with both."""
    telemetry = meta.get("telemetry")
    if isinstance(telemetry, dict) and "IAS" in telemetry and "GAS" in telemetry:
        return telemetry["IAS"], telemetry["GAS"]
    return None
