"""One turn of a conversation: the user's message, the context, the answer, and the events that follow from both.

    user | embedding_indexed, its statements | (context, answer) | response | embedding_indexed, its statements

Each part between two bars is one transaction. If a worker dies, the conversation just stops: with a message without its
index entry (the daemon embeds it nevertheless), or with a question without an answer.

Invariant: the statements of a message are appended together with its index entry or not at all, evidence before close.
Invariant: the thinking of a model is neither appended, nor read for statements, nor sent back as an earlier message.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from pmm_shm import limits
from pmm_shm.errors import InvalidTextError
from pmm_shm.vectors import local_bow
from pmm_shm.vectors.embedder import encodable
from pmm_shm_chat.responder import Message, Responder, ResponderError
from pmm_shm_chat.rules import EventDraft, Speaker, events_of
from pmm_shm_client.context import ROLES, Context
from pmm_shm_client.thinking import ThinkingFilter, without_thinking

if TYPE_CHECKING:
    from pmm_shm_client.cache import Cache

MESSAGES_MAX = 63
"""Of the 64 newest messages, one is the user's current one."""
HISTORY_CHARS_MAX = 64_000

_KINDS: Mapping[Speaker, str] = {"user": "user", "assistant": "response"}
OnText = Callable[[str], None]
"""Called with each piece of an answer as it arrives."""
OnRetract = Callable[[], None]
"""Called when the pieces so far have turned out to be thinking: the answer begins anew."""


class FollowUp(NamedTuple):
    """An event that follows from the statements in a message."""

    id: int
    kind: str
    content: str
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class Timings:
    """The time spent on the parts of a turn, in ms."""

    append_ms: float
    context_ms: float
    model_ms: float

    @property
    def without_model_ms(self) -> float:
        """The time of the turn except for the model."""
        return self.append_ms + self.context_ms


@dataclass(frozen=True)
class TurnResult:
    """The result of a turn.

    Attributes:
        user_id: the event of the user's message.
        response_id: the event of the answer; None if it was interrupted before its first word.
        event_ids: all events of the turn, in order.
        follow_ups: those that follow from statements, in order.
        context: the state before the answer, at one position.
        block: the context as the responder received it.
        response: the answer, or its beginning if it was interrupted.
        is_interrupted: whether the answer is only a beginning.
    """

    user_id: int
    response_id: int | None
    event_ids: tuple[int, ...]
    follow_ups: tuple[FollowUp, ...]
    context: Context
    block: str
    response: str
    is_interrupted: bool
    timings: Timings


