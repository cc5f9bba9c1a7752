"""A turn: which events it appends, in which order, and what a death in its midst leaves; who answers it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import click
import pytest

from pmm_shm.errors import InvalidTextError
from pmm_shm.ledger.connection import Connection
from pmm_shm.ledger.tail import START
from pmm_shm.vectors import local_bow
from pmm_shm.vectors.events import EventTextReader, VectorSource
from pmm_shm_chat.command import responder_named
from pmm_shm_chat.offline import OfflineResponder
from pmm_shm_chat.responder import Message, ResponderError
from pmm_shm_chat.rules import cid_of, events_of
from pmm_shm_chat.turn import Chat
from pmm_shm_client.cache import Cache
from tests.support.chat import BLOCK, Says, check_sound, events, index

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


class _Meanwhile(Says):
    """Somebody else appends while it answers."""

    def __init__(self, cache: Cache, *pieces: str) -> None:
        super().__init__(*pieces)
        self._cache = cache

    def stream(self, context: str, history: Sequence[Message], user_text: str) -> Iterator[str]:
        yield from super().stream(context, history, user_text)
        self._cache.append("note", "meanwhile")


def test_every_event_names_its_message_whoever_else_appends(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Chat(cache, _Meanwhile(cache, "I will plan."))
    chat.turn("Your name is Echo.")
    cache.append("note", "in between")
    chat.turn("Your name is Ada.")
    # Between the read of the head and the append, too.
    chat.responder = Says("I will see.")
    open_commitments, append_many, tried = cache.commitments, cache.append_many, []

    def late(*arguments: Any, **options: Any) -> list[int]:
        if "expected_head" in options:
            tried.append(options["expected_head"])
            cache.append("note", "faster")
        return append_many(*arguments, **options)

    monkeypatch.setattr(cache, "append_many", late)
    turn = chat.turn("Your name is Bo.")
    assert len(tried) == 2
    assert len(open_commitments().open) == 2
    seen = events(cache.path)
    for number, (kind, _, meta) in enumerate(seen, 1):
        if kind in ("user", "response"):
            newest, text = number, seen[number - 1][1]
        elif kind == "embedding_indexed":
            assert (kind, "", meta) == index(newest, text)
        elif kind != "note":
            assert meta["origin_eid"] == newest
    assert [seen[one - 1][0] for one in turn.event_ids] == [
        *("user", "embedding_indexed", "identity_adopt"),
        *("response", "embedding_indexed", "commitment_open"),
    ]
    assert [seen[one.id - 1][0] for one in turn.follow_ups] == ["identity_adopt", "commitment_open"]
    check_sound(cache.path)


def test_alone_a_message_and_what_follows_from_it_are_one_transaction(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = Chat(cache, Says("I will plan."))
    chat.turn("Hello")
    counted: list[int] = []
    for name in ("append", "append_many"):
        call = getattr(cache, name)
        monkeypatch.setattr(
            cache, name, lambda *args, call=call, **options: counted.append(1) or call(*args, **options)
        )
    chat.turn("Your name is Echo.")
    assert len(counted) == 2


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


def test_index_entries_are_those_that_the_daemon_counts(cache: Cache) -> None:
    chat = Chat(cache, Says(" né \ud83d\ude00 I will go.\n"))
    turns = [chat.turn(text) for text in ("Ünal \x00 \ud800?", " done: go ", "I must")]
    connection = Connection(cache.path, "ro", 1.0)
    with connection.lock:
        found = EventTextReader(connection, (), local_bow.NAME).read(START).texts
    connection.close()
    assert [item.event_id for item in found] == [one for turn in turns for one in (turn.user_id, turn.response_id)]
    assert {item.source for item in found} == {VectorSource.INDEXED}
    assert found[0].text == "Ünal \x00 \ufffd?"
    assert found[1].text == "né 😀 I will go."


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
    assert [kind for kind, _, _ in events(cache.path)] == ["user", "embedding_indexed", "turn_marked"]


def test_an_interruption_before_the_answer_waits_for_it(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Chat(cache, Says("never heard"))
    append = cache.append

    def interrupted(*args: Any) -> int:
        chat.interrupt()
        return append(*args)

    monkeypatch.setattr(cache, "append", interrupted)
    assert chat.turn("Go").is_interrupted
    assert [kind for kind, _, _ in events(cache.path)] == ["user", "embedding_indexed", "turn_marked"]
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
    assert len(events(cache.path)) == 3


def test_an_answer_without_end_is_cut(cache: Cache) -> None:
    turn = Chat(cache, Says(*["x" * 100_000] * 20)).turn("x")
    assert (len(turn.response), turn.is_interrupted) == (1 << 20, True)


# The offline responder.


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


def test_responders_by_name() -> None:
    assert responder_named("offline", None).name == "offline"
    for name, model in (("offline", "m"), ("openai", None), ("other", None)):
        with pytest.raises(click.UsageError):
            responder_named(name, model)
