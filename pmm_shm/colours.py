"""Whether to use colours: one rule for daemon, command line and chat.

NO_COLOR (https://no-color.org) wins over FORCE_COLOR, which wins over the kind of stream. With TERM=dumb there are no
colours.
"""

from __future__ import annotations

import os
from typing import TextIO


def wants_colour(stream: TextIO) -> bool:
    """Whether to write control sequences for colours and styles to this stream."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()
