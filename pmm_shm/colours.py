"""Whether colours are wanted: one answer for daemon, command line and chat.

NO_COLOR (https://no-color.org) goes before FORCE_COLOR, and that before what the stream is. A terminal that says it is
a dumb one gets none.
"""

from __future__ import annotations

import os
from typing import TextIO


def wants_colour(stream: TextIO) -> bool:
    """Whether control sequences for colours and styles go to this stream."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()
