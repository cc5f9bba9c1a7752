"""Typing to `pmm-shm chat` on a real pseudo-terminal of 80 columns and 24 rows."""

from __future__ import annotations

import json
import re
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from unicodedata import east_asian_width

import pexpect
import pytest

from pmm_shm_chat.waiting import FRAMES
from tests.support import daemons
from tests.support.chat import Endpoint, check_sound, delta, events
from tests.support.screens import screen_of

COMMAND = ["-m", "pmm_shm_cli", "chat"]
PROMPT = "you › "  # noqa: RUF001
MORE = "  … "
PASTE_BEGINS, PASTE_ENDS = "\x1b[200~", "\x1b[201~"
Talk = Callable[..., "pexpect.spawn[str]"]


@pytest.fixture
def talk(ledger: str, tmp_path: Path) -> Iterator[Talk]:
    """Start a chat, and wait for its first prompt."""
    children: list[pexpect.spawn[str]] = []

    def start(*options: str, **changes: str | None) -> pexpect.spawn[str]:
        own: dict[str, str | None] = {"COLUMNS": None, "LINES": None, "NO_COLOR": None, "INPUTRC": "/dev/null"}
        terminal = {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "XDG_STATE_HOME": str(tmp_path / "state")}
        child = pexpect.spawn(
            sys.executable,
            [*COMMAND, ledger, "--no-autostart", *options],
            env=daemons.environment(**{**own, **terminal, **changes}),
            encoding="utf-8",
            dimensions=(24, 80),
            timeout=20,
        )
        child.delaybeforesend = None
        children.append(child)
        child.expect_exact(PROMPT)
        return child

    yield start
    for child in children:
        child.close(force=True)


def shown(child: pexpect.spawn[str]) -> str:
    """What is shown until the next prompt, without colours."""
    child.expect_exact(PROMPT)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", child.before or "").replace("\r", "")
    # A busy machine lets the chat wait.
    return re.sub(f"([{FRAMES}] [0-9]+ s)+", "", text)


def said(ledger: str) -> list[str]:
    return [content for kind, content, _ in events(ledger) if kind == "user"]


def cells(line: str) -> int:
    return sum(2 if east_asian_width(char) in "WF" else 1 for char in line)


# Texts of several lines.


def test_a_paste_of_several_lines_is_one_message(talk: Talk, ledger: str) -> None:
    child = talk()
    # Without this, a terminal does not say where a paste begins and ends.
    assert "\x1b[?2004h" in child.before
    child.send(f"{PASTE_BEGINS}def f():\n    return 1\n\nWhat is it? 東京{PASTE_ENDS}")
    child.send("\r")
    shown(child)
    assert said(ledger) == ["def f():\n    return 1\n\nWhat is it? 東京"]


def test_a_block_is_one_message(talk: Talk, ledger: str) -> None:
    child = talk()
    child.sendline('"""first')
    child.expect_exact(MORE)
    child.sendline("  second 東京")
    child.expect_exact(MORE)
    child.sendline('third"""')
    shown(child)
    child.sendline('"""one line"""')
    shown(child)
    assert said(ledger) == ["first\n  second 東京\nthird", "one line"]


def test_ctrl_c_drops_a_block(talk: Talk, ledger: str) -> None:
    child = talk()
    child.sendline('"""first')
    child.expect_exact(MORE)
    child.send("half\x03")
    shown(child)
    child.sendline("whole")
    shown(child)
    assert said(ledger) == ["whole"]


def test_edit_takes_what_the_editor_wrote(talk: Talk, ledger: str, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nprintf 'two\\nlines\\n' > \"$1\"\n", encoding="utf-8")
    editor.chmod(0o755)
    child = talk(EDITOR=str(editor), VISUAL=None)
    child.sendline("/edit")
    assert "lines" in shown(child)
    assert said(ledger) == ["two\nlines"]
    editor.write_text("#!/bin/sh\n", encoding="utf-8")
    child.sendline("/edit")
    assert "nothing was written" in shown(child)
    assert len(said(ledger)) == 1


# The history.


def test_the_history_outlives_the_chat_and_is_private(talk: Talk, ledger: str, tmp_path: Path) -> None:
    child = talk()
    child.sendline("a secret plan")
    shown(child)
    child.sendline("/status")
    shown(child)
    child.sendeof()
    child.expect(pexpect.EOF)
    file = tmp_path / "state" / "pmm-shm" / "chat_history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] == ["a secret plan", "/status"]
    child = talk()
    child.send("\x1b[A\x1b[A\r")
    shown(child)
    assert said(ledger) == ["a secret plan"] * 2