class Chat:
    """A conversation on a ledger. Keeps no state between two turns; for one thread.

    Parameters:
        cache: of the ledger; the caller closes it.
        responder: answers the messages.
        reflections, recall, messages: the size of the context, see `Cache.context`. The responder receives the messages
            (at most `MESSAGES_MAX`) as the conversation, not within the context.
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

    def turn(self, text: str, on_text: OnText = lambda piece: None, on_retract: OnRetract = lambda: None) -> TurnResult:
        """Append a user's message, answer it, append the answer without the thinking of the model.

        The beginning of an answer that is interrupted (`KeyboardInterrupt` within the responder, or `interrupt`) is
        appended with `{"interrupted": true}`. Its statements do not count: it may have ended within a promise.

        Raises:
            InvalidTextError: the text is empty, or too long to be embedded; nothing was appended.
            ResponderError: there is no answer, or it ends early; its beginning is appended.
            LedgerError: an event could not be appended; earlier ones of the turn were.
        """
        text = encodable(text)
        if not text.strip():
            raise InvalidTextError("text: empty; there is nothing to answer")
        if len(text) > limits.TEXT_CHARS_MAX:
            raise InvalidTextError(f"text: {len(text)} characters; at most {limits.TEXT_CHARS_MAX} are accepted")
        self._is_stopped = False
        progress = _TurnProgress(self._clock_ns)
        with progress.timed("append"):
            user_id = self._append(progress, "user", text, {"channel": "chat"})
            self._follow_up(progress, "user", text, user_id)
        with progress.timed("context"):
            context = self.cache.context(
                text, reflections=self._reflections, recall=self._recall, messages=self._messages + 1
            )
            block, history = str(replace(context, messages=())), _history(context, user_id, self._messages)
        answer = _PartialAnswer()
        try:
            with progress.timed("model"):
                self._stream(answer, self.responder.stream(block, history, text), on_text, on_retract)
        finally:
            # Also after an error: the ledger must contain everything that the user has read.
            with progress.timed("append"):
                response_id = self._append_response(progress, answer)
        return TurnResult(
            user_id=user_id,
            response_id=response_id,
            event_ids=tuple(progress.event_ids),
            follow_ups=tuple(progress.follow_ups),
            context=context,
            block=block,
            response=answer.text,
            is_interrupted=answer.is_interrupted,
            timings=progress.timings(),
        )

    def interrupt(self) -> None:
        """End the current answer, or the one about to begin; for a signal handler of the thread that is in `turn`.

        Raises:
            KeyboardInterrupt: within an answer, for `turn` to catch. Never within an append.
        """
        self._is_stopped = True
        if self._is_answering:
            raise KeyboardInterrupt

    def _stream(self, answer: _PartialAnswer, pieces: Iterator[str], on_text: OnText, on_retract: OnRetract) -> None:
        answer.is_interrupted = True
        try:
            try:
                self._is_answering = True
                if self._is_stopped:
                    return
                for piece in answer.read(pieces):
                    if answer.is_retracted:
                        on_retract()
                    if piece:
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
            what = "thinking and no answer" if answer.has_thought else "an answer without a word"
            raise ResponderError(f"{self.responder.name}: {what}")

    def _append_response(self, progress: _TurnProgress, answer: _PartialAnswer) -> int | None:
        text = answer.text
        if not text.strip():
            return None
        meta: dict[str, Any] = {"model": self.responder.name}
        if answer.is_interrupted:
            meta["interrupted"] = True
        response_id = self._append(progress, "assistant", text, meta)
        self._follow_up(progress, "assistant", text, response_id, states=not answer.is_interrupted)
        return response_id

    def _append(self, progress: _TurnProgress, speaker: Speaker, text: str, meta: Mapping[str, Any]) -> int:
        event_id = self.cache.append(_KINDS[speaker], text, meta)
        progress.event_ids.append(event_id)
        return event_id

    def _follow_up(
        self, progress: _TurnProgress, speaker: Speaker, text: str, event_id: int, states: bool = True
    ) -> None:
        """Append the index entry of a message, and the events of its statements."""
        drafts = events_of(text, speaker, event_id, self._open_commitments) if states else []
        index: EventDraft = ("embedding_indexed", "", {"eid": event_id, "digest": local_bow.digest(text)})
        ids = self.cache.append_many([index, *drafts])
        progress.event_ids += ids
        progress.follow_ups += [FollowUp(one, *draft) for one, draft in zip(ids[1:], drafts, strict=True)]

    def _open_commitments(self) -> Mapping[str | int, Mapping[str, Any]]:
        return self.cache.commitments().open


class _PartialAnswer(ThinkingFilter):
    """The answer so far."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0
        self.is_interrupted = False

    def read(self, pieces: Iterable[str]) -> Iterator[str]:
        """What each of the pieces adds to the answer."""
        for piece in pieces:
            added = self.add(piece)
            self.size = len(added) + (0 if self.is_retracted else self.size)
            yield added
        yield self.end()

    @property
    def text(self) -> str:
        """The answer as it is stored."""
        return encodable(self.answer[: limits.TEXT_CHARS_MAX]).strip()


class _TurnProgress:
    """The events and timings of a turn so far."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self.event_ids: list[int] = []
        self.follow_ups: list[FollowUp] = []
        self._clock_ns = clock_ns
        self._spent_ns = {"append": 0, "context": 0, "model": 0}

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time of a `with` block to a part."""
        began = self._clock_ns()
        try:
            yield
        finally:
            self._spent_ns[part] += self._clock_ns() - began

    def timings(self) -> Timings:
        return Timings(**{f"{part}_ms": spent / 1e6 for part, spent in self._spent_ns.items()})


def _history(context: Context, user_id: int, count: int) -> Sequence[Message]:
    """As many of the newest messages before the user's as fit."""
    before = [one for one in context.messages if one.id < user_id]
    kept: list[Message] = []
    chars = 0
    for one in reversed(before[-count:] if count else []):
        role = ROLES[one.kind]
        # Other programs may have stored the thinking, too.
        content = without_thinking(one.content) if role == "assistant" else one.content
        chars += len(content)
        if chars > HISTORY_CHARS_MAX:
            break
        if content or not one.content:
            kept.append(Message(role, content))
    return kept[::-1]
