"""The parameters of a request, checked."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from pmm_shm.errors import ConfigError, UnknownFoldError
from pmm_shm.ledger.rows import ID_MAX, ID_MIN
from pmm_shm_client.event_filter import EventFilter
from pmm_shm_web.stream import PAGE_ROWS, StreamQuery

Parameters = Mapping[str, str]
DIGITS_MAX = 20
CONTEXT_COUNTS = {"reflections": 3, "recall": 3, "messages": 4}
"""Of a context where nothing else is asked for."""


def whole_number(parameters: Parameters, name: str, least: int = ID_MIN, most: int = ID_MAX) -> int | None:
    """An integer in a range; None where it is missing or empty.

    Raises:
        ConfigError: it is none.
    """
    text = parameters.get(name, "").strip()
    if not text:
        return None
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdecimal() and len(digits) < DIGITS_MAX and least <= int(text) <= most:
        return int(text)
    raise ConfigError(f"{name}: expected a whole number from {least} to {most}, got {text!r:.80}")


def status_of(error: Exception) -> int:
    """400 for a request that has no meaning here, 503 where the ledger cannot be read."""
    return 400 if isinstance(error, (ConfigError, UnknownFoldError)) else 503


def position(parameters: Parameters) -> int | None:
    """`at`: the event as of which to look; None for now."""
    return whole_number(parameters, "at")


def context_counts(parameters: Parameters) -> tuple[int, int, int]:
    """How many reflections, recalled messages and last messages a context has.

    Raises:
        ConfigError: one is no number; its range is that of `Cache.context`.
    """
    counts = {**CONTEXT_COUNTS}
    for name in counts:
        given = whole_number(parameters, name)
        counts[name] = counts[name] if given is None else given
    return counts["reflections"], counts["recall"], counts["messages"]


def search_filters(parameters: Parameters) -> dict[str, Any]:
    """The filters of `Cache.search`: `kind`, `role`, `since`, `until` (or `at`) and `distinct`.

    Raises:
        ConfigError: one has no meaning.
    """
    at, until = position(parameters), _moment(parameters, "until")
    if at is not None and until is not None:
        raise ConfigError("until: either at or until")
    filters: dict[str, Any] = {
        "kinds": _names(parameters, "kind"),
        "roles": _names(parameters, "role"),
        "since": _moment(parameters, "since"),
        "until": until if at is None else at,
        "distinct": parameters.get("distinct", "") not in ("", "0", "false"),
    }
    EventFilter.of(**filters)
    return filters


def _names(parameters: Parameters, name: str) -> list[str] | None:
    """Names that are separated by commas."""
    return [part for one in parameters.get(name, "").split(",") if (part := one.strip())] or None


def _moment(parameters: Parameters, name: str) -> int | str | None:
    text = parameters.get(name, "").strip()
    return whole_number(parameters, name) if text.removeprefix("-").isdecimal() else text or None


def stream_query(parameters: Parameters) -> StreamQuery:
    """Which events to list; with `at`, none behind that event.

    Raises:
        ConfigError: a parameter has no meaning.
    """
    at, before = position(parameters), whole_number(parameters, "before")
    if at is not None and at < ID_MAX:
        before = at + 1 if before is None else min(before, at + 1)
    limit = whole_number(parameters, "limit")
    return StreamQuery(
        parameters.get("kind") or None,
        parameters.get("text") or None,
        _time(parameters, "since"),
        _time(parameters, "until"),
        before,
        whole_number(parameters, "after"),
        PAGE_ROWS if limit is None else limit,
    ).checked()


def _time(parameters: Parameters, name: str) -> str | None:
    """A time as SQLite and the ledger read it; a browser's field has none of its own zone, and is UTC."""
    text = parameters.get(name, "").strip()
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
        found = found.replace(tzinfo=timezone.utc) if found.tzinfo is None else found.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise ConfigError(f"{name}: {text!r:.80} is not an ISO 8601 time") from None
    return found.isoformat(timespec="milliseconds")
