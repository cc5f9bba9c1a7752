"""Imports on first use that a fork cannot interrupt.

In a child that was forked while another thread imported a module, Python's lock on that module stays locked for ever.
So our own late imports hold one lock, and a fork waits for it.
"""

from __future__ import annotations

# Imported early: it registers fork hooks, and a fork that waits for the import would run only the last of them.
import logging  # noqa: F401
import threading

late_imports = threading.RLock()
"""Hold it around an import within a function: `with late_imports: from x import y`. Do not hold it around the import of
a user's module, which may wait for another thread, and do not wait for a connection while you hold it.
"""
