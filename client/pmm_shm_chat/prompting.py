"""What a responder receives: the block of the context and the conversation so far, within a budget of tokens.

Invariant: a message of a turn that was undone, or that failed, is in neither.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pmm_shm_chat.responder import Message
from pmm_shm_client.context import ROLES, TEXT_CHARS_MAX, Context, Recalled
from pmm_shm_client.thinking import without_thinking

if TYPE_CHECKING:
    from pmm_shm.folds.recent import Entry
    from pmm_shm_client.cache import Cache

TOKENS_MAX = 16_000
"""The default budget of a prompt, in estimated tokens."""
MARK_KIND = "turn_marked"
"""The kind of the event that leaves messages out of later prompts, or takes them in again: its meta is
`{"eids": [...], "undone": bool, "reason": ...}`, and the newest one about a message counts."""
_ASCII_CHARS_PER_TOKEN = 4
_MESSAGE_TOKENS = 12
"""Of the role of a message, or of its time and speaker in the block."""
_Said = TypeVar("_Said", Recalled, Message)


class Prompt(NamedTuple):
    """What a responder receives beside the user's text.

    Attributes:
        block: the context's, for the system prompt.
        history: the earlier messages, oldest first.
        tokens: the estimated ones of block, history and user's text together.
        left_out: how many of the context's messages, the oldest, there was no room for.
    """

    block: str
    history: list[Message]
    tokens: int
    left_out: int


class Undone:
    """The messages of a ledger that were undone. A call reads the events since the last one, if others appended any."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._ids: set[int] = set()
        self._as_of = 0
        self._own_marks: list[Mapping[str, Any]] = []
        self._own_events = 0

    def note(self, events: int, mark: Mapping[str, Any] | None = None) -> None:
        """Take note of so many events that this conversation appended, and of the meta of a mark among them."""
        self._own_events += events
        if mark is not None:
            self._own_marks.append(mark)

    def ids(self, as_of: int) -> Collection[int]:
        """The ids of these messages, up to event `as_of` at least.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        if as_of < self._as_of:
            # Another history: a restored or replaced ledger.
            self._ids.clear()
            self._as_of, self._own_events = 0, -1
        marks = self._own_marks
        if as_of - self._as_of != self._own_events:
            marks = [event.meta for event in self._cache.events(MARK_KIND, after=self._as_of, limit=None)]
        for meta in marks:
            named = meta.get("eids")
            ids = {one for one in named if type(one) is int} if isinstance(named, list) else set()
            if meta.get("undone") is True:
                self._ids |= ids
            else:
                self._ids -= ids
        self._as_of, self._own_marks, self._own_events = as_of, [], 0
        return self._ids


def make_prompt(
    context: Context, user_id: int, user_text: str, undone: Collection[int], count: int, tokens_max: int
) -> Prompt:
    """The prompt for one message.

    If they do not fit, the oldest messages are left out first, then the least similar recalled ones. The facts of
    the context and the user's text are always in it.

    Parameters:
        user_id: the event of the message to answer; only earlier messages are in the history.
        undone: ids of messages to leave out.
        count: earlier messages at most.
        tokens_max: estimated tokens of block, history and user's text together.
    """
    bare = replace(context, messages=(), recalled=())
    block = str(bare)
    room = tokens_max - tokens_of(block) - tokens_of(user_text)
    recalled, _ = _fitting((one for one in context.recalled if one.id not in undone), TEXT_CHARS_MAX, room)
    if recalled:
        block = str(replace(bare, recalled=tuple(recalled)))
    tokens = tokens_of(block) + tokens_of(user_text)
    before = [one for one in context.messages if one.id < user_id and one.id not in undone]
    spoken = _spoken(before[-count:] if count else [])
    history, of_history = _fitting((one for _, one in reversed(spoken)), None, tokens_max - tokens)
    ids = [event_id for event_id, _ in spoken]
    cut = ids[: len(ids) - len(history)]
    left_out = sum(one.id <= cut[-1] for one in context.messages) if cut else 0
    return Prompt(block, history[::-1], tokens + of_history, left_out)


def _spoken(entries: Iterable[Entry]) -> list[tuple[int, Message]]:
    """(event id, message) as it was said, without the thinking that other programs may have stored."""
    found = []
    for one in entries:
        role = ROLES[one.kind]
        content = without_thinking(one.content) if role == "assistant" else one.content
        if content or not one.content:
            found.append((one.id, Message(role, content)))
    return found


def _fitting(messages: Iterable[_Said], chars_max: int | None, room: int) -> tuple[list[_Said], int]:
    """As many of the first messages, of each at most so many characters, as there is room for; and their tokens."""
    kept: list[_Said] = []
    used = 0
    for one in messages:
        tokens = tokens_of(one.content[:chars_max]) + _MESSAGE_TOKENS
        if used + tokens > room:
            break
        kept.append(one)
        used += tokens
    return kept, used


def tokens_of(text: str) -> int:
    """The tokens of a text, estimated: a quarter of its ASCII characters, and each other character.

    Models count differently; this errs on the high side for most of them and most languages.
    """
    plain = len(text) if text.isascii() else len(text.encode("ascii", "ignore"))
    return len(text) - plain + -(-plain // _ASCII_CHARS_PER_TOKEN)
