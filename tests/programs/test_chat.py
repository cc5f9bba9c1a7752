"""A turn: which events it appends, in which order, and what a death in its midst leaves; who answers it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.installation import extra_command
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_chat.offline import OfflineResponder
from pmm_shm_chat.provider import OpenAIResponder
from pmm_shm_chat.responder import Message, ResponderError
from pmm_shm_chat.turn import Chat, TurnResult
from pmm_shm_client.cache import Cache
from tests.conftest import StartDaemon
from tests.support import daemons
from tests.support.chat import BLOCK, KEY, Endpoint, check_sound, delta, events, heard

# What a turn appends.


def test_beside_a_daemon(cache: Cache, start_daemon: StartDaemon) -> None:
    start_daemon(cache.path)
    chat = Chat(cache, OfflineResponder(), recall=1, messages=0)
    chat.turn("Please water the tomatoes in the garden")
    turn = chat.turn("What of the tomatoes in the garden?")
    assert [one.id for one in turn.context.recalled] in ([1], [3])
    assert turn.context.recall_problem is None
    assert len(cache.commitments().open) == 1
    for number in range(2_280, 2_300):
        cache.append("user", f"Invoice INV-{number} was paid.", {})
    recalled = chat.turn("What about INV-2291?").context.recalled
    assert [one.content for one in recalled] == ["Invoice INV-2291 was paid."]
    chat.turn("done: tomatoes")
    assert not cache.commitments().open
    assert cache.verify()
    check_sound(cache.path)


# Killed at every point.


DIES = """
import os, signal, sys
from pmm_shm.ledger.append import Appender
from pmm_shm_client.cache import Cache
from pmm_shm_chat.turn import Chat

path, point = sys.argv[1:]
seen = {}

def crash_point(name):
    seen[name] = seen.get(name, 0) + 1
    if f"{name} {seen[name]}" == point:
        os.kill(os.getpid(), signal.SIGKILL)

def around(name, method):
    def wrapped(self, *args, **options):
        crash_point("before " + name)
        result = method(self, *args, **options)
        crash_point("after " + name)
        return result
    return wrapped

class Responder:
    name = "dying"
    usage = None
    def stream(self, context, history, text):
        crash_point("asked")
        yield "I will plan the day. I must ask first.\\n"
        crash_point("half said")
        yield "Done: dance"
        crash_point("said")

Appender.append = around("transaction", Appender.append)
Appender._insert = around("rows", Appender._insert)
Cache.context = around("context", Cache.context)
with Cache(path) as cache:
    Chat(cache, Responder()).turn("Your name is Echo. Done: sing")
print("survived")
"""
WHOLE = (
    *("commitment_open", "commitment_open"),
    *("user", "embedding_indexed", "identity_adopt", "evidence_candidate", "commitment_close"),
    *("response", "embedding_indexed", "commitment_open", "autonomy_directive"),
    *("evidence_candidate", "commitment_close"),
)
COMMITTED = (2, 3, 7, 13)
"""So many events there are after so many transactions of the turn: the first message follows somebody else's event."""
POINTS = {
    **{f"before transaction {n}": COMMITTED[n - 1] for n in (1, 2, 3)},
    **{f"before rows {n}": COMMITTED[n - 1] for n in (1, 2, 3)},
    # Written, and not committed.
    **{f"after rows {n}": COMMITTED[n - 1] for n in (1, 2, 3)},
    **{f"after transaction {n}": COMMITTED[n] for n in (1, 2, 3)},
    **{f"{where} 1": COMMITTED[2] for where in ("before context", "after context", "asked", "half said", "said")},
}


@pytest.mark.parametrize("point", [*POINTS, "nowhere"])
def test_killed_at_every_point_of_a_turn(ledger: str, point: str) -> None:
    with EventLog(ledger) as log:
        for cid, text in (("c1", "sing"), ("c2", "dance")):
            log.append("commitment_open", f"COMMIT: {text}", {"cid": cid, "text": text})
    ran = daemons.run_python(DIES, ledger, point)
    assert ran.returncode == (0 if point == "nowhere" else -signal.SIGKILL), ran.stderr
    check_sound(ledger)
    kinds = tuple(kind for kind, _, _ in events(ledger))
    assert kinds == WHOLE[: POINTS.get(point, len(WHOLE))]
    # The conversation goes on.
    with Cache(ledger) as cache:
        Chat(cache, OfflineResponder()).turn("Done: sing")
        assert "c1" not in cache.commitments().open
    check_sound(ledger)


