"""Answers from any endpoint that speaks OpenAI's HTTP interface (Ollama, vLLM, ...); it needs the extra `chat`.

Nothing is retried: an answer may cost money, and the user can ask again. The fields in which some endpoints send the
thinking of the model (`reasoning_content`, `reasoning`) are ignored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import dropwhile, groupby
from operator import attrgetter
from typing import Any, TypeGuard

from pmm_shm.openai_client import Answer, BrokenAnswerError, OpenAIClient, OpenAIRequest
from pmm_shm.vectors.embedder import encodable
from pmm_shm_chat.event_stream import events_in
from pmm_shm_chat.responder import Message, ResponderError, Usage

DEADLINE_S = 3_600.0
"""For a whole answer: a large model on a small machine takes long, and Ctrl-C ends it earlier."""
SILENCE_S = 300.0
"""For each wait for more of an answer; before the first word, a server may have to load the model."""

_USAGE_S = 2.0
"""How long the usage is awaited after an answer."""
_THINKING = ("reasoning_content", "reasoning")
_CUT_SHORT = {
    "length": "the answer is cut: it reached the endpoint's limit of tokens",
    "content_filter": "the endpoint's filter ended the answer",
    "tool_calls": "the model asks for a tool, and this chat has none",
    "function_call": "the model asks for a tool, and this chat has none",
}
"""`finish_reason` to the error, where the answer is not whole."""
_INSTRUCTIONS = (
    "You are a persistent agent; the context below is your own state, exact as of now. Answer the user. Where you "
    "commit to something, say so in a sentence of its own that begins with “I will”; a rule you set yourself begins "
    "with “I must”; when an open commitment is fulfilled, say “Done: ” and its text on a line of its own."
)


class OpenAIResponder:
    """Streams chat completions.

    Parameters:
        model: as the endpoint calls it.
        deadline_s: for a whole answer.
        silence_s: for each wait for more of it, including the first.
        clock: monotonic seconds.

    Raises:
        ResponderError: the package or the key is missing, or the URL is malformed.
    """

    def __init__(
        self,
        model: str,
        *,
        deadline_s: float = DEADLINE_S,
        silence_s: float = SILENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = model
        self.usage: Usage | None = None
        self._tells_usage: bool | None = None
        self._deadline_s = deadline_s
        self._silence_s = min(silence_s, deadline_s)
        self._clock = clock
        self._client = OpenAIClient(
            f"responder openai ({model})", model, "chat", ResponderError, ResponderError, retries=False, clock=clock
        )

    def stream(self, context: str, history: Sequence[Message], user_text: str) -> Iterator[str]:
        """The answer, piece by piece; then `usage` is what the endpoint told of it. Raises `ResponderError`."""
        self.usage = None
        system = {"role": "system", "content": f"{_INSTRUCTIONS}\n\n{encodable(context)}"}
        return self._stream([system, *_in_turns([*history, Message("user", user_text)])])

    def _stream(self, messages: list[dict[str, str]]) -> Iterator[str]:
        has_ended = ends_early = False
        try:
            with self._answer(messages) as answer:
                for event in events_in(answer, self._client):
                    self.usage = _usage(event) or self.usage
                    piece, ending = _piece(event)
                    if piece and has_ended:
                        # Of proxies of Gemini: each piece says that it is the last one.
                        has_ended, ends_early = False, True
                        answer.close()
                    if ending in _CUT_SHORT:
                        yield piece
                        self._client.fail(_CUT_SHORT[ending])
                    if ending is not None and not has_ended and not ends_early:
                        has_ended = True
                        # The usage follows, and not every endpoint says then that this is all.
                        answer.end_within(_USAGE_S)
                    if piece:
                        yield piece
        except BrokenAnswerError as error:
            if not has_ended:
                self._client.fail(str(error))
        except (KeyboardInterrupt, ResponderError):
            if not has_ended:
                raise

    @contextmanager
    def _answer(self, messages: list[dict[str, str]]) -> Iterator[Answer]:
        """Ask; an endpoint that refuses to be asked for the usage is asked without it, once and for all."""
        client, completions = self._client, self._client.sdk.chat.completions
        with ExitStack() as stack:

            def ask(request: OpenAIRequest, **options: object) -> Answer:
                return stack.enter_context(
                    client.answer(completions, request, messages=messages, stream=True, **options)
                )

            if self._tells_usage is not False:
                request = self._request()
                try:
                    answer = ask(request, stream_options={"include_usage": True})
                    self._tells_usage = True
                except ResponderError:
                    # Mistral's says 422, and others 400. A refused request costs nothing.
                    if self._tells_usage or request.status not in (400, 422):
                        raise
                    answer = ask(self._request())
                    self._tells_usage = False
            else:
                answer = ask(self._request())
            yield answer

    def _request(self) -> OpenAIRequest:
        return OpenAIRequest(self._clock() + self._deadline_s, self._deadline_s, self._silence_s)


def _in_turns(messages: Sequence[Message]) -> Iterator[dict[str, str]]:
    """The messages as they are sent: none is blank, the first is the user's, and then the roles alternate.

    The chat templates of some models refuse all else, and Anthropic's endpoint refuses blank ones. Messages of one role
    that follow each other become one: somebody else may have spoken in between, or an answer was never given.
    """
    spoken = (one for one in messages if one.content.strip())
    for role, group in groupby(dropwhile(lambda one: one.role != "user", spoken), attrgetter("role")):
        yield {"role": role, "content": encodable("\n\n".join(one.content for one in group))}


def _piece(event: Mapping[str, Any]) -> tuple[str, str | None]:
    """The text of one event, and why the answer ends with it; None if it goes on."""
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        # Usage and the like.
        return "", None
    # An endpoint that does not stream sends the whole message.
    delta = choice.get("delta") or choice.get("message")
    if not isinstance(delta, dict):
        delta = {}
    # Ollama and SGLang have had "" in place of null.
    ending = choice.get("finish_reason") or None
    if ending is not None and any(delta.get(name) for name in _THINKING):
        # Some end with each piece of the thinking.
        ending = None
    # OpenAI's models refuse in a field of its own.
    return _text(delta.get("content") or delta.get("refusal")), None if ending is None else str(ending)


def _usage(event: Mapping[str, Any]) -> Usage | None:
    """The tokens that an event tells; some endpoints count along in every event."""
    told = event.get("usage")
    if not isinstance(told, dict):
        return None
    read, written = told.get("prompt_tokens"), told.get("completion_tokens")
    return Usage(read, written) if _is_count(read) and _is_count(written) else None


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0


def _text(content: object) -> str:
    """The text of a delta's content, which may be a list of parts: of text, of thinking, and of other types."""
    if isinstance(content, list):
        parts = (part for part in content if isinstance(part, dict) and part.get("type") == "text")
        return "".join(_text(part.get("text")) for part in parts)
    return content if isinstance(content, str) else ""
