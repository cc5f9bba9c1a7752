"""`maybe_compact`: the summary of the events since the last summary, once there are enough of them."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from pmm_shm.folds.fields import to_int
from pmm_shm_pmm import lists
from pmm_shm_pmm.fallback import Fallback, whole

if TYPE_CHECKING:
    from pmm_shm_pmm.patching import Patcher

_ENDS = 6
_WORDS_MAX = 14
_CHARS_MAX = 500


def maybe_compact(events: Any, *, threshold: int = 100) -> dict[str, Any] | None:
    if type(threshold) is not int or threshold < 1:
        raise Fallback("arguments of another type")
    log, newest_id = lists.log_behind(events)
    if log is None:
        return None
    compacts = log.newest("scene_compact", 1, before=newest_id + 1)
    window_end = _window_end(compacts[0]["meta"]) if compacts else 0
    newest = whole(events)[-threshold:]
    if len(newest) < threshold or newest[0]["id"] <= window_end:
        return None
    told = [event for event in newest if str(event["content"] or "").strip()]
    told = told[:_ENDS] + (told[-_ENDS:] if len(told) > _ENDS else [])
    lines = [f"[{event['kind']} #{event['id']}] {_first_words(str(event['content']))}" for event in told]
    return {
        "content": "\n".join(lines)[:_CHARS_MAX],
        "source_ids": [event["id"] for event in newest],
        "window": {"start": newest[0]["id"], "end": newest[-1]["id"]},
    }


def _window_end(meta: dict[str, Any]) -> int:
    """The last id that a summary covers; 0 where its window is not two integers."""
    window = (meta or {}).get("window") or {}
    if not isinstance(window, dict):
        return 0
    start, end = to_int(window.get("start") or 0), to_int(window.get("end") or 0)
    return 0 if start is None or end is None else end


def _first_words(text: str) -> str:
    return " ".join(text.split()[:_WORDS_MAX])


def install(patcher: Patcher, module: ModuleType) -> None:
    patcher.replace(module, "maybe_compact", maybe_compact)
