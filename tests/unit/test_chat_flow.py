"""How the chat breaks its lines."""

from __future__ import annotations

import time

from pmm_shm_chat.screen import LineWrapper, readable

# What is shown.


def flowed(*pieces: str, width: int = 30, indent: int = 2) -> list[str]:
    shown: list[str] = []
    flow = LineWrapper(shown.append, width, indent)
    for piece in pieces:
        flow.add(piece)
    flow.end()
    return "".join(shown).split("\n")


def test_words_are_not_torn() -> None:
    text = "the quick brown fox jumps over the lazy dog and runs away"
    lines = flowed(*text, width=24)
    assert all(len(line) <= 24 for line in [" " * 2 + lines[0], *lines[1:]])
    assert " ".join(line.strip() for line in lines) == text
    assert flowed(text, width=24) == lines


def test_lines_of_the_text_stay() -> None:
    assert flowed("a\n\n  b", " c\n") == ["a", "  ", "    b c", "  "]


def test_words_longer_than_a_line_and_scripts_without_spaces() -> None:
    assert "".join(line.strip() for line in flowed("x" * 100)) == "x" * 100
    lines = flowed("今日はとても良い天気ですから散歩に行きましょう")
    assert all(len(line.strip()) <= 14 for line in lines)
    assert "".join(line.strip() for line in lines).startswith("今日は")


def test_readable() -> None:
    assert readable("a\r\nb\tc\x1b[1m\n") == "a\nb    c\\x1b[1m\n"


def test_flow_is_quick() -> None:
    start = time.process_time()
    flowed(*["word and "] * 20_000)
    assert time.process_time() - start < 3
