"""`Context`: the state that a chat worker reads before it answers, all at one position, and its block of text.

`docs/CONTEXT.md` has the rules and the layout. The result does not depend on the process: on its locale, time zone,
hash seed or earlier reads.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pmm_shm.errors import ConfigError, EmbedderError, InvalidTextError, InvalidVectorError, StoreError
from pmm_shm.folds.recent import MESSAGE_KINDS, MESSAGES_MAX, REFLECTIONS_MAX, Entry, Telemetry
from pmm_shm.frozen import FrozenDict, json_text, plain, plain_dict, result
from pmm_shm.late import late_imports
from pmm_shm.ledger.instants import instant_us
from pmm_shm.limits import SEARCH_K_MAX
from pmm_shm.names import checked_search_mode
from pmm_shm.vectors.embedder import checked_text
from pmm_shm_client.thinking import without_thinking

if TYPE_CHECKING:
    from pmm_shm.ledger.eventlog import EventDict
    from pmm_shm_client.frame import Frame
    from pmm_shm_client.hits import Hits

LAYOUT = 1
"""Version of the block, incremented when the same facts give other bytes."""
RECALL_MAX = 100
COMMITMENTS_MAX = 5
COMMITMENT_CHARS_MAX = 80
REFLECTION_CHARS_MAX = 120
NAME_CHARS_MAX = 80
VALUE_CHARS_MAX = 40
TEXT_CHARS_MAX = 500
"""Of a directive or a message, in the block."""

ROLES: Mapping[str, Literal["user", "assistant"]] = {
    "user": "user",
    "user_message": "user",
    "response": "assistant",
    "assistant_message": "assistant",
}
"""The kind of a message to its speaker."""
assert ROLES.keys() == set(MESSAGE_KINDS)
_OF_PMM = ("name", "traits", "telemetry", "ias", "gas", "stage")
_NOT_OF_PMM2 = "Name, traits, IAS, GAS, stage: do not apply to a ledger of PMM 2"
_EPOCH = datetime(1970, 1, 1)

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROLS_AND_MARKUP = re.compile(r"[\x00-\x1f\x7f-\x9f`*_#>]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")
# At the beginning of collapsed text. A bullet is always a marker; without a space, the others may be a sign, a decimal
# or a name.
_MARKER = re.compile(r"• ?|(?:-|[0-9]{1,9}\.|\([0-9]{1,9}\)|[A-Za-z]\))(?: |\Z)")
_MARKER_CHARS_MAX = 12
_SENTENCE_END = re.compile(r"[.!?](?= )")


@result
class Reflection(NamedTuple):
    """A reflection as shown: the time to the second in UTC, and at most 120 characters on one line."""

    event_id: int
    time: str
    text: str

    def to_dict(self) -> dict[str, Any]:
        """A new dict by field names, plain at every depth."""
        return plain_dict(self)

    def to_json(self) -> str:
        """`to_dict()` as JSON."""
        return json_text(plain(self))


@result
class Recalled(NamedTuple):
    """A past message, uncut, and its similarity to the user's text, -1.0 to 1.0; None if it has no vector, or none was
    compared.
    """

    id: int
    ts: str
    kind: str
    content: str
    similarity: float | None

    def to_dict(self) -> dict[str, Any]:
        """A new dict by field names, plain at every depth."""
        return plain_dict(self)

    def to_json(self) -> str:
        """`to_dict()` as JSON."""
        return json_text(plain(self))


@dataclass(frozen=True)
class Context:
    """The state that a chat worker reads before it answers; `str(context)` is the block for a system prompt.

    Attributes:
        layout: version of the block.
        as_of: the event up to which all parts are exact.
        name: the adopted name on one line, or `Unknown`.
        traits: name to float, in the order O C E A N.
        telemetry: the newest tick with telemetry (event id, IAS, GAS and stage from its meta), or None.
        ias, gas, stage: the current ones.
        commitments: up to 5 open ones, one line each.
        reflections: the newest ones, oldest first.
        directives: the active ones, best first, uncut.
        recalled: past messages that the user's text recalls, the best first, uncut.
        messages: the last ones of the conversation, oldest first, uncut.
        recall_problem: why `recalled` is incomplete; None if it is complete.
        not_applicable: as `Cache.not_applicable`. The block says so, and `to_dict` has None for the name, the traits,
            the telemetry, the scores and the stage.
    """

    layout: int
    as_of: int
    name: str
    traits: Mapping[str, float]
    telemetry: Telemetry | None
    ias: float
    gas: float
    stage: str
    commitments: tuple[str, ...]
    reflections: tuple[Reflection, ...]
    directives: tuple[str, ...]
    recalled: tuple[Recalled, ...]
    messages: tuple[Entry, ...]
    recall_problem: str | None
    not_applicable: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join(_block(self))

    def to_dict(self) -> dict[str, Any]:
        """A new dict by field names, plain at every depth."""
        found = {field.name: plain(getattr(self, field.name)) for field in fields(self)}
        if not self.not_applicable:
            del found["not_applicable"]
            return found
        return {**found, **dict.fromkeys(_OF_PMM)}

    def to_json(self) -> str:
        """`to_dict()` as JSON."""
        return json_text(self.to_dict())


class ContextRequest(NamedTuple):
    """Checked parameters of a context."""

    user_text: str
    reflections: int
    recall: int
    messages: int
    recall_mode: str

    @classmethod
    def of(
        cls,
        user_text: object,
        reflections: object,
        recall: object,
        messages: object,
        recall_mode: object = "meaning",
    ) -> ContextRequest:
        """Raises `ConfigError` for a mode that does not exist and for a number of the wrong type or out of range,
        `InvalidTextError` for the text.
        """
        return cls(
            checked_text(user_text),
            _checked_count("reflections", reflections, REFLECTIONS_MAX),
            _checked_count("recall", recall, RECALL_MAX),
            _checked_count("messages", messages, MESSAGES_MAX),
            checked_search_mode("recall_mode", recall_mode),
        )


Search = Callable[[str, int, int], "Hits[Any]"]
EventOf = Callable[[int], "EventDict | None"]


def make_context(frame: Frame, request: ContextRequest, search: Search, event_of: EventOf) -> Context:
    """The context of a frame; `search` and `event_of` are called only for recall."""
    identity, metrics, recent = frame.identity(), frame.metrics(), frame.recent()
    recalled: tuple[Recalled, ...] = ()
    problem = None
    if request.recall and request.user_text.strip():
        try:
            recalled, problem = _recall(frame, request, search, event_of)
        except (StoreError, EmbedderError, InvalidTextError, InvalidVectorError) as error:
            # Recall is only a help: its failure must not prevent the answer.
            problem = str(error)
    return Context(
        layout=LAYOUT,
        as_of=frame.as_of,
        name="Unknown" if identity.name is None else one_line(_spelled(identity.name), NAME_CHARS_MAX) or "Unknown",
        traits=FrozenDict(identity.traits),
        telemetry=recent.telemetry,
        ias=metrics.ias,
        gas=metrics.gas,
        stage=frame.stage().stage,
        commitments=_commitment_lines(frame.commitments().open),
        reflections=tuple(map(_reflection, _last(recent.reflections, request.reflections))),
        directives=tuple(row["content"] for row in frame.active_directives()),
        recalled=recalled,
        messages=_last(recent.messages, request.messages),
        recall_problem=problem,
        not_applicable=frame.not_applicable,
    )


# Recall.


def _recall(
    frame: Frame, request: ContextRequest, search: Search, event_of: EventOf
) -> tuple[tuple[Recalled, ...], str | None]:
    """Messages up to the frame's position, without the one to answer and those that are shown as the last ones; and why
    there may be others.
    """
    # A search imports it, too.
    with late_imports:
        from pmm_shm_client.event_filter import spelled_alike

    newest = frame.recent().messages
    shown = _last(newest, request.messages)
    known = {one.id for one in shown}
    known |= {one.id for one in newest[-1:] if ROLES[one.kind] == "user" and one.content == request.user_text}
    texts = None
    if request.recall_mode != "meaning":
        texts = {spelled_alike(text) for text in (request.user_text, *(one.content for one in shown))}
    count = request.recall + len(known)
    while True:
        hits = search(request.user_text, count, frame.as_of)
        found = _recalled(hits, request.recall, known, spelled_alike, None if texts is None else {*texts}, event_of)
        if len(found) == request.recall or len(hits) < count or count == SEARCH_K_MAX:
            break
        # Many say the same.
        count = min(8 * count, SEARCH_K_MAX)
    if hits.problem is not None:
        return found, f"found by words alone: {hits.problem}"
    if not hits.is_complete and not hits.as_of:
        return found, "some events were not searched; start pmm-cached with an embedder"
    if not hits.is_complete and hits.as_of < frame.as_of:
        # A daemon may be at it, and wait for an endpoint that is down.
        return found, f"events after {hits.as_of} were not searched: a pmm-cached with this embedder adds their vectors"
    return found, None


def _recalled(
    hits: Hits[Any],
    count: int,
    known: Collection[int],
    key_of: Callable[[str], str],
    texts: set[str] | None,
    event_of: EventOf,
) -> tuple[Recalled, ...]:
    """The first of these hits that are not known, and the keys of whose texts are not in `texts`, if given."""
    found: list[Recalled] = []
    for hit in hits:
        event = None if hit.event_id in known or len(found) == count else event_of(hit.event_id)
        if event is None:
            continue
        if texts is not None:
            text = key_of(event["content"])
            if text in texts:
                continue
            texts.add(text)
        found.append(Recalled(hit.event_id, event["ts"], event["kind"], event["content"], hit.similarity))
    return tuple(found)


# The block.


def _block(context: Context) -> Iterator[str]:
    yield f"# Context (layout {context.layout})"
    if context.not_applicable:
        yield _NOT_OF_PMM2
    else:
        yield from _head_lines(context)
    # PMM 2 may have open ones that are other events.
    yield from _section("Open commitments", context.commitments, is_always_there=not context.not_applicable)
    yield from _section("Reflections", (f"{one.time} {one.text}" for one in context.reflections))
    directives = (one_line(text, TEXT_CHARS_MAX) for text in context.directives)
    yield from _section("Directives", directives, is_always_there=True)
    yield from _section("Recalled messages", _message_lines(context.recalled))
    yield from _section("Last messages", _message_lines(context.messages))


def _head_lines(context: Context) -> Iterator[str]:
    traits = " ".join(f"{name[0].upper()} {value:.2f}" for name, value in context.traits.items())
    yield f"Name: {context.name}"
    yield f"Traits: {traits}"
    yield f"Now: {_scores(context.ias, context.gas, context.stage)}"
    tick = context.telemetry
    yield "Last tick: " + ("none" if tick is None else f"{_scores(tick.ias, tick.gas, tick.stage)} (event {tick.id})")


def _section(title: str, lines: Iterable[str], is_always_there: bool = False) -> list[str]:
    items = [f"- {line}".rstrip() for line in lines] or (["none"] if is_always_there else [])
    return [f"## {title}", *items] if items else []


def _scores(ias: Any, gas: Any, stage: Any) -> str:
    return f"IAS {_number(ias)} GAS {_number(gas)} stage {one_line(_spelled(stage), VALUE_CHARS_MAX)}"


def _number(value: Any) -> str:
    if type(value) is float or type(value) is int:
        # `.3f` would write three hundred digits of a large number, and NaN is outside, too.
        return f"{value:.3f}" if -1e6 < value < 1e6 else one_line(_spelled(value), VALUE_CHARS_MAX)
    return one_line(_spelled(value), VALUE_CHARS_MAX)


def _message_lines(messages: Iterable[Entry | Recalled]) -> Iterator[str]:
    """A line for each message; none for one that is nothing but the thinking of a model."""
    for one in messages:
        role = ROLES[one.kind]
        # Other programs may have stored the thinking, too.
        content = without_thinking(one.content) if role == "assistant" else one.content
        if content or not one.content:
            yield f"{shown_time(one.ts)} {role}: {one_line(content, TEXT_CHARS_MAX)}"


# Lines.


def _commitment_lines(entries: Mapping[str | int, Any]) -> tuple[str, ...]:
    # Stable: if both 7 and "7" are open, the one opened first comes first.
    # Without a call for each of many: nearly always they are all texts.
    spell = None if set(map(type, entries)) == {str} else _spelled
    first = heapq.nsmallest(COMMITMENTS_MAX, entries, key=spell)
    return tuple(commitment_line(_spelled(entries[cid]["text"])) for cid in first)


def _reflection(entry: Entry) -> Reflection:
    return Reflection(entry.id, shown_time(entry.ts), one_line(entry.content, REFLECTION_CHARS_MAX))


def commitment_line(text: str) -> str:
    """The first sentence of a commitment's text without markup and list marker, at most 80 characters."""
    head = _collapsed(text, _CONTROLS_AND_MARKUP, COMMITMENT_CHARS_MAX + _MARKER_CHARS_MAX)
    marker = _MARKER.match(head)
    if marker is not None:
        head = head[marker.end() :]
    end = _SENTENCE_END.search(head)
    return _cut(head if end is None else head[: end.end()], COMMITMENT_CHARS_MAX)


