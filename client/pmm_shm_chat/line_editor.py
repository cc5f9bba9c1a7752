"""The prompt of a conversation at a terminal: by prompt_toolkit (the extra `chat`), or plainly without it.

Both read a line, or all lines of a block. With prompt_toolkit a paste of several lines is one text, which can be edited
before it is sent, also if it came while an answer was shown; commands are completed.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import termios
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from pmm_shm.errors import PmmShmError
from pmm_shm_chat.typing_lines import edited, is_open_block
from pmm_shm_terminal.output import printable

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent


def reader(
    prompt: str, more: str, earlier: Iterable[str], commands: Mapping[str, str], *, has_colours: bool, is_dumb: bool
) -> Callable[[], str]:
    """A function that reads the next text; it raises `KeyboardInterrupt` for Ctrl-C and `EOFError` for Ctrl-D.

    Parameters:
        prompt: before a text.
        more: before each further line.
        earlier: texts of the history, oldest first.
        commands: words that are completed at the beginning of a text, with their help.
        has_colours, is_dumb: what the terminal can do; a dumb one cannot move its cursor.
    """
    if is_dumb:
        return _plain_reader(prompt, more, earlier, marks_pastes=False)
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.history import InMemoryHistory
    except ImportError:
        return _plain_reader(prompt, more, earlier, marks_pastes=True)

    session: PromptSession[str] = PromptSession(
        [("bold ansigreen" if has_colours else "", prompt)],
        # A prompt for several lines takes the rest of the screen.
        multiline=Condition(lambda: "\n" in session.default_buffer.text),
        # Not before a row that the terminal's width begins: it is copied with the row above.
        prompt_continuation=lambda width, line, is_soft_wrap: "" if is_soft_wrap else more,
        key_bindings=_keys(),
        history=InMemoryHistory(list(earlier)),
        completer=_completer(commands),
        # Only a command reserves lines for the menu.
        complete_while_typing=Condition(lambda: session.default_buffer.text.startswith("/")),
        enable_suspend=True,
    )
    return session.prompt


def _plain_reader(prompt: str, more: str, earlier: Iterable[str], *, marks_pastes: bool) -> Callable[[], str]:
    """Reads by `input`, which readline serves if it is imported."""
    with contextlib.suppress(ImportError):
        import readline

        readline.parse_and_bind(f"set enable-bracketed-paste {'on' if marks_pastes else 'off'}")
        for text in earlier:
            if text.replace("\n", "").isprintable():
                # Readline takes what the terminal's encoding has.
                with contextlib.suppress(ValueError):
                    readline.add_history(text)

    def read() -> str:
        text = input(prompt)
        while is_open_block(text):
            text += "\n" + input(more)
        return text

    return read


def _keys() -> KeyBindings:
    """Enter sends a text, but within a block it breaks the line, as Alt-Enter always does."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open_block(buffer.text):
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def break_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-x", "c-e")
    async def edit(event: KeyPressEvent) -> None:
        """As in a shell. Not prompt_toolkit's own: it shows the traceback of an editor that fails."""
        from prompt_toolkit.application import run_in_terminal

        buffer = event.current_buffer
        text = await run_in_terminal(lambda: _edited_or_said(buffer.text))
        if text is not None:
            buffer.text = text
            buffer.validate_and_handle()

    return keys


def _edited_or_said(text: str) -> str | None:
    """The text that the user saved in the editor. None if nothing was saved; an editor that failed is reported."""
    # Ctrl-C is the editor's: the loop of the prompt hears of signals through this descriptor.
    wakeup = signal.set_wakeup_fd(-1) if threading.current_thread() is threading.main_thread() else None
    try:
        return edited(text)
    except (PmmShmError, click.ClickException, OSError) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        _show_wrapped(printable(" ".join(message.split())))
        return None
    finally:
        if wakeup is not None:
            signal.set_wakeup_fd(wakeup)


def _show_wrapped(text: str) -> None:
    from pmm_shm_chat.wrapping import LineWrapper

    wrapper = LineWrapper(_write, shutil.get_terminal_size().columns, 2)
    _write("  ")
    wrapper.add(text)
    wrapper.end()
    _write("\n")


def _completer(commands: Mapping[str, str]) -> Completer:
    from prompt_toolkit.completion import Completer, Completion

    class Commands(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
            begun = document.text_before_cursor
            for word, help in commands.items():
                if begun and word.startswith(begun):
                    yield Completion(word, -len(begun), display_meta=help)

    return Commands()


@contextlib.contextmanager
def quiet(is_dumb: bool) -> Iterator[None]:
    """Do not show what is typed within the block: the next prompt gets it, a paste of several lines as one text."""
    try:
        before: list[Any] = termios.tcgetattr(sys.stdin)
    except (termios.error, OSError, ValueError):
        yield
        return
    # Without ICANON long lines are not cut, and Ctrl-D waits for the prompt like all other keys.
    modes = before[3] & ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(sys.stdin, termios.TCSANOW, [*before[:3], modes, *before[4:]])
    marks = ("", "") if is_dumb else ("\x1b[?2004h", "\x1b[?2004l")
    try:
        _write(marks[0])
        yield
    finally:
        _write(marks[1])
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
