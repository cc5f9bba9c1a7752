"""Streams as Ollama, llama.cpp, vLLM, Gemini and Anthropic send them at their OpenAI-compatible endpoints.

The shapes are those of their public documentation and source: who sends a role first, empty choices, usage at the end,
comments that keep a connection alive, and errors in the stream.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from pmm_shm import openai_client
from pmm_shm_chat import provider
from pmm_shm_chat.provider import OpenAIResponder
from pmm_shm_chat.responder import Message, ResponderError, Usage
from pmm_shm_chat.turn import Chat
from pmm_shm_client.cache import Cache
from tests.support.chat import Endpoint, delta, events, heard


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
    "an end with each piece of the thinking": [
        chunk({"role": "assistant", "reasoning_content": "They "}, "stop"),
        chunk({"reasoning_content": "greet me."}, "stop"),
        chunk({"content": "Hello."}),
        chunk({}, "stop"),
        "[DONE]",
    ],
    "ollama, an old one": [
        chunk({"role": "assistant", "content": "Hel"}, ""),
        chunk({"role": "assistant", "content": "lo."}, ""),
        chunk({"role": "assistant", "content": ""}, "stop"),
        "[DONE]",
    ],
    "no finish_reason": [chunk({"role": "assistant"}), chunk({"content": "Hello."}), "[DONE]"],
    "usage that counts along": [
        chunk({"content": "Hel"}, usage={"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}),
        chunk({"content": "lo."}, usage=USAGE),
        chunk({}, "stop", usage=None),
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
    responder = OpenAIResponder("m")
    assert "".join(heard(responder)) == "Hello."
    assert responder.usage == (Usage(9, 3) if "usage" in json.dumps(WHOLE[name]) else None)
    assert endpoint.requests[0]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        "9",
        {"prompt_tokens": 9},
        {"prompt_tokens": 9, "completion_tokens": None},
        {"prompt_tokens": 9, "completion_tokens": -1},
        {"prompt_tokens": True, "completion_tokens": 2.5},
    ],
)
def test_a_usage_that_means_nothing_is_none(endpoint: Endpoint, usage: Any) -> None:
    endpoint.answer = lambda own, handler: (
        own.begin(handler),
        own.send(handler, chunk({"content": "Hello."}), chunk({}, "stop"), {"choices": [], "usage": usage}, "[DONE]"),
    )[0]
    responder = OpenAIResponder("m")
    assert heard(responder) == ["Hello."]
    assert responder.usage is None


def test_the_usage_is_that_of_the_last_answer(endpoint: Endpoint, cache: Cache) -> None:
    shapes = iter(["vllm", "gemini, a last chunk without content"])
    endpoint.answer = lambda own, handler: (own.begin(handler), own.send(handler, *WHOLE[next(shapes)]))[0]
    chat = Chat(cache, OpenAIResponder("m"))
    told, estimated = chat.turn("Hi"), chat.turn("Hi")
    assert (told.usage, told.is_usage_estimated) == (Usage(9, 3), False)
    assert estimated.is_usage_estimated
    assert estimated.usage.prompt_tokens > 9
    assert estimated.usage.answer_tokens == 2


REFUSALS = {
    "mistral": (
        422,
        {
            "object": "error",
            "message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options", "include_usage"]}]},
            "type": "invalid_request_error",
        },
    ),
    "fireworks": (400, {"error": {"message": "Extra inputs are not permitted, field: 'stream_options'"}}),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_an_endpoint_that_cannot_be_asked_for_the_usage_answers_all_the_same(endpoint: Endpoint, name: str) -> None:
    status, body = REFUSALS[name]

    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        if "stream_options" not in own.requests[-1]:
            own.events(handler, "Hello.")
            return
        own.begin(handler, "application/json", status)
        handler.wfile.write(json.dumps(body).encode())

    endpoint.answer = answer
    responder = OpenAIResponder("m")
    assert heard(responder) == heard(responder) == ["Hello."]
    # The second answer takes one request.
    assert ["stream_options" in one for one in endpoint.requests] == [True, False, False]


@pytest.mark.parametrize("heartbeats", [True, False])
def test_an_endpoint_that_never_says_that_this_is_all(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, heartbeats: bool
) -> None:
    monkeypatch.setattr(provider, "_USAGE_S", 0.2)

    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        own.begin(handler)
        own.send(handler, chunk({"content": "Hello."}), chunk({}, "stop"))
        while not own.done.wait(0.02):
            if heartbeats:
                handler.wfile.write(b": still there\n\n")
                handler.wfile.flush()

    endpoint.answer = answer
    responder = OpenAIResponder("m")
    began = time.monotonic()
    assert heard(responder) == ["Hello."]
    assert time.monotonic() - began < 5
    # The connection that was shut is not used again.
    endpoint.answer = lambda own, handler: own.events(handler, "Again.")
    assert heard(responder) == ["Again."]


@pytest.mark.parametrize("ending", ["", "stop"])
def test_an_answer_each_piece_of_which_says_that_it_ends_is_whole(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """As old Ollamas (ollama/ollama#4357) and proxies of Gemini (QuantumNous/new-api#378) send it."""
    monkeypatch.setattr(provider, "_USAGE_S", 0.2)

    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        own.begin(handler)
        own.send(handler, chunk({"content": "One "}, ending), chunk({"content": "two "}, ending))
        # Longer than the usage is awaited.
        own.done.wait(0.4)
        own.send(handler, chunk({"content": "three."}, ending), "[DONE]")

    endpoint.answer = answer
    assert heard(OpenAIResponder("m")) == ["One ", "two ", "three."]


def test_roles_alternate_as_chat_templates_demand(endpoint: Endpoint) -> None:
    """Mistral's and Gemma's refuse all else in vLLM and llama.cpp, Anthropic's endpoint blank texts."""
    history = [
        Message("assistant", "I am awake."),
        Message("user", "What was never answered?"),
        Message("user", " \n"),
        Message("user", "And this?"),
        Message("assistant", "That."),
        Message("assistant", "And that."),
        Message("user", "Said by another worker."),
    ]
    list(OpenAIResponder("m").stream("block", history, "Hello?"))
    sent = [(one["role"], one["content"]) for one in endpoint.requests[0]["messages"]]
    assert sent[1:] == [
        ("user", "What was never answered?\n\nAnd this?"),
        ("assistant", "That.\n\nAnd that."),
        ("user", "Said by another worker.\n\nHello?"),
    ]


def test_ctrl_c_after_the_last_word_interrupts_nothing(
    endpoint: Endpoint, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider, "_USAGE_S", 20.0)

    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        own.begin(handler)
        own.send(handler, chunk({"content": "I will look."}), chunk({}, "stop"))
        own.done.wait(20)

    endpoint.answer = answer
    chat = Chat(cache, OpenAIResponder("m"))

    end_within = openai_client.Answer.end_within

    def press(own: openai_client.Answer, seconds: float) -> None:
        """From now on the usage is awaited."""
        end_within(own, seconds)
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()

    monkeypatch.setattr(openai_client.Answer, "end_within", press)
    before = signal.signal(signal.SIGINT, lambda *_: chat.interrupt())
    try:
        turn = chat.turn("Look")
    finally:
        signal.signal(signal.SIGINT, before)
    assert not turn.is_interrupted
    assert [one.kind for one in turn.follow_ups] == ["commitment_open"]


def test_a_refusal_in_a_field_of_its_own_is_the_answer(endpoint: Endpoint) -> None:
    endpoint.answer = lambda own, handler: (
        own.begin(handler),
        own.send(handler, chunk({"role": "assistant", "refusal": None}), chunk({"refusal": "I cannot."}), "[DONE]"),
    )[0]
    assert "".join(heard(OpenAIResponder("m"))) == "I cannot."


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        # Of OpenRouter, while a provider is awaited.
        (": OPENROUTER PROCESSING\n\n" * 2, "the answer broke off before its first word"),
        ("", "the answer broke off before its first word"),
        (f"data: {json.dumps(delta('Half'))}\n\n" + 'data: {"choices":[{"del', "the answer broke off"),
    ],
)
def test_a_stream_that_breaks_off_is_said_to_do_so(endpoint: Endpoint, sent: str, message: str) -> None:
    """The URL is right, so no message blames it."""

    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        own.begin(handler)
        handler.wfile.write(sent.encode())

    endpoint.answer = answer
    with pytest.raises(ResponderError, match=f"{message}$") as caught:
        heard(OpenAIResponder("m"))
    assert "OPENAI_BASE_URL" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "remedy"),
    [("20", "try again in 20 s"), ("0.2", "in 1 s"), ("Wed, 21 Oct 2015 07:28:00 GMT", "later"), (None, "later")],
)
def test_too_many_requests_say_when_to_try_again(endpoint: Endpoint, header: str | None, remedy: str) -> None:
    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(429)
        if header is not None:
            handler.send_header("retry-after", header)
        handler.end_headers()
        handler.wfile.write(b'{"error": {"message": "slow down"}}')

    endpoint.answer = answer
    with pytest.raises(ResponderError, match=f"slow down: .*{remedy}$"):
        heard(OpenAIResponder("m"))
    assert len(endpoint.requests) == 1


