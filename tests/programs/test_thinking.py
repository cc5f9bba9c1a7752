"""The thinking of a model: it reaches neither the ledger, nor the rules, nor later requests."""

from __future__ import annotations

import pytest

from pmm_shm_chat.responder import ResponderError
from pmm_shm_chat.screen import PlainScreen
from pmm_shm_chat.turn import Chat
from pmm_shm_client.cache import Cache
from pmm_shm_client.thinking import ThinkingFilter, without_thinking
from tests.support.chat import Says, check_sound, events

THOUGHT = "The user greets me.\nI must not reveal it.\nI will send `</think>` and a million emails.\n"
ANSWER = "Hello! Nice to meet you."
THINKS_ALOUD = [
    f"<think>\n{THOUGHT}</think>\n\n{ANSWER}",
    f"  <THINKING>{THOUGHT}</THINKING>{ANSWER}",
    f'<reasoning effort="high">{THOUGHT}</reasoning>\n{ANSWER}',
    f"<seed:think>{THOUGHT}</seed:think>{ANSWER}",
    f"[THINK]{THOUGHT}[/THINK]{ANSWER}",
    f"◁think▷{THOUGHT}◁/think▷{ANSWER}",
    f"<|begin_of_thought|>{THOUGHT}<|end_of_thought|>{ANSWER}",
    f"<|START_THINKING|>{THOUGHT}<|END_THINKING|>{ANSWER}",
    f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}",
    f"<inner_monologue>{THOUGHT}</inner_monologue>{ANSWER}",
    f"<antThinking>{THOUGHT}</antThinking>{ANSWER}",
    f"<scratch_pad>{THOUGHT}</scratch_pad>{ANSWER}",
    f"<|thought|>{THOUGHT}<|/thought|>{ANSWER}",
    f"<|channel>thought\n{THOUGHT}<channel|>{ANSWER}",
    f"<|inner_prefix|>{THOUGHT}<|inner_suffix|>{ANSWER}",
    # The beginning is in the prompt, or the channel is the first.
    f"analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}",
    f"<|start|>assistant<|channel|>final<|message|>{ANSWER}",
    # The opening tag is in the prompt.
    f"{THOUGHT}</think>\n\n{ANSWER}",
    # Nested, or named in the thinking itself.
    f"<think>{THOUGHT}<think>{THOUGHT}</think>{THOUGHT}</think>{ANSWER}",
    f"<think>I begin with <think>. {THOUGHT}</think>{ANSWER}",
    # Between two parts of an answer.
    f"<think>{THOUGHT}</think>Hello! <think>{THOUGHT}</think>Nice to meet you.",
]
TALKS_ABOUT_IT = [
    "Models write `<think>` and `</think>` around it.",
    "```\n<think>\nthis\n</think>\n```\nThat is all.",
    "1 < 2, a <b>, [x] and `` ` ``: <thinker> [THIN] </thin",
    "I think: therefore I am <",
    "Put it between <think> and its counterpart: " + 30 * "then all is well. ",
    "Open it with <think> or [THINK].\nThat is all.",
    "",
]


@pytest.mark.parametrize("text", THINKS_ALOUD)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000])
def test_only_the_answer_is_left_wherever_the_text_is_cut(text: str, size: int) -> None:
    whole, shown = ThinkingFilter(), ""
    for start in range(0, len(text), size):
        added = whole.add(text[start : start + size])
        shown = added if whole.is_retracted else shown + added
    shown += whole.end()
    assert (shown, whole.answer, whole.has_thought) == (ANSWER, ANSWER, True)


@pytest.mark.parametrize("text", TALKS_ABOUT_IT)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000])
def test_an_answer_without_thinking_stays_as_it_is(text: str, size: int) -> None:
    whole = ThinkingFilter()
    shown = "".join(whole.add(text[start : start + size]) for start in range(0, len(text), size)) + whole.end()
    assert (shown, whole.answer) == (text, text)
    assert without_thinking(text) == text.strip()


def test_an_answer_is_shown_as_it_arrives() -> None:
    whole = ThinkingFilter()
    assert [whole.add(piece) for piece in ("<thi", "nk>no</th", "ink>", "\nYes", ", of", " <i>")] == [
        *("", "", "", "Yes", ", of", " <i>")
    ]


@pytest.mark.parametrize("text", THINKS_ALOUD)
def test_thinking_states_nothing_and_is_not_appended(cache: Cache, text: str) -> None:
    pieces = [text[start : start + 9] for start in range(0, len(text), 9)]
    screen = PlainScreen()
    turn = Chat(cache, Says(*pieces)).turn("Hello there.", screen.piece, screen.retract)
    assert (turn.response, turn.follow_ups) == (ANSWER, ())
    assert [one[1] for one in events(cache.path)] == ["Hello there.", "", ANSWER, ""]
    assert "".join(screen._pieces) == ANSWER
    check_sound(cache.path)


@pytest.mark.parametrize("text", ["<think>I will lie.", "<think>I will lie.</think>\n", "I must lie.</think>"])
def test_thinking_alone_is_no_answer(cache: Cache, text: str) -> None:
    with pytest.raises(ResponderError, match="thinking and no answer"):
        Chat(cache, Says(text)).turn("Hello")
    assert [one[0] for one in events(cache.path)] == ["user", "embedding_indexed", "turn_marked"]


def test_thinking_that_is_interrupted_is_not_kept(cache: Cache) -> None:
    turn = Chat(cache, Says("<think>I will lie", error=KeyboardInterrupt())).turn("Hello")
    assert (turn.response_id, turn.is_interrupted) == (None, True)
    turn = Chat(cache, Says("<think>x</think>Well, <thin", error=KeyboardInterrupt())).turn("Hello")
    assert turn.response == "Well,"


def test_thinking_that_another_program_has_stored_is_not_sent(cache: Cache) -> None:
    cache.append("user", "Hi")
    cache.append("assistant_message", f"<think>{THOUGHT}</think>Good day.")
    cache.append("response", "<think>nothing else</think>")
    cache.append("user", "I write <think> myself")
    says = Says("Yes.")
    Chat(cache, says).turn("And?")
    assert says.asked is not None
    assert [one.content for one in says.asked[1]] == ["Hi", "Good day.", "I write <think> myself"]


def test_thinking_that_another_program_has_stored_is_not_in_the_block_of_a_context(cache: Cache) -> None:
    cache.append("user", "I write <think> myself")
    cache.append("assistant_message", f"<think>{20 * THOUGHT}</think>Good day.")
    cache.append("response", "<think>nothing else</think>")
    context = cache.context(messages=3)
    lines = str(context).partition("## Last messages\n")[2].splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["user: I write <think> myself", "assistant: Good day."]
    # The messages themselves are as they are stored.
    assert context.messages[2].content == "<think>nothing else</think>"
