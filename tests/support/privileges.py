"""Processes of another user."""

from __future__ import annotations

AS_NOBODY = """
import os, pwd, sys
import pmm_cached.main
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
