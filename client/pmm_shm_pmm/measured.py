"""The process that `measure` times: PMM alone or under `pmm-shm run`, through PMM's own public names.

Each call is timed behind an append, so that no answer is the one of the call before.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

DEFAULT_RUNTIME = "pmm.runtime.loop:Runtime"
REPLY = "Noted."
WAITING = ["0", "0", DEFAULT_RUNTIME]
"""The arguments of a process that measures nothing, and stays until its input ends."""


def main(path: str, calls: str, messages: str, factory: str, output: str) -> None:
    """Time PMM on a copy of a ledger, which it appends to.

    Parameters:
        path: the copy.
        calls: number of calls of each fold.
        messages: number of user messages.
        factory: MODULE:FUNCTION that makes PMM's runtime of a log.
        output: number of an open file, for the results as JSON; times are in ms.
    """
    started_s = time.perf_counter()
    compute_ias_gas = _named("pmm.runtime.metrics:compute_ias_gas")
    build_self_model = _named("pmm.storage.projection:build_self_model")
    log = _named("pmm.storage.eventlog:EventLog")(path)
    events = list(log.read_all())
    found: dict[str, Any] = {
        "events": len(events),
        "answers": _digest([compute_ias_gas(events), build_self_model(events)]),
        "start_ms": _since_ms(started_s),
        "metrics_ms": [],
        "projection_ms": [],
        "message_ms": [],
        "problem": None,
    }
    for _ in range(int(calls)):
        for name, fold in (("metrics_ms", compute_ias_gas), ("projection_ms", build_self_model)):
            log.append(kind="note", content="measured", meta={})
            found[name].append(_timed_ms(log.read_all, fold))
    if int(messages):
        _send(found, log, int(messages), factory)
    found["kinds"] = [event["kind"] for event in log.read_all()[found["events"] :]]
    found["memory_kb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not the standard output, which is PMM's.
    os.write(int(output), json.dumps(found).encode())
    if [calls, messages, factory] == WAITING:
        sys.stdin.read()


def _send(found: dict[str, Any], log: Any, count: int, factory: str) -> None:
    try:
        runtime = _named(factory)(log)
        # No model is asked: its time is not PMM's.
        runtime.chat.generate = lambda *_, **__: REPLY
        handle_user = runtime.handle_user
    except Exception as error:
        found["problem"] = f"{factory}: {type(error).__name__}: {' '.join(str(error).split())}"
        return
    for number in range(count):
        found["message_ms"].append(_timed_ms(f"Message number {number}".strip, handle_user))


def _named(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def _timed_ms(given: Callable[[], Any], action: Callable[[Any], object]) -> float:
    begun_s = time.perf_counter()
    action(given())
    return _since_ms(begun_s)


def _since_ms(begun_s: float) -> float:
    return (time.perf_counter() - begun_s) * 1_000


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()


if __name__ == "__main__":
    main(*sys.argv[1:])
