"""Answers from any endpoint that speaks OpenAI's HTTP interface (Ollama, vLLM, ...); it needs the extra `chat`.

Nothing is retried: an answer may cost money, and the user can ask again. The stream of events is parsed here because
the SDK waits as long as an endpoint sends anything, and the deadline must hold. The fields in which some endpoints send
the thinking of the model (`reasoning_content`, `reasoning`) are ignored.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence

from pmm_shm.openai_client import BrokenAnswerError, OpenAIClient, OpenAIRequest, message_of
from pmm_shm.vectors.embedder import encodable
from pmm_shm_chat.responder import Message, ResponderError

DEADLINE_S = 300.0
"""For a whole answer."""
SILENCE_S = 60.0
"""For each wait for more of an answer."""

_LINE_BYTES_MAX = 4 << 20
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
        self._deadline_s = deadline_s
        self._silence_s = min(silence_s, deadline_s)
        self._clock = clock
        self._client = OpenAIClient(
            f"responder openai ({model})", model, "chat", ResponderError, ResponderError, retries=False, clock=clock
        )

    def stream(self, context: str, history: Sequence[Message], user_text: str) -> Iterator[str]:
        """The answer, piece by piece. Raises `ResponderError`."""
        messages = [
            {"role": "system", "content": f"{_INSTRUCTIONS}\n\n{encodable(context)}"},
            *({"role": one.role, "content": encodable(one.content)} for one in history),
            {"role": "user", "content": encodable(user_text)},
        ]
        client, has_events = self._client, False
        request = OpenAIRequest(self._clock() + self._deadline_s, self._deadline_s, self._silence_s)
        try:
            with client.answer(client.sdk.chat.completions, request, messages=messages, stream=True) as chunks:
                for data in self._events(chunks):
                    has_events = True
                    if data == "[DONE]":
                        return
                    piece, ending = self._piece(data)
                    if piece:
                        yield piece
                    if ending in _CUT_SHORT:
                        client.fail(_CUT_SHORT[ending])
                    if ending is not None:
                        return
        except BrokenAnswerError as error:
            client.fail(str(error))
        if not has_events:
            client.fail("the answer is not a stream of events", "check OPENAI_BASE_URL: it often ends in /v1")
        client.fail("the answer broke off")

    def _events(self, chunks: Iterator[bytes]) -> Iterator[str]:
        """The data of the server-sent events in a stream."""
        buffer = b""
        for chunk in chunks:
            *lines, buffer = (buffer + chunk).split(b"\n")
            if len(buffer) > _LINE_BYTES_MAX:
                self._client.fail(f"a line of more than {_LINE_BYTES_MAX} bytes")
            for line in lines:
                yield from self._data(line)
        yield from self._data(buffer)

    def _data(self, line: bytes) -> Iterator[str]:
        """The data in a line of the stream, if it has any; comments and other fields do not."""
        name, _, value = line.partition(b":")
        text = value.decode("utf-8", "replace").strip()
        if name == b"data":
            yield text
        elif name == b"error":
            # Of llama.cpp: the error is the value of a field of its own.
            self._piece(f'{{"error": {text}}}')

    def _piece(self, data: str) -> tuple[str, str | None]:
        """The text of one event, and why the answer ends with it; None if it goes on."""
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            self._client.fail("an event that is not JSON", "check OPENAI_BASE_URL: it often ends in /v1")
        if isinstance(event, list) and len(event) == 1:
            # Of Gemini: an error comes in a list.
            event = event[0]
        if not isinstance(event, dict):
            self._client.fail("an event that is not a completion", "check OPENAI_BASE_URL")
        if event.get("error"):
            self._client.fail(message_of(event["error"]))
        if event.get("object") == "error":
            # Of vLLM.
            self._client.fail(message_of(event))
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            # Usage and the like.
            return "", None
        delta = choice.get("delta")
        content = delta.get("content") if isinstance(delta, dict) else None
        ending = choice.get("finish_reason")
        return _text(content), None if ending is None else str(ending)


def _text(content: object) -> str:
    """The text of a delta's content, which may be a list of parts: of text, of thinking, and of other types."""
    if isinstance(content, list):
        parts = (part for part in content if isinstance(part, dict) and part.get("type") == "text")
        return "".join(_text(part.get("text")) for part in parts)
    return content if isinstance(content, str) else ""
