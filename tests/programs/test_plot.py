"""`pmm-shm plot`: the same file for the same ledger, whatever its size; nothing personal unless asked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pmm_shm.installation import extra_command
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_cli.synthetic import generate
from tests.support import daemons
from tests.support.command import is_one_line, run
from tests.support.figures import drawn

WITHOUT = """
import sys
sys.modules["matplotlib"] = None
from pmm_shm_cli.main import main
main()
"""


@pytest.mark.usefixtures("_with_matplotlib")
@pytest.mark.parametrize("events", [0, 1, 3_000])
def test_the_same_ledger_gives_the_same_file(events: int, tmp_path: Path) -> None:
    ledger = generate(tmp_path / "l.db", events, 1)
    if events == 1:
        with EventLog(ledger) as log:
            log.append("commitment_close")
    first = drawn(ledger, tmp_path / "a.svg")
    in_another_process = daemons.run_python(
        "from pmm_shm_cli.main import main; main()", "plot", ledger, "-o", str(tmp_path / "b.svg"), "--json"
    )
    assert (in_another_process.returncode, in_another_process.stderr) == (0, "")
    assert (tmp_path / "b.svg").read_bytes() == first
    answer = json.loads(in_another_process.stdout)
    assert (answer["path"], answer["bytes"]) == (str(tmp_path / "b.svg"), len(first))
    assert ElementTree.fromstring(first).tag == "{http://www.w3.org/2000/svg}svg"
    assert re.search(rb"20\d\d-\d\d-\d\d|Matplotlib", first) is None
    assert len(first) < 400_000


def test_without_the_library_it_says_what_to_install(ledger: str, tmp_path: Path) -> None:
    ran = daemons.run_python(WITHOUT, "plot", ledger, "-o", str(tmp_path / "a.svg"))
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("pmm-shm: ")
    assert ran.stderr.count("\n") == 1
    assert extra_command("plot") in ran.stderr
    assert not (tmp_path / "a.svg").exists()


@pytest.mark.usefixtures("_with_matplotlib")
def test_without_a_name_it_is_beside_the_ledger(tmp_path: Path) -> None:
    ledger = generate(tmp_path / "agent.db", 200, 1)
    target = tmp_path / "agent.svg"
    for _ in range(2):
        ran = run("plot", ledger)
        assert (ran.code, ran.err) == (0, "")
        assert ran.out.startswith(f"{target}: ")
        assert target.read_bytes() == drawn(ledger, tmp_path / "other.svg")
    # A file that it has not written, and that nobody named, stays.
    target.write_text("a picture")
    ran = run("plot", ledger)
    assert (ran.code, ran.out) == (2, "")
    assert is_one_line(ran.err)
    assert target.read_text() == "a picture"
    assert run("plot", ledger, "-o", str(target)).code == 0
