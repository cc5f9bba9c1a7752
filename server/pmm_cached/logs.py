"""Log lines on stderr: structured, as JSON for machines or as text for people."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog

from pmm_shm.colours import wants_colour

LogFormat = Literal["json", "text"]
Logger = structlog.typing.FilteringBoundLogger


def configure(log_format: LogFormat, level: str) -> Logger:
    """The daemon's logger, `pmm_cached`."""
    renderer: structlog.typing.Processor
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=wants_colour(sys.stderr))
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    logger: Logger = structlog.get_logger().bind(logger="pmm_cached")
    return logger
