"""An ASGI program that answers every request with the self-model of the log at `PMM_DB`."""

import json
import os

from pmm.runtime.metrics import compute_ias_gas
from pmm.storage.eventlog import EventLog
from pmm.storage.projection import build_self_model


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    events = EventLog(os.environ["PMM_DB"]).read_all()
    body = json.dumps({"self_model": build_self_model(events), "ias_gas": compute_ias_gas(events)})
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode("ascii")})
