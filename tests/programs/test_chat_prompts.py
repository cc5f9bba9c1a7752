"""Which earlier messages a responder receives: within the budget, and without what failed or was undone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from pmm_shm.errors import LedgerBusyError
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.restore import restore
from pmm_shm_chat.prompting import TOKENS_MAX, tokens_of
from pmm_shm_chat.responder import Message, ResponderError
from pmm_shm_chat.turn import Chat, NothingToUndoError
from pmm_shm_client.cache import Cache
from tests.support.chat import Says, check_sound, events

DOWN = ResponderError("the endpoint is down")


def kinds(cache: Cache) -> list[str]:
    return [kind for kind, _, _ in events(cache.path)]


def history(cache: Cache, *, recall: int = 0, tokens_max: int = TOKENS_MAX) -> list[Message]:
    """What a worker of another process would send before the text "and now?"."""
    says = Says("Yes.")
    Chat(cache, says, recall=recall, tokens_max=tokens_max).turn("and now?")
    assert says.asked is not None
    assert says.asked[2] == "and now?"
    return says.asked[1]


# What failed.


@pytest.mark.parametrize("error", [DOWN, KeyboardInterrupt()])
def test_a_question_without_a_word_of_an_answer_is_not_sent_again(cache: Cache, error: BaseException) -> None:
    chat = Chat(cache, Says(error=error))
    if error is DOWN:
        with pytest.raises(ResponderError):
            chat.turn("What is lost?")
    else:
        chat.turn("What is lost?")
    assert kinds(cache) == ["user", "embedding_indexed", "turn_marked"]
    says = Says("Here.")
    chat.responder = says
    chat.turn("What now?")
    assert says.asked is not None
    assert says.asked[1:] == ([], "What now?")
    assert history(cache) == [Message("user", "What now?"), Message("assistant", "Here.")]


def test_the_beginning_of_an_answer_stays_with_its_question(cache: Cache) -> None:
    with pytest.raises(ResponderError):
        Chat(cache, Says("It beg", error=DOWN)).turn("How?")
    assert history(cache) == [Message("user", "How?"), Message("assistant", "It beg")]


def test_what_failed_is_not_recalled(cache: Cache) -> None:
    with pytest.raises(ResponderError):
        Chat(cache, Says(error=DOWN)).turn("The zebra is in the garden")
    says = Says("Yes.")
    turn = Chat(cache, says, recall=3, messages=0).turn("Where is the zebra in the garden?")
    assert [one.content for one in turn.context.recalled] == ["The zebra is in the garden"]
    assert "The zebra is" not in turn.block


# Again.


def test_retry_after_a_failure_asks_once_more_and_counts_then(cache: Cache) -> None:
    chat = Chat(cache, Says(error=DOWN))
    with pytest.raises(ResponderError):
        chat.turn("Your name is Echo.")
    with pytest.raises(ResponderError):
        chat.retry()
    chat.responder = says = Says("At last.")
    chat.retry()
    assert says.asked is not None
    assert says.asked[1:] == ([], "Your name is Echo.")
    assert kinds(cache) == [
        "user", "embedding_indexed", "identity_adopt", "turn_marked", "response", "embedding_indexed", "turn_marked",
    ]  # fmt: skip
    assert history(cache) == [Message("user", "Your name is Echo."), Message("assistant", "At last.")]
    check_sound(cache.path)


def test_retry_replaces_an_answer(cache: Cache) -> None:
    chat = Chat(cache, Says("Bad."))
    chat.turn("Tell me")
    chat.responder = says = Says("Good.")
    chat.retry()
    assert says.asked is not None
    assert says.asked[1:] == ([], "Tell me")
    assert history(cache) == [Message("user", "Tell me"), Message("assistant", "Good.")]


def test_undo_leaves_a_turn_out_and_the_log_keeps_it(cache: Cache) -> None:
    chat = Chat(cache, Says("One."))
    chat.turn("first")
    chat.turn("second")
    assert chat.undo() == "second"
    assert history(cache) == [Message("user", "first"), Message("assistant", "One.")]
    assert [content for kind, content, _ in events(cache.path) if kind == "user"] == ["first", "second", "and now?"]


def test_undo_goes_back_turn_by_turn(cache: Cache) -> None:
    chat = Chat(cache, Says("One."))
    for text in ("first", "second", "third"):
        chat.turn(text)
    assert [chat.undo(), chat.undo()] == ["third", "second"]
    # The last one is now the first.
    chat.responder = Says("Two.")
    chat.retry()
    assert history(cache) == [Message("user", "first"), Message("assistant", "Two.")]
    assert chat.undo() == "first"
    for nothing in (chat.undo, chat.retry):
        with pytest.raises(NothingToUndoError):
            nothing()


@pytest.mark.parametrize("error", [DOWN, KeyboardInterrupt()])
def test_a_retry_without_an_answer_keeps_the_earlier_one(cache: Cache, error: BaseException) -> None:
    chat = Chat(cache, Says("Good."))
    chat.turn("Tell me")
    chat.responder = Says(error=error)
    for _ in range(2):
        if error is DOWN:
            with pytest.raises(ResponderError):
                chat.retry()
        else:
            assert chat.retry().response_id is None
    assert history(cache) == [Message("user", "Tell me"), Message("assistant", "Good.")]
    chat.responder = Says("Better.")
    chat.retry()
    contents = [one.content for one in history(cache)]
    assert "Better." in contents
    assert "Good." not in contents
    assert chat.undo() == "Tell me"
    assert not {"Tell me", "Better."} & {one.content for one in history(cache)}


def test_a_message_whose_context_could_not_be_read_is_not_sent_again(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object, **__: object) -> None:
        raise LedgerBusyError("busy")

    chat = Chat(cache, Says("Yes."))
    with monkeypatch.context() as patched:
        patched.setattr(cache, "context", busy)
        with pytest.raises(LedgerBusyError):
            chat.turn("What is lost?")
    assert history(cache) == []


def test_undo_of_a_failure_and_of_nothing(cache: Cache) -> None:
    chat = Chat(cache, Says(error=DOWN))
    with pytest.raises(NothingToUndoError):
        chat.undo()
    with pytest.raises(ResponderError):
        chat.turn("lost")
    assert chat.undo() == "lost"
    assert kinds(cache) == ["user", "embedding_indexed", "turn_marked"]


@pytest.mark.parametrize("again", [Chat.undo, Chat.retry])
def test_after_a_restore_the_ids_of_earlier_turns_mean_nothing(
    cache: Cache, tmp_path: Path, again: Callable[[Chat], object]
) -> None:
    chat = Chat(cache, Says("Yes."))
    for text in ("one", "two", "three"):
        chat.turn(text)
    chat.undo()
    backup = str(tmp_path / "backup.db")
    others = [f"other {number}" for number in range(20)]
    with EventLog(backup) as log:
        log.append_many([("user", text) for text in others])
    restore(backup, cache.path)
    with pytest.raises(NothingToUndoError):
        again(chat)
    assert [one.content for one in history(cache)] == others[-16:]
    chat.responder = says = Says("Yes.")
    chat.turn("and then?")
    assert says.asked is not None
    assert [one.content for one in says.asked[1]][:14] == others[-14:]


@pytest.mark.parametrize("error", [None, DOWN], ids=["answered", "failed"])
def test_a_message_that_a_restore_takes_away_during_its_answer_is_the_last_of_nobody(
    cache: Cache, tmp_path: Path, error: ResponderError | None
) -> None:
    cache.append_many([("user", f"other {number}") for number in range(20)])
    backup = str(tmp_path / "backup.db")
    with EventLog(backup) as log:
        log.append("user", "of the backup")

    class Restoring(Says):
        def stream(self, context: str, history: Sequence[Message], user_text: str) -> Iterator[str]:
            restore(backup, cache.path)
            return super().stream(context, history, user_text)

    chat = Chat(cache, Restoring("Yes.", error=error))
    with contextlib.nullcontext() if error is None else pytest.raises(ResponderError):
        chat.turn("one")
    with EventLog(cache.path) as log:
        log.append_many([("user", f"later {number}") for number in range(30)])
    before = kinds(cache)
    with pytest.raises(NothingToUndoError):
        chat.undo()
    assert kinds(cache) == before
    assert "turn_marked" not in before


def test_a_message_whose_answer_could_not_be_appended_is_forgotten_after_a_restore(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object, **__: object) -> None:
        raise LedgerBusyError("busy")

    chat = Chat(cache, Says("Yes."))
    with monkeypatch.context() as patched:
        patched.setattr(Chat, "_append_response", busy)
        with pytest.raises(LedgerBusyError):
            chat.turn("lost")
    backup = str(tmp_path / "backup.db")
    with EventLog(backup) as log:
        log.append("user", "of the backup")
    restore(backup, cache.path)
    with pytest.raises(NothingToUndoError):
        chat.undo()
    assert kinds(cache) == ["user"]


def test_marks_that_mean_nothing_are_ignored(cache: Cache) -> None:
    cache.append("user", "said")
    for meta in ({}, {"eids": 1, "undone": True}, {"eids": ["1", None, True, [1]], "undone": True}, {"eids": [1]}):
        cache.append("turn_marked", "", meta)
    assert history(cache) == [Message("user", "said")]


def test_the_newest_mark_counts_for_a_running_conversation_too(cache: Cache) -> None:
    chat = Chat(cache, Says("One."))
    chat.turn("first")
    chat.turn("second")
    cache.append("turn_marked", "", {"eids": [1, 3], "undone": True})
    chat.responder = says = Says("Two.")
    chat.turn("third")
    assert says.asked is not None
    assert [one.content for one in says.asked[1]] == ["second", "One."]
    cache.append("turn_marked", "", {"eids": [1], "undone": False})
    chat.turn("fourth")
    assert [one.content for one in says.asked[1]][:2] == ["first", "second"]


# The budget.


def test_the_oldest_messages_go_first_and_facts_never(cache: Cache) -> None:
    cache.append("identity_adopt", "Echo", {"name": "Echo"})
    for number in range(10):
        cache.append("user", f"{number} " + "x" * 4_000)
    says = Says("Yes.")
    Chat(cache, says, tokens_max=3_200).turn("and?")
    assert says.asked is not None
    block, messages, _ = says.asked
    assert "Name: Echo" in block
    assert [one.content[0] for one in messages] == ["7", "8", "9"]
    Chat(cache, says, tokens_max=1).turn("and?")
    assert says.asked[1] == []
    assert "Name: Echo" in says.asked[0]


def test_recalled_messages_go_when_there_is_no_room_for_them(cache: Cache) -> None:
    for number in range(6):
        cache.append("user", f"the zebra {number} " + "stripe " * 60)
    says = Says("Yes.")
    turn = Chat(cache, says, recall=6, messages=0, tokens_max=400).turn("the zebra stripe")
    assert len(turn.context.recalled) == 6
    assert says.asked is not None
    assert 0 < says.asked[0].count("the zebra") < 6


def test_no_message_is_sent_twice(cache: Cache) -> None:
    for number in range(20):
        cache.append("user", f"the zebra {number} sleeps")
    says = Says("Yes.")
    Chat(cache, says, recall=5, messages=8).turn("where does the zebra sleep?")
    assert says.asked is not None
    block, messages, _ = says.asked
    assert [one.content for one in messages] == [f"the zebra {number} sleeps" for number in range(12, 20)]
    assert block.count("zebra") == 5
    assert not [one for one in messages if one.content in block]


def test_a_message_there_is_no_room_for_is_recalled(cache: Cache) -> None:
    cache.append("user", "The key is under the blue pot. " + "x " * 1_500)
    for number in range(10):
        cache.append("user", f"{number} " + "y" * 800)
    says = Says("Yes.")
    Chat(cache, says, recall=1, tokens_max=1_200).turn("Where is the key?")
    assert says.asked is not None
    block, messages, _ = says.asked
    assert "The key is under the blue pot." in block
    assert [one.content[0] for one in messages] == ["6", "7", "8", "9"]
    assert sum(tokens_of(text) for text in (block, *(one.content for one in messages))) < 1_200


def test_tokens_are_estimated() -> None:
    assert (tokens_of(""), tokens_of("four"), tokens_of("fives"), tokens_of("東京"), tokens_of("né")) == (0, 1, 2, 2, 2)


def test_an_identifier_is_recalled_by_its_words(cache: Cache) -> None:
    """Vectors alone mix up identifiers."""
    cache.append_many([("user", f"Invoice INV-{number} was paid late.") for number in range(2200, 2300)])
    responder = Says("Yes.")
    Chat(cache, responder, recall=1, messages=0).turn("Was INV-2291 paid?")
    assert responder.asked is not None
    assert "Invoice INV-2291 was paid late." in responder.asked[0]
