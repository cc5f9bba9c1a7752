"""Imports on first use, which no fork comes into the middle of.

Python's lock on a module stays locked for ever in a child that was forked while another thread imported it. So our own
late imports hold one lock, and a fork waits for it.
"""

from __future__ import annotations

# Not late: it registers hooks for a fork, of which only the last would run where the fork waits for the import.
import logging  # noqa: F401
import threading

late_imports = threading.RLock()
"""Hold it around an import within a function: `with late_imports: from x import y`. Not around modules of users, which
may wait for each other; and nobody waits for a connection with it.
"""
