"""Values of the ledger as HTML: always text, always cut, never able to change the text around them.

Autoescaping makes markup text. `bdi` sets the direction of a value apart from the page's. Characters that would end
that (the marks that begin and end isolates and overrides) are written as their code points.
"""

from __future__ import annotations

import json
import re
from typing import Any

from markupsafe import Markup, escape

from pmm_shm.frozen import plain
from pmm_shm.ledger.rows import InvalidText

TEXT_CHARS_MAX = 400
JSON_CHARS_MAX = 65_536
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?(?:Z|\+00:00)?", re.ASCII)
_TIME_CHARS_MAX = 40
_ODD = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)


def spelled(value: Any) -> str:
    """Any value of a row or an answer as text; control characters, marks of direction and lone surrogates as codes."""
    if isinstance(value, str):
        text = value.replace("\r\n", "\n")
    elif isinstance(value, InvalidText):
        text = value.raw.decode("utf-8", "replace")
    elif isinstance(value, (bytes, bytearray)):
        text = value[:TEXT_CHARS_MAX].hex(" ")
    elif value is None:
        text = ""
    elif isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = _json(value, None)
    return _ODD.sub(lambda found: f"[U+{ord(found[0]):04X}]", text)


def shown(value: Any, chars_max: int = TEXT_CHARS_MAX) -> Markup:
    """A value as HTML, in an element that isolates its direction."""
    if isinstance(value, str) and len(value) > chars_max:
        value = value[:chars_max] + "…"
    text = spelled(value)
    # Codes make a text longer: up to eight characters for one.
    text = text if len(text) <= 8 * chars_max + 1 else text[: 8 * chars_max] + "…"
    return Markup("<bdi>{}</bdi>").format(text)


def shown_json(value: Any) -> Markup:
    """A value as indented JSON in HTML, cut."""
    text = _json(value, 2)
    cut = text if len(text) <= JSON_CHARS_MAX else text[:JSON_CHARS_MAX] + "…"
    return Markup("<pre><bdi>{}</bdi></pre>").format(_ODD.sub(_escaped, cut))


def encodable(text: str) -> str:
    """Text with a question mark for each half of a surrogate pair, which UTF-8 does not have."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def _json(value: Any, indent: int | None) -> str:
    try:
        return json.dumps(plain(value), indent=indent, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        # An integer with more digits than the interpreter writes, for example.
        return "(a value that cannot be written as JSON)"


def score(value: Any) -> str:
    """A score with three decimals; "–" for none."""
    return f"{value:.3f}" if isinstance(value, float) else "–" if value is None else str(escape(spelled(value)))


def rate(value: Any) -> str:
    """A share in percent; "–" for none."""
    return "–" if value is None else f"{value:.2%}"


def count(value: Any) -> str:
    """A number with separators; "–" for none."""
    return f"{value:,}" if isinstance(value, int) else "–"


def time(value: Any) -> Markup:
    """A time in UTC to the second; any other text as it is, cut."""
    found = _TIME.fullmatch(value) if isinstance(value, str) else None
    return shown(value, _TIME_CHARS_MAX) if found is None else shown(f"{found[1]} {found[2]}")


def words(name: Any) -> Markup:
    """The name of a field as words."""
    return shown(name.replace("_", " ") if isinstance(name, str) else name, 60)
