"""Exact reads of logs while other programs write them: the real programs, in an environment of their own.

The same tests run over PMM's own table. Edits and malformed rows are in `tests/process/test_program_logs.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from pmm_shm_client import Cache, connect
from tests.conftest import StartDaemon
from tests.support import daemons
from tests.support.program_logs import LOGS, Log, Program, Row, Story, story
from tests.support.program_logs import daemon_options as options

# The first test may have to make the environment.
pytestmark = pytest.mark.timeout(300)


def started(log: Log, request: pytest.FixtureRequest, path: str) -> Program:
    interpreter = request.getfixturevalue("programs") if log.is_installed else sys.executable
    return Program(interpreter, log, path)


def opened(log: Log, path: str) -> Cache:
    return connect(path, shape=log.shape, folds=[Story])


READER = """
import json, sys
from pmm_shm_client import connect
from tests.support.program_logs import Story
with connect(sys.argv[1], folds=[Story]) as cache:
    print(json.dumps(dict(cache.fold("story")), default=dict))
"""


@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_reads_are_exact_after_each_append(
    log: Log, request: pytest.FixtureRequest, tmp_path: Path, start_daemon: StartDaemon
) -> None:
    path = str(tmp_path / "log.db")

    with started(log, request, path) as program:

        def append_and_read(cache: Cache) -> None:
            program()
            assert cache.fold("story") == story(log.rows(path))

        program()
        with opened(log, path) as cache:
            append_and_read(cache)
            daemon = start_daemon(path, *options(log), wait=False)
            daemon.wait_answering()
            for _ in range(4):
                append_and_read(cache)
            cache.wait_for(log.rows(path)[-1].id)
            append_and_read(cache)
            assert cache.verify()
            daemon.kill()
            for _ in range(3):
                append_and_read(cache)
            # The shape is in the store: neither the next daemon nor a client has to name it again.
            daemon = start_daemon(path, *options(log, with_shape=False), wait=False)
            daemon.wait_answering()
            append_and_read(cache)
            rows = log.rows(path)
            cache.wait_for(rows[-1].id)
            assert cache.verify().as_of == rows[-1].id
            for _ in range(2):
                ran = daemons.run_python(READER, path)
                assert json.loads(ran.stdout) == story(rows), ran.stderr
            program.close()
        with opened(log, path) as cache:
            assert cache.fold("story") == story(log.rows(path))


# What these programs do besides appending.


class Served(NamedTuple):
    """A log with its program, a daemon and a client."""

    program: Program
    cache: Cache
    daemon: daemons.Daemon
    rows: Callable[[], list[Row]]

    def is_exact(self) -> bool:
        return dict(self.cache.fold("story")) == story(self.rows())

    def verified(self) -> bool:
        """Verify what the log's head is now."""
        self.cache.wait_for(self.rows()[-1].id)
        return self.cache.verify().ok


@pytest.fixture
def serve(
    request: pytest.FixtureRequest, tmp_path: Path, start_daemon: StartDaemon
) -> Iterator[Callable[[str, int], Served]]:
    """A log that is served, after some appends."""
    with ExitStack() as stack:

        def served(name: str, appends: int) -> Served:
            log, path = LOGS[name], str(tmp_path / "log.db")
            program = stack.enter_context(started(log, request, path))
            for _ in range(appends):
                program()
            daemon = start_daemon(path, *options(log), wait=False)
            daemon.wait_answering()
            cache = stack.enter_context(opened(log, path))
            one = Served(program, cache, daemon, lambda: log.rows(path))
            assert one.verified()
            assert one.is_exact()
            return one

        yield served


def test_llm_logs_its_newest_response_again(serve: Callable[[str, int], Served]) -> None:
    """The row is replaced and moves: the next read notices."""
    log = serve("llm", 4)
    before = log.rows()[-1].id
    log.program("again")
    assert log.rows()[-1].id == before + 1
    assert log.is_exact()
    log.program()
    assert log.is_exact()
    daemons.until(log.verified)


def test_langgraph_deletes_the_newest_thread(serve: Callable[[str, int], Served]) -> None:
    """The newest checkpoint is gone: the next read notices, also if its rowid is used again."""
    log = serve("langgraph", 3)
    log.program("delete thread-2")
    assert log.is_exact()
    daemons.until(log.verified)
    # Nobody looks in between: the same rowids, other rows.
    log.daemon.freeze()
    head = log.rows()[-1].id
    log.program("delete thread-1")
    log.program("run thread-9 hello")
    assert log.rows()[-1].id == head
    assert log.is_exact()
    log.daemon.thaw()
    daemons.until(log.verified)


def test_langgraph_deletes_a_thread_of_the_past(serve: Callable[[str, int], Served]) -> None:
    """Verification notices, once."""
    log = serve("langgraph", 3)
    log.program("delete thread-0")
    assert not log.is_exact()
    assert not log.verified()
    daemons.until(log.is_exact)
    assert log.verified()
    log.program()
    assert log.is_exact()


def test_a_purge_of_home_assistant_is_one_rebuild(serve: Callable[[str, int], Served]) -> None:
    log = serve("home-assistant", 20)
    rebuilds = log.daemon.stats()["rebuilds"]
    for purged in (1, 2):
        log.program("purge 6")
        log.program()
        assert not log.is_exact()
        assert not log.verified()
        daemons.until(log.is_exact)
        for _ in range(3):
            assert log.verified()
            log.program()
            assert log.is_exact()
        assert log.daemon.stats()["rebuilds"] == rebuilds + purged


def test_a_purge_of_all_events_is_noticed_at_once(serve: Callable[[str, int], Served]) -> None:
    """SQLite gives the ids out again."""
    log = serve("home-assistant", 5)
    log.program("purge 0")
    assert log.is_exact()
    log.program()
    assert [row.id for row in log.rows()] == [1]
    assert log.is_exact()
    daemons.until(log.verified)
