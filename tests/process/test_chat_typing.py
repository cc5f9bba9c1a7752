"""Typing to `pmm-shm chat` on a real pseudo-terminal of 80 columns and 24 rows."""

from __future__ import annotations

import json
import re
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unicodedata import east_asian_width

import pexpect
import pytest

from tests.support import daemons
from tests.support.chat import Endpoint, check_sound, delta, events

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
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", child.before or "").replace("\r", "")


def said(ledger: str) -> list[str]:
    return [content for kind, content, _ in events(ledger) if kind == "user"]


def cells(line: str) -> int:
    return sum(2 if east_asian_width(char) in "WF" else 1 for char in line)


# Texts of several lines.


def test_a_paste_of_several_lines_is_one_message(talk: Talk, ledger: str) -> None:
    child = talk()
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
