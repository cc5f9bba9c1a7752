"""Typing to `pmm-shm chat` on a real pseudo-terminal of 80 columns and 24 rows."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import stat
import termios
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pexpect
import pytest

from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_chat.typing_lines import TypedTexts, history_file
from pmm_shm_chat.waiting import FRAMES
from tests.support import daemons
from tests.support.chat import Endpoint, check_sound, delta, events
from tests.support.terminals import Talk, cells

MORE = "  …"
PASTE_BEGINS, PASTE_ENDS = "\x1b[200~", "\x1b[201~"


def said(ledger: str) -> list[str]:
    return [content for kind, content, _ in events(ledger) if kind == "user"]


# Texts of several lines.


def test_a_paste_of_several_lines_is_one_message(talk: Talk, ledger: str) -> None:
    child = talk()
    assert child.marks_pastes
    child.send(f"{PASTE_BEGINS}def f():\n    return 1\n\nWhat is it? 東京{PASTE_ENDS}")
    child.send("\r")
    child.until_prompt()
    assert said(ledger) == ["def f():\n    return 1\n\nWhat is it? 東京"]


def test_a_block_is_one_message(talk: Talk, ledger: str) -> None:
    child = talk()
    child.sendline('"""first')
    child.until(MORE)
    child.sendline("  second 東京")
    child.until(MORE)
    child.sendline('third"""')
    child.until_prompt()
    child.sendline('"""one line"""')
    child.until_prompt()
    assert said(ledger) == ["first\n  second 東京\nthird", "one line"]


def test_a_paste_that_looks_like_a_block_is_sent_as_it_is(talk: Talk, ledger: str) -> None:
    child = talk()
    text = '"""Doc."""\n\nx = 1'
    child.send(f"{PASTE_BEGINS}{text}{PASTE_ENDS}")
    child.until("x = 1")
    child.say("")
    assert said(ledger) == [text]


def test_alt_enter_breaks_the_line(talk: Talk, ledger: str) -> None:
    child = talk()
    child.send("one\x1b\rtwo")
    child.until(f"{MORE} two")
    child.say("")
    assert said(ledger) == ["one\ntwo"]


def test_a_typed_line_is_broken_without_a_mark(talk: Talk, ledger: str) -> None:
    child = talk()
    line = "".join(f"{number:04d}" for number in range(60))
    child.say(line)
    assert line in child.text().replace("\n", "")
    assert said(ledger) == [line]


def test_what_is_typed_during_an_answer_is_not_lost_and_not_shown_within_it(
    talk: Talk, ledger: str, endpoint: Endpoint
) -> None:
    go_on = threading.Event()

    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        own.begin(handler)
        own.send(handler, delta("The beginning "))
        go_on.wait(20)
        own.send(handler, delta("and the end."), "[DONE]")

    endpoint.answer = answer
    child = talk("--responder", "openai", "--model", "m", "--recall", "0")
    child.sendline("Go")
    child.until("The beginning")
    assert child.marks_pastes
    child.send(f"typed ahead\n{PASTE_BEGINS}pasted\nin two lines{PASTE_ENDS}")
    go_on.set()
    child.until("… in two lines")
    assert child.text().count("› The beginning and the end.\n") == 2  # noqa: RUF001
    child.say("")
    assert said(ledger) == ["Go", "typed ahead", "pasted\nin two lines"]


def test_a_large_paste_during_an_answer_and_ctrl_d_wait_for_the_prompt(
    talk: Talk, ledger: str, endpoint: Endpoint
) -> None:
    pasted = "\n".join(f"{number} " + "word " * 1_500 + "end" for number in range(3))

    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        own.begin(handler)
        own.send(handler, delta("The beginning "))
        # The terminal keeps 4,096 bytes, and more only when the prompt reads.
        own.done.wait(1)
        own.send(handler, delta("and the end."), "[DONE]")

    endpoint.answer = answer
    child = talk("--responder", "openai", "--model", "m", "--recall", "0")
    child.sendline("Go")
    child.until("The beginning")
    child.send(f"{PASTE_BEGINS}{pasted}{PASTE_ENDS}\r")
    child.until("(?s)the end.*The beginning")
    child.send("\x04")
    child.expect(pexpect.EOF)
    assert said(ledger) == ["Go", pasted]


