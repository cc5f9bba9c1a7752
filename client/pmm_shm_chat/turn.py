"""One turn of a conversation: the user's message, the context, the answer, and the events that follow from both.

    user, embedding_indexed, its statements | (context, answer) | response, embedding_indexed, its statements

The events of each message are one transaction, or two after an event of somebody else: the message, and what follows
from it. If a worker dies, the conversation just stops: with a question without an answer, or with a message without its
index entry (the daemon embeds it nevertheless).

A question that got no word of an answer is undone: an event names it, and later prompts leave it out. So is what the
user undoes, and an answer that the user asks for again. The log keeps all of them.

Invariant: the statements of a message are appended together with its index entry or not at all, evidence before close.
Invariant: the thinking of a model is neither appended, nor read for statements, nor sent back as an earlier message.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pmm_shm import limits
from pmm_shm.errors import HeadMovedError, InvalidTextError, PmmShmError
from pmm_shm.vectors import local_bow
from pmm_shm.vectors.embedder import encodable
from pmm_shm_chat.progress import FollowUp, PartialAnswer, Timings, TurnProgress
from pmm_shm_chat.prompting import MARK_KIND, TOKENS_MAX, Prompt, Undone, make_prompt, tokens_of
from pmm_shm_chat.responder import Responder, ResponderError, Usage
from pmm_shm_chat.rules import EventDraft, Speaker, events_of
from pmm_shm_client.context import Context

if TYPE_CHECKING:
    from pmm_shm.ledger.rows import Event
    from pmm_shm_client.cache import Cache

MESSAGES_MAX = 63
"""Of the 64 newest messages, one is the user's current one."""

