"""A turn: which events it appends, in which order, and what a death in its midst leaves; who answers it."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
from conftest import StartDaemon

from pmm_shm.errors import InvalidTextError
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.tail import START
from pmm_shm.vectors import local_bow
from pmm_shm.vectors.events import EventTextReader, Source
from pmm_shm_chat.command import responder_named
from pmm_shm_chat.offline import OfflineResponder
from pmm_shm_chat.provider import OpenAIResponder
from pmm_shm_chat.responder import Message, ResponderError
from pmm_shm_chat.rules import cid_of, events_of
from pmm_shm_chat.turn import HISTORY_CHARS_MAX, Chat, TurnResult
from pmm_shm_client.cache import Cache
from tests.support import daemons

Events = list[tuple[str, str, dict[str, Any]]]


class Says:
    """A responder with one answer, in pieces; it keeps what it was asked."""

    name = "says"

    def __init__(self, *pieces: str, error: BaseException | None = None) -> None:
        self.pieces = pieces
        self.error = error
        self.asked: tuple[str, list[Message], str] | None = None
        self.is_closed = False

    def stream(self, context: str, history: Sequence[Message], user_text: str) -> Iterator[str]:
        self.asked = context, list(history), user_text
        try:
            yield from self.pieces
            if self.error is not None:
                raise self.error
        finally:
            self.is_closed = True


@pytest.fixture
def cache(ledger: str) -> Iterator[Cache]:
    with Cache(ledger) as cache:
        yield cache


def events(ledger: str, after_id: int = 0) -> Events:
    with EventLog(ledger, create=False) as log:
        return [(one["kind"], one["content"], one["meta"]) for one in log.read_after_id(after_id=after_id)]


def index(event_id: int, text: str) -> tuple[str, str, dict[str, Any]]:
    return "embedding_indexed", "", {"eid": event_id, "digest": local_bow.digest(text)}


def check_sound(ledger: str) -> None:
    """The chain holds, and no fold has anything to complain of."""
    with EventLog(ledger, create=False) as log, Cache(ledger) as cache:
        assert log.verify_chain().ok
        warnings: list[Any] = []
        cache.self_model(on_warn=warnings.append)
        assert warnings == []
        assert cache.self_model(strict=True)


# What a turn appends.


def test_a_turn_is_a_message_and_an_answer_with_their_index_entries(cache: Cache) -> None:
    turn = Chat(cache, Says("Hello, ", "Ada.")).turn("Hello there")
    assert events(cache.path) == [
        ("user", "Hello there", {"channel": "chat"}),
        index(1, "Hello there"),
        ("response", "Hello, Ada.", {"model": "says"}),
        index(3, "Hello, Ada."),
    ]
    assert (turn.user_id, turn.response_id, turn.event_ids, turn.follow_ups) == (1, 3, (1, 2, 3, 4), ())
    assert (turn.response, turn.is_interrupted) == ("Hello, Ada.", False)


def test_what_is_stated_follows_the_message_that_states_it(cache: Cache) -> None:
    cache.append("commitment_open", "COMMIT: sing", {"cid": "c1", "text": "sing"})
    answer = "I will plan. I must ask."
    turn = Chat(cache, Says(answer)).turn("Your name is Echo. Done: sing")
    cid = cid_of("plan", 7)
    assert events(cache.path, 3) == [
        ("identity_adopt", "Echo", {"name": "Echo", "confidence": 0.95, "origin_eid": 2, "source": "user"}),
        (
            "evidence_candidate",
            "Done: sing",
            {"cid": "c1", "evidence_type": "done", "snippet": "Done: sing", "origin_eid": 2, "source": "user"},
        ),
        ("commitment_close", "CLOSE: sing", {"cid": "c1", "origin_eid": 2, "source": "user"}),
        ("response", answer, {"model": "says"}),
        index(7, answer),
        ("commitment_open", "COMMIT: plan", {"cid": cid, "text": "plan", "origin_eid": 7, "source": "reply"}),
        ("autonomy_directive", "I must ask", {"origin_eid": 7, "source": "reply"}),
    ]
    assert [one.id for one in turn.follow_ups] == [4, 5, 6, 9, 10]
    assert [one.kind for one in turn.follow_ups[-2:]] == ["commitment_open", "autonomy_directive"]
    check_sound(cache.path)


def test_the_context_knows_what_the_message_states(cache: Cache) -> None:
    responder = Says("Good.")
    turn = Chat(cache, responder).turn("Your name is Echo.")
    assert turn.context.name == "Echo"
    assert responder.asked is not None
    assert "Name: Echo" in responder.asked[0]
    assert responder.asked[0] == turn.block


def test_the_conversation_comes_as_messages_and_not_in_the_context(cache: Cache) -> None:
    responder = Says("Two.")
    cache.append("user_message", "zero")
    Chat(cache, Says("One.")).turn("first")
    Chat(cache, responder, messages=2).turn("second")
    assert responder.asked is not None
    context, history, text = responder.asked
    assert history == [Message("user", "first"), Message("assistant", "One.")]
    assert text == "second"
    assert "first" not in context
    Chat(cache, responder, messages=0).turn("third")
    assert responder.asked[1] == []
    Chat(cache, responder, messages=1_000).turn("fourth")
    assert responder.asked[1][0] == Message("user", "zero")


def test_a_long_conversation_is_cut_at_its_old_end(cache: Cache) -> None:
    for size in (10, HISTORY_CHARS_MAX // 2, HISTORY_CHARS_MAX // 2):
        cache.append("response", "x" * size)
    responder = Says("Yes.")
    Chat(cache, responder).turn("and?")
    assert responder.asked is not None
    assert [len(one.content) for one in responder.asked[1]] == [HISTORY_CHARS_MAX // 2] * 2


def test_index_entries_are_those_that_the_daemon_counts(cache: Cache) -> None:
    chat = Chat(cache, Says(" né \ud83d\ude00 I will go.\n"))
    turns = [chat.turn(text) for text in ("Ünal \x00 \ud800?", " done: go ", "I must")]
    connection = Connection(cache.path, "ro", 1.0)
    with connection.lock:
        found = EventTextReader(connection, (), local_bow.NAME).read(START).texts
    connection.close()
    assert [item.event_id for item in found] == [one for turn in turns for one in (turn.user_id, turn.response_id)]
    assert {item.source for item in found} == {Source.INDEXED}
    assert found[0].text == "Ünal \x00 \ufffd?"
    assert found[1].text == "né 😀 I will go."


def test_beside_a_daemon(cache: Cache, start_daemon: StartDaemon) -> None:
    start_daemon(cache.path)
    chat = Chat(cache, OfflineResponder(), recall=1)
    chat.turn("Please water the tomatoes in the garden")
    turn = chat.turn("What of the tomatoes in the garden?")
    assert [one.id for one in turn.context.recalled] in ([1], [3])
    assert turn.context.recall_problem is None
    assert len(cache.commitments().open) == 1
    chat.turn("done: tomatoes")
    assert not cache.commitments().open
    assert cache.verify()
    check_sound(cache.path)


@pytest.mark.parametrize("text", ["", " \n\t", "x" * ((1 << 20) + 1)])
def test_what_cannot_be_answered_is_not_appended(cache: Cache, text: str) -> None:
    with pytest.raises(InvalidTextError):
        Chat(cache, Says("x")).turn(text)
    assert events(cache.path) == []


def test_timings_leave_the_model_out(cache: Cache) -> None:
    now_ns = 0

    def clock() -> int:
        nonlocal now_ns
        now_ns += 1_000_000
        return now_ns

    timings = Chat(cache, Says("a", "b"), clock_ns=clock).turn("x").timings
    assert (timings.append_ms, timings.context_ms, timings.model_ms, timings.without_model_ms) == (2, 1, 1, 3)


# Answers that break off.


def test_an_interrupted_answer_is_kept_and_promises_nothing(cache: Cache) -> None:
    responder = Says("I will go. ", "And I will", error=KeyboardInterrupt())
    turn = Chat(cache, responder).turn("Go")
    assert turn.is_interrupted
    assert events(cache.path)[2:] == [
        ("response", "I will go. And I will", {"model": "says", "interrupted": True}),
        index(3, "I will go. And I will"),
    ]
    assert responder.is_closed


def test_an_answer_interrupted_before_its_first_word_is_none(cache: Cache) -> None:
    turn = Chat(cache, Says(error=KeyboardInterrupt())).turn("Go")
    assert (turn.response_id, turn.response, turn.is_interrupted) == (None, "", True)
    assert len(events(cache.path)) == 2


def test_an_interruption_before_the_answer_waits_for_it(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Chat(cache, Says("never heard"))
    append = cache.append

    def interrupted(*args: Any) -> int:
        chat.interrupt()
        return append(*args)

    monkeypatch.setattr(cache, "append", interrupted)
    assert chat.turn("Go").is_interrupted
    assert [kind for kind, _, _ in events(cache.path)] == ["user", "embedding_indexed"]
    monkeypatch.undo()
    assert chat.turn("Go on").response == "never heard"


def test_interrupt_ends_the_answer_under_way(cache: Cache) -> None:
    heard: list[str] = []
    chat = Chat(cache, Says("one ", "two ", "three"))

    def on_text(piece: str) -> None:
        heard.append(piece)
        if len(heard) == 2:
            chat.interrupt()

    turn = chat.turn("count", on_text)
    assert (turn.response, turn.is_interrupted) == ("one two", True)


@pytest.mark.parametrize("error", [ResponderError("gone"), SystemExit(143), BrokenPipeError()])
def test_what_came_before_a_failure_is_kept(cache: Cache, error: BaseException) -> None:
    with pytest.raises(type(error)):
        Chat(cache, Says("half an ans", error=error)).turn("x")
    assert events(cache.path)[2] == ("response", "half an ans", {"model": "says", "interrupted": True})


@pytest.mark.parametrize("pieces", [(), ("",), (" ", "\n")])
def test_an_answer_without_a_word_is_an_error(cache: Cache, pieces: tuple[str, ...]) -> None:
    with pytest.raises(ResponderError, match="without a word"):
        Chat(cache, Says(*pieces)).turn("x")
    assert len(events(cache.path)) == 2


def test_an_answer_without_end_is_cut(cache: Cache) -> None:
    turn = Chat(cache, Says(*["x" * 100_000] * 20)).turn("x")
    assert (len(turn.response), turn.is_interrupted) == (1 << 20, True)


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
COMMITTED = (2, 3, 7, 8, 13)
"""So many events there are after so many transactions of the turn."""
POINTS = {
    **{f"before transaction {n}": COMMITTED[n - 1] for n in (1, 2, 3, 4)},
    **{f"before rows {n}": COMMITTED[n - 1] for n in (1, 2, 3, 4)},
    # Written, and not committed.
    **{f"after rows {n}": COMMITTED[n - 1] for n in (1, 2, 3, 4)},
    **{f"after transaction {n}": COMMITTED[n] for n in (1, 2, 3, 4)},
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

BLOCK = """# Context (layout 1)
Name: Echo
Traits: O 0.50
Now: IAS 0.100 GAS 0.200 stage S0
Last tick: none
## Open commitments
- write to Ana
- review the plan.
## Directives
none"""


def offline(text: str, block: str = BLOCK, history: Sequence[Message] = ()) -> str:
    return "".join(OfflineResponder().stream(block, history, text))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Who are you?", "My name is Echo."),
        ("hello", "Hello. My name is Echo."),
        ("Your name is Echo.", "Thank you. My name is Echo."),
        ("What have you promised?", "Open: write to Ana; review the plan."),
        ("How are you?", "I stand at IAS 0.100 GAS 0.200 stage S0. Open: write to Ana; review the plan."),
        ("You must ask first!", "Understood. I must ask first."),
        ("Never invent figures", "Understood. I must never invent figures."),
        ("The tide is high.", "I heard “The tide is high.”."),
    ],
)
def test_offline_answers(text: str, answer: str) -> None:
    assert offline(text) == answer


def test_offline_commits_itself_when_asked() -> None:
    answer = offline("Could you please send me my notes?")
    assert answer.startswith("I will send you your notes.")
    ((kind, _, meta),) = events_of(answer, "assistant", 1, dict)
    assert (kind, meta["text"]) == ("commitment_open", "send you your notes")


def test_offline_without_anything() -> None:
    assert offline("Who are you?", "") == "I have no name yet. Give me one: “Your name is …”."
    assert offline("Any plans?", "Name: Unknown\n## Open commitments\nnone") == "Nothing is open."


def test_offline_states_nothing_that_it_only_repeats() -> None:
    block = f"{BLOCK}\n## Recalled messages\n- 2026 assistant: Fine. I will go. “I must” go. I will stay."
    for text in ("Hm. I will go. I must go.", 'He said "Fine. I will go', "“a. I will go. “b. I will c.”"):
        assert events_of(offline(text, block), "assistant", 1, dict) == []


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
        daemons.run_python(code, arguments, env=daemons.environment(PYTHONHASHSEED=seed, TZ=zone, LC_ALL="C")).stdout
        for seed, zone in (("1", "UTC"), ("2", "Asia/Tokyo"))
    }
    assert answers == {json.dumps(list(OfflineResponder().stream(BLOCK, history, text))) + "\n"}


def test_responders_by_name() -> None:
    assert responder_named("offline", None).name == "offline"
    for name, model in (("offline", "m"), ("openai", None), ("other", None)):
        with pytest.raises(click.UsageError):
            responder_named(name, model)


# An endpoint.


class Endpoint:
    """A server on this machine; `answer` writes what a request gets."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.done = threading.Event()
        self.answer: Callable[[Endpoint, BaseHTTPRequestHandler], None] = lambda own, handler: own.events(
            handler, "Hel", "lo ", "né"
        )
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.paths.append(self.path)
                outer.requests.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                outer.answer(outer, self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.done.set()
        self.server.shutdown()
        self.server.server_close()

    def begin(self, handler: BaseHTTPRequestHandler, kind: str = "text/event-stream", status: int = 200) -> None:
        handler.send_response(status)
        handler.send_header("content-type", kind)
        handler.end_headers()

    def send(self, handler: BaseHTTPRequestHandler, *events: Any) -> None:
        for event in events:
            data = event if isinstance(event, str) else json.dumps(event)
            handler.wfile.write(f"data: {data}\n\n".encode())
            handler.wfile.flush()

    def events(self, handler: BaseHTTPRequestHandler, *pieces: str, end: str | None = "[DONE]") -> None:
        self.begin(handler)
        self.send(handler, *map(delta, pieces), *([] if end is None else [end]))

    def refuse(self, status: int, message: str) -> None:
        def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
            own.begin(handler, "application/json", status)
            handler.wfile.write(json.dumps({"error": {"message": message}}).encode())

        self.answer = answer


def delta(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


KEY = "sk-secret-0123456789"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    pytest.importorskip("openai")
    made = Endpoint()
    monkeypatch.setenv("OPENAI_BASE_URL", made.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield made
    made.close()


def heard(responder: OpenAIResponder, history: Sequence[Message] = ()) -> list[str]:
    return list(responder.stream("the context", history, "hi \ud800"))


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
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("data: {not json\n\n", "not JSON"),
        ("data: [1]\n\n", "not a completion"),
        ('data: {"error": {"message": "overloaded"}}\n\n', "overloaded"),
        ('data: {"error": "overloaded"}\n\n', "overloaded"),
        ('{"choices": []}', "not a stream of events"),
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
    with pytest.raises(ResponderError, match=r"pip install 'pmm-shm\[chat\]'"):
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


def test_nothing_is_kept_open(endpoint: Endpoint, tmp_path: Path) -> None:
    responder = OpenAIResponder("m")
    heard(responder)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        next(responder.stream("", (), "x"))
        heard(responder)
    assert len(os.listdir("/proc/self/fd")) <= before + 2