@pytest.mark.parametrize("way", ["without the extra", "a dumb terminal"])
def test_without_prompt_toolkit_blocks_and_pastes_work_too(talk: Talk, ledger: str, tmp_path: Path, way: str) -> None:
    pytest.importorskip("readline")
    site = tmp_path / "site"
    site.mkdir()
    (site / "prompt_toolkit.py").write_text("raise ImportError('not installed')\n", encoding="utf-8")
    changes = {"TERM": "dumb"} if way == "a dumb terminal" else {"PYTHONPATH": daemons.with_path(site)["PYTHONPATH"]}
    with EventLog(ledger) as log:
        log.append("user", "said on another day")
    child = talk(**changes)
    child.say("\x1b[A")
    if way == "a dumb terminal":
        # It does not know the marks of a paste, and would show them.
        assert "2004" not in child.raw()
    else:
        child.send(f"{PASTE_BEGINS}one\ntwo{PASTE_ENDS}")
        child.say("")
    child.sendline('"""three')
    child.until(MORE)
    child.say('four"""')
    child.send("half\x03")
    child.until_prompt()
    child.sendeof()
    child.expect(pexpect.EOF)
    pasted = ["one\ntwo"] * (way != "a dumb terminal")
    assert said(ledger) == ["said on another day"] * 2 + [*pasted, "three\nfour"]
    assert "Traceback" not in child.raw()


# The terminal itself.


def test_a_signal_gives_the_terminal_back(talk: Talk) -> None:
    child = talk()
    child.kill(signal.SIGTERM)
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 128 + signal.SIGTERM
    assert not child.marks_pastes
    modes = termios.tcgetattr(child.child_fd)[3]
    assert modes & termios.ECHO
    assert modes & termios.ICANON


def test_a_terminal_that_is_closed_in_an_answer_ends_the_chat(talk: Talk, ledger: str, endpoint: Endpoint) -> None:
    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        own.begin(handler)
        own.send(handler, delta("The beginning "))
        own.done.wait(20)

    endpoint.answer = answer
    child = talk("--responder", "openai", "--model", "m")
    child.sendline("Go")
    child.until("The beginning")
    # The descriptor itself is closed with the others.
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), child.child_fd)
    child.kill(signal.SIGHUP)
    child.wait()
    assert child.exitstatus == 128 + signal.SIGHUP
    assert [content for kind, content, _ in events(ledger) if kind == "response"] == ["The beginning"]


def test_ctrl_c_drops_a_block(talk: Talk, ledger: str) -> None:
    child = talk()
    child.sendline('"""first')
    child.until(MORE)
    child.send("half\x03")
    child.until_prompt()
    child.sendline("whole")
    child.until_prompt()
    assert said(ledger) == ["whole"]


def test_edit_takes_what_the_editor_wrote(talk: Talk, ledger: str, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nprintf 'two\\nlines\\n' > \"$1\"\n", encoding="utf-8")
    editor.chmod(0o755)
    child = talk(EDITOR=str(editor), VISUAL=None)
    child.sendline("/edit")
    assert "lines" in child.until_prompt()
    assert said(ledger) == ["two\nlines"]
    editor.write_text("#!/bin/sh\n", encoding="utf-8")
    child.sendline("/edit")
    assert "nothing was written" in child.until_prompt()
    assert len(said(ledger)) == 1


@pytest.mark.parametrize(
    ("editor", "shown"),
    [
        ("printf 'caf\\351' > \"$2\"", "caf"),
        ('echo "with $1" > "$2"', "with a word"),
        ('rm "$2"', "nothing was written"),
        ("exit 3", "Editing failed"),
    ],
)
def test_edit_with_any_editor(talk: Talk, tmp_path: Path, editor: str, shown: str) -> None:
    path = tmp_path / "an editor"
    path.write_text(f"#!/bin/sh\n{editor}\n", encoding="utf-8")
    path.chmod(0o755)
    child = talk(EDITOR=f"'{path}' 'a word'", VISUAL=None)
    child.sendline("/edit")
    assert shown in child.until_prompt()
    # The conversation goes on.
    child.sendline("Hello")
    assert "Hello. I have no name yet" in child.until_prompt()
    assert "Traceback" not in child.raw()


def test_an_editor_that_cannot_be_run(talk: Talk) -> None:
    child = talk(EDITOR="vi 'unclosed", VISUAL=None)
    child.sendline("/edit")
    assert "VISUAL or EDITOR: No closing quotation" in child.until_prompt()


