"""Structured log lines on stderr: JSON for machines, or text for people.

A line that cannot be written is lost, and no thread ends because of it: stderr may be closed, a terminal that is gone,
or a file on a full disk.
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


class _LossyStream:
    """Writes to a stream, and ignores errors."""

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
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _LossyStream(sys.stderr))),
    )
    logger: Logger = structlog.get_logger().bind(logger="pmm_cached")
    return logger
