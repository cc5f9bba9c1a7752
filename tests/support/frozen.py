"""The last that the fork server imports: what each program forked from it would do anew, done once."""

from __future__ import annotations

import email.parser  # noqa: F401
import gc
import importlib.metadata
import pwd  # noqa: F401

import inotify_simple

# Asks ldconfig for the C library.
inotify_simple.INotify().close()
# Reads the folders of installed packages.
importlib.metadata.entry_points()
# A collection in a forked program would visit, and so copy, everything.
gc.collect()
gc.freeze()