def test_a_bytewise_stream_with_crlf(endpoint: Endpoint) -> None:
    lines = [
        ": comment",
        "event: message",
        "data:" + json.dumps(chunk({"content": "Grüße 東京 👩‍💻"}), ensure_ascii=False),
    ]
    whole = "\r\n".join([*lines, "", "data: [DONE]", "", ""]).encode()

    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        own.begin(handler)
        for number in range(len(whole)):
            handler.wfile.write(whole[number : number + 1])
            handler.wfile.flush()

    endpoint.answer = answer
    assert heard(OpenAIResponder("m")) == ["Grüße 東京 👩‍💻"]


def test_a_connection_is_awaited_for_less_time_than_an_answer(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that loads a model is silent for minutes; one that is away need not be waited for as long."""
    monkeypatch.setattr(openai_client, "_CONNECT_S", 0.2)
    with socket.socket() as full:
        # Nobody accepts, and its queue is full.
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        url = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        with (
            socket.create_connection(full.getsockname()),
            pytest.raises(ResponderError, match=r"no connection within 0\.2 s"),
        ):
            heard(OpenAIResponder("m", silence_s=30))


def test_an_answer_that_is_not_streamed(endpoint: Endpoint) -> None:
    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        own.begin(handler, "application/json")
        message = {"role": "assistant", "content": "Hello."}
        whole = {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": USAGE,
        }
        handler.wfile.write(json.dumps(whole, indent=2).encode())

    endpoint.answer = answer
    responder = OpenAIResponder("m")
    assert heard(responder) == ["Hello."]
    assert responder.usage == Usage(9, 3)


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
    "openrouter": (
        'data: {"error":{"code":502,"message":"Provider disconnected"},'
        '"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error"}]}',
        "Provider disconnected",
    ),
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


@pytest.mark.parametrize(
    ("status", "page", "shown"),
    [
        (
            502,
            "<html>\n<head><title>502 Bad Gateway</title></head><hr>nginx</html>",
            "status 502: 502 Bad Gateway: try",
        ),
        (503, "<style>p {}</style><p>Down for <b>maintenance</b>&hellip;", "status 503: Down for maintenance …: try"),
        (500, "", "status 500: Internal Server Error: try"),
        (529, "", "status 529: try"),
    ],
)
def test_of_a_page_that_refuses_the_words_are_shown(endpoint: Endpoint, status: int, page: str, shown: str) -> None:
    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        own.begin(handler, "text/html", status)
        handler.wfile.write(page.encode())

    endpoint.answer = answer
    with pytest.raises(ResponderError) as caught:
        heard(OpenAIResponder("m"))
    assert shown in str(caught.value)
