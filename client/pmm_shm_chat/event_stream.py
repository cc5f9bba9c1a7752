"""The events of a streamed answer, in the forms in which OpenAI-compatible endpoints send them.

They are parsed here because the SDK waits as long as an endpoint sends anything, and a deadline must hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from pmm_shm.openai_client import OpenAIClient, message_of

_LINE_BYTES_MAX = 4 << 20
_END = "[DONE]"


def events_in(chunks: Iterable[bytes], client: OpenAIClient) -> Iterator[dict[str, Any]]:
    """The events of an answer, up to its mark of the end. An answer that is one JSON object is one event.

    An answer without an event that has a `finish_reason` must end with the mark.

    Parameters:
        client: raises the error if an event is one, if there are none, or if the answer breaks off.
    """
    has_events, has_ended, other = False, False, b""
    for line, is_whole in _lines(chunks, client):
        name, _, value = line.partition(b":")
        text = value.decode("utf-8", "replace").strip()
        if name == b"error":
            # Of llama.cpp: the error is the value of a field of its own.
            _event(f'{{"error": {text}}}', client, is_whole)
        elif name == b"data":
            has_events = True
            if text == _END:
                return
            event = _event(text, client, is_whole)
            has_ended = has_ended or _has_ended(event)
            yield event
        elif not (line.startswith(b":") or has_events) and len(other) < _LINE_BYTES_MAX:
            other += line
    if not has_events and not other.strip():
        client.fail("the answer broke off before its first word")
    if not has_events:
        if not other.lstrip().startswith((b"{", b"[")):
            client.fail("the answer is not a stream of events", "check OPENAI_BASE_URL: it often ends in /v1")
        # Of endpoints that do not stream, and of errors with status 200.
        event = _event(other.decode("utf-8", "replace"), client, True)
        if not _has_ended(event):
            client.fail("the answer is not a stream of events", "check OPENAI_BASE_URL: it often ends in /v1")
        yield event
    elif not has_ended:
        client.fail("the answer broke off")


def _lines(chunks: Iterable[bytes], client: OpenAIClient) -> Iterator[tuple[bytes, bool]]:
    """Each line, and whether it has an end: of the last one, the rest may be missing."""
    buffer = b""
    for chunk in chunks:
        *lines, buffer = (buffer + chunk).split(b"\n")
        if len(buffer) > _LINE_BYTES_MAX:
            client.fail(f"a line of more than {_LINE_BYTES_MAX} bytes")
        yield from ((line, True) for line in lines)
    yield buffer, False


def _event(text: str, client: OpenAIClient, is_whole: bool) -> dict[str, Any]:
    """The event in this text, which is no error."""
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        if not is_whole:
            client.fail("the answer broke off")
        client.fail("an event that is not JSON", "check OPENAI_BASE_URL: it often ends in /v1")
    if isinstance(event, list) and len(event) == 1:
        # Of Gemini: an error comes in a list.
        event = event[0]
    if not isinstance(event, dict):
        client.fail("an event that is not a completion", "check OPENAI_BASE_URL")
    if event.get("error"):
        client.fail(message_of(event["error"]))
    if event.get("object") == "error":
        # Of vLLM.
        client.fail(message_of(event))
    return event


def _has_ended(event: dict[str, Any]) -> bool:
    choices = event.get("choices")
    return isinstance(choices, list) and any(isinstance(one, dict) and one.get("finish_reason") for one in choices)
