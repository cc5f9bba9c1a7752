"""Logs of other programs: the programs themselves, in an environment of their own, and what is in their files.

The environment is `.venv-shapes`, made once from `requirements/shapes.txt`. Each `Log` says how its program is asked to
append, and reads its tables without our code: what a shape shows must equal that.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from pmm_shm.folds.contract import Fold
from pmm_shm.folds.state import State
from pmm_shm.frozen import frozen, plain
from pmm_shm.ledger.rows import Event
from tests.support.ledgers import ROOT

ENVIRONMENT = ROOT / ".venv-shapes"
LOCK = ROOT / "requirements" / "shapes.txt"
PROGRAMS = ROOT / "tests" / "support" / "logging_programs"
RECORDED = ROOT / "tests" / "golden" / "logs"
"""Databases that the programs have made, by `python -m tests.support.program_logs`."""


# The environment.


def _new_enough() -> str | None:
    """A Python that eventsourcing runs on: this one, or another on the path."""
    if sys.version_info >= (3, 11):
        return sys.executable
    found = (shutil.which(f"python3.{minor}") for minor in (11, 12, 13))
    return next((path for path in found if path and _runs(path)), None)


def _runs(path: str) -> bool:
    return subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0


def environment() -> str:
    """The interpreter of the environment, which is made where it is missing or its lock has changed.

    Raises:
        RuntimeError: it cannot be made here.
    """
    stamp, wanted = ENVIRONMENT / ".installed", hashlib.sha256(LOCK.read_bytes()).hexdigest()
    interpreter = str(ENVIRONMENT / "bin" / "python")
    # Test runs, and their workers, share it.
    with open(ROOT / ".venv-shapes.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted and _runs(interpreter):
            return interpreter
        python = _new_enough()
        if python is None:
            raise RuntimeError("eventsourcing needs Python 3.11 or newer, and there is none")
        # The pip of this Python: another one in the environment would cost seconds.
        pip = [sys.executable, "-m", "pip", "--python", interpreter, "--quiet", "--disable-pip-version-check"]
        options = ["--no-deps", "--no-compile", "--require-hashes", "--only-binary=:all:", "--retries=1"]
        for command in (
            [python, "-m", "venv", "--clear", "--without-pip", str(ENVIRONMENT)],
            [*pip, "install", *options, "-r", str(LOCK)],
        ):
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if ran.returncode:
                raise RuntimeError(f"{command[2]}: {ran.stderr.strip()[-2_000:]}")
        stamp.write_text(wanted, encoding="utf-8")
    return interpreter


@pytest.fixture(scope="session")
def programs() -> str:
    """The interpreter that runs the programs."""
    return environment_or_skip()


def environment_or_skip() -> str:
    """`environment()`; where it cannot be made, and outside of CI, the test is skipped."""
    try:
        return environment()
    except RuntimeError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no environment for the programs: {str(error).splitlines()[-1]}")


# The logs.


class Row(NamedTuple):
    """One event, as the program's own tables have it."""

    id: int
    ts: str
    kind: str
    content: str
    meta: dict[str, Any]


class Log(NamedTuple):
    """A kind of log.

    Attributes:
        shape: the shape that comes with pmm-shm; None for PMM's own table.
        script: the program in `tests/support/logging_programs`.
        lines: what it is asked for, in turn; at least seven appends.
        read: the rows of its tables.
        edit, delete, malform: SQL that does to the row with position `:id` as the name says. The first changes a value
            that the shape shows.
        is_installed: whether the program needs the environment; otherwise this Python runs it.
    """

    name: str
    shape: str | None
    script: str
    lines: tuple[str, ...]
    read: Callable[[sqlite3.Connection], Iterator[Row]]
    edit: str
    delete: str
    malform: str
    is_installed: bool = True

    def rows(self, path: str | os.PathLike[str]) -> list[Row]:
        """All events, in order, without our code."""
        with closing(sqlite3.connect(path)) as connection:
            return list(self.read(connection))


class Story(Fold):
    """Everything that happened, as one digest: two folds agree on it only if they had the same events."""

    name = "story"
    version = 1

    def apply(self, event: Event, state: State) -> None:
        state["digest"] = _linked(state.get("digest", ""), event)
        kinds = state.table("kinds")
        kinds[event.kind] = kinds.get(event.kind, 0) + 1

    def view(self, state: State) -> Any:
        return frozen({"digest": state.get("digest", ""), "kinds": dict(sorted(state.table("kinds").items()))})


