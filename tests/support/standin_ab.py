"""Two agents of the stand-in for PMM, a plain one and a launched one, do the same: all that they give must be equal."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.golden_cases import canonical
from tests.support.ledgers import ROOT, checkout_path
from tests.support.run_golden import append_as_another, make_ledger
from tests.support.standin_package import ROOT as PLAIN

Step = tuple[Any, ...]
"""A command of `Agent`, and its arguments: `("message", text, reply, meanwhile)`, `("tick",)`,
`("append", kind, content, meta)`, `("call", name, args, kwargs)`, `("restart",)`; or `("foreign", kind, content, meta)`, an
append by another process. `meanwhile` are such appends while the model thinks, or None, at which the daemon dies."""

_ARGUMENTS = {
    "message": ("text", "reply", "meanwhile"),
    "tick": (),
    "append": ("kind", "content", "meta"),
    "call": ("name", "args", "kwargs"),
    "state": (),
}


class AgentProcess:
    """A `standin_agent` in a process; end it with `stop`.

    Parameters:
        options: of that program.
        variables: added to the environment.
    """

    def __init__(self, *options: str, root: Path = PLAIN, variables: Mapping[str, str] | None = None) -> None:
        environment = {**os.environ, "PYTHONPATH": checkout_path(), **(variables or {})}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.standin_agent", f"--root={root}", *options],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._hears_others = "--launched" in options
        self.path = Path()

    def do(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        """One command, and its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"do": name, **arguments}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, "the agent has ended"
        return json.loads(line)  # type: ignore[no-any-return]

    def foreign(self, kind: str, content: str, meta: dict[str, Any]) -> list[Any]:
        """Let another process append; what the agent has heard of it by then.

        A plain log never hears of others, so there it is an append of its own.
        """
        if not self._hears_others:
            return self.do("append", kind=kind, content=content, meta=meta)["heard"]  # type: ignore[no-any-return]
        append_as_another(self.path, kind, content, meta)
        return []

    def __enter__(self) -> AgentProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._process.communicate(timeout=60)


class Difference(AssertionError):
    """The agents differ."""


class Pair:
    """Two agents that do the same steps on ledgers with the same events; as a context manager, they end with it."""

    def __init__(self, plain: AgentProcess, other: AgentProcess) -> None:
        self._agents = (plain, other)
        # What each has heard in steps that are not compared.
        self._heard: list[list[Any]] = [[], []]
        self._differs = False
        self.steps: list[Step] = []

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *error: object) -> None:
        for agent in self._agents:
            agent.stop()

    def begin(self, directory: Path, events: list[dict[str, Any]]) -> None:
        """Open two ledgers with these events in an empty folder."""
        self.steps = []
        self._heard = [[], []]
        self._differs = False
        original = directory / "original.db"
        make_ledger(original, events)
        for name, agent in zip(("plain", "other"), self._agents, strict=True):
            agent.path = directory / f"{name}.db"
            shutil.copyfile(original, agent.path)
        self._compare(*(agent.do("reset", path=str(agent.path)) for agent in self._agents))

    def step(self, step: Step) -> dict[str, Any]:
        """Do a step in both.

        Returns:
            The answer of the second agent.

        Raises:
            Difference: with all steps until here.
        """
        self.steps.append(step)
        name, *values = step
        if name == "foreign":
            answers = [agent.foreign(*values) for agent in self._agents]
            self._heard = [self._heard[place] + heard for place, heard in enumerate(answers)]
            return {}
        if name == "restart":
            self._heard = [[], []]
            answers = [(agent.do("close"), agent.do("open", path=str(agent.path)))[1] for agent in self._agents]
        else:
            arguments = dict(zip(_ARGUMENTS[name], values, strict=True))
            answers = [agent.do(name, **arguments) for agent in self._agents]
        self._compare(*answers)
        return answers[1]

    def end(self) -> None:
        """Compare the final states and ledgers, unless the agents differ already, and close both."""
        try:
            if not self._differs:
                self.step(("state",))
                self._assert_equal(*(appended(agent.path) for agent in self._agents))
        finally:
            for agent in self._agents:
                agent.do("close")

    def _compare(self, plain: dict[str, Any], other: dict[str, Any]) -> None:
        for answer, heard in zip((plain, other), self._heard, strict=True):
            answer["heard"] = heard + answer.get("heard", [])
            answer.pop("looked_at", None)
        self._heard = [[], []]
        self._assert_equal(plain, other)

    def _assert_equal(self, plain: Any, other: Any) -> None:
        self._differs = True
        _assert_equal(plain, other, self.steps)
        self._differs = False


