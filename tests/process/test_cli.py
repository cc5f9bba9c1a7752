"""The command `pmm-shm`: exit codes, what goes to stdout and what to stderr, JSON, and bad input."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pmm_shm.folds.registry import BUILT_IN_NAMES
from pmm_shm.folds.self_model import MAX_TRAIT_DELTA
from pmm_shm.instance.paths import Instance
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.wire import protocol
from pmm_shm_cli.commands import reads
from pmm_shm_cli.main import cli
from pmm_shm_cli.synthetic import generate
from pmm_shm_client.autostart import daemon_command, is_running
from pmm_shm_client.commands import call
from pmm_shm_terminal.answer_names import NAMES
from tests.conftest import StartDaemon
from tests.support.command import COMMAND, is_one_line, run
from tests.support.ledgers import build, build_hostile, execute, read_bytes

Files = dict[str, str]


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PMM_"):
            monkeypatch.delenv(name)


@pytest.fixture
def ledger(folder: Path) -> str:
    return generate(folder / "l.db", 3_000, 1, "delete")


@pytest.fixture
def daemon(ledger: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [*daemon_command(), "--verify-every", "0", ledger], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 20
        while not is_running(Instance.of(ledger)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        until_up_to_date(ledger)
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(10)


def until_up_to_date(ledger: str) -> None:
    deadline = time.monotonic() + 20
    while run("status", ledger)[0] != 0:
        assert time.monotonic() < deadline


def ran_json(*arguments: str) -> Any:
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    return json.loads(out)


def files(directory: Path) -> Files:
    """Every file below, with a hash of its bytes."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(read_bytes(path)).hexdigest() if path.is_file() else "-"
        for path in directory.rglob("*")
    }


# Reading.


@pytest.mark.parametrize("what", NAMES)
def test_read_equals_replay(ledger: str, what: str) -> None:
    assert ran_json("read", ledger, what) == ran_json("replay", ledger, what)
    runner = CliRunner()
    shown = runner.invoke(cli, ["read", ledger, what])
    assert shown.exit_code == 0
    assert shown.stdout == runner.invoke(cli, ["replay", ledger, what]).stdout != ""
    assert "\x1b" not in shown.stdout


def test_names_of_folds_and_underscores(ledger: str) -> None:
    for name in BUILT_IN_NAMES:
        assert ran_json("read", ledger, name) == ran_json("read", ledger, name.replace("_", "-"))


def test_frame_stands_at_one_event(ledger: str) -> None:
    frame = ran_json("read", ledger, "frame")
    assert set(frame) == {"as_of", *NAMES} - {"frame", "history"}
    assert {frame[name]["as_of"] for name in ("identity", "commitments", "metrics", "stage", "recent")} == {3_000}


def test_reading_leaves_nothing_behind(ledger: str, folder: Path) -> None:
    before = files(folder)
    for arguments in (["read", ledger, "frame"], ["replay", ledger, "frame"], ["verify", ledger]):
        assert run(*arguments)[0] == 0
    assert run("status", ledger)[0] == 3
    assert files(folder) == before


def test_replay_until_an_event(ledger: str, folder: Path) -> None:
    generate(folder / "short.db", 1_000, 1)
    expected = ran_json("replay", str(folder / "short.db"), "frame")
    assert ran_json("replay", ledger, "frame", "--until", "1000") == expected
    assert ran_json("replay", ledger, "metrics", "--until", "99999")["as_of"] == 3_000
    assert ran_json("replay", ledger, "metrics", "--until", "0") == {"ias": 0.0, "gas": 0.0, "as_of": 0}


def test_strict_and_its_limit(folder: Path) -> None:
    path = str(folder / "s.db")
    with EventLog(path) as log:
        log.append("trait_update", "", {"trait": "o", "delta": 0.2})
    for command in ("read", "replay"):
        openness = [
            ran_json(command, path, "self-model", *options)["identity"]["traits"]["openness"]
            for options in ([], ["--strict"], ["--strict", "--max-trait-delta", "0.1"], ["--max-trait-delta", "0.1"])
        ]
        assert openness == [0.7, 0.55, 0.6, 0.7]
    assert reads._MAX_TRAIT_DELTA == MAX_TRAIT_DELTA