def story(rows: list[Row]) -> dict[str, Any]:
    """What `Story` must answer for these rows."""
    digest = ""
    for row in rows:
        digest = _linked(digest, row)
    return {"digest": digest, "kinds": dict(sorted(Counter(row.kind for row in rows).items()))}


def _linked(digest: str, event: Event | Row) -> str:
    text = json.dumps([digest, event.id, event.ts, event.kind, event.content, plain(event.meta)], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


class Program:
    """The real program, as a process; a call is one append. A context manager.

    Parameters:
        interpreter: of the environment.
        path: the database.
    """

    def __init__(self, interpreter: str, log: Log, path: str | os.PathLike[str]) -> None:
        # llm keeps settings in a folder of the user's; LangGraph would report runs to a service.
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("LANG", "PYTHONPATH"))}
        variables |= {"LLM_USER_PATH": os.path.dirname(path), "PYTHONDONTWRITEBYTECODE": ""}
        self._process = subprocess.Popen(
            [interpreter, str(PROGRAMS / log.script), os.fspath(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=variables,
        )
        self._lines = iter(log.lines)

    def __call__(self, line: str | None = None) -> int:
        """Have it append what the line says, or what comes next; returns its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write((line or next(self._lines)) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate("stop\n", timeout=20)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def _instant(epoch_s: float) -> str:
    whole_s, us = divmod(math.floor(epoch_s * 1_000_000.0 + 0.5), 1_000_000)
    return f"{datetime.fromtimestamp(whole_s, timezone.utc):%Y-%m-%dT%H:%M:%S}.{us:06}Z"


def _bank(connection: sqlite3.Connection) -> Iterator[Row]:
    for position, *stored in connection.execute("SELECT rowid, * FROM stored_events ORDER BY rowid"):
        originator_id, originator_version, topic, state = stored
        meta = {"originator_id": originator_id, "originator_version": originator_version, "state": json.loads(state)}
        yield Row(position, meta["state"]["timestamp"]["_data_"], topic, "", meta)


def _turns(connection: sqlite3.Connection) -> Iterator[Row]:
    connection.row_factory = sqlite3.Row
    texts = {row["turn_id"]: row for row in connection.execute("SELECT * FROM turn_search")}
    for row in connection.execute("SELECT rowid AS position, * FROM turns ORDER BY rowid").fetchall():
        text = texts.get(row["id"])
        meta = {"turn_id": row["id"], "prompt": text["prompt"] if text else None}
        meta |= {name: row[name] for name in ("thread_id", "model", "resolved_model", "duration_ms")}
        meta |= {name: row[name] for name in ("input_tokens", "output_tokens")}
        meta |= {"token_details": _json(row["token_details"]), "options": _json(row["options_json"])}
        yield Row(row["position"], row["datetime_utc"], "turn", text["response"] if text else "", meta)


def _json(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _checkpoints(connection: sqlite3.Connection) -> Iterator[Row]:
    names = ("thread_id", "checkpoint_ns", "checkpoint_id", "parent_checkpoint_id")
    query = f"SELECT rowid, metadata, {', '.join(names)} FROM checkpoints ORDER BY rowid"
    for position, metadata, *values in connection.execute(query):
        meta = {**dict(zip(names, values, strict=True)), "metadata": json.loads(metadata)}
        yield Row(position, "", meta["metadata"]["source"], "", meta)


def _house(connection: sqlite3.Connection) -> Iterator[Row]:
    kinds = dict(connection.execute("SELECT event_type_id, event_type FROM event_types"))
    data = dict(connection.execute("SELECT data_id, shared_data FROM event_data"))
    query = "SELECT event_id, time_fired_ts, event_type_id, data_id FROM events ORDER BY event_id"
    for position, fired, type_id, data_id in connection.execute(query):
        yield Row(position, _instant(fired), kinds[type_id], "", json.loads(data[data_id]))


def _ledger(connection: sqlite3.Connection) -> Iterator[Row]:
    for row in connection.execute("SELECT id, ts, kind, content, meta FROM events ORDER BY id"):
        yield Row(*row)._replace(meta=json.loads(row[4]))


_LIGHT = 'fire call_service {"domain": "light", "service": "turn_on"}'
_DUSK = 'fire dusk {{"n": {}}}'

LOGS = {
    log.name: log
    for log in (
        Log(
            "pmm",
            None,
            "pmm_ledger.py",
            tuple(f"event user message {number}" for number in range(30)),
            _ledger,
            "UPDATE events SET content = 'edited' WHERE id = :id",
            "DELETE FROM events WHERE id = :id",
            "UPDATE events SET meta = '{' WHERE id = :id",
            is_installed=False,
        ),
        Log(
            "eventsourcing",
            "eventsourcing",
            "eventsourcing_bank.py",
            ("open ann", "deposit ann 500", "open bob", "withdraw ann 120", *["deposit bob 7"] * 30),
            _bank,
            """UPDATE stored_events SET state = replace(state, '"_type_"', '"type"') WHERE rowid = :id""",
            "DELETE FROM stored_events WHERE rowid = :id",
            "UPDATE stored_events SET state = CAST('{\"cents' AS BLOB) WHERE rowid = :id",
        ),
        Log(
            "llm",
            "llm",
            "llm_log.py",
            (
                "prompt echo-1 hello there",
                "prompt echo-1 how are you",
                "alone echo-2 by myself",
                *(f"prompt echo-{number % 2 + 1} question {number}" for number in range(30)),
            ),
            _turns,
            "UPDATE turns SET output_tokens = 1000 WHERE rowid = :id",
            "DELETE FROM turns WHERE rowid = :id",
            "UPDATE turns SET options_json = '{' WHERE rowid = :id",
        ),
        Log(
            "langgraph",
            "langgraph",
            "langgraph_chat.py",
            tuple(f"run thread-{number % 3} message {number}" for number in range(30)),
            _checkpoints,
            "UPDATE checkpoints SET thread_id = 'edited' WHERE rowid = :id",
            "DELETE FROM checkpoints WHERE rowid = :id",
            "UPDATE checkpoints SET metadata = CAST('{' AS BLOB) WHERE rowid = :id",
        ),
        Log(
            "home-assistant",
            "home-assistant",
            "home_assistant.py",
            tuple(_LIGHT if number % 3 else _DUSK.format(number) for number in range(30)),
            _house,
            "UPDATE events SET event_type_id = 3 - event_type_id WHERE event_id = :id",
            "DELETE FROM events WHERE event_id = :id",
            "UPDATE event_data SET shared_data = '{' WHERE data_id = (SELECT data_id FROM events WHERE event_id = :id)",
            is_installed=False,
        ),
    )
}


def daemon_options(log: Log, *, with_shape: bool = True) -> list[str]:
    """Options with which a daemon keeps `Story` of this log."""
    shape = ["--shape", log.shape] if with_shape and log.shape else []
    return [*shape, "--fold", "tests.support.program_logs:Story", "--verify-every", "0"]


def example(name: str) -> ModuleType:
    """A module in `docs/examples`."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Recorded.

RECORDED_LINES = 12


def package(name: str) -> Path:
    """The folder of a package in the environment."""
    return next(Path(environment_or_skip()).parents[1].glob(f"lib/python3*/site-packages/{name}"))


def recorded(log: Log, folder: Path) -> str:
    """A database that the program has made, in a folder: recorded before, or made now where that is cheap."""
    path = folder / f"{log.name}.db"
    if log.is_installed:
        shutil.copy(RECORDED / path.name, path)
    else:
        record(log, sys.executable, path)
    return str(path)


def record(log: Log, interpreter: str, path: Path) -> None:
    """Have the program append `RECORDED_LINES` times to a new database."""
    with Program(interpreter, log, path) as program:
        for _ in range(RECORDED_LINES):
            program()
        program.close()


def main() -> None:
    """Record the databases anew."""
    RECORDED.mkdir(parents=True, exist_ok=True)
    for log in LOGS.values():
        if log.is_installed:
            path = RECORDED / f"{log.name}.db"
            path.unlink(missing_ok=True)
            record(log, environment(), path)


if __name__ == "__main__":
    main()
