"""`pmm-shm chat` as one meets it: on a real pseudo-terminal, and through pipes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pexpect
import pytest

from pmm_shm import limits
from pmm_shm.errors import EmbedderError
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.vectors.function import FunctionEmbedder
from pmm_shm_chat.slash import COMMANDS, Session, run_command
from pmm_shm_client import connect
from pmm_shm_client.cache import Cache
from tests.conftest import StartDaemon
from tests.support import daemons
from tests.support.chat import Endpoint, check_sound, delta, events
from tests.support.terminals import COMMAND, Talk, Terminal


def leave(child: Terminal) -> int:
    child.sendeof()
    child.expect(pexpect.EOF)
    child.wait()
    return child.exitstatus  # type: ignore[no-any-return]


# On a terminal.


def test_a_conversation(talk: Talk, ledger: str) -> None:
    child = talk()
    assert "an agent without a name" in child.welcome
    assert "/help" in child.welcome
    assert child.say("hello").startswith("assistant › Hello. I have no name yet.")  # noqa: RUF001
    assert "  • name adopted: Echo\n" in child.say("Your name is Echo.")
    shown = child.say("Please water the tomatoes")
    assert shown.startswith("Echo › I will water the tomatoes.")  # noqa: RUF001
    assert "  + commitment opened (" in shown
    assert "  ! directive: I must ask first\n" in child.say("You must ask first")
    assert "  ✓ commitment closed (" in child.say("done: tomatoes")
    assert leave(child) == 0
    check_sound(ledger)


def test_long_answers_break_between_words(talk: Talk) -> None:
    child = talk()
    words = " ".join(f"word{number:02d}" for number in range(18))
    shown = child.say(words)
    # Not what was typed, which a busy machine may echo twice.
    lines = shown[shown.index("assistant ›") :].splitlines()  # noqa: RUF001
    answer = [line for line in lines if re.search(r"word\d\d", line)]
    assert all(len(line) <= 80 for line in answer), answer
    assert len(answer) >= 2
    assert re.findall(r"word\d\d", " ".join(answer)) == words.split()
    # Copied without an indent.
    assert answer[1].startswith("word")


def test_every_command(talk: Talk) -> None:
    child = talk()
    child.say("Your name is Echo.")
    child.say("Please water the tomatoes")
    child.say("You must ask first")
    looks = {
        "metrics": ("ias", "stage", "S0"),
        "commitments": ("open commitments: 1", "water the tomatoes"),
        "identity": ("Echo", "openness"),
        "directives": ("I must ask first", "score"),
        "stats": ("hit rate", "none serves this ledger", "last turn", "append"),
        "status": ("Echo, stage S0, event ", "1 open commitment,", "answers: offline; no daemon"),
        "verify": ("hash chain", "ok,", "nothing is published"),
        "help": ("/recall TEXT", "/quit"),
    }
    assert looks.keys() | {"recall", "quit", "retry", "undo", "edit"} == COMMANDS.keys()
    for name, words in looks.items():
        shown = child.say(f"/{name}")
        for word in words:
            assert word in shown, (name, shown)
    for name in COMMANDS:
        assert f"/{name}" in child.say("/help")
    assert "Please water the tomatoes" in child.say("/recall tomatoes")
    assert "/recall: usage: /recall TEXT" in child.say("/recall")
    assert "/metrics: usage: /metrics" in child.say("/metrics x")
    unknown = child.say("/nope")
    assert "unknown command /nope; /help lists them, " in unknown
    assert len(unknown.strip().splitlines()) == 1
    child.sendline("/quit")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0


def test_recall_beside_a_daemon(talk: Talk, ledger: str, start_daemon: StartDaemon) -> None:
    start_daemon(ledger)
    child = talk()
    child.say("The tomatoes want water")
    shown = child.say("/recall tomatoes want water")
    assert re.search(r"│ 0\.\d{3} +│ 1 +│ user +│ The tomatoes want water", shown)
    assert "events folded" in child.say("/stats")


def test_what_cannot_be_recalled_is_said_once(talk: Talk, ledger: str) -> None:
    """Without a daemon a search embeds the newest events alone."""
    with EventLog(ledger) as log:
        log.append_many([("user", f"message {number}") for number in range(limits.SEARCH_EVENTS_MAX + 10)])
    child = talk()
    assert "not all is recalled: " in child.say("one")
    assert "recalled: " not in child.say("two")
    assert "  not all events were searched; " in child.say("/recall three")


def test_recall_by_words_alone_says_so(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: list[str]) -> list[list[float]]:
        raise EmbedderError("the provider is down")

    with connect(ledger, embedder=FunctionEmbedder("down", 4, fail)) as cache:
        cache.append("user", "The boat is called Nora.")
        run_command("/recall boat", Session(cache, None, "m", *[lambda: None] * 3))
    shown = capsys.readouterr().out
    assert "The boat is called Nora." in shown
    assert "  found by words alone: the provider is down\n" in shown


def test_history(talk: Talk, ledger: str) -> None:
    with EventLog(ledger) as log:
        log.append("user", "said on another day")
    child = talk()
    child.say("first line")
    child.say("second line")
    up = "\x1b[A"
    assert "“second line”" in child.say(up)
    assert "“first line”" in child.say(up * 2)
    assert "“said on another day”" in child.say(up * 4)


def test_commands_are_completed(talk: Talk) -> None:
    child = talk()
    child.send("/re")
    child.until("/recall +the past events.*\n +/retry +answer the last message")
    child.send("c")
    child.until("› /rec\n +/recall +the past events[^/]*$")  # noqa: RUF001
    child.send("\t")
    child.until("› /recall")  # noqa: RUF001
    assert "/recall: usage: /recall TEXT" in child.say("")


def test_ctrl_c_at_the_prompt_drops_the_line_and_ctrl_d_ends(talk: Talk, ledger: str) -> None:
    child = talk()
    for key in ("\x03", "half a line\x03"):
        child.send(key)
        child.until_prompt()
    assert "Hello." in child.say("hello")
    child.send("\x04")
    child.expect(pexpect.EOF)
    child.wait()
    assert (child.exitstatus, child.signalstatus) == (0, None)
    assert "Traceback" not in child.raw()
    assert [content for kind, content, _ in events(ledger) if kind == "user"] == ["hello"]


def trickle(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
    own.begin(handler)
    own.send(handler, delta("I will begin. "), delta("And "), delta("then "))
    own.has_begun.set()
    own.done.wait(20)


def test_ctrl_c_ends_an_answer(talk: Talk, ledger: str, endpoint: Endpoint) -> None:
    endpoint.answer = trickle
    child = talk("--responder", "openai", "--model", "m")
    child.sendline("Tell me everything")
    child.until("And")
    child.send("\x03")
    assert "(interrupted; the beginning is kept)" in child.until_prompt()
    kind, content, meta = events(ledger)[2]
    # The last piece may have been on its way.
    assert (kind, content.removesuffix(" then")) == ("response", "I will begin. And")
    assert meta == {"model": "m", "interrupted": True}
    assert not any(kind == "commitment_open" for kind, _, _ in events(ledger))
    endpoint.answer = lambda own, handler: own.events(handler, "Better ", "now.")
    assert "Better now." in child.say("again")
    assert leave(child) == 0


def test_ctrl_c_before_the_first_word(talk: Talk, ledger: str, endpoint: Endpoint) -> None:
    asked = threading.Event()

    def silent(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        asked.set()
        own.done.wait(20)

    endpoint.answer = silent
    child = talk("--responder", "openai", "--model", "m")
    child.sendline("Anybody?")
    assert asked.wait(20)
    child.send("\x03")
    child.until_prompt()
    assert [kind for kind, _, _ in events(ledger)] == ["user", "embedding_indexed", "turn_marked"]
    assert leave(child) == 0


def test_an_answer_is_shown_while_it_comes(talk: Talk, endpoint: Endpoint) -> None:
    go_on = threading.Event()

    def answer(own: Endpoint, handler: BaseHTTPRequestHandler) -> None:
        own.begin(handler)
        own.send(handler, delta("early "))
        go_on.wait(20)
        own.send(handler, delta("late"), "[DONE]")

    endpoint.answer = answer
    child = talk("--responder", "openai", "--model", "m")
    child.sendline("x")
    child.until("assistant › early")  # noqa: RUF001
    go_on.set()
    assert "early late" in child.until_prompt()


def test_a_failing_endpoint_is_told_and_the_conversation_goes_on(talk: Talk, endpoint: Endpoint) -> None:
    endpoint.refuse(401, "bad key")
    child = talk("--responder", "openai", "--model", "m")
    shown = child.say("hello")
    assert "status 401: bad key: check OPENAI_API_KEY" in " ".join(shown.split())
    assert "Traceback" not in shown
    endpoint.answer = lambda own, handler: own.events(handler, "Here.")
    assert "Here." in child.say("hello again")


def test_nothing_in_an_answer_moves_the_terminal(talk: Talk, ledger: str, endpoint: Endpoint) -> None:
    evil = "\x1b[31mred\x1b]0;title\x07\x9b2J\rover\x08\u202e\ud800 I will do \x1b[5m."
    endpoint.answer = lambda own, handler: own.events(handler, *evil, "\nnext line", "\n- I will \x1b[2J clear")
    with EventLog(ledger) as log:
        log.append("identity_adopt", "x", {"name": "\x1b[2JEvil"})
    child = talk("--responder", "openai", "--model", "m", TERM="dumb")
    before = len(child.raw())
    child.say("x")
    shown = child.raw()[before:]
    # What readline itself sends.
    left = re.sub(r"\x1b\[\?2004[hl]", "", shown).replace("\r\n", "\n").replace("\r", "")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", left), ascii(left)
    assert "\\x1b[31mred" in shown
    assert "\n" in left
    assert "next line" in left
    assert "commitment opened" in left


def test_without_colours_and_without_unicode(talk: Talk) -> None:
    child = talk(NO_COLOR="1", LC_ALL="POSIX", PYTHONIOENCODING="ascii", PYTHONUTF8="0", prompt="you > ")
    assert "assistant > " in child.say("The café?")
    # Bold and underlined text at most.
    assert not re.search(r"\x1b\[[0-9;]*[349][0-9]", child.raw())
    assert "Traceback" not in child.raw()


def test_autonomy_is_started_and_stopped(ledger: str, tmp_path: Path) -> None:
    package = tmp_path / "site" / "sitecustomize.py"
    package.parent.mkdir()
    package.write_text(
        "import sys, types\n"
        "module = types.ModuleType('pmm_shm_chat.autonomy')\n"
        "class Autonomy:\n"
        "    def __init__(self, cache, tick_seconds): print('made', tick_seconds, flush=True)\n"
        "    def start(self): print('started', flush=True)\n"
        "    def stop(self): print('stopped', flush=True)\n"
        "module.Autonomy = Autonomy\n"
        "sys.modules[module.__name__] = module\n"
    )
    ran = piped(ledger, "--tick-seconds", "2.5", text="hello\n", env=daemons.with_path(package.parent))
    assert ran.stdout.splitlines()[:2] == ["made 2.5", "started"]
    assert ran.stdout.splitlines()[-1] == "stopped"
    assert piped(ledger, "--tick-seconds", "0", text="").returncode == 2


# Through pipes.


def test_an_elected_worker_ticks(talk: Talk, ledger: str, start_daemon: StartDaemon) -> None:
    start_daemon(ledger)
    one, other = talk("--tick-seconds", "0.2"), talk("--tick-seconds", "0.2")
    assert "hello" in one.say("hello").lower()

    def ticks() -> list[dict[str, Any]]:
        with EventLog(ledger) as log:
            return log.query(kind="autonomy_tick")

    daemons.until(lambda: len(ticks()) >= 3, "ticks")
    assert all(set(event["meta"]) == {"telemetry", "stage"} for event in ticks())
    for child in (one, other):
        assert leave(child) == 0
    seen = len(ticks())
    time.sleep(0.5)
    assert len(ticks()) == seen
    check_sound(ledger)


def piped(
    ledger: str, *options: str, text: str, env: dict[str, str] | None = None, module: list[str] = COMMAND
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *module, ledger, "--no-autostart", "--recall", "0", *options],
        input=text,
        env=env or daemons.environment(),
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=30,
        check=False,
    )


def test_a_line_is_a_turn_and_the_output_is_the_answers(ledger: str) -> None:
    ran = piped(ledger, text="Your name is Echo.\n\n   \nWho are you?\nPlease sing")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == [
        "Thank you. My name is Echo.",
        "My name is Echo.",
        "I will sing. Tell me “done: …” when you have seen it.",
    ]
    with Cache(ledger) as cache:
        assert len(cache.commitments().open) == 1


def test_as_a_module(ledger: str) -> None:
    ran = piped(ledger, text="Who are you?", module=["-m", "pmm_shm_chat"])
    assert ran.stdout.startswith("I have no name yet.")


def test_commands_through_a_pipe(ledger: str) -> None:
    ran = piped(ledger, text="/identity\n/quit\nnever read\n")
    assert ran.returncode == 0
    assert "openness" in ran.stdout
    assert events(ledger) == []


def test_blocks_through_a_pipe(ledger: str) -> None:
    assert piped(ledger, text='"""/quit"""\n').returncode == 0
    assert events(ledger)[0][1] == "/quit"


def test_the_first_error_ends_it(ledger: str) -> None:
    ran = piped(ledger, text="/nope\nhello\n")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == 'pmm-shm: unknown command /nope; /help lists them, and """ begins a message\n'
    assert events(ledger) == []