def test_strict_violation_is_5(folder: Path) -> None:
    path = str(folder / "s.db")
    with EventLog(path) as log:
        log.append("commitment_open", "x", {"cid": "c1", "text": "x"})
        log.append("commitment_close", "x", {"cid": "c1"})
    for command in ("read", "replay"):
        for what in ("self-model", "frame"):
            code, out, err = run(command, path, what, "--strict", "--json")
            assert (code, out) == (5, "")
            assert is_one_line(err)
            assert "'c1'" in err
            assert "event 2" in err


def test_odd_values(folder: Path) -> None:
    path = str(folder / "odd.db")
    with EventLog(path) as log:
        log.append("commitment_open", "x", {"cid": 7, "text": "\ud800 [bold]\x1b[31m", "n": float("nan"), "i": 1 << 80})
        log.append("commitment_open", "x", {"cid": 8, "text": float("inf")})
    opened = ran_json("read", path, "self-model")["commitments"]["open"]
    assert set(opened) == {"7", "8"}
    assert opened["7"]["text"] == "\ud800 [bold]\x1b[31m"
    assert opened["7"]["n"] != opened["7"]["n"]
    assert opened["7"]["i"] == 1 << 80
    code, out, err = run("read", path, "self-model", env={"PYTHONIOENCODING": "ascii"})
    assert (code, err) == (0, "")
    assert "[bold]" in out
    assert "\\x1b[31m" in out
    assert "\x1b" not in out


def test_hostile_ledger(folder: Path) -> None:
    path = build_hostile(folder / "hostile.db", hashed=False)
    assert ran_json("read", path, "frame") == ran_json("replay", path, "frame")
    assert run("read", path, "frame")[0] == 0


# PMM_DB.


def test_pmm_db_is_the_default_ledger(ledger: str) -> None:
    env = {"PMM_DB": ledger}
    for arguments in (["read", "metrics"], ["replay", "metrics"], ["verify"]):
        assert run(*arguments, env=env)[0] == 0
    assert run("status", env=env)[0] == 3
    assert run("append", "note", env=env)[1] == "3001\n"
    assert run("append", "note", "some text", env=env)[1] == "3002\n"
    assert run("append", ledger, "note", env=env)[1] == "3003\n"
    assert run("append", ledger, "note", "x", env=env)[1] == "3004\n"
    rows = execute(ledger, "SELECT content FROM events WHERE id > 3000 ORDER BY id")
    assert rows == [("",), ("some text",), ("",), ("x",)]
    code, _, err = run("append", "missing.db", "note", env=env)
    assert code == 1
    assert "no such file" in err


@pytest.mark.parametrize("command", ["read metrics", "replay metrics", "verify", "status", "invalidate"])
def test_without_any_ledger_it_is_usage(command: str, tmp_path: Path) -> None:
    code, out, err = run(*command.split(), cwd=tmp_path)
    assert (code, out) == (2, "")
    assert is_one_line(err)
    assert "PMM_DB" in err


# Appending.


def test_append(folder: Path) -> None:
    path = str(folder / "new.db")
    code, out, err = run("append", path, "user", "hello")
    assert (code, out) == (1, "")
    assert "--create" in err
    assert os.listdir(folder) == []
    assert run("append", path, "user", "héllo", "--meta", '{"a": [1]}', "--create") == (0, "1\n", "")
    assert run("append", path, "user", "-", input="from\nstdin\n") == (0, "2\n", "")
    assert ran_json("append", path, "user") == {"id": 3, "ledger": path}
    with EventLog(path, create=False) as log:
        events = [(e["content"], e["meta"]) for e in log.read_all()]
        assert log.verify_chain().ok
    assert events == [("héllo", {"a": [1]}), ("from\nstdin", {}), ("", {})]


