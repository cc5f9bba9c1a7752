"""Programs on a pseudo-terminal that is emulated: what a person would see, and the answers that terminals give."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

import pexpect
import pyte
import pytest

from tests.support import daemons


class _Screen(pyte.HistoryScreen):
    def __init__(self, terminal: Terminal, rows: int, columns: int) -> None:
        super().__init__(columns, rows, history=10_000, ratio=0.5)
        self._terminal = terminal

    def write_process_input(self, data: str) -> None:
        """Where the cursor is, for example."""
        self._terminal.send(data)


class _Shows:
    """The end of the pseudo-terminal: a file that the output is written to."""

    def __init__(self, screen: _Screen) -> None:
        self._stream = pyte.Stream(screen)
        self.written = ""

    def write(self, output: str) -> None:
        self.written += output
        self._stream.feed(output)

    def flush(self) -> None:
        """Nothing waits."""


class Terminal(pexpect.spawn):  # type: ignore[misc]
    """A Python program at a terminal of this size, which asks for input with a prompt."""

    def __init__(self, arguments: list[str], env: Mapping[str, str], rows: int, columns: int, prompt: str) -> None:
        options = {"env": env, "encoding": "utf-8", "dimensions": (rows, columns), "timeout": 20}
        # A process that has run many tests may have descriptors that select(2) does not take.
        super().__init__(sys.executable, arguments, use_poll=True, **options)
        self.delaybeforesend = None
        self.screen = _Screen(self, rows, columns)
        self.logfile_read = self._shows = _Shows(self.screen)
        self._prompt = prompt
        self._row = -1
        self.welcome = ""

    def until_prompt(self) -> str:
        """Wait for the next prompt; the lines from the last one on, with what was typed there."""
        daemons.until(self._is_asking, self._prompt)
        row, self._row = max(0, self._row), self._cursor_row()
        return "\n".join(self.lines()[row : self._row])

    def say(self, line: str) -> str:
        """Type a line; what is shown below it until the next prompt."""
        self.sendline(line)
        return self.until_prompt().partition("\n")[2]

    def until(self, pattern: str) -> None:
        """Wait until something is on the screen, below the last prompt."""

        def is_shown() -> bool:
            self._show()
            return re.search(pattern, "\n".join(self.lines()[max(0, self._row) :])) is not None

        daemons.until(is_shown, pattern)

    @property
    def marks_pastes(self) -> bool:
        """Whether the terminal says now where a paste begins and ends."""
        # pyte keeps private modes shifted.
        return 2004 << 5 in self.screen.mode

    def raw(self) -> str:
        """All output so far, with its control sequences."""
        self._show()
        return self._shows.written

    def lines(self) -> list[str]:
        """What is and was on the screen."""
        scrolled: list[Any] = list(self.screen.history.top)
        shown = [self.screen.buffer[row] for row in range(self.screen.lines)]
        return [
            "".join(line[column].data for column in range(self.screen.columns)).rstrip() for line in scrolled + shown
        ]

    def text(self) -> str:
        """The same as one text."""
        return "\n".join(self.lines())

    def _is_asking(self) -> bool:
        self._show()
        cursor = self.screen.cursor
        line = "".join(self.screen.buffer[cursor.y][column].data for column in range(self.screen.columns))
        at_prompt = line.rstrip() == self._prompt.rstrip() and cursor.x == len(self._prompt)
        return at_prompt and self._cursor_row() > self._row

    def _cursor_row(self) -> int:
        return len(self.screen.history.top) + int(self.screen.cursor.y)

    def _show(self) -> None:
        """Show what has come."""
        with contextlib.suppress(pexpect.TIMEOUT, pexpect.EOF):
            while True:
                self.read_nonblocking(1 << 16, 0.02)


COMMAND = ["-m", "pmm_shm_cli", "chat"]
PROMPT = "you › "  # noqa: RUF001
Talk = Callable[..., Terminal]


@pytest.fixture
def talk(ledger: str, tmp_path: Path) -> Iterator[Talk]:
    """Start a chat at a terminal, by default of 80 columns and 24 rows, and wait for its first prompt."""
    children: list[Terminal] = []

    def start(
        *options: str, prompt: str = PROMPT, rows: int = 24, columns: int = 80, **changes: str | None
    ) -> Terminal:
        # What the tests themselves run in must not say what the terminal is like.
        own: dict[str, str | None] = {"COLUMNS": None, "LINES": None, "NO_COLOR": None, "INPUTRC": "/dev/null"}
        terminal = {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "XDG_STATE_HOME": str(tmp_path / "state")}
        variables = daemons.environment(**{**own, **terminal, **changes})
        child = Terminal([*COMMAND, ledger, "--no-autostart", *options], variables, rows, columns, prompt)
        children.append(child)
        child.welcome = child.until_prompt()
        return child

    yield start
    for child in children:
        if child.isalive():
            child.kill(signal.SIGKILL)
            child.wait()
        child.close()


def cells(line: str) -> int:
    """The width of a line on a terminal."""
    return sum(2 if east_asian_width(char) in "WF" else 1 for char in line)