_TURNS_MAX = 100
"""How many turns can be undone, one after the other."""
_KINDS: Mapping[Speaker, str] = {"user": "user", "assistant": "response"}
OnText = Callable[[str], None]
"""Called with each piece of an answer as it arrives."""
OnRetract = Callable[[], None]
"""Called when the pieces so far have turned out to be thinking: the answer begins anew."""


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
        usage: the tokens of prompt and answer: as the endpoint counted them, or estimated.
        is_usage_estimated: whether they are estimates.
        response: the answer, or its beginning if it was interrupted.
        is_interrupted: whether the answer is only a beginning.
    """

    user_id: int
    response_id: int | None
    event_ids: tuple[int, ...]
    follow_ups: tuple[FollowUp, ...]
    context: Context
    block: str
    usage: Usage
    is_usage_estimated: bool
    response: str
    is_interrupted: bool
    timings: Timings


class Chat:
    """A conversation on a ledger, for one thread. Of its last turns it remembers the messages, to undo them.

    Parameters:
        cache: of the ledger; the caller closes it.
        responder: answers the messages.
        reflections, recall, messages: the size of the context, see `Cache.context`. The responder receives the messages
            (at most `MESSAGES_MAX`) as the conversation, not within the context.
        tokens_max: the budget of a prompt, in estimated tokens; see `make_prompt`.
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
        tokens_max: int = TOKENS_MAX,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.cache = cache
        self.responder = responder
        self._reflections = reflections
        self._recall = recall
        self._messages = min(messages, MESSAGES_MAX)
        self._tokens_max = tokens_max
        self._clock_ns = clock_ns
        self._undone = Undone(cache)
        self._last: _LastTurn | None = None
        self._earlier: deque[_LastTurn] = deque(maxlen=_TURNS_MAX)
        self._newest: Event | None = None
        """The newest event that this conversation appended."""
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
        self._notice_restore()
        # An append that fails must not let `retry` answer an earlier message again.
        if self._last is not None:
            self._earlier.append(self._last)
        self._last = None
        progress = TurnProgress(self._clock_ns)
        with progress.timed("append"):
            user_id = self._say(progress, "user", text, {"channel": "chat"})
        return self._answer(progress, _LastTurn(user_id, None, text, False), on_text, on_retract)

    def retry(self, on_text: OnText = lambda piece: None, on_retract: OnRetract = lambda: None) -> TurnResult:
        """Answer the last message of this conversation again; its earlier answer is undone, and so is its failure.

        Without a word of a new answer, the earlier one stays.

        Raises:
            NothingToUndoError: there is no last message.
            ResponderError, LedgerError: as `turn`.
        """
        last = self._the_last()
        self._is_stopped = False
        progress = TurnProgress(self._clock_ns)
        if last.response_id is not None:
            with progress.timed("append"):
                self._mark(progress, [last.response_id], True, "retried")
        return self._answer(progress, last, on_text, on_retract)

    @property
    def can_retry(self) -> bool:
        """Whether there is a last message of this conversation, to undo or to answer again."""
        return self._last is not None

    def undo(self) -> str:
        """Leave the last message of this conversation and its answer out of later prompts. Returns the message.

        Then the message before it is the last one.

        What followed from statements in them stays: an event cannot be taken back.

        Raises:
            NothingToUndoError: there is no last message.
        """
        last = self._the_last()
        ids = [last.user_id] if last.response_id is None else [last.user_id, last.response_id]
        if not last.is_undone:
            self._mark(TurnProgress(self._clock_ns), ids, True, "undone")
        self._last = self._earlier.pop() if self._earlier else None
        return last.text

    def _the_last(self) -> _LastTurn:
        self._notice_restore()
        if self._last is None:
            raise NothingToUndoError("nothing was said here yet, or it is undone already")
        return self._last

    def _notice_restore(self) -> None:
        """Forget the turns so far if the ledger has another history now: its ids name other events."""
        newest = self._newest
        if newest is not None and self.cache.event(newest.id) == newest:
            return
        self._last = self._newest = None
        self._earlier.clear()
        self._undone = Undone(self.cache)

    def _answer(self, progress: TurnProgress, asked: _LastTurn, on_text: OnText, on_retract: OnRetract) -> TurnResult:
        """Answer a message, which may have been answered before."""
        self._last = asked
        user_id, text = asked.user_id, asked.text
        answer = PartialAnswer()
        try:
            with progress.timed("context"):
                context, prompt = self._prompt(user_id, text, self._messages + 1)
                if prompt.left_out and self._recall:
                    # Messages that did not fit may be recalled, in fewer words.
                    context, prompt = self._prompt(user_id, text, len(context.messages) - prompt.left_out)
            with progress.timed("model"):
                self._stream(answer, self.responder.stream(prompt.block, prompt.history, text), on_text, on_retract)
        finally:
            # Also after an error: the ledger must contain everything that the user has read.
            with progress.timed("append"):
                self._notice_restore()
                response_id = self._append_response(progress, answer)
                if self._last is not None:
                    # Otherwise a restore during the answer has taken the message away.
                    self._last = self._answered(progress, asked, response_id)
        usage = self.responder.usage
        return TurnResult(
            user_id=user_id,
            response_id=response_id,
            event_ids=tuple(progress.event_ids),
            follow_ups=tuple(progress.follow_ups),
            context=context,
            block=prompt.block,
            usage=Usage(prompt.tokens, tokens_of(answer.text)) if usage is None else usage,
            is_usage_estimated=usage is None,
            response=answer.text,
            is_interrupted=answer.is_interrupted,
            timings=progress.timings(),
        )

    def _answered(self, progress: TurnProgress, asked: _LastTurn, response_id: int | None) -> _LastTurn:
        """The turn with its answer, or without one; marks tell later prompts what has changed."""
        user_id, replaced, text, is_undone = asked
        if response_id is None and replaced is not None:
            self._mark(progress, [replaced], False, "unanswered")
        elif (response_id is None) != is_undone:
            self._mark(progress, [user_id], not is_undone, "unanswered" if response_id is None else "answered")
        kept = replaced if response_id is None else response_id
        return _LastTurn(user_id, kept, text, kept is None)

    def _prompt(self, user_id: int, text: str, messages: int) -> tuple[Context, Prompt]:
        """The context with so many of the last messages, and the prompt made of it."""
        context = self.cache.context(
            text, reflections=self._reflections, recall=self._recall, messages=messages, recall_mode="auto"
        )
        undone = self._undone.ids(context.as_of)
        return context, make_prompt(context, user_id, text, undone, self._messages, self._tokens_max)

    def interrupt(self) -> None:
        """End the current answer, or the one about to begin; for a signal handler of the thread that is in `turn`.

        Raises:
            KeyboardInterrupt: within an answer, for `turn` to catch. Never within an append.
        """
        self._is_stopped = True
        if self._is_answering:
            raise KeyboardInterrupt

    def _stream(self, answer: PartialAnswer, pieces: Iterator[str], on_text: OnText, on_retract: OnRetract) -> None:
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

    def _append_response(self, progress: TurnProgress, answer: PartialAnswer) -> int | None:
        text = answer.text
        if not text.strip():
            return None
        meta: dict[str, Any] = {"model": self.responder.name}
        if answer.is_interrupted:
            meta["interrupted"] = True
        return self._say(progress, "assistant", text, meta, states=not answer.is_interrupted)

    def _mark(self, progress: TurnProgress, ids: list[int], undone: bool, reason: str) -> None:
        meta = {"eids": ids, "undone": undone, "reason": reason}
        mark_id = self.cache.append(MARK_KIND, "", meta)
        self._newest = self.cache.event(mark_id)
        self._undone.note(1, meta)
        progress.event_ids.append(mark_id)

    def _say(
        self, progress: TurnProgress, speaker: Speaker, text: str, meta: Mapping[str, Any], states: bool = True
    ) -> int:
        """Append a message, its index entry, and the events of its statements. Returns the message's id.

        They name its id. It is known beforehand, and all is one transaction, where this conversation appended the
        newest event; otherwise the message is appended first.
        """
        message = _KINDS[speaker], text, meta
        # A later event that is published spares the attempt.
        newest = self._newest
        if newest is not None and (self.cache.published_as_of() or 0) <= newest.id:
            following = self._following(speaker, text, newest.id + 1, states)
            try:
                ids = self.cache.append_many([message, *following], expected_head=newest.id)
                return self._note(progress, ids, following)
            except HeadMovedError:
                # Another worker was faster.
                pass
        event_id = self.cache.append(*message)
        following = self._following(speaker, text, event_id, states)
        return self._note(progress, [event_id, *self.cache.append_many(following)], following)

    def _following(self, speaker: Speaker, text: str, event_id: int, states: bool) -> list[EventDraft]:
        drafts = events_of(text, speaker, event_id, self._open_commitments) if states else []
        return [("embedding_indexed", "", {"eid": event_id, "digest": local_bow.digest(text)}), *drafts]

    def _note(self, progress: TurnProgress, ids: list[int], following: list[EventDraft]) -> int:
        """Take down the ids of a message, its index entry and the drafts behind it. Returns the first."""
        self._newest = self.cache.event(ids[-1])
        self._undone.note(len(ids))
        progress.event_ids += ids
        progress.follow_ups += [FollowUp(one, *draft) for one, draft in zip(ids[2:], following[1:], strict=True)]
        return ids[0]

    def _open_commitments(self) -> Mapping[str | int, Mapping[str, Any]]:
        return self.cache.commitments().open


class NothingToUndoError(PmmShmError):
    """There is no last turn to undo or to try again."""


class _LastTurn(NamedTuple):
    """The last message, its answer if there is one, and whether the message is undone already."""

    user_id: int
    response_id: int | None
    text: str
    is_undone: bool
