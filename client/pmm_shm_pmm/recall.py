"""`suggest_recall`: past events that share words with a text. With seeds, only those events are looked at."""

from __future__ import annotations

import heapq
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pmm_shm_pmm import lists
from pmm_shm_pmm.fallback import Fallback, whole

if TYPE_CHECKING:
    from pmm_shm_pmm.patching import Patcher

_all_tokens = re.compile(r"[a-z0-9]+").findall
_STOP_WORDS = frozenset(
    _all_tokens("i we you the a an to and of for on in it is are will shall can could should would today now")
)
_SNIPPET_CHARS_MAX = 100
Suggestion = dict[str, Any]


def tokens(text: str) -> list[str]:
    """The words of a text that say something, in order, in lower case."""
    return [word for word in _all_tokens(text.lower()) if word not in _STOP_WORDS]


def suggest_recall(
    events: Any, current_text: str, *, max_items: int = 3, semantic_seeds: Iterable[Any] | None = None
) -> list[Suggestion]:
    if type(current_text) is not str or type(max_items) is not int:
        raise Fallback("arguments of another type")
    words = frozenset(tokens(current_text))
    seeds = None if semantic_seeds is None else _integers(semantic_seeds)
    if not words or (seeds is not None and not seeds):
        return []
    candidates = _events_before_newest(events) if seeds is None else _seeded(events, seeds)
    found = list(_overlapping(candidates, words))
    best = heapq.nsmallest(max(1, max_items), found, key=lambda one: (-one[0], one[1]))
    return [{"eid": event_id, "snippet": content[:_SNIPPET_CHARS_MAX]} for _, event_id, content in best]


def _integers(seeds: Iterable[Any]) -> set[int]:
    try:
        return {int(seed) for seed in seeds}
    except (TypeError, ValueError):
        return set()


def _seeded(events: Any, seeds: set[int]) -> list[Any]:
    """The events with these ids that are before the newest one of a list that is the log."""
    log, newest_id = lists.log_behind(events)
    if log is None:
        return []
    wanted = sorted(seed for seed in seeds if seed < newest_id)
    if type(events) is list and lists.is_whole(events):
        places = [bisect_left(events, seed, key=_id_of) for seed in wanted]
        return [events[place] for place, seed in zip(places, wanted, strict=True) if events[place]["id"] == seed]
    return [event for event in map(log.event, wanted) if event is not None]


def _events_before_newest(events: Any) -> list[Any]:
    if not isinstance(events, list):
        raise Fallback("no list")
    everything: Sequence[Any] = list(whole(events))
    newest_id = max(map(_id_of, everything), default=0)
    return [event for event in everything if event["id"] < newest_id]


def _overlapping(events: Sequence[Any], words: frozenset[str]) -> Iterator[tuple[int, int, str]]:
    """(overlap, id, content) of events that share words, each id once."""
    is_wanted = words.__contains__
    seen: set[int] = set()
    for event in events:
        content = event["content"]
        if type(content) is not str:
            raise Fallback("content that is no text")
        text = event["meta"].get("text") if event["kind"] == "commitment_open" else None
        texts = [content.lower(), text.lower()] if type(text) is str else [content.lower()]
        # Most events have none of the words, not even within a word.
        if not content or not any(word in one for one in texts for word in words):
            continue
        overlap = sum(sum(map(is_wanted, _all_tokens(one))) for one in texts)
        if overlap and event["id"] not in seen:
            seen.add(event["id"])
            yield overlap, event["id"], content


def _id_of(event: Any) -> int:
    return event["id"]  # type: ignore[no-any-return]


def install(patcher: Patcher, module: ModuleType) -> None:
    patcher.replace(module, "suggest_recall", suggest_recall)
