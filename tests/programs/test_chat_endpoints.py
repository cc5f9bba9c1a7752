"""Streams as Ollama, llama.cpp, vLLM, Gemini and Anthropic send them at their OpenAI-compatible endpoints.

The shapes are those of their public documentation and source: who sends a role first, empty choices, usage at the end,
comments that keep a connection alive, and errors in the stream.
"""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from pmm_shm_chat.provider import OpenAIResponder
from pmm_shm_chat.responder import ResponderError
from pmm_shm_chat.turn import Chat
from pmm_shm_client.cache import Cache
from tests.support.chat import Endpoint, events, heard


def chunk(delta: dict[str, Any], ending: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": ending, "logprobs": None}],
        **more,
    }


USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
NO_CHOICES = {"id": "x", "object": "chat.completion.chunk", "choices": [], "usage": USAGE}
WHOLE: dict[str, list[Any]] = {
    "ollama": [
        chunk({"role": "assistant", "content": "Hel"}, system_fingerprint="fp_ollama"),
        chunk({"role": "assistant", "content": "lo."}, system_fingerprint="fp_ollama"),
        chunk({"role": "assistant", "content": ""}, "stop", system_fingerprint="fp_ollama"),
        NO_CHOICES,
        "[DONE]",
    ],
    "ollama, a thinking model": [
        chunk({"role": "assistant", "content": "", "reasoning": "They greet me."}),
        chunk({"role": "assistant", "content": "Hello."}),
        chunk({"role": "assistant", "content": ""}, "stop"),
        "[DONE]",
    ],
    "llama.cpp": [
        chunk({"role": "assistant", "content": None}),
        chunk({"reasoning_content": "They greet me."}),
        chunk({"content": "Hello"}),
        chunk({"content": "."}, timings={"predicted_n": 2}),
        chunk({}, "stop", timings={"predicted_n": 2, "predicted_ms": 20.5}, usage=USAGE),
        "[DONE]",
    ],
    "vllm": [
        chunk({"role": "assistant", "content": ""}, prompt_token_ids=None),
        chunk({"content": "Hello."}, stop_reason=None),
        chunk({"content": ""}, "stop", stop_reason=None),
        NO_CHOICES,
        "[DONE]",
    ],
    "gemini": [
        chunk({"role": "assistant", "content": "Hello"}, usage=USAGE),
        chunk({"role": "assistant", "content": ".", "extra_content": {"google": {}}}, "stop", usage=USAGE),
        "[DONE]",
    ],
    "gemini, a last chunk without content": [
        chunk({"role": "assistant", "content": "Hello."}),
        chunk({"role": "assistant"}, "stop"),
        "[DONE]",
    ],
    "anthropic": [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "Hello."}),
        chunk({}, "stop"),
        NO_CHOICES,
        "[DONE]",
    ],
    "usage before the end": [chunk({"content": "Hello."}), NO_CHOICES, chunk({}, "stop"), "[DONE]"],
    "no choices key": [{"usage": USAGE}, chunk({"content": "Hello."}), "[DONE]"],
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_answers(endpoint: Endpoint, name: str) -> None:
    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        own.begin(handler)
        for event in WHOLE[name]:
            # As OpenRouter and others keep the connection alive.
            handler.wfile.write(b": keep-alive\n\n")
            own.send(handler, event)

    endpoint.answer = answer
    assert "".join(heard(OpenAIResponder("m"))) == "Hello."


ERRORS: dict[str, tuple[str, str]] = {
    "ollama": (
        'data: {"error":{"message":"model runner has unexpectedly stopped","type":"api_error"}}',
        "unexpectedly",
    ),
    "llama.cpp, in data": (
        'data: {"error":{"code":500,"message":"context full","type":"server_error"}}',
        "context full",
    ),
    "llama.cpp, in a field": ('error: {"code":500,"message":"context full","type":"server_error"}', "context full"),
    "vllm": (
        'data: {"object":"error","message":"too many tokens","type":"BadRequestError","code":400}',
        "too many tokens",
    ),
    "vllm, newer": (
        'data: {"error":{"message":"too many tokens","type":"BadRequestError","code":400}}',
        "too many tokens",
    ),
    "gemini": ('data: [{"error":{"code":503,"message":"overloaded","status":"UNAVAILABLE"}}]', "overloaded"),
    "anthropic": ('data: {"error":{"type":"overloaded_error","message":"Overloaded"}}', "Overloaded"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_in_the_stream(endpoint: Endpoint, cache: Cache, name: str) -> None:
    line, message = ERRORS[name]

    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        own.begin(handler)
        own.send(handler, chunk({"role": "assistant", "content": "I will beg"}))
        handler.wfile.write(f"{line}\n\n".encode())

    endpoint.answer = answer
    with pytest.raises(ResponderError, match=message):
        Chat(cache, OpenAIResponder("m")).turn("Go")
    # The beginning was shown, so it is kept; it promises nothing.
    assert events(cache.path)[2] == ("response", "I will beg", {"model": "m", "interrupted": True})
    assert "commitment_open" not in [kind for kind, _, _ in events(cache.path)]


@pytest.mark.parametrize(
    ("ending", "message"),
    [("length", "limit of tokens"), ("content_filter", "filter"), ("tool_calls", "has none")],
)
def test_answers_that_are_not_whole(endpoint: Endpoint, cache: Cache, ending: str, message: str) -> None:
    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        own.begin(handler)
        call = {"tool_calls": [{"index": 0, "id": "1", "function": {"name": "look", "arguments": "{}"}}]}
        own.send(
            handler, chunk({"role": "assistant", "content": "I will lo"}), chunk(call), chunk({}, ending), "[DONE]"
        )

    endpoint.answer = answer
    with pytest.raises(ResponderError, match=message):
        Chat(cache, OpenAIResponder("m")).turn("Look")
    assert events(cache.path)[2] == ("response", "I will lo", {"model": "m", "interrupted": True})


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "no such model", "type": "not_found_error"}},
        [{"error": {"code": 404, "message": "no such model", "status": "NOT_FOUND"}}],
        {"object": "error", "message": "no such model", "code": 404},
        {"type": "error", "error": {"type": "not_found_error", "message": "no such model"}},
        {"error": "no such model"},
    ],
)
def test_refusals_say_why(endpoint: Endpoint, body: Any) -> None:
    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        own.begin(handler, "application/json", 404)
        handler.wfile.write(json.dumps(body).encode())

    endpoint.answer = answer
    with pytest.raises(ResponderError, match="status 404: no such model: "):
        heard(OpenAIResponder("m"))
