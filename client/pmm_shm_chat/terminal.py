"""The loop of a conversation: one turn per line, until the input ends.

At a terminal, an error is shown and the conversation continues; Ctrl-C ends the current answer or command, and at the
prompt drops the line. Otherwise each line of the input is a turn, only answers go to the output, and the first error
ends the conversation.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import click

from pmm_shm.errors import ConfigError, InvalidTextError, LedgerUnwritableError, PmmShmError
from pmm_shm.ledger.obstacles import NEEDS_LEASE
from pmm_shm_chat.line_editor import reader
from pmm_shm_chat.offline import OfflineResponder
from pmm_shm_chat.progress import Timings
from pmm_shm_chat.screen import PlainScreen, Screen, TerminalScreen
from pmm_shm_chat.slash import COMMANDS, Session, is_command, open_commitments, run_command
from pmm_shm_chat.turn import Chat, NothingToUndoError, TurnResult
from pmm_shm_chat.typing_lines import TypedTexts, edited, history_file, message_in, trimmed, typed
from pmm_shm_terminal.exits import HUNG_UP, CommandFailed

UNNAMED = "assistant"
"""The agent's name before it has one."""

_HISTORY_CHARS_MAX = 1_000
_NAME_CHARS_MAX = 40
_UNDONE_CHARS_SHOWN = 60
_IMPORT_S = 0.05
"""How long an interruption waits for an import, before it is tried again."""


def converse(chat: Chat) -> None:
    """Talk until the input ends.

    Raises:
        PmmShmError: without a terminal: the failure of a line.
        click.Abort: without a terminal: interrupted.
    """
    if sys.stdin.isatty() and sys.stdout.isatty():
        screen = TerminalScreen()
        _Conversation(chat, screen).run(_at_a_terminal(chat, screen))
    else:
        _Conversation(chat, PlainScreen()).run(_piped())