def one_line(text: str, chars_max: int) -> str:
    """Text with its white space and control characters collapsed, cut at a word boundary; always encodable."""
    return _cut(_collapsed(text, _CONTROLS, chars_max), chars_max)


def _collapsed(text: str, spaces: re.Pattern[str], chars: int) -> str:
    """The text with every run of matches and white space as one space. Of a long text, only a beginning of more than
    `chars` characters."""
    size = 4 * chars
    while True:
        head = " ".join(_SURROGATES.sub("\ufffd", spaces.sub(" ", text[:size])).split())
        if len(head) > chars or size >= len(text):
            return head
        size *= 4


def _cut(text: str, chars_max: int) -> str:
    """Collapsed text, cut after the last word that fits with an ellipsis; a single long word is cut within."""
    if len(text) <= chars_max:
        return text
    head = text[: chars_max - 1]
    if text[chars_max - 1] != " ":
        head = head.rpartition(" ")[0] or head
    return head + "…"


def shown_time(ts: str) -> str:
    """`2026-01-02T03:04:05Z`: to the second, in UTC; other text is shown unchanged, and empty text as `?`."""
    instant = instant_us(ts)
    if instant is not None:
        try:
            return (_EPOCH + timedelta(microseconds=instant)).isoformat(timespec="seconds") + "Z"
        except OverflowError:
            pass
    return one_line(ts, VALUE_CHARS_MAX) or "?"


def _spelled(value: Any) -> str:
    """`str(value)` of a JSON value, independent of the host program's limit on the digits of an integer."""
    if isinstance(value, str):
        return value
    try:
        return str(value)
    except ValueError:
        return _spelled_in_parts(value)


def _spelled_in_parts(value: Any) -> str:
    from decimal import Decimal

    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_spelled_in_parts(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_spelled_in_parts, value)) + "]"
    # `Decimal` writes all digits of an integer, whatever the limit.
    return f"{Decimal(value):f}" if type(value) is int else repr(value)


def _last(entries: tuple[Entry, ...], count: int) -> tuple[Entry, ...]:
    return entries[-count:] if count else ()


def _checked_count(name: str, value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ConfigError(f"{name}: expected an integer from 0 to {most}, got {value!r:.80}")
    return value