def test_ctrl_c_in_the_editor_is_the_editor_s(talk: Talk, ledger: str, tmp_path: Path) -> None:
    go_on = tmp_path / "go on"
    editor = tmp_path / "editor"
    wait = f"while [ ! -e '{go_on}' ]; do sleep 0.05; done"
    editor.write_text(f"#!/bin/sh\ntrap '' INT\necho editing\n{wait}\necho typed > \"$1\"\n", encoding="utf-8")
    editor.chmod(0o755)
    child = talk(EDITOR=str(editor), VISUAL=None)
    child.sendline("/edit")
    child.until("editing")
    child.send("\x03")
    child.until(r"\^C")
    go_on.touch()
    assert "interrupted" not in child.until_prompt()
    assert said(ledger) == ["typed"]


def test_ctrl_x_ctrl_e_edits_the_line(talk: Talk, ledger: str, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nprintf ' and more' >> \"$1\"\n", encoding="utf-8")
    editor.chmod(0o755)
    child = talk(EDITOR=str(editor), VISUAL=None)
    child.send("a draft\x18\x05")
    child.until("a draft and more")
    child.say("")
    assert said(ledger) == ["a draft and more"]


@pytest.mark.parametrize(
    ("editor", "shown"),
    [('rm "$1"', ""), ("exit 3", r"Editing\s+failed"), ("'", "No closing quotation"), ("true", "")],
)
def test_a_draft_outlives_an_editor_that_saves_nothing(
    talk: Talk, ledger: str, tmp_path: Path, editor: str, shown: str
) -> None:
    path = tmp_path / "editor"
    path.write_text(f"#!/bin/sh\n{editor}\necho done > '{tmp_path}/done'\n", encoding="utf-8")
    path.chmod(0o755)
    child = talk(EDITOR="vi '" if editor == "'" else str(path), VISUAL=None)
    child.send("a draft\x18\x05")
    child.until(f"{shown}(.|\n)*a draft" if shown else "a draft")
    if not shown:
        daemons.until((tmp_path / "done").exists, "the editor's end")
    child.say("")
    assert said(ledger) == ["a draft"]
    assert "xception" not in child.raw()


def test_ctrl_x_ctrl_e_takes_any_bytes_and_leaves_ctrl_c_to_the_editor(talk: Talk, ledger: str, tmp_path: Path) -> None:
    go_on = tmp_path / "go on"
    editor = tmp_path / "editor"
    wait = f"while [ ! -e '{go_on}' ]; do sleep 0.05; done"
    script = f"#!/bin/sh\ntrap '' INT\necho editing\n{wait}\nprintf 'caf\\351\\r\\nend' > \"$1\"\n"
    editor.write_text(script, encoding="utf-8")
    editor.chmod(0o755)
    child = talk(EDITOR=str(editor), VISUAL=None)
    child.send("a draft\x18\x05")
    child.until("editing")
    child.send("\x03")
    child.until(r"\^C")
    go_on.touch()
    child.until_prompt()
    assert said(ledger) == ["caf\ufffd\nend"]


def test_a_second_ctrl_c_says_how_to_end(talk: Talk) -> None:
    child = talk()
    child.send("half a line\x03")
    assert "Ctrl-D" not in child.until_prompt()
    child.send("\x03")
    assert "(Ctrl-D or /quit ends the chat)" in child.until_prompt()


def test_paths_comments_and_several_lines_are_messages(talk: Talk, ledger: str) -> None:
    child = talk()
    texts = [
        "/usr/bin is full",
        "// a comment",
        "/* one\n two */",
        "/etc\nis what?",
        "/help me\nto quit",
        "/quit\n/quit",
    ]
    for text in texts:
        child.send(f"{PASTE_BEGINS}{text}{PASTE_ENDS}")
        child.say("")
    assert said(ledger) == texts
    assert "/recall TEXT" in child.say("/?")
    child.sendline("/bye")
    child.expect(pexpect.EOF)


