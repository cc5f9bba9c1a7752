"""The fixtures for other projects' tests, in a run of pytest of their own."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pmm_shm.errors import DaemonAbsentError, DaemonRunningError, DaemonTimeoutError
from pmm_shm_client import connect
from pmm_shm_client.testing import running_daemon, temporary_ledger
from tests.support import daemons

TESTS = """
from pathlib import Path

import pytest

from pmm_shm_client import connect
from pmm_shm_client.testing import temporary_ledger


@pytest.mark.parametrize("again", range(2))
def test_a_ledger(pmm_ledger, again):
    with connect(pmm_ledger) as cache:
        assert cache.append("user", "hello") == 1


def test_without_a_daemon(pmm_cache):
    assert pmm_cache.append("user", "hello") == 1
    assert pmm_cache.metrics().as_of == 1
    assert pmm_cache.stats()["daemon"] is None


def test_with_a_daemon(pmm_daemon, pmm_cache):
    assert pmm_daemon == pmm_cache.path
    event_id = pmm_cache.append("user", "hello")
    assert pmm_cache.wait_for(event_id) == 1
    assert pmm_cache.stats()["daemon"]["as_of"] == 1
    Path("pid").write_text(str(pmm_cache.stats()["daemon"]["pid"]))


def test_that_fails(pmm_daemon, pmm_cache):
    pmm_cache.append("user", "hello")
    assert pmm_cache.identity().name == "Echo"


@pytest.fixture(scope="session")
def shared():
    with temporary_ledger(daemon=True) as path:
        yield path


@pytest.mark.parametrize("number", [1, 2])
def test_a_ledger_of_a_session(shared, number):
    with connect(shared) as cache:
        assert cache.append("user", "hello") == number
"""


def test_the_fixtures_and_what_they_leave_behind(folder: Path) -> None:
    for name in ("project", "temporary"):
        (folder / name).mkdir()
    (folder / "project" / "test_agent.py").write_text(TESTS, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "pmm_shm_client.pytest_plugin", "-p", "no:cacheprovider"],
        cwd=folder / "project",
        # Named above, as it is where pmm-shm is not installed: found as installed, too, it would be loaded twice.
        env=daemons.environment(TMPDIR=str(folder / "temporary"), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 failed, 6 passed" in done.stdout, done.stdout + done.stderr
    assert not daemons.is_alive(int((folder / "project" / "pid").read_text(encoding="utf-8")))
    assert list((folder / "temporary").glob("pmm-*")) == []


def test_the_plugin_loads_nothing_of_ours_before_it_is_asked() -> None:
    code = "import sys, pytest; before = set(sys.modules); import pmm_shm_client.pytest_plugin; "
    done = daemons.run_python(code + "print(*sorted(set(sys.modules) - before))", forked=False)
    assert set(done.stdout.split()) == {
        "pmm_shm",
        "pmm_shm.late",
        "pmm_shm_client",
        "pmm_shm_client.pytest_plugin",
    }, done.stderr


def test_a_daemon_that_does_not_start_says_why_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMM_EMBEDDER", "no-such-model")
    began = time.monotonic()
    with pytest.raises(DaemonTimeoutError, match=r"did not start: .*no-such-model"), temporary_ledger(daemon=True):
        pass
    assert time.monotonic() - began < 20


def test_a_ledger_elsewhere_and_a_second_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMM_SHM_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir(mode=0o700)
    with temporary_ledger(daemon=True) as path:
        with connect(path) as cache:
            assert cache.wait_for(cache.append("user")) == 1
        with pytest.raises(DaemonRunningError), running_daemon(path):
            pass
        with connect(path) as cache:
            assert cache.wait_for(cache.append("user")) == 2
    assert list((tmp_path / "run").iterdir()) == []
    assert not Path(path).parent.exists()
    with temporary_ledger() as path, connect(path) as cache, pytest.raises(DaemonAbsentError):
        cache.wait_for(cache.append("user"))
