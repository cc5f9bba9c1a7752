"""Processes of another user, and a folder that they may enter."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import daemons

AS_NOBODY = """
import os, pwd, sys
import encodings.ascii, encodings.idna, encodings.unicode_escape
import pmm_cached.main, pmm_cached.event_tables
from pmm_shm_client import EventLog, connect
from pmm_shm.errors import PmmShmError
# The interpreter may lie where only root can read, so all is imported before the privileges go.
if os.getuid() == 0:
    nobody = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setgid(nobody.pw_gid)
    os.setuid(nobody.pw_uid)
action, path = sys.argv[1:]
try:
    if action == "create":
        EventLog(path)
    elif action == "append":
        EventLog(path).append("user", "hello", {})
    elif action == "autostart":
        connect(path, autostart=True)
    elif action == "pmm-cached":
        sys.argv = [action, path]
        pmm_cached.main.main()
    else:
        with connect(path) as cache:
            print(cache.identity().as_of, cache.metrics().as_of)
except PmmShmError as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit(3)
"""


def as_nobody(action: str, path: Path) -> subprocess.CompletedProcess[str]:
    """An action without privileges: by the user nobody where this one is root."""
    return daemons.run_python(AS_NOBODY, action, str(path))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter and only its owner may write in: pytest's own are private."""
    folder = Path(tempfile.mkdtemp(prefix="pmm-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)