class _Conversation:
    def __init__(self, chat: Chat, screen: Screen) -> None:
        self._chat = chat
        self._screen = screen
        self._in_turn = False
        self._timings: Timings | None = None
        self._recall_problem: str | None = None

    def run(self, lines: Iterator[str]) -> None:
        with self._interruptible():
            try:
                self._welcome()
                for line in lines:
                    try:
                        self._line(line)
                    except KeyboardInterrupt:
                        # Pressed again, while the first was told.
                        if not self._screen.is_terminal:
                            raise
            except EOFError:
                pass
            except OSError as error:
                if not self._screen.is_terminal or error.errno != errno.EIO:
                    raise
                # The terminal was closed, and with it what would have been said.
                raise SystemExit(HUNG_UP) from None
            except KeyboardInterrupt:
                if not self._screen.is_terminal:
                    raise click.Abort from None
                click.echo("")

    def _line(self, line: str) -> None:
        command, text = line.strip(), message_in(line)
        if not text:
            return
        try:
            if is_command(command):
                run_command(command, self._session())
            else:
                self._turn(lambda: self._chat.turn(text, self._screen.piece, self._screen.retract))
        except (PmmShmError, CommandFailed, click.ClickException, OSError) as error:
            if not self._screen.is_terminal or isinstance(error, BrokenPipeError):
                raise
            self._screen.note(error.format_message() if isinstance(error, click.ClickException) else str(error))
        except KeyboardInterrupt:
            if not self._screen.is_terminal:
                raise
            self._screen.note("interrupted")

    def _session(self) -> Session:
        return Session(self._chat.cache, self._timings, self._chat.responder.name, self._retry, self._undo, self._edit)

    def _retry(self) -> None:
        self._turn(lambda: self._chat.retry(self._screen.piece, self._screen.retract))

    def _undo(self) -> None:
        # Ctrl-C must not interrupt the append.
        self._in_turn = True
        try:
            text = self._chat.undo()
        finally:
            self._in_turn = False
        self._screen.note(f"left out of later prompts: {text[:_UNDONE_CHARS_SHOWN]}")

    def _edit(self) -> None:
        if not self._screen.is_terminal:
            raise ConfigError("/edit needs a terminal")
        # Ctrl-C is the editor's.
        self._in_turn = True
        try:
            text = trimmed(edited() or "")
        finally:
            self._in_turn = False
        if not text:
            self._screen.note("nothing was written")
            return
        self._screen.show_typed(text)
        self._turn(lambda: self._chat.turn(text, self._screen.piece, self._screen.retract))

    def _turn(self, ask: Callable[[], TurnResult]) -> None:
        screen = self._screen
        if self._chat.cache.is_of_pmm2:
            # Before the answer begins on the screen.
            raise LedgerUnwritableError(f"{self._chat.cache.path}: {NEEDS_LEASE}; nothing was written")
        name = self._chat.cache.identity().name
        # Also while the end is shown: the terminal gets its modes back.
        self._in_turn = True
        try:
            screen.begin(str(name)[:_NAME_CHARS_MAX] if name else UNNAMED)
            self._answer(ask)
        finally:
            self._in_turn = False

    def _answer(self, ask: Callable[[], TurnResult]) -> None:
        screen, is_interrupted = self._screen, True
        try:
            turn = ask()
            is_interrupted = turn.is_interrupted
        except (InvalidTextError, NothingToUndoError):
            # Nothing was asked.
            is_interrupted = False
            raise
        finally:
            screen.end(is_interrupted and self._chat.can_retry)
        self._timings = turn.timings
        screen.follow_ups(turn.follow_ups)
        if self._chat.responder.name != OfflineResponder.name:
            screen.cost(turn.timings.model_ms / 1_000, turn.usage, turn.is_usage_estimated)
        if turn.is_interrupted and not screen.is_terminal:
            raise KeyboardInterrupt
        if turn.context.recall_problem not in (None, self._recall_problem):
            # Once, not after every answer.
            what = "not all is recalled" if turn.context.recalled else "nothing recalled"
            screen.note(f"{what}: {turn.context.recall_problem}")
        self._recall_problem = turn.context.recall_problem

    def _welcome(self) -> None:
        cache = self._chat.cache
        identity, commitments = cache.identity(), cache.commitments()
        if cache.is_of_pmm2:
            self._screen.welcome(
                [
                    f"a ledger of PMM 2, event {identity.as_of:,}",
                    f"{NEEDS_LEASE}. /help lists the commands, Ctrl-D ends.",
                ]
            )
            return
        name = str(identity.name)[:_NAME_CHARS_MAX] if identity.name else "an agent without a name"
        self._screen.welcome(
            [
                f"{name}, {open_commitments(len(commitments.open))}, event {identity.as_of:,}",
                f"answers: {self._chat.responder.name}. /help lists the commands, Ctrl-D ends.",
            ]
        )

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let Ctrl-C interrupt the conversation, but never an append."""

        def interrupt(number: int, frame: FrameType | None) -> None:
            if _is_importing(frame):
                # A package of C modules that was imported in part cannot be imported again.
                again = threading.Timer(_IMPORT_S, os.kill, [os.getpid(), number])
                again.daemon = True
                again.start()
            elif self._in_turn:
                self._chat.interrupt()
            else:
                raise KeyboardInterrupt

        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            yield
            return
        before = signal.signal(signal.SIGINT, interrupt)
        # After Ctrl-Z, a shell has written in between.
        before_continue = signal.signal(signal.SIGCONT, lambda *_: self._screen.moved())
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
            signal.signal(signal.SIGCONT, before_continue)


def _is_importing(frame: FrameType | None) -> bool:
    """Whether the code of this frame runs within an import."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _piped() -> Iterator[str]:
    # Not `for line in sys.stdin`, which reads ahead: another program may wait for the answer before its next line.
    while line := sys.stdin.readline():
        yield line


def _at_a_terminal(chat: Chat, screen: TerminalScreen) -> Iterator[str]:
    """The texts that are typed, with the earlier messages to this agent and earlier texts as history."""
    history = TypedTexts(history_file())
    said = (one.content for one in chat.cache.recent().messages if one.kind == "user")
    earlier = [*(text for text in said if len(text) <= _HISTORY_CHARS_MAX), *history.read()]
    commands = {f"/{name}": command.help for name, command in COMMANDS.items()}
    read = reader(
        screen.prompt,
        screen.more_prompt,
        earlier,
        commands,
        has_colours=screen.has_colours,
        is_dumb=screen.is_dumb,
    )
    return typed(read, history.add)