class Crew:
    """Several launched workers on one ledger take turns; in a plain agent, as many workers share one log.

    As a context manager, all end with it.
    """

    def __init__(self, count: int, *options: str, variables: Mapping[str, str] | None = None) -> None:
        self._plain = AgentProcess(variables=variables)
        self._others = [AgentProcess("--launched", *options, variables=variables) for _ in range(count)]

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: object) -> None:
        for agent in (self._plain, *self._others):
            agent.stop()

    def live(self, directory: Path, events: list[dict[str, Any]], steps: list[tuple[int, Step]]) -> None:
        """Begin with these events, let each worker do its steps, and compare everything.

        Raises:
            Difference: in an answer, in what a worker heard, or in the ledger.
        """
        paths = directory / "plain.db", directory / "shared.db"
        for path in paths:
            make_ledger(path, events)
        heard: list[list[Any]] = [[] for _ in self._others]
        self._plain.do("reset", path=str(paths[0]), who=0)
        for who, agent in enumerate(self._others):
            if who:
                self._plain.do("join", who=who)
            agent.do("reset", path=str(paths[1]), who=who)
        for number, (who, (name, *values)) in enumerate(steps):
            arguments = dict(zip(_ARGUMENTS[name], values, strict=True), who=who)
            plain, other = self._plain.do(name, **arguments), self._others[who].do(name, **arguments)
            heard[who].extend(other.pop("heard"))
            del plain["heard"], plain["looked_at"], other["looked_at"]
            _assert_equal(plain, other, steps[: number + 1])
        states = [agent.do("state", who=who) for who, agent in enumerate(self._others)]
        for who, state in enumerate(states):
            _assert_equal(self._plain.do("state", who=who)["result"], state["result"], steps)
            heard[who].extend(state["heard"])
        ledgers = [appended(path) for path in paths]
        _assert_equal(*ledgers, steps)
        for one in heard:
            _assert_equal([[event[0], event[1]] for event in ledgers[1][len(events) :]], one, steps)
        for agent in (self._plain, *self._others):
            agent.do("close")


def _assert_equal(plain: Any, other: Any, steps: Any) -> None:
    if canonical(plain) != canonical(other):
        where, mine, theirs = first_difference(plain, other)
        lines = "\n".join(f"    {step!r}," for step in steps)
        raise Difference(f"{where}\n  plain {mine!r}\n  other {theirs!r}\nafter\n{lines}")


def first_difference(plain: Any, other: Any, where: str = "") -> tuple[str, Any, Any]:
    """The innermost place where two JSON values differ, and both values there."""
    if isinstance(plain, dict) and isinstance(other, dict) and plain.keys() == other.keys():
        pairs = [(f"{where}[{key!r}]", plain[key], other[key]) for key in plain]
    elif isinstance(plain, list | tuple) and isinstance(other, list | tuple) and len(plain) == len(other):
        pairs = [(f"{where}[{place}]", *both) for place, both in enumerate(zip(plain, other, strict=True))]
    else:
        return where, plain, other
    for place, mine, theirs in pairs:
        if canonical(mine) != canonical(theirs):
            return first_difference(mine, theirs, place)
    return where, plain, other


def appended(path: Path) -> list[tuple[int, str, str, str]]:
    """All events of a ledger, without instants and hashes."""
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT id, kind, content, meta FROM events ORDER BY id").fetchall()
    connection.close()
    return rows


def pair(*options: str, variables: Mapping[str, str] | None = None, plain: bool = False) -> Pair:
    """A plain agent and a launched one, or two plain ones."""
    second = () if plain else ("--launched", *options)
    return Pair(AgentProcess(variables=variables), AgentProcess(*second, variables=variables))
