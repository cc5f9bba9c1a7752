"""`pmm-shm status` and `top`: what they say, what they tell to type, and a real terminal given back as it was."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pexpect
import pytest

from pmm_shm.errors import DaemonAbsentError, DaemonTimeoutError, LedgerReplacedError
from pmm_shm.folds.metrics import MetricsFold
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.files import refuse_foreign_wal
from pmm_shm.remedies import TEMPLATES
from pmm_shm_cli.main import cli
from pmm_shm_cli.synthetic import synthetic_events
from pmm_shm_client import commands, connect
from pmm_shm_terminal.state import with_remedies
from tests.conftest import StartDaemon
from tests.support import daemons, ledgers
from tests.support.command import COMMAND, run

PLAIN = {"COLUMNS": None}
TOP = ["-m", "pmm_shm_cli", "top"]


def shown(ledger: str) -> dict[str, Any]:
    return json.loads(run("status", ledger, "--json", env=PLAIN).out)  # type: ignore[no-any-return]


# status


def test_at_a_glance(tmp_path: Path, start_daemon: StartDaemon) -> None:
    ledger = ledgers.build(tmp_path / "agent.db", 1_234)
    daemon = start_daemon(ledger)
    with connect(ledger) as cache:
        for _ in range(4):
            cache.metrics()
        cache._reporter.report()
        daemons.until(lambda: daemon.stats()["workers"]["seen"] == 1)
        daemons.until(lambda: daemon.stats()["verified_as_of"] == 1_234)
        short, ran = run("status", ledger, env=PLAIN), run("status", ledger, "-v", env=PLAIN)
        found = shown(ledger)
    assert (ran.code, ran.err) == (short.code, short.err) == (0, "")
    assert [re.sub("  .*", "", line) for line in short.out.splitlines()] == ["healthy", "reads", "daemon"]
    assert "100.00% of 4 served from shared memory, 0 replayed" in short.out
    assert f"pid {daemon.pid}, up" in short.out
    lines = ran.out.splitlines()
    assert lines[0] == "healthy  agent.db  event 1,234  lag 0"
    names = [match[1] for line in lines if (match := re.match(r"(\w[\w ]*?)  ", line))]
    assert names[1:] == [
        "ledger", "position", "folds", "sizes", "daemon", "verified", "workers", "embeddings", "words",
        "readers", "quarantine",
    ]  # fmt: skip
    text = " ".join(ran.out.split())
    assert f"pid {daemon.pid}, up" in text
    assert "reads: 100.00% of 4 served from shared memory, 0 replayed; 3 hits, 1 caught up" in text
    assert "1 live of 1; hit rates: projection – of 0, metrics 75.00% of 4, embeddings – of 0" in text
    assert "up to event 1,234; 1 passed, 0 failed; 2 sealed blocks, 0 history breaks" in text
    assert re.search(rf"pid {os.getpid()} idle \S", text)
    assert found["reads"] == {"hits": 3, "caught_up": 1, "replayed": 0, "served_rate": 1.0}
    assert (found["health"], found["reasons"], found["remedies"]) == ("healthy", [], [])
    assert found["folds"]["metrics"]["version"] == MetricsFold.version
    assert found["folds"]["metrics"]["is_complete"] is True
    assert found["sizes"]["ledger_bytes"] == Path(ledger).stat().st_size
    assert 0 < found["sizes"]["store_used_bytes"] <= found["sizes"]["store_disk_bytes"]
    assert [reader["pid"] for reader in found["readers"]] == [os.getpid()]
    (worker,) = found["workers"]
    names = ("pid", "caches", "hits", "caught_up", "replayed", "served_rate")
    assert [worker[name] for name in names] == [os.getpid(), 1, 3, 1, 0, 1.0]
    assert worker["command"]
    assert f"pid {os.getpid()} 100.00% of 4 served from shared memory, 0 replayed; 3 hits, 1 caught up" in text


def test_a_frozen_reader_is_named_with_how_far_it_is_behind(ledger: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger)
    code = "import sys, time; from pmm_shm_client import connect; cache = connect(sys.argv[1])\n"
    code += "with cache._reader.snapshots.begin(): print('in', flush=True); time.sleep(60)"
    reader = subprocess.Popen(
        [sys.executable, "-c", code, ledger], env=daemons.environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "in\n"
        with connect(ledger) as cache:
            daemon.wait_published([cache.append("user", "x", {}) for _ in range(3)][-1])
        (entry,) = [entry for entry in shown(ledger)["readers"] if entry["pid"] == reader.pid]
        assert entry["behind_txns"] >= 1
        assert "python" in entry["command"]
        assert re.search(rf"pid {reader.pid}  reading, \d+ commits? behind", run("status", ledger, "-v", env=PLAIN).out)
    finally:
        reader.kill()
        reader.communicate()


def test_the_newest_of_the_quarantine_is_shown_as_text(ledger: str, start_daemon: StartDaemon) -> None:
    ledgers.execute(
        ledger, "INSERT INTO events (ts, kind, content, meta) VALUES ('t', 'commitment_open', 'c', ?)", "\x1b[2J{"
    )
    start_daemon(ledger)
    ran = run("status", ledger, env=PLAIN)
    assert ran.code == 0
    assert "degraded" in ran.out.splitlines()[0]
    assert re.search(r"event 1, \w+: ", ran.out)
    assert "\x1b" not in ran.out
    assert f"type: pmm-shm status {ledger} --json" in " ".join(ran.out.split())


def test_colours_on_a_terminal_unless_they_are_not_wanted(ledger: str) -> None:
    for no_color, has_colours in ((None, True), ("1", False)):
        env = daemons.environment(NO_COLOR=no_color, TERM="xterm-256color", COLUMNS=None, LINES=None)
        child = pexpect.spawn(
            sys.executable, [*COMMAND[1:], "status", ledger], env=env, dimensions=(24, 80), timeout=20
        )
        child.expect(pexpect.EOF)
        child.close()
        first = child.before.decode().splitlines()[0]
        assert ("\x1b[1;31m" in first) is has_colours
        assert "absent" in first
        assert child.exitstatus == 3


# What to type.


def typed(problem: str | Exception, instance: Instance) -> str | None:
    """What `status` and `top` say to type."""
    (found,) = with_remedies(instance, [problem])
    assert found["problem"] == str(problem)
    return found["command"]


def test_known_problems_as_the_code_says_them(ledger: str, start_daemon: StartDaemon) -> None:
    instance = Instance.of(ledger)
    with pytest.raises(DaemonAbsentError) as absent:
        commands.call(instance, "ping", {}, 1.0)
    assert typed(absent.value, instance) == f"pmm-cached {ledger} &"
    daemon = start_daemon(ledger)
    daemon.freeze()
    with pytest.raises(DaemonTimeoutError) as stopped:
        commands.call(instance, "ping", {}, 0.2)
    remedy = typed(stopped.value, instance)
    assert remedy is not None
    assert remedy.startswith(f"kill -CONT {daemon.pid}  # ")
    # The remedy does it, typed as it is printed.
    subprocess.run(["bash", "-c", remedy], check=True)
    assert daemon.stats()["health"] == "healthy"


def test_the_remedy_of_a_damaged_ledger_restores_it_and_keeps_the_backup(tmp_path: Path) -> None:
    """BACKUP first, then LEDGER: the other way round it would overwrite the backup."""
    ledger, backup = str(tmp_path / "agent.db"), str(tmp_path / "backup.db")
    ledgers.build(ledger, 500, journal="delete")
    assert run("backup", ledger, backup).code == 0
    whole = ledgers.raw_rows(ledger)
    with open(ledger, "r+b") as file:
        file.seek(os.stat(ledger).st_size // 2 // 4_096 * 4_096)
        file.write(b"\xff" * 4_096)
    found = json.loads(run("top", ledger, "--json", "--interval", "0.1", env=PLAIN).out)
    command = next(one["command"] for one in found["remedies"] if "malformed" in one["problem"])
    assert command == f"pmm-shm restore BACKUP {ledger}"
    given = cli.commands["restore"].make_context("restore", shlex.split(command)[2:]).params
    assert (given["backup"], given["ledger"]) == ("BACKUP", ledger)
    kept = ledgers.read_bytes(backup)
    ran = run(*shlex.split(command.replace("BACKUP", backup))[1:], "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ledgers.raw_rows(ledger) == whole
    assert ledgers.read_bytes(backup) == kept
    assert b"\xff" * 4_096 in ledgers.read_bytes(json.loads(ran.out)["safety_copy"])


def test_one_frame(ledger: str, start_daemon: StartDaemon) -> None:
    with connect(ledger) as cache:
        cache.append("user", "hello", {})
    ran = run("top", ledger, "--once", "--interval", "0.1", env=PLAIN)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("absent  ledger.db  nothing published  head 1\n")
    assert f"type: pmm-cached {ledger} &" in ran.out
    daemon = start_daemon(ledger)
    # No terminal: as `--once`.
    ran = run("top", ledger, "--interval", "0.1", env=PLAIN)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("healthy  ledger.db  event 1  lag 0\n")
    for word in ("events/s", "reads/s", "commands/s", "commits/s", "IAS", "GAS", "memory", "workers", "readers"):
        assert f"\n{word}" in ran.out
    assert "\x1b" not in ran.out
    found = json.loads(run("top", ledger, "--json", "--interval", "0.1", env=PLAIN).out)
    assert (found["health"], found["rates"]["events"], found["daemon"]["pid"]) == ("healthy", 0.0, daemon.pid)
    # It only looks on.
    assert daemon.stats()["workers"]["seen"] == 0
    ran = run("top", ledger, "--once", "--interval", "0.1", env={**PLAIN, "PYTHONIOENCODING": "ascii"})
    assert not re.search("[▁-█⠀-⣿]", ran.out)


@pytest.mark.parametrize("option", [["--interval", "0"], ["--interval", "nan"], ["--nonsense"]])
def test_wrong_usage(ledger: str, option: list[str]) -> None:
    ran = run("top", ledger, *option, env=PLAIN)
    assert (ran.code, len(ran.err.splitlines())) == (2, 1)


def test_without_a_ledger(tmp_path: Path) -> None:
    ran = run("top", str(tmp_path / "none.db"), env=PLAIN)
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (1, "", 1)


@pytest.fixture
def terminal(ledger: str) -> Iterator[Callable[..., pexpect.spawn[str]]]:
    children: list[pexpect.spawn[str]] = []

    def start(rows: int = 30, columns: int = 100) -> pexpect.spawn[str]:
        own = {"COLUMNS": None, "LINES": None, "NO_COLOR": "1", "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
        child = pexpect.spawn(
            sys.executable,
            [*TOP, ledger, "--interval", "0.2"],
            env=daemons.environment(**own),
            encoding="utf-8",
            # A signal may end the program within a character.
            codec_errors="replace",
            dimensions=(rows, columns),
            timeout=20,
        )
        child.delaybeforesend = None
        children.append(child)
        return child

    yield start
    for child in children:
        child.close(force=True)


def check_left(child: pexpect.spawn[str]) -> None:
    child.expect_exact("\x1b[?1049l")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0


def test_it_lives_through_the_death_and_return_of_the_daemon(
    terminal: Callable[..., pexpect.spawn[str]], ledger: str, start_daemon: StartDaemon
) -> None:
    child = terminal()
    child.expect_exact("\x1b[?1049h")
    child.expect_exact("absent")
    daemon = start_daemon(ledger)
    child.expect_exact("healthy")
    with connect(ledger) as cache:
        cache.append_many([("user", "x", None)] * 1_234)
    child.expect_exact("event 1,234")
    daemon.freeze()
    child.expect_exact("degraded")
    child.expect_exact(f"kill -CONT {daemon.pid}")
    daemon.thaw()
    child.expect_exact("healthy")
    daemon.kill()
    child.expect_exact("absent")
    start_daemon(ledger)
    child.expect_exact("healthy")
    child.send("q")
    check_left(child)


def test_it_follows_the_size_of_the_terminal(
    terminal: Callable[..., pexpect.spawn[str]], start_daemon: StartDaemon, ledger: str
) -> None:
    start_daemon(ledger)
    child = terminal()
    child.expect_exact("q quits")
    child.setwinsize(6, 40)
    # Too narrow for the hint, too low for most of it. After some seconds, the bars fill the line to its end.
    child.expect(r"commits/s +\S+ +\S*\s*\x1b\[H")
    assert "memory" not in child.before.rpartition("\x1b[H")[2]
    child.setwinsize(40, 120)
    child.expect_exact("q quits")
    child.expect_exact("memory")
    child.send("q")
    check_left(child)


def test_keys(terminal: Callable[..., pexpect.spawn[str]], ledger: str, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ledger)
    child = terminal(40, 100)
    child.expect_exact("? keys, q quits")
    child.expect_exact("cpu v")
    child.expect(rf"{daemon.pid} +\S+ (%|) *[0-9.]+ MB +–  ")
    child.send("?")
    child.expect_exact("sort the processes by the next column")
    child.send("s")
    child.expect_exact("memory v")
    child.send("r")
    child.expect_exact("memory ^")
    child.send("p")
    child.expect_exact("paused, p goes on")
    with connect(ledger) as cache:
        cache.append("user", "while it is paused")
        daemon.wait_published(1)
        child.send("?")
        child.expect_exact("paused, p goes on")
        child.send("s")
        child.expect_exact("behind ^")
        assert "event 1" not in child.before
        child.send(" ")
        child.expect_exact("event 1 ")
    child.send("q")
    check_left(child)


def test_charts_begin_with_the_history_and_fill_the_screen(
    terminal: Callable[..., pexpect.spawn[str]], ledger: str, start_daemon: StartDaemon
) -> None:
    with connect(ledger) as cache:
        cache.append_many(islice(synthetic_events(1), 500))
    start_daemon(ledger)
    child = terminal(50, 100)
    child.expect_exact("q quits")
    child.expect_exact("process")
    first = child.before
    # More than the one sample of now; the rate of the events that were appended before it began.
    assert len(re.findall("[⠁-⣿]", first)) > 10
    assert re.search(r"events/s +\S+ [^│]*█", first.partition("reads/s")[0])
    lines = first.split("\r\n")
    assert len(lines) >= 45
    assert sum("IAS" in line for line in lines) == 1
    child.send("q")
    check_left(child)


@pytest.mark.parametrize("how", ["q", "escape", "ctrl-c", "sigterm"])
def test_the_terminal_is_given_back(terminal: Callable[..., pexpect.spawn[str]], how: str) -> None:
    child = terminal()
    before = termios.tcgetattr(child.child_fd)
    child.expect_exact("absent")
    during = termios.tcgetattr(child.child_fd)
    assert not during[3] & (termios.ICANON | termios.ECHO)
    # An arrow is no Escape, and another key no reason to leave.
    child.send("\x1b[Ax")
    child.expect_exact("absent")
    child.expect_exact("absent")
    if how == "sigterm":
        child.kill(signal.SIGTERM)
    else:
        child.send({"q": "q", "escape": "\x1b", "ctrl-c": "\x03"}[how])
    child.expect_exact("\x1b[?1049l")
    daemons.until(lambda: termios.tcgetattr(child.child_fd) == before, "the settings are back")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == {"ctrl-c": 130, "sigterm": 143}.get(how, 0)


def test_the_remedy_of_a_foreign_wal(tmp_path: Path) -> None:
    source = Path(refuse_foreign_wal.__code__.co_filename).read_text(encoding="utf-8")
    assert "replaced beside a -wal" in source
    ledger = str(tmp_path / "a b.db")
    error = LedgerReplacedError(f"{ledger}: replaced beside a -wal with commits, ...")
    remedy = typed(error, Instance.of(ledger))
    assert remedy is not None
    # What moves the -wal is in the comment, for when what both together hold is not ok.
    steps, _, comment = remedy.partition("  # ")
    assert steps == f"pmm-shm backup '{ledger}' FILE && pmm-shm verify FILE"
    move = f"mv --backup=numbered '{ledger}-wal' '{ledger}-wal'.old"
    assert comment.endswith(move)
    for turn in range(2):
        Path(ledger + "-wal").write_text(f"{turn}", encoding="utf-8")
        subprocess.run(["bash", "-c", move], check=True)
    # The second turn keeps what the first one moved.
    assert Path(f"{ledger}-wal.old").read_text(encoding="utf-8") == "1"
    assert Path(f"{ledger}-wal.old.~1~").read_text(encoding="utf-8") == "0"


def test_no_command_of_a_remedy_moves_or_removes_a_file_of_the_ledger() -> None:
    for key, template in TEMPLATES.items():
        steps = template.command.partition("#")[0]
        for step in re.split("&&|;|[|]", steps):
            words = step.split()
            if words[:1] in (["mv"], ["rm"], ["truncate"]):
                assert not {"{ledger}", "{wal}", "{shm}"} & set(words), key
