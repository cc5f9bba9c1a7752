"""Log lines on stderr: structured, as JSON for machines or as text for people.

No thread ends because a line cannot be written: stderr may be a file on a full disk, a terminal that is gone, or
closed.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Literal, TextIO, cast

import structlog

from pmm_shm.colours import wants_colour

LogFormat = Literal["json", "text"]
Logger = structlog.typing.FilteringBoundLogger


class _Lenient:
    """A stream that loses what cannot be written."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(text)

    def flush(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.flush()


def configure(log_format: LogFormat, level: str) -> Logger:
    """The daemon's logger, `pmm_cached`."""
    renderer: structlog.typing.Processor
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr is not None and wants_colour(sys.stderr))
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Lenient(sys.stderr))),
    )
    logger: Logger = structlog.get_logger().bind(logger="pmm_cached")
    return logger
