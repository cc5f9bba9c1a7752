"""A WSGI application for a prefork server, as a chat server is built: one cache, opened and used before the fork.

Each request appends an event of its own and reads it back; the answer says where it stands.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from pmm_shm_client import connect

cache = connect(os.environ["PREFORK_LEDGER"])
"""Made by the server's parent process (`--preload`), used by all its children."""
cache.append("identity_adopt", "before the fork")
assert cache.identity().name == "before the fork"
cache.frame(), cache.stats(), cache.embed("before the fork")


def app(environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], Any]) -> Iterable[bytes]:
    """Append a commitment with the key in the path, and read it back in every way."""
    key = environ["PATH_INFO"].lstrip("/")
    event_id = cache.append("commitment_open", key, {"cid": key, "text": key})
    commitments = cache.commitments()
    frame = cache.frame()
    answer = {
        "pid": os.getpid(),
        "id": event_id,
        "seen": key in commitments.open and key in frame.commitments().open,
        "as_of": min(commitments.as_of, frame.as_of),
        "name": frame.identity().name,
        # A daemon may take its time; that it answers is not asked of each request.
        "daemon": cache.stats()["daemon"] is not None if event_id % 8 == 0 else None,
    }
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
