"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pytest

from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_client import Cache, connect
from tests.support import profiles
from tests.support.daemons import Daemon

# Modules of helpers that have fixtures, too.
pytest_plugins = [
    f"tests.support.{name}"
    for name in (
        "chat",
        "figures",
        "own_embedders",
        "privileges",
        "program_logs",
        "provider",
        "publishing",
        "reentry",
        "restoring",
        "searching",
        "stories",
        "user_folds",
    )
]

profiles.register()

# A shell starts background jobs with SIGINT ignored, and nohup with SIGHUP. Programs inherit that, even those that the
# tests interrupt; a handler, they do not inherit.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda number, frame: None)

# pytest-xdist sets it, and tables would be as narrow as the terminal that the tests run in.
os.environ.pop("COLUMNS", None)

_VARIABLES = (
    "PMM_USE_PROJECTION_CACHE",
    "PMM_USE_METRICS_CACHE",
    "PMM_USE_EMBEDDING_CACHE",
    "PMM_EMBEDDER",
    "PMM_DB",
    "PMM_SHM",
    "PMM_SHM_DAEMON",
    "PMM_SHM_DIR",
    "PMM_SHM_ELECT_AUTONOMY",
    "PMM_SHM_PATCHES",
    "PMM_SHM_REPORT",
    "PMM_SHM_RUN",
    "PMM_SHM_SOURCES",
)


# A worker takes the last tests of another: what takes long begins, and tests that share something stay together.
_FIRST = (
    "test_packaging.py",
    "test_install.py",
    "test_shell.py",
    "test_disk.py",
    "test_hostile_content.py",
    "test_roles.py",
    "test_state_machine.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in _FIRST)


def pytest_collection_finish() -> None:
    """What is imported and collected stays: a collection of garbage need not visit it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have settings of their own."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    """The path of a new ledger without events."""
    path = str(tmp_path / "ledger.db")
    EventLog(path).close()
    return path


@pytest.fixture
def cache(ledger: str) -> Iterator[Cache]:
    """A client of `ledger`."""
    with connect(ledger) as cache:
        yield cache


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, for sockets, that every user may enter."""
    path = Path(tempfile.mkdtemp(prefix="pmm-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


class StartDaemon(Protocol):
    """Starts a daemon for a ledger; unless told otherwise, waits until it has published the ledger's head."""

    def __call__(
        self,
        ledger: str,
        *options: str,
        env: Mapping[str, str] | None = None,
        wait: bool = True,
        forked: bool = True,
    ) -> Daemon: ...


@pytest.fixture
def start_daemon() -> Iterator[StartDaemon]:
    """Start daemons that end with the test."""
    daemons: list[Daemon] = []

    def start(
        ledger: str,
        *options: str,
        env: Mapping[str, str] | None = None,
        wait: bool = True,
        forked: bool = True,
    ) -> Daemon:
        daemon = Daemon(ledger, *options, env=env, forked=forked)
        daemons.append(daemon)
        if wait:
            daemon.wait_ready()
        return daemon

    yield start
    for daemon in daemons:
        daemon.kill()