def test_a_line_that_is_no_command_is_told_and_can_be_sent_as_a_message(talk: Talk, ledger: str) -> None:
    child = talk()
    assert 'unknown command /nope; /help lists them, and """ begins a message' in child.say("/nope it")
    assert said(ledger) == []
    # It is the newest line of the history.
    child.send('\x1b[A"""\x01"""\r')
    child.until_prompt()
    child.say("\x1b[A")
    assert said(ledger) == ["/nope it"] * 2
    # Copied from a page together with the end of its line.
    child.send(f"{PASTE_BEGINS}/status\n{PASTE_ENDS}")
    assert "no daemon" in child.say("")


def test_the_indent_of_a_message_stays(talk: Talk, ledger: str, tmp_path: Path) -> None:
    code = "    def f():\n        return 1"
    editor = tmp_path / "editor"
    editor.write_text(f"#!/bin/sh\nprintf '\n{code}\n\n' > \"$1\"\n", encoding="utf-8")
    editor.chmod(0o755)
    child = talk(EDITOR=str(editor), VISUAL=None)
    child.send(f"{PASTE_BEGINS}\n{code}\n\n{PASTE_ENDS}")
    child.say("")
    child.say("/edit")
    child.send(f'{PASTE_BEGINS}"""\n{code}\n"""{PASTE_ENDS}')
    child.say("")
    assert said(ledger) == [code] * 3


# The history.


def test_the_history_outlives_the_chat_and_is_private(talk: Talk, ledger: str, tmp_path: Path) -> None:
    child = talk()
    child.sendline("a secret plan")
    child.until_prompt()
    child.sendline("/status")
    child.until_prompt()
    child.sendeof()
    child.expect(pexpect.EOF)
    file = tmp_path / "state" / "pmm-shm" / "chat_history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[1:]] == [
        "a secret plan",
        "/status",
    ]
    child = talk()
    child.send("\x1b[A\x1b[A\r")
    child.until_prompt()
    assert said(ledger) == ["a secret plan"] * 2


def test_a_history_that_cannot_be_kept_stops_nobody(talk: Talk, ledger: str, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file", encoding="utf-8")
    child = talk()
    child.sendline("hello")
    assert "Hello." in child.until_prompt()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "directory"])
def test_a_history_that_is_no_file_is_left_alone(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "chat_history"
    make(path)
    path.chmod(0o755)
    history = TypedTexts(path)
    assert history.read() == []
    history.add("hello")
    # Somebody else may read the pipe.
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        history.add("hello")
    finally:
        os.close(reader)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_an_entry_that_no_chat_wrote_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "chat_history"
    path.write_text('"first"\n' + "[" * 100_000 + '\n{"a": 1}\n"last"\n', encoding="utf-8")
    assert TypedTexts(path).read() == ["first", "last"]


def test_a_line_that_lost_its_end_on_a_full_disk_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "chat_history"
    history = TypedTexts(path)
    history.add("first")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 4, before[1]))
    try:
        history.add("lost")
        history.add("lost, too")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    history.add("last")
    assert history.read() == ["first", "last"]


