"""Ctrl-C at moments that nobody can aim at: the chat goes on, whole, and the terminal keeps its modes."""

from __future__ import annotations

import io
import signal
import sys
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import pytest

from pmm_shm.errors import InvalidTextError, LedgerBusyError
from pmm_shm_chat.responder import Message
from pmm_shm_chat.terminal import converse
from pmm_shm_chat.turn import Chat, NothingToUndoError
from pmm_shm_client.cache import Cache
from tests.support import daemons
from tests.support.chat import Says, check_sound, events
from tests.support.terminals import Talk

PRESSES = """\
import signal

from pmm_shm_chat import screen, typing_lines


def pressed(method):
    def call(*arguments):
        method(*arguments)
        signal.raise_signal(signal.SIGINT)

    return call


screen.TerminalScreen.note = pressed(screen.TerminalScreen.note)
typing_lines.TypedTexts.add = pressed(typing_lines.TypedTexts.add)
"""


@pytest.mark.parametrize("moment", ["TerminalScreen.note", "TypedTexts.add"])
def test_ctrl_c_beside_an_answer_ends_no_chat(talk: Talk, ledger: str, tmp_path: Path, moment: str) -> None:
    site = tmp_path / "site"
    site.mkdir()
    lines = PRESSES.splitlines(keepends=True)
    kept = "".join(line for line in lines if "= pressed" not in line or moment in line)
    (site / "sitecustomize.py").write_text(kept, encoding="utf-8")
    child = talk(PYTHONPATH=daemons.with_path(site)["PYTHONPATH"])
    child.say("/nothing")
    child.say("hello")
    child.say("/undo")
    # A line that is dropped while it is remembered is not said.
    assert [kind for kind, _, _ in events(ledger)].count("response") == (moment != "TypedTexts.add")
    assert "Traceback" not in child.raw()
    child.send("\x04")
    child.wait()
    modes = termios.tcgetattr(child.child_fd)[3]
    assert modes & termios.ECHO
    assert modes & termios.ICANON
    check_sound(ledger)


def test_an_import_is_not_interrupted(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of C modules, such as numpy, that was imported in part cannot be imported again."""
    name = "imported_while_ctrl_c_is_pressed"
    (tmp_path / f"{name}.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))

    class Imports(Says):
        def stream(self, context: str, history: Sequence[Message], user_text: str) -> Iterator[str]:
            __import__(name)
            yield "It begins"
            signal.sigtimedwait([], 10)
            yield " and ends."

    monkeypatch.setattr(sys, "stdin", io.StringIO("Go\n"))
    with pytest.raises(click.Abort):
        converse(Chat(cache, Imports()))
    assert name in sys.modules
    assert events(cache.path)[2] == ("response", "It begins", {"model": "says", "interrupted": True})


# After what was not said.


def test_nothing_to_retry_is_no_answer_that_is_missing(talk: Talk, ledger: str) -> None:
    child = talk()
    assert child.say("/retry") == "  nothing was said here yet, or it is undone already\n"
    assert not events(ledger)


def test_a_text_that_is_refused_leaves_the_last_turn_as_it_is(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Chat(cache, Says("Yes."))
    chat.turn("Is it?")
    with pytest.raises(InvalidTextError):
        chat.turn(" ")
    assert chat.undo() == "Is it?"


def test_after_a_message_that_was_not_appended_no_other_one_is_answered_again(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = Chat(cache, Says("Yes."))
    chat.turn("Is it?")
    before = events(cache.path)

    def busy(*_: object, **__: object) -> None:
        raise LedgerBusyError("busy")

    with monkeypatch.context() as patched:
        patched.setattr(cache, "append", busy)
        patched.setattr(cache, "append_many", busy)
        with pytest.raises(LedgerBusyError):
            chat.turn("And now?")
    with pytest.raises(NothingToUndoError):
        chat.retry()
    assert not chat.can_retry
    assert events(cache.path) == before
