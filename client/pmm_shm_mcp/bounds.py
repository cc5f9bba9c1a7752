"""Answers of bounded size: a model reads all of an answer, and its own memory is small.

Long texts are cut before items are left out, and the answer says which of the two happened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pmm_shm.frozen import json_text
from pmm_shm_terminal.output import json_value

ANSWER_CHARS_MAX = 20_000
"""Characters of the JSON of an answer's items, or of a text: about 5,000 tokens of English."""
VALUE_CHARS_MIN = 200
"""A value is cut no shorter than this: items are left out instead."""
_SURROGATES = re.compile(r"[\ud800-\udfff]")
# Quotes, braces and what `with_items` adds around the items.
_FRAME_CHARS = 500


def with_items(answer: Mapping[str, Any], name: str, items: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The answer with its items, cut to `ANSWER_CHARS_MAX` together with the rest of the answer.

    Items that do not fit are left out from the end. Then the answer has `left_out`, their number, and `cut` where a
    value was cut.
    """
    head = {key: cut(value, VALUE_CHARS_MIN * 5) for key, value in answer.items()}
    room = ANSWER_CHARS_MAX - _FRAME_CHARS - chars_of(head)
    whole = [{key: _prepared(value) for key, value in item.items()} for item in items]
    chars_max = ANSWER_CHARS_MAX
    while True:
        shown = [{key: cut(value, chars_max) for key, value in item.items()} for item in whole]
        if chars_max <= VALUE_CHARS_MIN or chars_of(shown) <= room:
            break
        chars_max = max(VALUE_CHARS_MIN, chars_max * 2 // 3)
    kept = _fitting(shown, room)
    notes: dict[str, Any] = {"left_out": len(shown) - kept} if kept < len(shown) else {}
    pairs = zip(shown[:kept], whole[:kept], strict=True)
    if any(_is_cut(value, item[key]) for part, item in pairs for key, value in part.items()):
        notes["cut"] = "long texts are cut; ask for fewer to see more of each"
    return {**head, name: shown[:kept], **notes}


def _fitting(items: Sequence[Mapping[str, Any]], room: int) -> int:
    """How many of the first items fit; one always does."""
    for count, item in enumerate(items):
        room -= chars_of(item) + 2
        if room < 0 and count:
            return count
    return len(items)


def _is_cut(shown: Any, whole: Any) -> bool:
    """Whether `cut` has left a part of a value. A copy of an answer may end with the mark and be whole."""
    return isinstance(shown, str) and (not isinstance(whole, str) or shown != cut_text(whole, len(whole)))


def _prepared(value: Any) -> Any:
    """A JSON value that is quickly cut: one that is no text is a text where it is too large for an answer."""
    if isinstance(value, str) or value is None or isinstance(value, (bool, float)):
        return value
    found = json_value(value)
    text = json_text(found)
    return found if len(text) <= ANSWER_CHARS_MAX else text


def cut(value: Any, chars_max: int) -> Any:
    """A JSON value of about `chars_max` characters: a longer one becomes the beginning of its text."""
    if isinstance(value, str):
        return cut_text(value, chars_max)
    found = json_value(value)
    text = json_text(found)
    # Through JSON and back: NaN becomes null, and no lone surrogate is left.
    return _clean(json.loads(text)) if len(text) <= chars_max else cut_text(text, chars_max)


def cut_text(text: str, chars_max: int) -> str:
    """The text, or its beginning with a mark that says how many characters are missing; always encodable."""
    head = _SURROGATES.sub("\ufffd", text[:chars_max])
    return head if len(text) <= chars_max else f"{head}{_CUT}{len(text) - chars_max:,}{_MARK}"


def chars_shown(shown: str, whole: str) -> int | None:
    """How many characters `cut_text` has left of a text; None if it has cut nothing."""
    return shown.rindex(_CUT) if _is_cut(shown, whole) else None


_CUT = "… ["
_MARK = " more characters]"


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATES.sub("\ufffd", value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    return value


def chars_of(value: Any) -> int:
    """The length of a value as JSON."""
    return len(json.dumps(value, ensure_ascii=False))
