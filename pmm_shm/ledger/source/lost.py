"""Files of events that a source has lost, and how to append them again."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pmm_shm.errors import ConfigError
from pmm_shm.ledger.new_events import EventInput

_DONE = ".appended"


class LostFile(NamedTuple):
    """One file of lost events.

    Attributes:
        events: how many it holds.
        first_id, last_id: the ids that they had.
        is_appended: whether they were appended again.
    """

    path: str
    events: int
    first_id: int
    last_id: int
    is_appended: bool


def lost_files(ledger: str) -> list[str]:
    """The files beside a ledger whose events were not appended again, the oldest first."""
    return sorted(glob.glob(f"{glob.escape(ledger)}.lost-*.jsonl"))


def all_lost(ledger: str) -> list[LostFile]:
    """All files of lost events beside a ledger, the oldest first.

    Raises:
        ConfigError: one of them cannot be read.
    """
    paths = sorted([*lost_files(ledger), *glob.glob(f"{glob.escape(ledger)}.lost-*.jsonl{_DONE}")])
    found = []
    for path in paths:
        events = read_lost(path)
        found.append(LostFile(path, len(events), events[0]["id"], events[-1]["id"], path.endswith(_DONE)))
    return found


def read_lost(path: str) -> list[dict[str, Any]]:
    """The events of a file, column to value, oldest first; at least one.

    Raises:
        ConfigError: it is no file of lost events.
    """
    try:
        with open(path, encoding="ascii") as file:
            events = [json.loads(line) for line in file]
        if not events or not all(isinstance(event, dict) and isinstance(event["id"], int) for event in events):
            raise ValueError
    except (OSError, ValueError, KeyError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a file of lost events"
        raise ConfigError(f"{path}: {reason}") from None
    return events


def append_again(
    path: str,
    append_many: Callable[[list[EventInput]], list[int]],
    is_there: Callable[[Mapping[str, Any]], bool],
) -> list[int]:
    """Append the events of a file, with their times, and rename it. Returns the new ids.

    Parameters:
        append_many: appends to the source.
        is_there: whether the log has an event of this time, kind, content and meta. Those are left out: an earlier call
            may have been killed before it renamed the file.

    Raises:
        ConfigError: it is no file of lost events, or its events were appended already.
        LedgerError: they could not be appended; the file keeps its name.
    """
    if path.endswith(_DONE):
        raise ConfigError(f"{path}: its events were appended already")
    events = [event for event in read_lost(path) if not is_there(event)]
    batch: list[EventInput] = [
        {"kind": one["kind"], "content": one["content"], "meta": json.loads(one["meta"]), "ts": one["ts"]}
        for one in events
    ]
    ids = append_many(batch) if batch else []
    os.rename(path, path + _DONE)
    return ids
