"""`pmm-shm export` and `import` as programs: pipes, files, exit codes, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_cli.synthetic import generate
from tests.support import daemons, ledgers
from tests.support.command import COMMAND, is_one_line, run


def test_through_a_pipe_into_a_new_ledger(tmp_path: Path) -> None:
    ledger, copy = generate(tmp_path / "a.db", 3_000, 1), str(tmp_path / "b.db")
    exported = run("export", env={"PMM_DB": ledger})
    assert (exported.code, exported.err) == (0, "")
    assert exported.out.isascii()
    assert [json.loads(line)["id"] for line in exported.out.splitlines()] == list(range(1, 3_001))
    ran = run("import", "-", copy, "--json", input=exported.out)
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out) == {"ledger": os.path.realpath(copy), "events": 3_000, "head_id": 3_000}
    assert ledgers.raw_rows(copy) == ledgers.raw_rows(ledger)
    for what in ("frame", "history"):
        assert run("read", copy, what, "--json").out == run("read", ledger, what, "--json").out
    with EventLog(copy, create=False) as log:
        assert log.verify_chain().rows_checked == 3_000


def test_what_cannot_be_imported_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text(run("export", ledgers.build(tmp_path / "a.db", 3)).out.replace("content 2", "content 7"))
    new = str(tmp_path / "b.db")
    before = set(os.listdir(tmp_path))
    for code, arguments in (
        (5, [str(lines), new]),
        (1, [str(lines), str(tmp_path / "a.db")]),
        (1, [str(tmp_path / "none.jsonl"), new]),
        (1, [str(tmp_path), new]),
        (1, [str(tmp_path / "a.db"), new]),
        (1, [str(lines), str(tmp_path / "none" / "b.db")]),
        (2, [str(lines)]),
    ):
        ran = run("import", *arguments)
        assert (ran.code, ran.out) == (code, ""), arguments
        assert is_one_line(ran.err)
        assert set(os.listdir(tmp_path)) <= {*before, "a.db-wal", "a.db-shm"}
    assert run("import", str(lines), new, "--no-chain").code == 0


def test_export_ends_quietly_where_its_reader_does(tmp_path: Path) -> None:
    ledger = generate(tmp_path / "a.db", 3_000, 1)
    child = subprocess.Popen(
        [*COMMAND, "export", ledger], env=daemons.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline().startswith(b'{"id": 1,')
    child.stdout.close()
    with child:
        assert child.stderr is not None
        assert (child.stderr.read(), child.wait(daemons.DEADLINE_S)) == (b"", 1)
    ran = run("export", str(tmp_path / "none.db"))
    assert (ran.code, ran.out) == (1, "")
    assert is_one_line(ran.err)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_no_half_ledger(tmp_path: Path, number: int, code: int) -> None:
    child = subprocess.Popen(
        [*COMMAND, "import", "-", str(tmp_path / "b.db")],
        env=daemons.environment(),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdin is not None
    child.stdin.write(run("export", ledgers.build(tmp_path / "a.db", 300)).out.encode())
    child.stdin.flush()
    daemons.until(lambda: any(name.startswith(".b.db") for name in os.listdir(tmp_path)), "it has begun")
    child.send_signal(number)
    assert child.wait(daemons.DEADLINE_S) == code
    with child:
        assert child.stderr is not None
        assert child.stderr.read() == b""
    assert not [name for name in os.listdir(tmp_path) if "b.db" in name]
