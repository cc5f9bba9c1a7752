"""Structured log lines on stderr: JSON for machines, or text for people.

A line that cannot be written is lost, and no thread ends because of it: stderr may be closed, a terminal that is gone,
or a file on a full disk. Written by hand, because a library for it takes a fifth of the memory of an idle daemon.
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from datetime import datetime, timezone
from typing import Any, Literal, TextIO

from pmm_shm.colours import wants_colour

LogFormat = Literal["json", "text"]
_LEVELS = ("debug", "info", "warning", "error")
_COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "31"}


class Logger:
    """Writes one line per event: a short text, and named values.

    Parameters:
        log_format: "json" or "text".
        level: the lowest level that is written.
        stream: where to; None for nowhere.
    """

    def __init__(self, log_format: LogFormat, level: str, stream: TextIO | None) -> None:
        self._stream = stream
        self._least = _LEVELS.index(level)
        self._is_coloured = stream is not None and wants_colour(stream)
        self._render = self._as_json if log_format == "json" else self._as_text

    def debug(self, event: str, **values: Any) -> None:
        self._write("debug", event, values)

    def info(self, event: str, **values: Any) -> None:
        self._write("info", event, values)

    def warning(self, event: str, **values: Any) -> None:
        self._write("warning", event, values)

    def error(self, event: str, **values: Any) -> None:
        self._write("error", event, values)

    def exception(self, event: str, **values: Any) -> None:
        """An error, with the exception that is handled at the moment."""
        self._write("error", event, {**values, "exception": traceback.format_exc().rstrip("\n")})

    def _write(self, level: str, event: str, values: dict[str, Any]) -> None:
        if self._stream is None or _LEVELS.index(level) < self._least:
            return
        timestamp = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
        with contextlib.suppress(OSError, ValueError):
            # In one call: threads write lines, not pieces of lines.
            self._stream.write(self._render(timestamp, level, event, values) + "\n")
            self._stream.flush()

    @staticmethod
    def _as_json(timestamp: str, level: str, event: str, values: dict[str, Any]) -> str:
        line = {"timestamp": timestamp, "level": level, "logger": "pmm_cached", "event": event, **values}
        return json.dumps(line, default=repr)

    def _as_text(self, timestamp: str, level: str, event: str, values: dict[str, Any]) -> str:
        # Values may come from a ledger: what would begin a line or steer the terminal is escaped, as in a string.
        exception = values.pop("exception", None)
        pairs = " ".join(f"{name}={_plain(value)}" for name, value in values.items())
        shown = f"\x1b[{_COLOURS[level]}m{level:<7}\x1b[0m" if self._is_coloured else f"{level:<7}"
        line = f"{timestamp} [{shown}] {event:<30} {pairs}".rstrip()
        return line if exception is None else f"{line}\n{exception}"


def _plain(value: Any) -> str:
    text = str(value)
    return text if text.isprintable() and " " not in text and text else repr(text)


def configure(log_format: LogFormat, level: str) -> Logger:
    """The daemon's logger."""
    return Logger(log_format, level, sys.stderr)
