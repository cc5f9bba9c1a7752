"""What a message states: each rule, what it must not hear, and what its events do to the state."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.vectors.embedder import encodable
from pmm_shm_chat.rules import NAME_CONFIDENCE, STATEMENTS_MAX, EventDraft, Speaker, cid_of, events_of
from pmm_shm_chat.sentences import sentences
from pmm_shm_client.cache import Cache
from tests.support.profiles import examples

Open = Mapping[Any, Mapping[str, Any]]


def said(
    text: str, speaker: Speaker = "assistant", open_ones: Open | None = None, event_id: int = 7
) -> list[EventDraft]:
    return events_of(text, speaker, event_id, lambda: open_ones or {})


def promised(text: str) -> list[str]:
    return [meta["text"] for kind, _, meta in said(text) if kind == "commitment_open"]


def ruled(text: str) -> list[str]:
    return [content for kind, content, _ in said(text) if kind == "autonomy_directive"]


def named(text: str) -> list[str]:
    return [meta["name"] for kind, _, meta in said(text, "user") if kind == "identity_adopt"]


def closed(text: str, open_ones: Open, speaker: Speaker = "user") -> list[Any]:
    return [meta["cid"] for kind, _, meta in said(text, speaker, open_ones) if kind == "commitment_close"]


PLANS = {
    "12-aaaa1111": {"cid": "12-aaaa1111", "text": "review the garden plan once more"},
    "c2": {"cid": "c2", "text": "Write to Ana"},
    7: {"cid": 7, "text": "Check the second chapter"},
    "c4": {"cid": "c4", "text": "check the third chapter"},
}


# Events and their meta.


def test_a_promise() -> None:
    (event,) = said("Sure. I will review the garden plan.")
    cid = cid_of("review the garden plan", 7)
    meta = {"cid": cid, "text": "review the garden plan", "origin_eid": 7, "source": "reply"}
    assert event == ("commitment_open", "COMMIT: review the garden plan", meta)


def test_a_cid_is_the_text_s_and_the_event_s() -> None:
    assert cid_of("a", 1) == cid_of("a", 1)
    assert len({cid_of(text, event_id) for text in "abcdef" for event_id in range(100)}) == 600
    # No digest can make two events' cids equal.
    assert cid_of("a", 12).partition("-")[0] == "12"


def test_a_directive() -> None:
    (event,) = said("I  must be\nhonest.")
    assert event == ("autonomy_directive", "I must be honest", {"origin_eid": 7, "source": "reply"})


def test_a_name() -> None:
    (event,) = said("Your name is Echo.", "user")
    meta = {"name": "Echo", "confidence": NAME_CONFIDENCE, "origin_eid": 7, "source": "user"}
    assert event == ("identity_adopt", "Echo", meta)
    assert NAME_CONFIDENCE >= 0.9


def test_what_is_done_has_its_evidence_before_the_close() -> None:
    evidence, close = said("Done: write to ana!", "assistant", PLANS)
    snippet = "Done: write to ana"
    meta = {"cid": "c2", "evidence_type": "done", "snippet": snippet, "origin_eid": 7, "source": "reply"}
    assert evidence == ("evidence_candidate", snippet, meta)
    assert close == ("commitment_close", "CLOSE: Write to Ana", {"cid": "c2", "origin_eid": 7, "source": "reply"})


# Who may say what.


@pytest.mark.parametrize(
    ("text", "speaker"),
    [("I will review it.", "user"), ("I must be honest.", "user"), ("Your name is Echo.", "assistant")],
)
def test_the_other_s_statements_count_for_nothing(text: str, speaker: Speaker) -> None:
    assert said(text, speaker) == []


@pytest.mark.parametrize("speaker", ["user", "assistant"])
def test_either_may_say_what_is_done(speaker: Speaker) -> None:
    assert closed("done: c2", PLANS, speaker) == ["c2"]


# Promises.


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("I will review it", ["review it"]),
        ("i WILL review it!", ["review it"]),
        ("I'll review it. I’ll write, too.", ["review it", "write, too"]),
        ("Sure!\nI will go.", ["go"]),
        ("Plan:\n- I will go\n* I will come\n3) I will stay", ["go", "come", "stay"]),
        ("## Next\nI will go", ["go"]),
        ("**I will go.** And then?", ["go"]),
        ("I will call Dr. Smith and J. Doe. Soon.", ["call Dr. Smith and J"]),
        ("I will read “Moby Dick. Part 2” to you.", ["read “Moby Dick. Part 2” to you"]),
        ("I will say 'I will come. I will go.' aloud.", ["say 'I will come. I will go.' aloud"]),
        ("I will\n  write a line\n that goes on", ["write a line that goes on"]),
        ("I will go. I will go.", ["go"]),
        ("I will 行く。I will come。", ["行く", "come"]),
        ("I will not only plan. I will plan.", ["plan"]),
    ],
)
def test_promises(text: str, texts: list[str]) -> None:
    assert promised(text) == texts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I will",
        "I will.",
        "I will ...",
        "I will go?",
        "I will go, will I?!",
        "I will not go.",
        "I will never go.",
        "I will probably not go.",
        "I won't go.",
        "I willingly go.",
        "If you like, I will go.",
        "She asked what\nI will do",
        "You said: I will go.",
        '"I will go." That is a quotation.',
        'She said: "Fine. I will go." And left.',
        "She said: “Fine. I will go.” And left.",
        "She said: 'Fine. I will go.' And left.",
        'An opening " that is never closed. I will go.',
        "> I will go.",
        "```\nI will go.\n```",
        "```\nI will go.",
        "`x. I will go.`",
        "I will " + "go " * 500,
        "AI will go.",
    ],
)
def test_no_promises(text: str) -> None:
    assert promised(text) == []


def test_what_is_open_is_not_opened_twice() -> None:
    assert said("I will write to Ana.", open_ones=PLANS) == []
    assert said("I will write to Ana. Done: write to Ana. I will write to Ana.", open_ones=PLANS)[-1][0] == (
        "commitment_open"
    )


def test_a_promise_kept_at_once() -> None:
    kinds = [kind for kind, _, _ in said("I will sing a song.\nDone: sing a song")]
    assert kinds == ["commitment_open", "evidence_candidate", "commitment_close"]


def test_so_many_statements_count() -> None:
    assert len(said("\n".join(f"- I will go {number}" for number in range(99)))) == STATEMENTS_MAX


# Directives.


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("I must ask before I assume.", ["I must ask before I assume"]),
        ("i must not invent figures", ["I must not invent figures"]),
        ("I must say this is odd.", []),
        ("I must have missed that.", []),
        ("I must have sources.", ["I must have sources"]),
        ("Must I go? I must?", []),
        ("“I must go.”", []),
        ("I mustn't go.", []),
        ("I must", []),
    ],
)
def test_directives(text: str, texts: list[str]) -> None:
    assert ruled(text) == texts


# Names.


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Your name is Echo", ["Echo"]),
        ("Hello! your NAME is Ada Lovelace, and mine is Bo.", ["Ada Lovelace"]),
        ("Your name is now Mira from now on.", ["Mira"]),
        ("Your name is “the Owl”.", ["the Owl"]),
        ('your name is "R2-D2"', ["R2-D2"]),
        ("your name is echo", ["echo"]),
        ("Your name is 名.", ["名"]),
        ("Your name is Noé and you like tea.", ["Noé"]),
        ("Your name is important.", []),
        ("Your name is not Echo.", []),
        ("Your name is Echo?", []),
        ("Your name is the best of all.", []),
        ("Your name is A B C D E.", []),
        ("Is your name Echo? My name is Bo.", []),
        ('She said "your name is Echo".', []),
        ("> Your name is Echo", []),
        ("Your name is " + "X" * 65, []),
        ("Your name is ...", []),
        ("Your name is Echo isn't it", []),
    ],
)
def test_names(text: str, names: list[str]) -> None:
    assert named(text) == names


# What is done.


@pytest.mark.parametrize(
    ("text", "cids"),
    [
        ("done: c2", ["c2"]),
        ("DONE:C2", ["c2"]),
        ("done: 7", [7]),
        ("done: 12-AAAA1111", ["12-aaaa1111"]),
        ("done: 12-aaaa1111, with three remarks", ["12-aaaa1111"]),
        ("Done: I will write to Ana", ["c2"]),
        ("done: “write to Ana”", ["c2"]),
        ("done: garden plan", ["12-aaaa1111"]),
        ("done: the SECOND chapter", [7]),
        ("- done: c2\n- done: c4", ["c2", "c4"]),
        ("done: c2\ndone: 7", ["c2", 7]),
        ("done: c2. Done: c2.", ["c2"]),
        # Both chapters would do.
        ("done: check the chapter", []),
        ("done: the", []),
        ("done: something else", []),
        ("done: c2?", []),
        ("not done: c2", []),
        ("done c2", []),
        ("done:", []),
        ("> done: c2", []),
        ("“done: c2”", []),
    ],
)
def test_what_is_done(text: str, cids: list[Any]) -> None:
    assert closed(text, PLANS) == cids


def test_of_the_same_words_the_oldest() -> None:
    assert closed("done: go", {"b": {"text": "go"}, "a": {"text": "Go!"}}) == ["b"]


def test_the_open_ones_are_read_only_where_they_matter() -> None:
    def load() -> Open:
        raise AssertionError("read for nothing")

    assert events_of("Hello. Your name is Echo. I must go.", "user", 1, load)
    assert events_of("I must go. I will not.", "assistant", 1, load)


def test_open_commitments_of_any_kind() -> None:
    odd: Open = {
        "\ud800": {"text": "a lone half \ud800"},
        10**5000: {"text": "an integer of many digits"},
        "n": {"text": None},
        "o": {"text": {"a": 1}},
        "m": {},
        " ": {"text": "blank cid"},
        "long": {"text": "x y " * 100_000},
    }
    assert closed("done: a lone half", odd) == ["\ud800"]
    assert closed("done: blank cid", odd) == [" "]
    assert closed("done: o", odd) == ["o"]


# Any text.

FRAGMENTS = st.sampled_from(
    [
        *("I will ", "I'll ", "I must ", "Your name is ", "done: ", "not ", "Echo", "echo", "c2", "the plan", "write"),
        *(
            ". ",
            "! ",
            "? ",
            "\n",
            "\n\n",
            "> ",
            "- ",
            "1. ",
            "```\n",
            "`",
            '"',
            "“",
            "”",
            "'",
            "**",
            "# ",
            "\0",
            "\ud83d",
        ),
        *("\ude00", "\u2028", "Dr. ", "…", "。", "٣", "ß", "İ"),
    ]
)
TEXTS = st.one_of(
    st.text(st.characters(codec=None), max_size=80), st.lists(st.one_of(FRAGMENTS, st.text(max_size=3))).map("".join)
)


@given(TEXTS)
@settings(max_examples=examples(300))
def test_sentences_of_any_text(text: str) -> None:
    for sentence in sentences(encodable(text)):
        assert len(sentence.text) == len(sentence.masked)
        assert "\n" not in sentence.text
        sentence.text.encode()


@given(texts=st.lists(st.tuples(TEXTS, st.sampled_from(["user", "assistant"])), min_size=1, max_size=6))
@settings(max_examples=examples(60))
def test_events_of_any_text_are_appended_and_do_what_they_say(
    texts: list[tuple[str, Speaker]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = str(tmp_path_factory.mktemp("any") / "l.db")
    with EventLog(path) as log, Cache(path) as cache:
        for text, speaker in texts:
            event_id = log.append("user" if speaker == "user" else "response", encodable(text))
            before = cache.self_model()["commitments"]["open"]
            drafts = events_of(text, speaker, event_id, lambda: cache.commitments().open)
            log.append_many(drafts)
            _check_effect(cache, before, drafts, event_id)
        assert cache.self_model(strict=True)
        assert log.verify_chain().ok


def _check_effect(cache: Cache, before: dict[Any, Any], drafts: list[EventDraft], event_id: int) -> None:
    expected, name = dict(before), None
    contents = []
    for kind, content, meta in drafts:
        assert meta["origin_eid"] == event_id
        if kind == "commitment_open":
            assert meta["cid"] not in expected
            expected[meta["cid"]] = meta
        elif kind == "commitment_close":
            del expected[meta["cid"]]
        elif kind == "identity_adopt":
            name = meta["name"]
        elif kind == "autonomy_directive":
            contents.append(content)
    assert json.dumps(cache.self_model()["commitments"]["open"]) == json.dumps(expected)
    if name is not None:
        assert cache.identity().name == name
    seen = {row["content"]: row for row in cache.directives()}
    for content in contents:
        assert seen[content]["last_origin_eid"] == event_id
        assert "reply" in seen[content]["sources"]


@pytest.mark.parametrize("piece", ["'a ", "I will ", '"', ". ", "> ", "done: x ", "done: x\n", "*", "“a. ", "- [ ] "])
def test_long_texts_take_no_time(piece: str) -> None:
    open_ones = {str(number): {"text": f"plan number {number}"} for number in range(2_000)}
    start = time.process_time()
    said(piece * 300_000, open_ones=open_ones)
    assert time.process_time() - start < 2.0