@pytest.mark.parametrize(
    "arguments",
    [
        ["user", "x", "--meta", "{"],
        ["user", "x", "--meta", "[1]"],
        ["user", "x", "--meta", "[" * 100_000],
        ["", "x"],
        ["user", "x", "too", "many"],
        [],
        ["user", "x", "--timeout", "-1"],
        ["user", "x", "--timeout", "nan"],
    ],
)
def test_append_of_something_wrong(ledger: str, folder: Path, arguments: list[str]) -> None:
    before = files(folder)
    code, out, err = run("append", ledger, *arguments)
    assert (code, out) == (2, "")
    assert is_one_line(err)
    assert files(folder) == before


def test_append_after_a_broken_chain_is_5(folder: Path) -> None:
    path = build(folder / "l.db", 3)
    execute(path, "UPDATE events SET hash = 'x' WHERE id = 3")
    code, out, err = run("append", path, "user", "x")
    assert (code, out) == (5, "")
    assert is_one_line(err)


def test_busy_ledger_is_1(ledger: str) -> None:
    holder = sqlite3.connect(ledger, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        code, out, err = run("append", ledger, "user", "x", "--timeout", "0.2")
    finally:
        holder.close()
    assert (code, out) == (1, "")
    assert "busy" in err


# The daemon.


def test_without_a_daemon(ledger: str) -> None:
    code, out, err = run("status", ledger, "--json")
    assert code == 3
    assert is_one_line(err)
    assert json.loads(out)["health"] == "absent"
    for arguments in (
        ["invalidate", ledger],
        ["read", ledger, "metrics", "--consistency", "wait"],
        ["read", ledger, "metrics", "--consistency", "snapshot"],
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (3, "")
        assert is_one_line(err)


def test_with_a_daemon(ledger: str, daemon: subprocess.Popen[bytes]) -> None:
    status = ran_json("status", ledger)
    assert (status["health"], status["head_id"], status["as_of"], status["lag_events"]) == ("healthy", 3_000, 3_000, 0)
    assert status["instance_directory"] == ledger + "-cache"
    assert status["daemon"]["pid"] == daemon.pid
    shown = run("status", ledger, "-v")[1]
    assert "rebuilds" in shown
    assert "quarantine" in shown
    expected = ran_json("replay", ledger, "frame")
    for consistency in ("exact", "snapshot", "wait"):
        assert ran_json("read", ledger, "frame", "--consistency", consistency) == expected
    assert ran_json("invalidate", ledger, "--fold", "metrics")["as_of"] == 3_000
    assert ran_json("invalidate", ledger)["fold"] is None
    assert ran_json("verify", ledger, "--fold", "stage")["snapshot"]["folds"] == ["stage"]
    report = ran_json("verify", ledger)
    assert report["ok"] is True
    assert report["chain"] == {
        "ok": True,
        "rows_checked": 3_000,
        "rows_without_hash": 0,
        "formula": "full",
        "first_bad_id": None,
        "forks": 0,
    }
    assert set(report["snapshot"]["folds"]) == BUILT_IN_NAMES


def test_stopped_daemon_is_4(ledger: str, daemon: subprocess.Popen[bytes]) -> None:
    # In rollback-journal mode, a daemon that is stopped in a read of the ledger keeps all writers out.
    call(Instance.of(ledger), protocol.INDEX, {}, 60.0)
    daemon.send_signal(signal.SIGSTOP)
    code, out, err = run("status", ledger, "--json", "--timeout", "0.3")
    assert code == 4
    assert is_one_line(err)
    assert json.loads(out)["health"] == "degraded"
    assert run("append", ledger, "user", "x")[0] == 0
    assert ran_json("read", ledger, "metrics")["as_of"] == 3_001
    assert ran_json("read", ledger, "metrics", "--consistency", "snapshot")["as_of"] == 3_000
    for arguments in (
        ["read", ledger, "metrics", "--consistency", "wait", "--timeout", "0.3"],
        ["verify", ledger],
        ["invalidate", ledger],
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (4, ""), arguments
        assert is_one_line(err)


# Integrity.


def test_verify_names_the_first_bad_event(ledger: str) -> None:
    execute(ledger, "UPDATE events SET content = 'edited' WHERE id = 17")
    code, out, err = run("verify", ledger, "--json")
    assert code == 5
    assert json.loads(out)["chain"]["first_bad_id"] == 17
    assert is_one_line(err)
    assert "event 17" in err
    # Nothing is published: the chain is all that there is to check.
    assert run("verify", ledger, "--no-chain")[0] == 5


def test_without_the_chain_only_what_is_published_counts(ledger: str, start_daemon: StartDaemon) -> None:
    execute(ledger, "UPDATE events SET content = 'edited' WHERE id = 17")
    start_daemon(ledger)
    assert run("verify", ledger)[0] == 5
    assert run("verify", ledger, "--no-chain")[0] == 0


def test_verify_names_the_first_difference(ledger: str, daemon: subprocess.Popen[bytes]) -> None:
    # The chain does not cover how `meta` is spelled; the published anchors and seals do not matter here: a trait does.
    execute(ledger, "DELETE FROM events WHERE kind = 'trait_update'")
    code, out, err = run("verify", ledger, "--json", "--no-chain")
    assert code == 5
    assert json.loads(out)["snapshot"]["difference"] in err


def test_ledger_without_hashes_is_no_failure(folder: Path) -> None:
    path = build(folder / "old.db", 5, hash_columns=False)
    report = ran_json("verify", path)
    assert (report["ok"], report["chain"]["rows_without_hash"]) == (True, 5)


# Bad input.


def _missing(path: Path) -> None:
    pass


def _empty(path: Path) -> None:
    path.touch()


def _no_database(path: Path) -> None:
    path.write_text("this is a letter, not a database\n" * 200)


def _other_tables(path: Path) -> None:
    execute(path, "CREATE TABLE letters (id INTEGER)")


def _wrong_columns(path: Path) -> None:
    execute(path, "CREATE TABLE events (id INTEGER PRIMARY KEY, name TEXT)")


def _directory(path: Path) -> None:
    path.mkdir()


BAD_LEDGERS: list[Callable[[Path], None]] = [_missing, _empty, _no_database, _other_tables, _wrong_columns, _directory]
COMMANDS = [
    ["status", "{}"],
    ["read", "{}", "metrics"],
    ["read", "{}", "frame", "--consistency", "snapshot"],
    ["replay", "{}", "frame"],
    ["append", "{}", "user", "x"],
    ["verify", "{}"],
    ["invalidate", "{}"],
]


@pytest.mark.parametrize("make", BAD_LEDGERS)
def test_bad_ledgers_are_1_and_nothing_changes(folder: Path, make: Callable[[Path], None]) -> None:
    path = folder / "bad.db"
    make(path)
    before = files(folder)
    for command in COMMANDS:
        arguments = [part.format(path) for part in command]
        code, out, err = run(*arguments, "--json")
        assert (code, out) == (1, ""), (arguments, err)
        assert is_one_line(err)
        assert "bad.db" in err
        assert files(folder) == before


@pytest.mark.parametrize("make", [_no_database, _other_tables, _wrong_columns, _directory, _empty])
def test_generate_and_create_do_not_touch_what_is_there(folder: Path, make: Callable[[Path], None]) -> None:
    path = folder / "bad.db"
    make(path)
    before = files(folder)
    commands = [["generate", str(path)]]
    if make is not _empty:
        commands.append(["append", str(path), "user", "x", "--create"])
    for arguments in commands:
        code, out, err = run(*arguments)
        assert (code, out) == (1, ""), err
        assert is_one_line(err)
        assert files(folder) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["read"],
        ["read", "{}"],
        ["read", "{}", "nonsense"],
        ["read", "{}", "metrics", "more"],
        ["read", "{}", "metrics", "--strict"],
        ["read", "{}", "metrics", "--consistency", "maybe"],
        ["read", "{}", "self-model", "--max-trait-delta", "nan"],
        ["read", "{}", "self-model", "--max-trait-delta", "-1"],
        ["read", "{}", "metrics", "--timeout", "soon"],
        ["read", "", "metrics"],
        ["replay", "{}", "nonsense"],
        ["replay", "{}", "metrics", "--until", "-1"],
        ["replay", "{}", "metrics", "--until", "x"],
        ["verify", "{}", "--fold", "nonsense"],
        ["verify", "{}", "more"],
        ["invalidate", "{}", "--fold", "nonsense"],
        ["status", "{}", "--nonsense"],
        ["generate"],
        ["generate", "{}.new", "--events", "-1"],
        ["generate", "{}.new", "--events", "many"],
        ["generate", "{}.new", "--seed", "-1"],
        ["generate", "{}.new", "--journal", "off"],
        ["generate", ":memory:"],
        ["generate", ""],
    ],
)
def test_wrong_usage_is_2_and_nothing_changes(ledger: str, folder: Path, arguments: list[str]) -> None:
    before = files(folder)
    code, out, err = run(*(part.format(ledger) for part in arguments), cwd=folder)
    assert (code, out) == (2, "")
    assert is_one_line(err)
    assert files(folder) == before


@pytest.mark.parametrize("name", ["PMM_USE_PROJECTION_CACHE", "PMM_USE_METRICS_CACHE", "PMM_USE_EMBEDDING_CACHE"])
@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_flags_are_2(ledger: str, folder: Path, name: str, command: list[str]) -> None:
    before = files(folder)
    code, out, err = run(*(part.format(ledger) for part in command), env={name: "maybe"})
    assert (code, out) == (2, "")
    assert is_one_line(err)
    assert name in err
    assert files(folder) == before


def test_unwritable_directory_is_1(ledger: str, folder: Path) -> None:
    prefix = []
    if os.geteuid() == 0:
        # Root, but without the right to write everywhere; another user might not reach this interpreter.
        prefix = ["setpriv", "--bounding-set", "-dac_override"]
        if shutil.which("setpriv") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
            pytest.skip("needs setpriv to try this as root")
        for path in (ledger, folder):
            os.chown(path, 65534, 65534)
    else:
        os.chmod(ledger, 0o444)
        os.chmod(folder, 0o555)
    before = files(folder)
    for arguments in (
        ["generate", str(folder / "new.db")],
        ["append", str(folder / "new.db"), "user", "x", "--create"],
        ["append", ledger, "user", "x"],
        ["demo", "--keep", str(folder / "demo")],
    ):
        done = subprocess.run([*prefix, *COMMAND, *arguments], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert is_one_line(done.stderr)
        assert files(folder) == before
    done = subprocess.run([*prefix, *COMMAND, "read", ledger, "metrics"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert files(folder) == before
    os.chmod(folder, 0o755)


# The terminal.


def test_help_and_version() -> None:
    for arguments in (["--help"], ["--version"], *([name, "--help"] for name in cli.commands)):
        code, out, err = run(*arguments)
        assert (code, err) == (0, ""), arguments
        assert out


def test_closed_pipe_is_quiet(ledger: str) -> None:
    process = subprocess.Popen(
        [*COMMAND, "read", ledger, "frame", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(20) == 1
    assert err == b""


def test_progress_is_shown_on_a_terminal_only(folder: Path) -> None:
    primary, secondary = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "generate", str(folder / "l.db"), "--events", "60000", "--json"],
        stdout=subprocess.PIPE,
        stderr=secondary,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(secondary)
    shown = b""
    try:
        while chunk := os.read(primary, 4_096):
            shown += chunk
    except OSError:
        pass  # The other end is closed.
    finally:
        os.close(primary)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert b"Generating" in shown
    assert json.loads(out)["events"] == 60_000
    shutil.rmtree(folder / "l.db-cache", ignore_errors=True)
