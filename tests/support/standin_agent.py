"""A process with one agent of the stand-in for PMM, plain or launched: `python -m tests.support.standin_agent`.

It reads commands from its standard input and answers each on its standard output, one JSON object a line. New
commitments get ids by a counter, so two such processes that do the same append the same.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import sys
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from tests.support import run_golden, standin_package

_TIMES = frozenset({"ts", "timestamp", "first_seen_ts", "last_seen_ts", "created_at"})


class Agent:
    """The runtime and the autonomy of one ledger at a time; of several workers, each with its own, on one log."""

    def __init__(self, report: Callable[[], Any], as_of: run_golden.AsOf, *, hears_others: bool) -> None:
        self._report = report
        self._as_of = as_of
        self._hears_others = hears_others
        self._log: Any = None
        self._who = 0

    def reset(self, path: str) -> None:
        """Another ledger, and the first cid again."""
        self._cids: defaultdict[int, Iterator[int]] = defaultdict(lambda: itertools.count(1))
        self.open(path)

    def open(self, path: str) -> None:
        from pmm.commitments import tracker
        from pmm.runtime import metrics
        from pmm.storage import eventlog, projection

        # They know the position, not the log.
        projection._global_projection_cache = metrics._global_metrics_cache = None
        tracker.uuid4 = self._new_cid
        self._log = eventlog.EventLog(path)
        self._live = self._log.read_all()
        self._heard: list[list[Any]] = []
        self._prompts: list[Any] = []
        self._log.register_append_listener(lambda event: self._heard.append([event["id"], event["kind"]]))
        self._workers: dict[int, tuple[Any, Any]] = {}
        self.join()

    def join(self) -> None:
        """Start this worker on the open log."""
        from pmm.runtime import loop

        runtime = loop.Runtime(self._log)
        runtime.chat = self
        self._workers[self._who] = runtime, loop.AutonomyLoop(self._log, runtime)

    @property
    def _runtime(self) -> Any:
        return self._workers[self._who][0]

    @property
    def _loop(self) -> Any:
        return self._workers[self._who][1]

    def _new_cid(self) -> uuid.UUID:
        return uuid.uuid5(uuid.NAMESPACE_OID, f"{self._who} {next(self._cids[self._who])}")

    def close(self) -> None:
        self._log._conn.close()
        self._log = None

    def generate(self, messages: Any) -> str:
        """The model: says what the command told it to. Meanwhile others append, and daemons die."""
        self._prompts.append(messages)
        for event in self._meanwhile:
            if event is None:
                self._kill_daemon()
            elif self._hears_others:
                run_golden.append_as_another(Path(self._log.path), *event)
            else:
                self.append(*event)
        return self._reply

    def _kill_daemon(self) -> None:
        from pmm_shm.instance.paths import Instance
        from pmm_shm.wire.endpoints import find_endpoints

        endpoints = find_endpoints(Instance.of(self._log.path))
        if endpoints is not None:
            os.kill(endpoints.pid, signal.SIGKILL)

    def message(self, text: str, reply: str, meanwhile: Any) -> Any:
        self._reply, self._meanwhile = reply, meanwhile
        return self._runtime.handle_user(text)

    def tick(self) -> Any:
        return self._loop.tick()

    def append(self, kind: Any, content: Any, meta: Any) -> Any:
        return self._log.append(kind=kind, content=content, meta=meta)

    def call(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """A call as the golden data have them, on the objects of this agent."""
        owner, _, function = name.partition(".")
        made = [run_golden.argument_of(value, self._log) for value in args]
        if owner == "fold":
            return run_golden.folds(made[0], self._log, run_golden.by_comparing)
        mine = {
            "tracker": self._runtime.tracker,
            "memegraph": self._runtime.memegraph,
            "restructurer": self._loop.restructurer,
            "runtime": self._runtime,
        }
        found = getattr(mine[owner], function) if owner in mine else run_golden.function_of(owner, function, self._log)
        return found(*made, **kwargs)

    def state(self) -> Any:
        """Everything at the end."""
        from pmm.storage import projection

        snapshot = self._runtime._get_snapshot()
        ids = [event["id"] for event in self._live]
        assert ids == sorted(set(ids))
        assert self._log._cache_last_id == (ids[-1] if ids else 0)
        tail = self._log.read_tail(limit=3)
        assert all(mine is other for mine, other in zip(tail, self._live[-3:], strict=True))
        assert run_golden.by_comparing(snapshot.events, self._live) == snapshot.last_event_id
        return {
            "events": self._live,
            "folds": run_golden.folds(self._live, self._log, run_golden.by_comparing),
            "cached": projection.build_self_model_cached(self._log),
            "graph": [self._runtime.memegraph.stage_history(), self._runtime.memegraph.open_commitments_snapshot()],
            "snapshot": [snapshot.identity, snapshot.self_model, snapshot.ias, snapshot.gas, snapshot.stage],
            "sound": self._log.verify_chain(),
        }

    def golden(self, name: str) -> list[str]:
        """The differences of a golden case; lists must be recognised, too."""
        with run_golden.folder() as folder:
            return list(map(str, run_golden.replay(name, folder, as_of=self._as_of)))

    def report(self) -> Any:
        """What the launcher says of itself."""
        return self._report()

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """What a command of one worker gave, and what was seen of it."""
        from pmm.work import looked_at

        looked_at.clear()
        made: dict[str, Any] = {}
        self._who = command.pop("who", 0)
        try:
            made["result"] = getattr(self, command.pop("do"))(**command)
        except Exception as error:
            made["raises"] = f"{type(error).__name__}: {error}"
        if self._log is not None:
            made["faults"] = self._faults()
            made["heard"], self._heard = self._heard, []
            made["prompts"], self._prompts = self._prompts, []
        made["looked_at"] = dict(looked_at)
        return made

    def _faults(self) -> list[str]:
        """What every log must be at any time; nothing here looks into the list, which may be lazy."""
        facts = {
            "read_all gives another list": self._log.read_all() is self._live,
            "another list is kept": self._log._events_cache is None or self._log._events_cache is self._live,
            "heard out of order": self._heard == sorted(self._heard),
        }
        return [fault for fault, holds in facts.items() if not holds]


def without_times(value: Any) -> Any:
    """A JSON value without instants."""
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in _TIMES}
    if isinstance(value, list | tuple):
        return [without_times(one) for one in value]
    return value


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", default=str(standin_package.ROOT), help="where the package pmm is")
    parser.add_argument("--launched", action="store_true")
    parser.add_argument("--strict", action="store_true", help="replacements raise in place of falling back")
    options = parser.parse_args()
    # Whatever else prints goes elsewhere.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.path.insert(0, options.root)
    if options.launched:
        agent = Agent(launched(options.strict), recognised, hears_others=True)
    else:
        agent = Agent(dict, run_golden.by_comparing, hears_others=False)
    serve(agent, sys.stdin, answers)


def launched(strict: bool) -> Callable[[], Any]:
    """Launch this process; the function that reports."""
    from pmm_shm_pmm import installing

    patcher = installing.install(known=standin_package.hashes(), strict=strict)
    assert patcher is not None
    return lambda: {
        "kept": patcher.kept,
        "answered": {name: counts.answered for name, counts in patcher.counts.items()},
        "fallbacks": {name: dict(counts.fallbacks) for name, counts in patcher.counts.items() if counts.fallbacks},
    }


def recognised(events: Any, live: list[Any]) -> int | None:
    """`as_of`, by the launcher."""
    from pmm_shm_pmm import lists
    from pmm_shm_pmm.fallback import Fallback

    try:
        return int(lists.recognised(events)[1])
    except Fallback:
        return None


def serve(agent: Agent, commands: TextIO, answers: TextIO) -> None:
    for line in commands:
        made = without_times(agent.answer(json.loads(line)))
        print(json.dumps(made), file=answers, flush=True)


if __name__ == "__main__":
    main()
