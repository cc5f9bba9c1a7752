"""Moments as a user writes them: an event id, a time, or an age."""

from __future__ import annotations

import re

_AGE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|min|m|h|d|w)", re.ASCII)
_UNITS_S = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_WHOLE = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)
_INSTANT_US_MAX = 1 << 60


def id_or_instant(text: str) -> tuple[int | None, int | None]:
    """(event id, microseconds since 1970 UTC): one of them; neither if the text is no moment."""
    from pmm_shm.ledger.instants import instant_us, now_us
    from pmm_shm.ledger.rows import ID_MAX, ID_MIN

    if _WHOLE.fullmatch(text):
        return min(max(int(text), ID_MIN), ID_MAX), None
    age = _AGE.fullmatch(text)
    if age is not None:
        age_us = min(float(age[1]) * _UNITS_S[age[2]] * 1e6, _INSTANT_US_MAX)
        return None, now_us() - int(age_us)
    return None, instant_us(text)
