"""Programs whose standard streams are closed or take nothing, and a daemon without a thread for commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pmm_cached.commands import CommandServer
from pmm_cached.logs import configure
from pmm_cached.status import Status
from pmm_shm.errors import DaemonAbsentError
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.wire import protocol
from pmm_shm.wire.endpoints import Endpoints
from tests.support import daemons, ledgers
from tests.support.command import COMMAND
from tests.support.daemons import environment, until


def close_all() -> None:
    for descriptor in (0, 1, 2):
        os.close(descriptor)


def close_stderr() -> None:
    os.close(2)


def full_disk() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)


def reader_gone() -> None:
    read, write = os.pipe()
    os.dup2(write, 2)
    os.close(read)


@pytest.mark.parametrize("spoil", [close_all, close_stderr, full_disk, reader_gone])
def test_a_daemon_serves_without_a_place_for_its_log(ledger: str, spoil: Callable[[], None]) -> None:
    process = subprocess.Popen([sys.executable, "-m", "pmm_cached", ledger], env=environment(), preexec_fn=spoil)
    try:
        instance = Instance.of(ledger)
        until(lambda: answers(instance, process), "the daemon answers")
        # What it complains of must not end the thread that complains.
        for _ in range(3):
            ledgers.execute(ledger, "INSERT INTO events (ts, kind, content, meta) VALUES ('', 'x', '', '{')")
            daemons.commands.call(instance, protocol.STATS, {}, 10.0)
        if spoil is close_all:
            # SQLite, which comes first, keeps all databases away from where a library prints.
            files = {os.readlink(f"/proc/{process.pid}/fd/{number}") for number in (0, 1, 2)}
            assert files == {os.devnull}
        process.terminate()
        assert process.wait(daemons.DEADLINE_S) in (0, 120)  # 120: Python could not flush stderr at its exit.
    finally:
        process.kill()
        process.wait()


def close_stdin() -> None:
    os.close(0)


def close_stdout() -> None:
    os.close(1)


def full_stdout() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def said(*arguments: str, spoil: Callable[[], None]) -> tuple[int, str]:
    """The exit code of `pmm-shm`, and its stderr."""
    done = subprocess.run([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True, timeout=60, preexec_fn=spoil)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "words", [["log"], ["read", "metrics"], ["status", "--json"], ["append", "note", "x"], ["chat", "--no-autostart"]]
)
def test_output_that_nobody_wants_goes_nowhere(ledger: str, words: list[str]) -> None:
    code = 3 if words[0] == "status" else 0
    words = [words[0], ledger, *words[1:]]
    assert said(*words, spoil=close_stdout)[0] == code
    assert said(*words, spoil=close_all) == (1 if words[0] == "chat" else code, "")


def test_no_file_gets_the_number_of_a_closed_stream() -> None:
    """Where a library, or a child process, would write into it."""
    code = (
        "import click, os\n"
        "from pmm_shm_terminal.program import run_program\n"
        "run_program(click.Command('open', callback=lambda: os.open(os.__file__, os.O_RDONLY)), 'open')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], preexec_fn=close_all, timeout=60, env=environment())
    # The exit code is what the command returns.
    assert done.returncode > 2


@pytest.mark.parametrize("words", [["append", "LEDGER", "note", "-"], ["import", "-", "NEW"], ["chat", "LEDGER"]])
def test_a_command_that_reads_a_closed_stdin_says_so(ledger: str, tmp_path: Path, words: list[str]) -> None:
    new = tmp_path / "new.db"
    words = [{"LEDGER": ledger, "NEW": str(new)}.get(word, word) for word in words]
    before = ledgers.raw_rows(ledger)
    assert said(*words, spoil=close_stdin) == (1, "pmm-shm: stdin is closed\n")
    assert ledgers.raw_rows(ledger) == before
    assert not new.exists()


def test_an_append_whose_id_cannot_be_printed_says_that_it_is_done(ledger: str) -> None:
    event_id = len(ledgers.raw_rows(ledger)) + 1
    for words in ([], ["--json"]):
        said_then = f"pmm-shm: appended as event {event_id}; stdout: No space left on device\n"
        assert said("append", ledger, "note", "x", *words, spoil=full_stdout) == (1, said_then)
        event_id += 1


def test_an_address_that_cannot_be_printed_is_not_blamed_on_the_port(ledger: str) -> None:
    pytest.importorskip("starlette")
    assert said("web", ledger, "--port", "0", spoil=full_stdout) == (1, "pmm-shm: No space left on device\n")


def test_ctrl_c_during_the_imports_leaves_no_traceback() -> None:
    code = (
        "import os, signal, sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'pmm_shm_cli.main': os.kill(os.getpid(), signal.SIGINT)\n"
        "from pmm_shm_cli.entry import main\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment())
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def answers(instance: Instance, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "the daemon has ended"
    try:
        return bool(daemons.commands.call(instance, protocol.STATS, {}, 10.0)["is_published"])
    except DaemonAbsentError:
        return False


def test_a_daemon_does_not_go_on_without_its_thread_for_commands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    endpoints = Endpoints(*(str(folder / name) for name in ("commands", "admin", "announcements")), os.getpid())
    nothing: Any = type("Nothing", (), {"has": lambda *_: False})()
    server = CommandServer(endpoints, nothing, nothing, Status("x"), configure("json", "error"), bool, ended.append)

    def fail() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(server._dispatcher, "advance", fail)
    server.start()
    try:
        server.announce(1, 1)
        until(lambda: ended, "somebody is told")
    finally:
        server.stop()
    assert len(ended) == 1
    assert ended[0].startswith("commands ended: this process is out of file descriptors")


def test_a_path_that_lmdb_cannot_open_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"not-utf8-\xff")
    folder.mkdir()
    path = str(folder / "ledger.db")
    EventLog(path).close()
    ended = daemons.run_daemon(path)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1), ended.stderr
    assert "set PMM_SHM_DIR" in ended.stderr
    assert not Path(path + "-cache").exists()


@pytest.mark.parametrize("spoil", [close_stderr, full_disk, reader_gone])
def test_the_exit_code_is_right_without_a_place_for_the_message(tmp_path: Path, spoil: Callable[[], None]) -> None:
    command = [sys.executable, "-m", "pmm_shm_cli", "read", "nonsense", str(tmp_path / "a.db")]
    assert subprocess.run(command, env=environment(), preexec_fn=spoil, check=False).returncode == 2
