"""Answers of any endpoint that speaks OpenAI's HTTP interface (Ollama, vLLM, ...), by the `openai` SDK: an extra.

`OPENAI_API_KEY` and `OPENAI_BASE_URL` say whom to ask. Nothing is tried again: an answer may cost money, and the user
is there to ask once more. The events of the stream are read here, for the SDK waits as long as an endpoint sends signs
of life, and the deadline must hold.

Invariant: no error message holds the key (of 8 characters or more: endpoints that ask for none get any word).
"""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn
from urllib.parse import urlsplit

from pmm_shm_chat.responders import Message, ResponderError
from pmm_shm_chat.sentences import storable

DEADLINE_S = 300.0
"""For a whole answer."""
SILENCE_S = 60.0
"""Without a sign of life."""

_DEFAULT_BASE_URL = "https://api.openai.com/v1"
_REMEDY = "pip install 'pmm-shm[chat]'"
_LINE_BYTES_MAX = 4 << 20
_REASON_CHARS_MAX = 200
_KEY_CHARS_MIN = 8
_REMEDIES = {
    401: "check OPENAI_API_KEY, and that OPENAI_BASE_URL is where it belongs",
    403: "check OPENAI_API_KEY, and that OPENAI_BASE_URL is where it belongs",
    404: "check OPENAI_BASE_URL and --model",
    429: "too many requests, or no credit; try again later",
}
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
        silence_s: for each wait for more of it, the first included.

    Raises:
        ResponderError: the package or the key is missing, or the URL means nothing.
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
        try:
            self._openai = importlib.import_module("openai")
        except ImportError as error:
            raise ResponderError(f"responder openai: not installed ({error}): {_REMEDY}") from error
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        self._base_url = os.environ.get("OPENAI_BASE_URL", "").strip() or _DEFAULT_BASE_URL
        self._client = self._connected()

    def stream(self, context: str, history: Sequence[Message], user_text: str) -> Iterator[str]:
        """The answer, piece by piece. Raises `ResponderError`."""
        deadline = self._clock() + self._deadline_s
        messages = [
            {"role": "system", "content": f"{_INSTRUCTIONS}\n\n{storable(context)}"},
            *({"role": one.role, "content": storable(one.content)} for one in history),
            {"role": "user", "content": storable(user_text)},
        ]
        try:
            with self._client.chat.completions.with_streaming_response.create(
                model=self.name, messages=messages, stream=True, timeout=self._silence_s
            ) as response:
                has_events = False
                for data in _events(self._within(response.iter_bytes(), deadline)):
                    has_events = True
                    if data == "[DONE]":
                        return
                    piece, is_last = self._piece(data)
                    if piece:
                        yield piece
                    if is_last:
                        return
        except self._openai.APIStatusError as error:
            self._refused(error)
        except self._openai.APITimeoutError:
            self._fail(f"no answer within {self._silence_s:g} s")
        except self._openai.APIConnectionError as error:
            self._fail(f"no connection: {error.__cause__ or error}", "is it running? check OPENAI_BASE_URL")
        except self._openai.OpenAIError as error:
            self._fail(f"{type(error).__name__}: {error}")
        except ValueError as error:
            self._fail(str(error))
        if not has_events:
            self._fail("an answer that is no stream of events", "check OPENAI_BASE_URL: it often ends in /v1")
        self._fail("the answer broke off")

    def _within(self, chunks: Iterator[bytes], deadline: float) -> Iterator[bytes]:
        """The bytes of an answer until the deadline."""
        while True:
            try:
                chunk = next(chunks, None)
            except Exception as error:
                # The SDK passes on what its transport raises, whichever that is.
                self._fail(f"the answer broke off: {type(error).__name__}: {error}")
            if chunk is None:
                return
            if self._clock() >= deadline:
                self._fail(f"the answer did not end within {self._deadline_s:g} s")
            yield chunk

    def _piece(self, data: str) -> tuple[str, bool]:
        """The text of one event, and whether it is the last."""
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            self._fail("an answer that is no JSON", "check OPENAI_BASE_URL: it often ends in /v1")
        if not isinstance(event, dict):
            self._fail("an answer that is no completion", "check OPENAI_BASE_URL")
        if event.get("error"):
            self._fail(_message_of(event["error"]))
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            # Usage and the like.
            return "", False
        delta = choice.get("delta")
        content = delta.get("content") if isinstance(delta, dict) else None
        return content if isinstance(content, str) else "", choice.get("finish_reason") is not None

    def _refused(self, error: Any) -> NoReturn:
        status = error.status_code
        default = "try again later" if status >= 500 else "the endpoint does not take this request"
        self._fail(f"status {status}: {_message_of(error.body) or error.message}", _REMEDIES.get(status, default))

    def _connected(self) -> Any:
        if not self._key:
            self._fail("no OPENAI_API_KEY", "set it (to anything, where the endpoint asks for none)")
        if not self._key.isascii() or not self._key.isprintable() or " " in self._key:
            self._fail("OPENAI_API_KEY holds what no key holds", "correct it")
        try:
            if urlsplit(self._base_url).scheme not in ("http", "https"):
                raise ValueError("no http:// or https:// at its beginning")
            return self._openai.OpenAI(api_key=self._key, base_url=self._base_url, max_retries=0)
        except Exception as error:
            self._fail(f"OPENAI_BASE_URL cannot be used: {error}")

    def _fail(self, reason: str, remedy: str = "") -> NoReturn:
        if len(self._key) >= _KEY_CHARS_MIN:
            reason = reason.replace(self._key, "***")
        for password in filter(None, self._passwords()):
            reason = reason.replace(password, "***")
        text = " ".join(reason.split())
        text = text if len(text) <= _REASON_CHARS_MAX else f"{text[:_REASON_CHARS_MAX]}..."
        remedy = f": {remedy}" if remedy else ""
        raise ResponderError(f"responder openai ({self.name}): {self._endpoint()}: {text}{remedy}") from None

    def _endpoint(self) -> str:
        try:
            url = urlsplit(self._base_url)
        except ValueError:
            return "OPENAI_BASE_URL"
        # Without a user's name and password, which may stand there.
        return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}" if url.scheme else "OPENAI_BASE_URL"

    def _passwords(self) -> list[str]:
        try:
            return [urlsplit(self._base_url).password or ""]
        except ValueError:
            return []


def _message_of(body: Any) -> str:
    """What an endpoint says of its error, in one of the shapes that occur."""
    if isinstance(body, dict):
        return str(body.get("message") or body.get("error") or body)
    return str(body or "")


def _events(chunks: Iterator[bytes]) -> Iterator[str]:
    """The data of the server-sent events in a stream.

    Raises:
        ValueError: a line without end.
    """
    buffer = b""
    for chunk in chunks:
        *lines, buffer = (buffer + chunk).split(b"\n")
        if len(buffer) > _LINE_BYTES_MAX:
            raise ValueError(f"a line of more than {_LINE_BYTES_MAX} bytes")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].decode("utf-8", "replace").strip()
    if buffer.startswith(b"data:"):
        yield buffer[5:].decode("utf-8", "replace").strip()