def test_a_history_that_cannot_be_kept_stops_nobody(talk: Talk, ledger: str, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file", encoding="utf-8")
    child = talk()
    child.sendline("hello")
    assert "Hello." in shown(child)


# Again.


def test_retry_and_undo(talk: Talk, ledger: str, endpoint: Endpoint) -> None:
    endpoint.refuse(500, "down")
    child = talk("--responder", "openai", "--model", "m", "--recall", "0")
    child.sendline("Anybody?")
    failed = shown(child)
    assert "(no answer; /retry asks again)" in failed
    assert "interrupted" not in failed
    endpoint.answer = lambda own, handler: own.events(handler, "Here.")
    child.sendline("/retry")
    assert "Here." in shown(child)
    child.sendline("/undo")
    assert "left out of later prompts: Anybody?" in shown(child)
    child.sendline("/undo")
    assert "nothing was said here yet" in shown(child)
    child.sendline("And now?")
    shown(child)
    sent = [[one["content"] for one in request["messages"][1:]] for request in endpoint.requests]
    assert sent == [["Anybody?"], ["Anybody?"], ["And now?"]]
    assert said(ledger) == ["Anybody?", "And now?"]
    check_sound(ledger)


def test_what_breaks_off_is_kept_and_said(talk: Talk, endpoint: Endpoint) -> None:
    endpoint.answer = lambda own, handler: own.events(handler, "It beg", end=None)
    child = talk("--responder", "openai", "--model", "m")
    child.sendline("Go")
    text = shown(child)
    assert "(interrupted; the beginning is kept)" in text
    assert "broke off" in text


# While it waits, and after.


def test_a_spinner_turns_until_the_first_word_and_leaves_nothing(talk: Talk, endpoint: Endpoint) -> None:
    go_on = threading.Event()

    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        go_on.wait(20)
        own.events(handler, "At last, ", "an answer.")

    endpoint.answer = answer
    child = talk("--responder", "openai", "--model", "m")
    child.sendline("Anybody?")
    child.expect(f"[{FRAMES}] [0-9] s")
    go_on.set()
    # The line is taken back before the answer begins on it.
    child.expect(r"\r\x1b\[K[^\n]*assistant › ")  # noqa: RUF001
    text = shown(child)
    assert not set(FRAMES) & set(text)
    assert re.search(r"\n  \([0-9]\.[0-9] s, about [0-9,]+ tokens in, 5 out\)\n", text)


def test_ctrl_c_while_it_waits_leaves_a_clean_line(talk: Talk, endpoint: Endpoint) -> None:
    endpoint.answer = lambda own, handler: own.done.wait(20) and None
    child = talk("--responder", "openai", "--model", "m")
    child.sendline("Anybody?")
    child.expect(f"[{FRAMES}] [0-9] s")
    child.send("\x03")
    child.expect_exact("\r\x1b[K")
    text = shown(child)
    assert "(no answer; /retry asks again)" in text
    assert "assistant" not in text
    endpoint.answer = lambda own, handler: own.events(handler, "Here.")
    child.sendline("/retry")
    assert "Here." in shown(child)


# Wide characters.


def test_wide_characters_stay_within_the_terminal(talk: Talk, endpoint: Endpoint) -> None:
    answer = "東京都に行く予定です。" * 20 + " and " + "ends with words. " * 12
    endpoint.answer = lambda own, handler: (own.begin(handler), own.send(handler, *map(delta, answer), "[DONE]"))[0]
    child = talk("--responder", "openai", "--model", "m")
    child.sendline("東京?")
    text = shown(child)
    lines = text[text.index("assistant ›") :].splitlines()  # noqa: RUF001
    assert max(map(cells, lines)) <= 80
    assert re.sub(r"\s", "", answer) in re.sub(r"\s", "", text)


# Markdown.


def answered(talk: Talk, endpoint: Endpoint, *pieces: str) -> list[str]:
    """The lines on the screen after an answer."""
    endpoint.answer = lambda own, handler: own.events(handler, *pieces)
    child = talk("--responder", "openai", "--model", "m")
    child.sendline("Go")
    child.expect_exact(PROMPT)
    lines = screen_of(child.before or "")
    begin = next(number for number, line in enumerate(lines) if line.startswith("assistant ›"))  # noqa: RUF001
    end = next(number for number, line in enumerate(lines) if " tokens in, " in line)
    return lines[begin:end]


def test_markdown_is_formatted_in_place(talk: Talk, endpoint: Endpoint, ledger: str) -> None:
    text = "## Plan\n\nSome **bold** words, 東京.\n\n- one\n- *two*\n\n```python\nx = 1\n\ny = 2\n```\n\nplain end"
    lines = answered(talk, endpoint, *text)
    shown_text = "\n".join(lines)
    assert not set("*`#") & set(shown_text)
    stripped = [line.strip() for line in lines if line.strip()]
    assert stripped == [
        "assistant ›",  # noqa: RUF001
        "Plan",
        "Some bold words, 東京.",
        "• one",
        "• two",
        "x = 1",
        "y = 2",
        "plain end",
    ]
    assert max(map(cells, lines)) <= 80
    assert [content for kind, content, _ in events(ledger) if kind == "response"] == [text]


def test_plain_paragraphs_stay_as_they_came(talk: Talk, endpoint: Endpoint) -> None:
    lines = answered(talk, endpoint, "One paragraph.\n", "Its second line.\n\n", "Another one: 2 * 3 < 7.")
    assert [line.strip() for line in lines] == [
        "assistant › One paragraph.",  # noqa: RUF001
        "Its second line.",
        "",
        "Another one: 2 * 3 < 7.",
    ]


def test_a_block_that_has_scrolled_away_stays_plain(talk: Talk, endpoint: Endpoint) -> None:
    items = [f"- item {number}" for number in range(40)]
    lines = answered(talk, endpoint, "\n".join(items))
    assert [line.strip() for line in lines][1:] == items[1:]


def test_markdown_brings_no_control_characters(talk: Talk, endpoint: Endpoint) -> None:
    evil = "**a** &#27;[2J&#x9b;31m &#8238;x [link](http://e.example/&#27;[1A) `\x1b[3J`\n\n- \x1b]0;title\x07 b"
    text = "\n".join(answered(talk, endpoint, evil))
    assert "\\x1b" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text), ascii(text)
