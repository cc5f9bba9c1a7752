"""One turn of a conversation: the user's message, the context, the answer, and the events that follow from both.

    user | embedding_indexed, what it states | (context, answer) | response | embedding_indexed, what it states

Each part between two bars is one transaction, so that a worker that dies leaves a conversation that was merely not gone
on with: a message without its index entry (the daemon embeds it all the same), or a question without an answer.

Invariant: what a message states is appended with its index entry, at once or not at all, the evidence before the close.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pmm_shm import limits
from pmm_shm.errors import InvalidTextError
from pmm_shm.vectors import local_bow
from pmm_shm_chat.responder import Message, Responder, ResponderError
from pmm_shm_chat.rules import Draft, Speaker, events_of
from pmm_shm_chat.sentences import storable

if TYPE_CHECKING:
    from pmm_shm_client.cache import Cache
    from pmm_shm_client.context import Context

MESSAGES_MAX = 63
"""Of the 64 newest messages, one is the user's that is being answered."""
HISTORY_CHARS_MAX = 64_000

_ROLES: Mapping[str, Literal["user", "assistant"]] = {
    "user": "user",
    "user_message": "user",
    "response": "assistant",
    "assistant_message": "assistant",
}
_KINDS: Mapping[Speaker, str] = {"user": "user", "assistant": "response"}
OnText = Callable[[str], None]
"""Gets each piece of an answer as it comes."""


class Made(NamedTuple):
    """An event that follows from a message."""

    id: int
    kind: str
    content: str
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class Timings:
    """Where a turn's time went, in ms."""

    append_ms: float
    context_ms: float
    model_ms: float

    @property
    def without_model_ms(self) -> float:
        """What the turn costs beside the model."""
        return self.append_ms + self.context_ms


@dataclass(frozen=True)
class Turn:
    """What a turn did.

    Attributes:
        user_id: the event of the user's message.
        response_id: that of the answer; None where it was interrupted before its first word.
        event_ids: all events of the turn, in order.
        made: those that follow from what was said, in order.
        context: what was known before the answer, at one position.
        block: the context as the responder got it.
        response: the answer, as far as it came.
        is_interrupted: whether more of it would have come.
    """

    user_id: int
    response_id: int | None
    event_ids: tuple[int, ...]
    made: tuple[Made, ...]
    context: Context
    block: str
    response: str
    is_interrupted: bool
    timings: Timings


