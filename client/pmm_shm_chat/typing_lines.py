"""What a person types at a terminal: lines, pasted texts, blocks, and the history of earlier ones.

Invariant: the history file is readable by its owner alone.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click

BLOCK = '"""'
"""Begins and ends a text of several lines."""
_ENTRIES_MAX = 1_000
_ENTRY_CHARS_MAX = 10_000
_FILE_BYTES_MAX = 4 << 20


def typed(prompt: str, more: str, remember: Callable[[str], None]) -> Iterator[str]:
    """Each text that is typed, until Ctrl-D. Ctrl-C drops what was begun. A paste of several lines is one text.

    Parameters:
        prompt: before a text.
        more: before each further line of a block.
        remember: called with each text.
    """
    while True:
        click.echo("")
        try:
            text = _one(prompt, more)
        except KeyboardInterrupt:
            continue
        except EOFError:
            click.echo("")
            return
        if text.strip():
            remember(text)
        yield text


def _one(prompt: str, more: str) -> str:
    """One line, or the inside of a block."""
    line = input(prompt)
    if not line.lstrip().startswith(BLOCK):
        return line
    text = line.lstrip()[len(BLOCK) :]
    while not text.rstrip().endswith(BLOCK):
        text += "\n" + input(more)
    return text.rstrip().removesuffix(BLOCK).strip("\n")


def history_file() -> Path:
    """In the user's state directory, `XDG_STATE_HOME`."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return Path(base if os.path.isabs(base) else Path.home() / ".local" / "state", "pmm-shm", "chat_history")


class History:
    """The texts that were typed, one JSON string per line; several chats may append at once.

    It is a help: where the file cannot be read or written, the chat goes on without it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[str]:
        """The newest texts, oldest first."""
        found: list[str] = []
        with contextlib.suppress(OSError), open(self._path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _FILE_BYTES_MAX))
            for line in file.read(_FILE_BYTES_MAX).splitlines()[-_ENTRIES_MAX:]:
                with contextlib.suppress(ValueError):
                    text = json.loads(line)
                    if isinstance(text, str):
                        found.append(text)
        return found

    def add(self, text: str) -> None:
        """Append a text."""
        if len(text) > _ENTRY_CHARS_MAX:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self._path, flags, 0o600)
            try:
                os.fchmod(descriptor, 0o600)
                os.write(descriptor, json.dumps(text).encode() + b"\n")
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def line_editing(earlier: Iterable[str], words: Iterable[str]) -> Iterator[Callable[[str], None]]:
    """Line editing with history and completion, if readline is available. Gives what remembers a text.

    Parameters:
        earlier: texts of the history, oldest first.
        words: completed at the beginning of a line.
    """
    try:
        import readline
    except ImportError:
        yield lambda text: None
        return

    def add(text: str) -> None:
        is_last = text == readline.get_history_item(readline.get_current_history_length())
        if not is_last and text.replace("\n", "").isprintable():
            # Readline takes what the terminal's encoding has.
            with contextlib.suppress(ValueError):
                readline.add_history(text)

    for text in earlier:
        add(text)
    names = list(words)

    def complete(text: str, state: int) -> str | None:
        found = [name for name in names if text and name.startswith(text)]
        return found[state] if state < len(found) else None

    before: Any = readline.get_completer(), readline.get_completer_delims()
    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
    readline.parse_and_bind("set enable-bracketed-paste on")
    # The lines of a block are one entry.
    readline.set_auto_history(False)
    try:
        yield add
    finally:
        readline.set_auto_history(True)
        readline.set_completer(before[0])
        readline.set_completer_delims(before[1])