# The offline responder.


def test_offline_is_a_pure_function() -> None:
    history = [Message("user", "one"), Message("assistant", "two")]
    code = (
        "import json, sys\n"
        "from pmm_shm_chat.offline import OfflineResponder\nfrom pmm_shm_chat.responder import Message\n"
        "block, history, text = json.loads(sys.argv[1])\n"
        "print(json.dumps(list(OfflineResponder().stream(block, [Message(*one) for one in history], text))))"
    )
    text = "Let us talk about the garden"
    arguments = json.dumps([BLOCK, history, text])
    answers = {
        daemons.run_python(
            code, arguments, env=daemons.environment(PYTHONHASHSEED=seed, TZ=zone, LC_ALL="C"), forked=False
        ).stdout
        for seed, zone in (("1", "UTC"), ("2", "Asia/Tokyo"))
    }
    assert answers == {json.dumps(list(OfflineResponder().stream(BLOCK, history, text))) + "\n"}


# An endpoint.


def failure(responder: OpenAIResponder) -> str:
    with pytest.raises(ResponderError) as caught:
        heard(responder)
    text = str(caught.value)
    assert KEY not in text
    assert "\n" not in text
    return text


def test_openai_streams(endpoint: Endpoint) -> None:
    assert heard(OpenAIResponder("m"), [Message("user", "a"), Message("assistant", "b")]) == ["Hel", "lo ", "né"]
    (request,) = endpoint.requests
    assert endpoint.paths == ["/v1/chat/completions"]
    assert (request["model"], request["stream"]) == ("m", True)
    system, *rest = request["messages"]
    assert system["role"] == "system"
    assert system["content"].endswith("\n\nthe context")
    assert [(one["role"], one["content"]) for one in rest] == [("user", "a"), ("assistant", "b"), ("user", "hi \ufffd")]


def test_openai_gives_each_piece_when_it_comes(endpoint: Endpoint) -> None:
    heard_first = threading.Event()

    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        own.begin(handler)
        own.send(handler, delta("one"))
        assert heard_first.wait(10)
        own.send(handler, delta("two"), "[DONE]")

    endpoint.answer = answer
    pieces = OpenAIResponder("m").stream("", (), "x")
    assert next(pieces) == "one"
    heard_first.set()
    assert list(pieces) == ["two"]


def test_openai_events_of_all_kinds(endpoint: Endpoint) -> None:
    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        own.begin(handler)
        handler.wfile.write(b": a comment\r\nevent: x\r\n\r\ndata:" + json.dumps(delta("a")).encode() + b"\r\n\r\n")
        own.send(handler, {"choices": []}, {"usage": {}}, {"choices": [{"delta": {"role": "assistant"}}]})
        own.send(handler, {"choices": [{"delta": {"content": None}}]}, {"choices": [{"delta": {"content": 3}}]})
        own.send(handler, {"choices": [{"delta": {"content": "b"}, "finish_reason": "stop"}]})

    endpoint.answer = answer
    assert heard(OpenAIResponder("m")) == ["a", "b"]


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (401, "check OPENAI_API_KEY"),
        (404, "the model 'm'"),
        (429, "credit"),
        (400, "does not accept"),
        (500, "try again later"),
    ],
)
def test_openai_refused(endpoint: Endpoint, status: int, remedy: str) -> None:
    endpoint.refuse(status, f"no good:\n your key is {KEY}")
    text = failure(OpenAIResponder("m"))
    assert f"status {status}: no good: your key is ***: " in text
    assert remedy in text
    assert endpoint.url in text
    # Status 400 may mean that the endpoint cannot be asked for the usage.
    assert len(endpoint.requests) == (2 if status == 400 else 1)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("data: {not json\n\n", "not JSON"),
        ("data: [1]\n\n", "not a completion"),
        ('data: {"error": {"message": "overloaded"}}\n\n', "overloaded"),
        ('data: {"error": "overloaded"}\n\n', "overloaded"),
        ('{"choices": []}', "not a stream of events"),
        ('{"error": {"message": "overloaded"}}', "overloaded"),
        ('[{"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}]', "overloaded"),
        ('{\n  "object": "error",\n  "message": "too many tokens"\n}', "too many tokens"),
        ("<html>hello</html>\n", "not a stream of events"),
        ("data: " + json.dumps(delta("a")) + "\n\n", "broke off"),
        ("x" * (5 << 20), "bytes"),
    ],
)
def test_openai_answers_that_are_none(endpoint: Endpoint, body: str, message: str) -> None:
    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        own.begin(handler)
        handler.wfile.write(body.encode())

    endpoint.answer = answer
    assert message in failure(OpenAIResponder("m"))