def test_a_user_without_a_home_has_no_history(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", fail)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    history = TypedTexts(history_file())
    history.add("hello")
    assert history.read() == []


# Again.


def test_retry_and_undo(talk: Talk, ledger: str, endpoint: Endpoint) -> None:
    endpoint.refuse(500, "down")
    child = talk("--responder", "openai", "--model", "m", "--recall", "0")
    child.sendline("Anybody?")
    failed = child.until_prompt()
    assert "(no answer; /retry asks again)" in failed
    assert "interrupted" not in failed
    endpoint.answer = lambda own, handler: own.events(handler, "Here.")
    child.sendline("/retry")
    assert "Here." in child.until_prompt()
    child.sendline("/undo")
    assert "left out of later prompts: Anybody?" in child.until_prompt()
    child.sendline("/undo")
    assert "nothing was said here yet" in child.until_prompt()
    child.sendline("And now?")
    child.until_prompt()
    sent = [[one["content"] for one in request["messages"][1:]] for request in endpoint.requests]
    assert sent == [["Anybody?"], ["Anybody?"], ["And now?"]]
    assert said(ledger) == ["Anybody?", "And now?"]
    check_sound(ledger)


def test_what_breaks_off_is_kept_and_said(talk: Talk, endpoint: Endpoint) -> None:
    endpoint.answer = lambda own, handler: own.events(handler, "It beg", end=None)
    child = talk("--responder", "openai", "--model", "m")
    child.sendline("Go")
    text = child.until_prompt()
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
    child.until(f"[{FRAMES}] [0-9] s")
    go_on.set()
    text = child.until_prompt()
    assert not set(FRAMES) & set(text)
    assert re.search(r"\n  \([0-9]\.[0-9] s, about [0-9,]+ tokens in, 5 out\)\n", text)


def test_ctrl_c_while_it_waits_leaves_a_clean_line(talk: Talk, endpoint: Endpoint) -> None:
    endpoint.answer = lambda own, handler: own.done.wait(20) and None
    child = talk("--responder", "openai", "--model", "m")
    child.sendline("Anybody?")
    child.until(f"[{FRAMES}] [0-9] s")
    child.send("\x03")
    text = child.until_prompt()
    assert "(no answer; /retry asks again)" in text
    assert "assistant" not in text
    endpoint.answer = lambda own, handler: own.events(handler, "Here.")
    child.sendline("/retry")
    assert "Here." in child.until_prompt()


def test_the_tokens_are_the_endpoint_s_own(talk: Talk, endpoint: Endpoint) -> None:
    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        own.begin(handler)
        usage = {"prompt_tokens": 1_234, "completion_tokens": 56}
        own.send(handler, delta("Here."), {"choices": [], "usage": usage}, "[DONE]")

    endpoint.answer = answer
    child = talk("--responder", "openai", "--model", "m")
    assert re.search(r"\n  \([0-9]\.[0-9] s, 1,234 tokens in, 56 out\)\n", child.say("Anybody?"))


# Wide characters.


def test_wide_characters_stay_within_the_terminal(talk: Talk, endpoint: Endpoint) -> None:
    answer = "東京都に行く予定です。" * 20 + " and " + "ends with words. " * 12
    endpoint.answer = lambda own, handler: (own.begin(handler), own.send(handler, *map(delta, answer), "[DONE]"))[0]
    child = talk("--responder", "openai", "--model", "m")
    child.sendline("東京?")
    text = child.until_prompt()
    lines = text[text.index("assistant ›") :].splitlines()  # noqa: RUF001
    assert max(map(cells, lines)) <= 80
    assert re.sub(r"\s", "", answer) in re.sub(r"\s", "", text)


# Markdown.


def answered(talk: Talk, endpoint: Endpoint, *pieces: str) -> list[str]:
    """The lines on the screen after an answer."""
    endpoint.answer = lambda own, handler: own.events(handler, *pieces)
    child = talk("--responder", "openai", "--model", "m")
    child.sendline("Go")
    child.until_prompt()
    lines = child.lines()
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


def test_a_table_is_formatted_and_blank_lines_do_not_pile_up(talk: Talk, endpoint: Endpoint) -> None:
    table = "| Tag | Ort |\n| --- | --- |\n| Mo | 東京都 |"
    lines = answered(talk, endpoint, f"{table}\n\n> quoted\n\n```\nx = 1\n```\n\n- last")
    shown = "\n".join(line.strip() for line in lines)
    assert "|" not in shown
    assert re.search(r"Tag +Ort\n─+\nMo +東京都\n\n▌ quoted\n\nx = 1\n\n• last$", shown), shown


CODE = ["def f():", f"    return '{'a long line of code, ' * 5}'"]


@pytest.mark.parametrize("rows", [24, 6])
def test_code_is_copied_as_it_is(talk: Talk, endpoint: Endpoint, rows: int) -> None:
    """Without an indent, and without a line break that the terminal did not make; also if there is no room for it."""
    child = talk("--responder", "openai", "--model", "m", rows=rows)
    endpoint.answer = lambda own, handler: own.events(
        handler, *"\n".join(["So:\n", "```python", *CODE, "```", "\nBye"])
    )
    child.say("Go")
    lines = child.lines()
    begin = lines.index(CODE[0])
    assert lines[begin + 1 : begin + 3] == [CODE[1][:80], CODE[1][80:]]
    assert lines.count(CODE[0]) == 1
    assert ("```python" in lines) == (rows == 6)
    assert "Bye" in lines


def test_a_line_break_of_two_characters_may_come_in_two_pieces(talk: Talk, endpoint: Endpoint) -> None:
    lines = answered(talk, endpoint, "One\r", "\nTwo\r", "\n\r", "\nThree", "\n", "\n\n")
    assert [line.strip() for line in lines] == ["assistant › One", "Two", "", "Three"]  # noqa: RUF001


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


# Other sizes.


def test_a_terminal_that_becomes_narrower_during_an_answer(talk: Talk, endpoint: Endpoint) -> None:
    go_on = threading.Event()

    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        own.begin(handler)
        own.send(handler, delta("Some **bold** words. "))
        go_on.wait(20)
        own.send(handler, *(delta(f"word{number} ") for number in range(30)))
        own.send(handler, delta("\n\nAnother **strong** one."), "[DONE]")

    endpoint.answer = answer
    child = talk("--responder", "openai", "--model", "m", "--recall", "0")
    child.sendline("Go")
    child.until("bold")
    child.setwinsize(24, 40)
    child.screen.resize(24, 40)
    go_on.set()
    text = child.until_prompt()
    assert re.findall(r"word\d+", text) == [f"word{number}" for number in range(30)]
    # Nobody knows where this block begins now; the next one is formatted.
    assert "**bold**" in text
    assert "Another strong one." in " ".join(text.split())


def test_a_chat_that_was_suspended_erases_nothing_of_the_shell(talk: Talk, endpoint: Endpoint) -> None:
    go_on = threading.Event()

    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        own.begin(handler)
        own.send(handler, delta("Some **bold** words. "))
        go_on.wait(20)
        own.send(handler, delta("\n\nAnother **strong** one."), "[DONE]")

    endpoint.answer = answer
    child = talk("--responder", "openai", "--model", "m", "--recall", "0")
    child.sendline("Go")
    child.until("bold")
    child.kill(signal.SIGSTOP)
    child.kill(signal.SIGCONT)
    go_on.set()
    text = child.until_prompt()
    assert "Some **bold** words." in text
    assert "Another strong one." in text


def test_a_narrow_terminal(talk: Talk, ledger: str) -> None:
    child = talk(rows=12, columns=40)
    assert "commitments, event 0\n" in child.welcome
    child.say("The tomatoes want water")
    shown = child.say("/recall tomatoes want water")
    assert "The tomatoes want" in shown
    assert "commitments" in child.say("/status")
    assert re.search(r"\n +the published state\n", child.say("/help"))


@pytest.mark.parametrize(("columns", "is_formatted"), [(24, True), (16, True), (9, False)])
def test_a_terminal_for_which_lines_are_too_long(
    talk: Talk, ledger: str, endpoint: Endpoint, columns: int, is_formatted: bool
) -> None:
    with EventLog(ledger) as log:
        log.append("identity_adopt", "Aria", {"name": "Aria"})
    endpoint.answer = lambda own, handler: own.events(handler, *"Some **bold** words that go on and on.\n\nThe end.")
    child = talk("--responder", "openai", "--model", "m", rows=30, columns=columns)
    shown = child.say("Go")
    assert ("**" not in shown) == is_formatted, shown
    assert [shown.count(word) for word in ("Aria", "Some", "bold", "words", "end")] == [1] * 5, shown


def test_a_name_longer_than_a_line_is_shown_once(talk: Talk, ledger: str, endpoint: Endpoint) -> None:
    name = "Maximilian Alexander von Hohenzollern"
    with EventLog(ledger) as log:
        log.append("identity_adopt", name, {"name": name})
    endpoint.answer = lambda own, handler: own.events(handler, *"Some **bold** words.\n\nThe end.")
    shown = talk("--responder", "openai", "--model", "m", rows=20, columns=24).say("Go")
    assert shown.startswith("Maximilian Alexander von\n Hohenzollern ›\nSome bold words.\n\nThe end."), shown  # noqa: RUF001


def test_a_long_name_stands_above_its_answer(talk: Talk, ledger: str, endpoint: Endpoint) -> None:
    name = "Maximilian Alexander von Hohenzollern"
    with EventLog(ledger) as log:
        log.append("identity_adopt", name, {"name": name})
    endpoint.answer = lambda own, handler: own.events(handler, *"Some **bold** words that wrap at forty.\n\nThe end.")
    child = talk("--responder", "openai", "--model", "m", rows=12, columns=40)
    child.sendline("Go")
    lines = child.until_prompt().splitlines()
    begin = lines.index(f"{name} ›")  # noqa: RUF001
    assert lines[begin : begin + 5] == [
        lines[begin],
        "Some bold words that wrap at forty.",
        "",
        "The end.",
        lines[begin + 4],
    ]
