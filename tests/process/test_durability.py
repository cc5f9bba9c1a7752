"""What an acknowledged append survives: a power cut is simulated after each write and sync of a process."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

import pytest

from pmm_shm import errors
from pmm_shm.ledger.connection import Durability
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm_client import connect
from tests.conftest import StartDaemon
from tests.support import daemons, ledgers
from tests.support.command import run
from tests.support.power import Step, after_power_cut, record

NAMES = ("l.db", "l.db-wal", "l.db-journal", "acknowledged")
WRITER = """
import os, sys
from pmm_shm.ledger.eventlog import EventLog
from tests.support import ledgers
path, journal, durability = sys.argv[1:]
if journal == "delete":
    ledgers.build(path, 0, journal=journal)
acknowledged = os.open(os.path.join(os.path.dirname(path), "acknowledged"), os.O_WRONLY | os.O_CREAT)
log = EventLog(path, durability=durability)
for number in range(1, 9):
    os.write(acknowledged, b"%d\\n" % log.append("user", f"event {number}"))
    if number in (3, 6):
        log.close()  # Which is a checkpoint.
os._exit(0)
"""


@pytest.fixture(scope="module")
def strace(tmp_path_factory: pytest.TempPathFactory) -> None:
    """These tests need strace, and the permission to trace."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    folder = tmp_path_factory.mktemp("strace")
    try:
        record(folder, ["x"], [sys.executable, "-c", ""], daemons.environment())
    except AssertionError as error:
        pytest.skip(f"strace cannot trace here: {str(error)[:80]!r}")


@pytest.fixture(params=[("wal", "full"), ("wal", "default"), ("delete", "full"), ("delete", "default")])
def recorded(strace: None, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Durability, list[Step]]:
    """Eight appends with two checkpoints among them: journal mode, durability, and all steps."""
    journal, durability = request.param
    folder = tmp_path / "written"
    folder.mkdir()
    command = [sys.executable, "-c", WRITER, str(folder / "l.db"), journal, durability]
    env = daemons.environment(PYTHONPATH=f"{ledgers.ROOT}:{ledgers.checkout_path()}")
    return journal, durability, record(folder, NAMES, command, env)


def test_a_power_cut_after_any_step(recorded: tuple[str, Durability, list[Step]], tmp_path: Path) -> None:
    journal, durability, steps = recorded
    lost_most = acknowledged = 0
    for cut, step in enumerate(steps, 1):
        if step.name == "acknowledged":
            acknowledged += step.call == "write"
            continue
        if not acknowledged:
            # The ledger is being created: nothing was promised yet.
            continue
        # All is lost just after an acknowledgement and now and then, and some of it elsewhere.
        for luck in [None] if cut % 4 == 0 or steps[cut - 2].name == "acknowledged" else [random.Random(cut)]:
            folder = tmp_path / "cut"
            folder.mkdir()
            for name, content in after_power_cut(steps[:cut], luck).items():
                (folder / name).write_bytes(content)
            with EventLog(folder / "l.db", create=False) as log:
                found = [event["content"] for event in log.read_all()]
                assert found == [f"event {number}" for number in range(1, len(found) + 1)]
                assert log.verify_chain().ok
                lost_most = max(lost_most, acknowledged - len(found))
                assert log.append("user", f"event {len(found) + 1}") == len(found) + 1
            shutil.rmtree(folder)
    assert acknowledged == 8
    # Where appends may be lost, some are: otherwise no power was cut.
    assert lost_most == 0 if durability == "full" else lost_most > 0
    if journal == "delete":
        assert lost_most <= 1


def test_status_and_doctor_say_which_durability_is_in_use(tmp_path: Path, start_daemon: StartDaemon) -> None:
    path = str(tmp_path / "l.db")
    with connect(path, create=True):
        start_daemon(path)
    out = run("doctor", path, "--json").out
    assert "no worker has reported an append" in next(
        one["found"] for one in json.loads(out)["findings"] if one["check"] == "durability"
    )
    with connect(path, durability="full") as careful, connect(path) as other:
        assert careful.stats()["appends"] == {"appends": 0, "durability": "full"}
        careful.append_many([("user", "", {})] * 3)
        other.append("user")
        assert careful.stats()["appends"] == {"appends": 3, "durability": "full"}
        assert other.stats()["appends"] == {"appends": 1, "durability": "default"}

    def reported() -> bool:
        workers = json.loads(run("status", path, "--json").out)["daemon"]["workers"]
        return (workers["appends_default"], workers["appends_full"]) == (1, 3)

    daemons.until(reported, "the workers' reports")
    assert "4 events appended: 1 with durability default, 3 with full" in run("status", "-v", path).out
    out = run("doctor", path, "--json").out
    finding = next(one for one in json.loads(out)["findings"] if one["check"] == "durability")
    assert "1 events with `default`, 3 with `full`" in finding["found"]
    assert "power cut" in finding["meaning"]


@pytest.mark.parametrize("durability", ["fast", None, 1, ""])
def test_no_other_durability(tmp_path: Path, durability: str) -> None:
    for open_one in (EventLog, connect):
        with pytest.raises(errors.ConfigError, match="durability: expected one of default, full"):
            open_one(tmp_path / "l.db", durability=durability)  # type: ignore[operator]
    assert not (tmp_path / "l.db").exists()