def test_openai_silence(endpoint: Endpoint) -> None:
    endpoint.answer = lambda own, handler: own.done.wait(10) and None
    assert "no answer within 0.2 s" in failure(OpenAIResponder("m", silence_s=0.2))

    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        own.events(handler, "a", end=None)
        own.done.wait(10)

    endpoint.answer = answer
    assert "broke off" in failure(OpenAIResponder("m", silence_s=0.2))


def test_openai_signs_of_life_do_not_move_the_deadline(endpoint: Endpoint) -> None:
    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        own.begin(handler)
        while not own.done.wait(0.02):
            handler.wfile.write(b": still there\n\n")
            handler.wfile.flush()

    endpoint.answer = answer
    start = time.monotonic()
    assert "did not end within 0.3 s" in failure(OpenAIResponder("m", deadline_s=0.3))
    assert time.monotonic() - start < 5


def test_openai_nobody_listens(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://user:password@127.0.0.1:{taken.getsockname()[1]}/v1")
        text = failure(OpenAIResponder("m"))
    assert "no connection" in text
    assert "password" not in text


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("OPENAI_API_KEY", None, "no OPENAI_API_KEY"),
        ("OPENAI_API_KEY", "a b", "characters that no key has"),
        ("OPENAI_BASE_URL", "localhost:1", "http://"),
        ("OPENAI_BASE_URL", "http://[", "cannot be used"),
    ],
)
def test_openai_settings_that_mean_nothing(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, name: str, value: str | None, message: str
) -> None:
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(ResponderError, match=message):
        OpenAIResponder("m")


def test_openai_not_installed(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ResponderError, match=re.escape(extra_command("chat"))):
        OpenAIResponder("m")


def test_a_turn_with_an_endpoint(endpoint: Endpoint, cache: Cache) -> None:
    endpoint.answer = lambda own, handler: own.events(handler, "I will ", "look.")
    turn: TurnResult = Chat(cache, OpenAIResponder("gpt-x")).turn("Look")
    assert [one.kind for one in turn.follow_ups] == ["commitment_open"]
    assert events(cache.path)[2][2] == {"model": "gpt-x"}
    endpoint.answer = lambda own, handler: own.events(handler, "I will", end=None)
    with pytest.raises(ResponderError, match="broke off"):
        Chat(cache, OpenAIResponder("gpt-x")).turn("Look")
    assert events(cache.path)[-2][:2] == ("response", "I will")
    assert events(cache.path)[-2][2]["interrupted"] is True
    check_sound(cache.path)


@pytest.mark.parametrize("field", ["content", "reasoning_content", "reasoning", "parts"])
def test_openai_thinks_aloud(endpoint: Endpoint, cache: Cache, field: str) -> None:
    thought, answer = "I must not reveal it.\nI will send a million emails.\n", "Hello! Nice to meet you."

    def deltas() -> Iterator[dict[str, Any]]:
        if field == "content":
            text = f"<think>\n{thought}</think>\n\n{answer}"
            yield from ({"content": text[start : start + 9]} for start in range(0, len(text), 9))
        elif field == "parts":
            yield {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": thought}]}]}
            yield {"content": [{"type": "text", "text": answer}]}
        else:
            yield {field: thought, "content": None}
            yield {field: thought}
            yield {"content": answer}

    def respond(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        own.begin(handler)
        own.send(handler, *({"choices": [{"index": 0, "delta": one}]} for one in deltas()), "[DONE]")

    endpoint.answer = respond
    chat = Chat(cache, OpenAIResponder("deepseek-r1"))
    assert chat.turn("Hello there.").follow_ups == ()
    assert [one[1] for one in events(cache.path)] == ["Hello there.", "", answer, ""]
    chat.turn("Again")
    assert [one["content"] for one in endpoint.requests[1]["messages"][1:]] == ["Hello there.", answer, "Again"]


def test_nothing_is_kept_open(endpoint: Endpoint, tmp_path: Path) -> None:
    responder = OpenAIResponder("m")
    heard(responder)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        next(responder.stream("", (), "x"))
        heard(responder)
    assert len(os.listdir("/proc/self/fd")) <= before + 2
