"""The rules of `context` a second time: word by word where the product works with patterns over characters."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Any

from tests.support.context import NAMES

ROLES = dict(zip(NAMES, ("user", "assistant", "user", "assistant"), strict=True))


def visible(text: str, removed: str = "") -> list[str]:
    """The words of a text: nothing else of it is ever shown."""
    shown = []
    for character in text:
        code = ord(character)
        if code < 0x20 or 0x7F <= code < 0xA0 or character in removed:
            shown.append(" ")
        else:
            shown.append("\ufffd" if 0xD800 <= code < 0xE000 else character)
    return "".join(shown).split()


def cut(words: list[str], most: int) -> str:
    if len(" ".join(words)) <= most:
        return " ".join(words)
    kept: list[str] = []
    for word in words:
        if len(" ".join([*kept, word])) + 1 > most:
            break
        kept.append(word)
    return (" ".join(kept) or words[0][: most - 1]) + "…"


def is_number(text: str) -> bool:
    return 1 <= len(text) <= 9 and all(digit in "0123456789" for digit in text)


def is_marker(word: str) -> bool:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return (
        word == "-"
        or (word[-1] == "." and is_number(word[:-1]))
        or (word[0] == "(" and word[-1] == ")" and is_number(word[1:-1]))
        or (len(word) == 2 and word[1] == ")" and word[0] in letters + letters.upper())
    )


def spec_commitment(text: str) -> str:
    words = visible(text, "`*_#>")
    if words and words[0].startswith("•"):
        words[:1] = [words[0][1:]] if words[0] != "•" else []
    elif words and is_marker(words[0]):
        words = words[1:]
    for place, word in enumerate(words):
        if word[-1] in ".!?":
            return cut(words[: place + 1], 80)
    return cut(words, 80)


def spec_line(text: str, most: int) -> str:
    return cut(visible(text), most)


def spec_time(ts: str) -> str:
    # Before Python 3.11, it takes neither "Z" nor every fraction.
    instant = datetime.fromisoformat(re.sub(r"\.\d+", "", ts).replace("Z", "+00:00"))
    return instant.astimezone(timezone.utc).replace(tzinfo=None).isoformat() + "Z"


def spec_block(answer: dict[str, Any], events: list[dict[str, Any]], messages: int) -> str:
    """The block from a golden reference answer and the raw events that belong to it."""
    model, opened = answer["self_model"], answer["self_model"]["commitments"]["open"]
    identity = model["identity"]
    lines = [
        "# Context (layout 1)",
        f"Name: {spec_line(str(identity['name']), 80) if identity['name'] is not None else 'Unknown'}",
        "Traits: " + " ".join(f"{name[0].upper()} {value:.2f}" for name, value in identity["traits"].items()),
        f"Now: IAS {answer['ias']:.3f} GAS {answer['gas']:.3f} stage {answer['stage']}",
        "Last tick: " + spec_tick(events),
        "## Open commitments",
    ]
    order = sorted(answer["open_order"], key=str)[:5]
    lines += [f"- {spec_commitment(str(opened[str(cid)]['text']))}".rstrip() for cid in order] or ["none"]
    reflections = [event for event in events if event["kind"] == "reflection"][-3:]
    lines += ["## Reflections"] * bool(reflections)
    lines += [f"- {spec_time(one['ts'])} {spec_line(one['content'], 120)}".rstrip() for one in reflections]
    lines += ["## Directives"]
    lines += [f"- {spec_line(row['content'], 500)}".rstrip() for row in answer["directives_active"]] or ["none"]
    said = [event for event in events if event["kind"] in ROLES][-messages:]
    lines += ["## Last messages"] * bool(said)
    lines += [f"- {spec_time(e['ts'])} {ROLES[e['kind']]}: {spec_line(e['content'], 500)}".rstrip() for e in said]
    return "\n".join(lines)


def spec_tick(events: list[dict[str, Any]]) -> str:
    for event in reversed(events):
        meta = event.get("meta")
        if event["kind"] == "autonomy_tick" and isinstance(meta, dict) and isinstance(meta.get("telemetry"), dict):
            ias, gas = meta["telemetry"].get("IAS"), meta["telemetry"].get("GAS")
            if ias is not None and gas is not None and meta.get("stage") is not None:
                return f"IAS {spec_number(ias)} GAS {spec_number(gas)} stage {meta['stage']} (event {event['id']})"
    return "none"


def spec_number(value: Any) -> str:
    return f"{value:.3f}" if type(value) in (int, float) and abs(value) < 1e6 else spec_line(str(value), 40)