def test_each_answer_is_out_before_the_next_line_is_read(ledger: str) -> None:
    process = subprocess.Popen(
        [sys.executable, *COMMAND, ledger, "--no-autostart", "--recall", "0"],
        env=daemons.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for _ in range(2):
        process.stdin.write("Who are you?\n")
        process.stdin.flush()
        assert process.stdout.readline().startswith("I have no name yet.")
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_input_that_is_no_text(ledger: str) -> None:
    ran = piped(ledger, text="caf\udce9 \x1b[2J\n")
    assert ran.returncode == 0
    assert ran.stdout == "I heard “caf� \\x1b[2J”.\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--responder", "openai"], "needs --model"),
        (["--model", "m"], "--responder openai only"),
        (["--recall", "101"], "--recall"),
        (["--messages", "64"], "--messages"),
        (["--reflections", "-1"], "--reflections"),
    ],
)
def test_wrong_usage(ledger: str, options: list[str], message: str) -> None:
    ran = piped(ledger, *options, text="")
    assert ran.returncode == 2
    assert message in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_create(tmp_path: Path) -> None:
    path = str(tmp_path / "new.db")
    ran = piped(path, text="hello")
    assert (ran.returncode, len(ran.stderr.splitlines())) == (1, 1)
    assert "new.db" in ran.stderr
    assert piped(path, "--create", text="hello").returncode == 0
    assert piped(path, "--create", text="hello").returncode == 0
    assert len(events(path)) == 8


