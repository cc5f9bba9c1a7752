"""`pmm-shm demo`, short and whole: processes, a killed daemon, the comparison."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "pmm_shm_cli", "demo"]


def processes_naming(text: str) -> list[str]:
    """Command lines of running processes with `text` in them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if text in line and int(entry.name) != os.getpid():
                found.append(line)
    return found


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A temporary directory whose path leaves room for the names of sockets."""
    with tempfile.TemporaryDirectory(prefix="pmm", dir="/tmp") as path:
        yield Path(path)


def environment(temporary: Path) -> dict[str, str]:
    # Its own place for temporary files, to see that nothing stays; flags that the demo must not mind.
    return {**os.environ, "TMPDIR": str(temporary), "PMM_USE_PROJECTION_CACHE": "false", "PMM_DB": "/nowhere"}


def test_short_demo_ends_well_and_leaves_nothing(short_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--workers", "2", "--seconds", "2", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(short_path),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["ok"] is True
    assert all(check["ok"] for check in result["checks"])
    assert len(result["checks"]) == 8
    assert result["reads"] > 1_000
    assert result["appends"] > 2
    # The three that are asked for after the kill are the demo's own.
    assert result["events"] == 20_003 + result["appends"]
    assert result["hit_rate"] > 0.5
    assert result["reads_without_daemon"] > 0
    assert "SIGKILL" in done.stderr
    assert os.listdir(short_path) == []
    assert processes_naming(str(short_path)) == []


def test_interrupted_demo_leaves_no_process_and_no_file(short_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--seconds", "60", "--workers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment(short_path), "PYTHONUNBUFFERED": "1"},
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "workers append" in line:
            break
    assert len(processes_naming(str(short_path))) == 2
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "")
    deadline = time.monotonic() + 5
    while processes_naming(str(short_path)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_naming(str(short_path)) == []
    assert os.listdir(short_path) == []


def test_directory_to_keep_must_be_empty(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    done = subprocess.run([*COMMAND, "--keep", str(tmp_path)], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (1, "")
    assert "not empty" in done.stderr
    assert os.listdir(tmp_path) == ["precious"]


@pytest.mark.parametrize("option", [["--workers", "0"], ["--seconds", "nan"], ["--seconds", "-1"], ["--workers", "x"]])
def test_wrong_options(option: list[str]) -> None:
    done = subprocess.run([*COMMAND, *option], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
