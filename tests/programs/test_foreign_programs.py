"""Exact reads of logs that other programs are writing: the real programs, in processes and an environment of their own.

The same tests run over PMM's own table. What an edit or a malformed row does is in `tests/process/test_foreign_logs.py`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pmm_shm_client import Cache, connect
from tests.conftest import StartDaemon
from tests.support import daemons
from tests.support.foreign_logs import LOGS, Log, Program, Story, programs, story
from tests.support.foreign_logs import daemon_options as options

__all__ = ["programs"]


def started(log: Log, request: pytest.FixtureRequest, path: str) -> Program:
    interpreter = request.getfixturevalue("programs") if log.is_installed else sys.executable
    return Program(interpreter, log, path)


def opened(log: Log, path: str) -> Cache:
    return connect(path, shape=log.shape, folds=[Story])


READER = """
import json, sys
from pmm_shm_client import connect
from tests.support.foreign_logs import Story
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
