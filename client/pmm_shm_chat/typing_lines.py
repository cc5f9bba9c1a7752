"""What a person types at a terminal: lines, pasted texts, blocks, and the history of earlier ones.

Invariant: the history file is readable by its owner alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from pmm_shm.errors import ConfigError

BLOCK = '"""'
"""Begins and ends a text of several lines."""
_ENTRIES_MAX = 1_000
_ENTRY_CHARS_MAX = 10_000
_FILE_BYTES_MAX = 4 << 20


def typed(read: Callable[[], str], remember: Callable[[str], None]) -> Iterator[str]:
    """Each text as it is typed, until Ctrl-D. Ctrl-C drops what was begun; a second one says how to end.

    Parameters:
        read: reads a line or a whole block.
        remember: called with each text.
    """
    drops = 0
    while True:
        try:
            click.echo("")
            text = read()
            drops = 0
            if text.strip():
                remember(text)
        except KeyboardInterrupt:
            drops += 1
            if drops == 2:
                click.echo("  (Ctrl-D or /quit ends the chat)")
            continue
        except EOFError:
            click.echo("")
            return
        yield text


def is_open_block(text: str) -> bool:
    """Whether a block was begun and not ended."""
    return text.lstrip().startswith(BLOCK) and text.count(BLOCK) % 2 == 1


def message_in(text: str) -> str:
    """The inside of a block, or the whole of any other text; without blank lines around it."""
    inside = text.strip()
    if text.count(BLOCK) == 2 and inside.startswith(BLOCK) and inside.endswith(BLOCK):
        text = inside[len(BLOCK) : -len(BLOCK)]
    return trimmed(text)


def trimmed(text: str) -> str:
    """The text without blank lines around it. Its first line keeps its indent, which may be that of code."""
    blank = len(text) - len(text.lstrip())
    return text[text.rfind("\n", 0, blank) + 1 :].rstrip()


def edited(text: str = "") -> str | None:
    """The text after the user has edited it in a file; None if nothing was saved, or the file was removed.

    Raises:
        ConfigError: the editor's command cannot be split into words.
        click.ClickException: the editor failed.
    """
    try:
        saved = click.edit(text.encode(errors="replace"), extension=".md")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(f"VISUAL or EDITOR: {error}") from None
    return None if saved is None else saved.decode(errors="replace").replace("\r\n", "\n").removesuffix("\n")


def history_file() -> Path | None:
    """In the user's state directory, `XDG_STATE_HOME`; None for a user without a home."""
    base = os.environ.get("XDG_STATE_HOME", "")
    try:
        state = Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state"
    except RuntimeError:
        return None
    return state / "pmm-shm" / "chat_history"


class TypedTexts:
    """The texts that were typed, one JSON string per line; several chats may append at once.

    It is a help: where the file cannot be read or written, the chat goes on without it.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def read(self) -> list[str]:
        """The newest texts, oldest first."""
        found: list[str] = []
        if self._path is None:
            return found
        with contextlib.suppress(OSError), _opened(self._path, os.O_RDONLY) as descriptor:
            begin = max(0, os.fstat(descriptor).st_size - _FILE_BYTES_MAX)
            for line in os.pread(descriptor, _FILE_BYTES_MAX, begin).splitlines()[-_ENTRIES_MAX:]:
                # Python's parser calls itself for each bracket.
                with contextlib.suppress(ValueError, RecursionError):
                    text = json.loads(line)
                    if isinstance(text, str):
                        found.append(text)
        return found

    def add(self, text: str) -> None:
        """Append a text."""
        if self._path is None or len(text) > _ENTRY_CHARS_MAX:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _opened(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW) as descriptor:
                os.fchmod(descriptor, 0o600)
                # The line before it may have lost its end on a full disk.
                os.write(descriptor, b"\n" + json.dumps(text).encode())


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """The descriptor of a regular file: the chat waits for no pipe, and changes the mode of no device.

    Raises:
        OSError: it cannot be opened, or is something else.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield descriptor
    finally:
        os.close(descriptor)
