"""`autostart` where Python is embedded in another program, and where the started program does not answer."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pmm_shm.errors import DaemonError, DaemonTimeoutError
from pmm_shm_client import autostart, connect
from pmm_shm_client.autostart import start_daemon
from tests.support import daemons
from tests.support.waiting import at_most

NOT_PYTHON = ("frozen-app", "uwsgi", "python-editor", "", None, "gone", "python3")


def program(path: Path, lines: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{lines}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("name", NOT_PYTHON)
def test_a_program_that_is_no_python_is_not_started_again(
    ledger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    """A frozen application, uWSGI, an interpreter without a name or that is gone: the error says what to type."""
    started = tmp_path / "started"
    executable: str | None = name
    if name:
        path = tmp_path / "bin" / name
        if name != "gone":
            program(path, f"echo >> {started}; sleep 30")
        executable = str(path)
    # As a frozen application has it, whatever its name is.
    monkeypatch.setattr(sys, "frozen", name == "python3", raising=False)
    monkeypatch.setattr(sys, "executable", executable)
    with at_most(2.0), pytest.raises(DaemonError) as caught:
        connect(ledger, autostart=True)
    assert str(caught.value).endswith(f"is no Python that could run pmm-cached; start it by hand: pmm-cached {ledger}")
    assert not started.exists()
    assert not Path(f"{ledger}-cache").exists()


def test_the_script_beside_an_embedding_program_is_started(
    ledger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A virtual environment's uWSGI has `pmm-cached` beside it, which knows its own interpreter."""
    program(tmp_path / "bin" / "pmm-cached", f'exec "{sys.executable}" -m pmm_cached "$@"')
    monkeypatch.setattr(sys, "executable", str(program(tmp_path / "bin" / "uwsgi", "exit 9")))
    monkeypatch.setenv("PYTHONPATH", daemons.environment()["PYTHONPATH"])
    try:
        with connect(ledger, autostart=True) as cache:
            assert cache.stats()["daemon"]["health"] in ("healthy", "lagging")
    finally:
        for pid in daemons.serving(ledger):
            daemons.end(pid)


def test_a_script_that_cannot_be_run_is_named(ledger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual environment that was moved: the script's interpreter is gone."""
    script = tmp_path / "bin" / "pmm-cached"
    program(script, "")
    script.write_text("#!/no/such/python\n", encoding="utf-8")
    monkeypatch.setattr(sys, "executable", str(script.with_name("python3")))
    with pytest.raises(DaemonError, match=rf"^{script}: .*cannot be started"):
        connect(ledger, autostart=True)


@pytest.mark.parametrize("end", ["deadline", "interrupt"])
def test_a_program_that_does_not_answer_is_ended(
    ledger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """With the processes that it started, even if it ignores SIGTERM; also if the caller is interrupted meanwhile."""
    pids = tmp_path / "pids"
    program(tmp_path / "bin" / "pmm-cached", f"trap '' TERM; sleep 60 & echo $$ $! > {pids}; echo waiting >&2; wait")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python3"))
    if end == "deadline":
        with pytest.raises(DaemonTimeoutError, match="the daemon did not start: waiting"):
            start_daemon(ledger, timeout_s=3.0)
    else:
        is_waiting = threading.Event()
        wait = autostart._wait_until_running

        def told(*arguments: Any) -> None:
            is_waiting.set()
            wait(*arguments)

        def interrupt() -> None:
            daemons.until(lambda: pids.exists() and pids.read_text(encoding="utf-8"), "it has started")
            assert is_waiting.wait(daemons.DEADLINE_S)
            os.kill(os.getpid(), signal.SIGALRM)

        monkeypatch.setattr(autostart, "_wait_until_running", told)
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        interrupting = threading.Thread(target=interrupt)
        interrupting.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                start_daemon(ledger)
        finally:
            interrupting.join()
            signal.signal(signal.SIGALRM, before)
    started = [int(pid) for pid in pids.read_text(encoding="utf-8").split()]
    assert len(started) == 2
    daemons.until(lambda: not any(map(daemons.is_alive, started)), "the program and its child end")
    assert os.path.exists(ledger)