def test_the_ledger_of_the_environment(ledger: str) -> None:
    ran = subprocess.run(
        [sys.executable, *COMMAND, "--no-autostart"],
        input="hello\n",
        env=daemons.environment(PMM_DB=ledger),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ran.returncode == 0
    assert events(ledger)[0][1] == "hello"


def test_autostart(ledger: str) -> None:
    try:
        ran = subprocess.run(
            [sys.executable, *COMMAND, ledger],
            input="hello\nhello again\n/stats\n",
            env=daemons.environment(),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert "none serves this ledger" not in ran.stdout
        assert daemons.serving(ledger)
    finally:
        for pid in daemons.serving(ledger):
            daemons.end(pid)


def test_a_failing_endpoint_ends_it(ledger: str, endpoint: Endpoint) -> None:
    endpoint.refuse(500, "down")
    ran = piped(ledger, "--responder", "openai", "--model", "m", text="a\nb\n")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("pmm-shm: responder openai (m): http://127.0.0.1:")
    assert len(ran.stderr.splitlines()) == 1
    assert [content for kind, content, _ in events(ledger) if kind == "user"] == ["a"]


def test_tabs_go_through_a_pipe(ledger: str, endpoint: Endpoint) -> None:
    endpoint.answer = lambda own, handler: own.events(handler, "all:\n", "\techo \x1b[2J\n")
    ran = piped(ledger, "--responder", "openai", "--model", "m", text="a")
    assert (ran.stdout, ran.stderr) == ("all:\n\techo \\x1b[2J\n\n", "")


TELLS = """\
from pathlib import Path

from pmm_shm_chat.screen import PlainScreen

piece = PlainScreen.piece


def told(screen, text):
    piece(screen, text)
    with open(Path(__file__).with_name("pieces"), "a") as pieces:
        pieces.write(text)


PlainScreen.piece = told
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_within_an_answer(
    ledger: str,
    endpoint: Endpoint,
    tmp_path: Path,
    number: int,
    code: int,
) -> None:
    """In a pipe an answer appears when it is complete: a file says how much of it has arrived."""
    endpoint.answer = trickle
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(TELLS, encoding="utf-8")
    pieces = site / "pieces"
    pieces.touch()
    process = subprocess.Popen(
        [sys.executable, *COMMAND, ledger, "--no-autostart", "--recall", "0", "--responder", "openai", "--model", "m"],
        env=daemons.with_path(site),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"Tell me\nmore\n")
    process.stdin.flush()
    daemons.until(lambda: "then" in pieces.read_text(encoding="utf-8"), "the beginning of an answer")
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (code, b"")
    assert events(ledger)[2] == ("response", "I will begin. And then", {"model": "m", "interrupted": True})
    assert len([kind for kind, _, _ in events(ledger) if kind == "user"]) == 1
    check_sound(ledger)


def test_nobody_reads_the_answers(ledger: str) -> None:
    process = subprocess.Popen(
        [sys.executable, *COMMAND, ledger, "--no-autostart", "--recall", "0"],
        env=daemons.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(b"hello\nagain\n" * 50, timeout=20)
    assert (process.returncode, err) == (1, b"")
    check_sound(ledger)


# What is shown.


def test_help_names_every_option() -> None:
    ran: Any = daemons.run_python("from pmm_shm_cli.main import main; main()", "chat", "--help")
    for option in ("--create", "--responder", "--model", "--recall", "--reflections", "--messages", "--tick-seconds"):
        assert option in ran.stdout
    assert "--autostart / --no-autostart" in ran.stdout