class Chat:
    """A conversation on a ledger. Keeps nothing between two turns; for one thread.

    Parameters:
        cache: of the ledger; whoever made it closes it.
        responder: answers.
        reflections, recall, messages: how much the responder gets to know, see `Cache.context`; the messages come to it
            as the conversation, at most `MESSAGES_MAX` of them, and not once more within the context.
        clock_ns: for the timings.
    """

    def __init__(
        self,
        cache: Cache,
        responder: Responder,
        *,
        reflections: int = 3,
        recall: int = 0,
        messages: int = 16,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.cache = cache
        self.responder = responder
        self._reflections = reflections
        self._recall = recall
        self._messages = min(messages, MESSAGES_MAX)
        self._clock_ns = clock_ns
        self._is_answering = False
        self._is_stopped = False

    def turn(self, text: str, on_text: OnText = lambda piece: None) -> Turn:
        """Append a user's message, answer it, append the answer.

        An answer that breaks off (`KeyboardInterrupt` within the responder, or `interrupt`) is kept as far as it came,
        with `{"interrupted": true}`; nothing is taken from it, for it may have broken off in a promise.

        Raises:
            InvalidTextError: nothing is said, or more than is embedded; nothing was appended.
            ResponderError: there is no answer, or no more of it; what came is appended.
            LedgerError: an event could not be appended; those before it were.
        """
        text = storable(text)
        if not text.strip():
            raise InvalidTextError("text: empty; there is nothing to answer")
        if len(text) > limits.TEXT_CHARS_MAX:
            raise InvalidTextError(f"text: {len(text)} characters; at most {limits.TEXT_CHARS_MAX} are taken")
        self._is_stopped = False
        work = _Work(self._clock_ns)
        with work.timed("append"):
            user_id = self._append(work, "user", text, {"channel": "chat"})
            self._follow_up(work, "user", text, user_id)
        with work.timed("context"):
            context = self.cache.context(
                text, reflections=self._reflections, recall=self._recall, messages=self._messages + 1
            )
            block, history = str(replace(context, messages=())), _history(context, user_id, self._messages)
        answer = _Answer()
        try:
            with work.timed("model"):
                self._stream(answer, self.responder.stream(block, history, text), on_text)
        finally:
            # Also on the way out with an error: what the user has read must stand in the ledger.
            with work.timed("append"):
                response_id = self._append_response(work, answer)
        return Turn(
            user_id=user_id,
            response_id=response_id,
            event_ids=tuple(work.event_ids),
            made=tuple(work.made),
            context=context,
            block=block,
            response=answer.text,
            is_interrupted=answer.is_interrupted,
            timings=work.timings(),
        )

    def interrupt(self) -> None:
        """End the answer under way, or the one about to begin; for a signal handler of the thread that is in `turn`.

        Raises:
            KeyboardInterrupt: within an answer, for `turn` to catch. Never within an append.
        """
        self._is_stopped = True
        if self._is_answering:
            raise KeyboardInterrupt

    def _stream(self, answer: _Answer, pieces: Iterator[str], on_text: OnText) -> None:
        answer.is_interrupted = True
        try:
            try:
                self._is_answering = True
                if self._is_stopped:
                    return
                for piece in pieces:
                    answer.add(piece)
                    on_text(piece)
                    if answer.size > limits.TEXT_CHARS_MAX:
                        return
            finally:
                self._is_answering = False
        except KeyboardInterrupt:
            return
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
        answer.is_interrupted = False
        if not answer.text.strip():
            raise ResponderError(f"{self.responder.name}: an answer without a word")

    def _append_response(self, work: _Work, answer: _Answer) -> int | None:
        text = answer.text
        if not text.strip():
            return None
        meta: dict[str, Any] = {"model": self.responder.name}
        if answer.is_interrupted:
            meta["interrupted"] = True
        response_id = self._append(work, "assistant", text, meta)
        self._follow_up(work, "assistant", text, response_id, states=not answer.is_interrupted)
        return response_id

    def _append(self, work: _Work, speaker: Speaker, text: str, meta: Mapping[str, Any]) -> int:
        event_id = self.cache.append(_KINDS[speaker], text, meta)
        work.event_ids.append(event_id)
        return event_id

    def _follow_up(self, work: _Work, speaker: Speaker, text: str, event_id: int, states: bool = True) -> None:
        """What belongs to a message: its index entry, and the events of what it states."""
        drafts = events_of(text, speaker, event_id, self._open_commitments) if states else []
        index: Draft = ("embedding_indexed", "", {"eid": event_id, "digest": local_bow.digest(text)})
        ids = self.cache.append_many([index, *drafts])
        work.event_ids += ids
        work.made += [Made(one, *draft) for one, draft in zip(ids[1:], drafts, strict=True)]

    def _open_commitments(self) -> Mapping[str | int, Mapping[str, Any]]:
        return self.cache.commitments().open


class _Answer:
    """An answer as it comes."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self.size = 0
        self.is_interrupted = False

    def add(self, piece: str) -> None:
        self._pieces.append(piece)
        self.size += len(piece)

    @property
    def text(self) -> str:
        """As it is stored."""
        return storable("".join(self._pieces)[: limits.TEXT_CHARS_MAX]).strip()


class _Work:
    """What a turn has done so far."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self.event_ids: list[int] = []
        self.made: list[Made] = []
        self._clock_ns = clock_ns
        self._spent_ns = {"append": 0, "context": 0, "model": 0}

    def timed(self, part: str) -> _Stopwatch:
        return _Stopwatch(self._spent_ns, part, self._clock_ns)

    def timings(self) -> Timings:
        return Timings(**{f"{part}_ms": spent / 1e6 for part, spent in self._spent_ns.items()})


class _Stopwatch:
    def __init__(self, spent_ns: dict[str, int], part: str, clock_ns: Callable[[], int]) -> None:
        self._spent_ns, self._part, self._clock_ns = spent_ns, part, clock_ns

    def __enter__(self) -> None:
        self._start = self._clock_ns()

    def __exit__(self, *_: object) -> None:
        self._spent_ns[self._part] += self._clock_ns() - self._start


def _history(context: Context, user_id: int, count: int) -> Sequence[Message]:
    """The messages before the user's, as many of the newest as fit."""
    before = [one for one in context.messages if one.id < user_id]
    kept: list[Message] = []
    chars = 0
    for one in reversed(before[-count:] if count else []):
        chars += len(one.content)
        if chars > HISTORY_CHARS_MAX:
            break
        kept.append(Message(_ROLES[one.kind], one.content))
    return kept[::-1]
