"""`pmm-shm doctor`: every finding is provoked, for real where a test can; none is without a remedy, nothing is written.

Versions, file systems and the like are facts that no test can bring about: there the judgement alone is tried.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import inotify_simple
import pytest

import pmm_shm_cli.doctor as package
from pmm_shm import flags
from pmm_shm.errors import CommandError
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.files import ledger_file_id
from pmm_shm.ledger.locks import PENDING_BYTE, holds_lock
from pmm_shm_cli.doctor import Finding, diagnose, gather, look_at_machine
from pmm_shm_cli.doctor.checks import LEDGER_CHECKS, MACHINE_CHECKS
from pmm_shm_cli.doctor.checks.rows import has_wal_reset_bug
from pmm_shm_cli.doctor.facts import Package, Service
from pmm_shm_cli.doctor.finding import SEVERITIES
from pmm_shm_cli.doctor.machine import services
from tests.support import ledgers
from tests.support.doctor import TIMEOUT_S, by_check, examined, ill, worst


@pytest.fixture
def path(folder: Path) -> str:
    """A private ledger, in WAL mode, that nobody has open."""
    made = ledgers.build(folder / "l.db", 20)
    os.chmod(made, 0o600)
    return made


# The ledger.


@pytest.mark.parametrize("content", [b"no database, and long enough to be one " * 20, b"short", b""])
def test_what_is_no_ledger(folder: Path, content: bytes) -> None:
    (folder / "l.db").write_bytes(content)
    assert worst(examined(folder / "l.db"), "rows").severity == "error"
    assert (folder / "l.db").read_bytes() == content


def test_a_ledger_that_is_not_there(folder: Path) -> None:
    finding = worst(examined(folder / "l.db"), "rows")
    assert (finding.severity, "no such file" in finding.found) == ("error", True)
    assert list(folder.iterdir()) == []
    assert finding.command == f"pmm-shm append {folder}/l.db user hello --create"


def test_a_directory_and_a_folder_that_is_not_there(folder: Path) -> None:
    assert worst(examined(folder), "rows").severity == "error"
    assert worst(examined(folder / "no" / "l.db"), "rows").severity == "error"


def test_no_mode_of_what_is_no_file_is_to_be_changed(folder: Path, path: str) -> None:
    (folder / "loop.db").symlink_to("loop.db")
    for name in ("/dev/null", folder, folder / "loop.db", f"{path}/inner.db"):
        findings = examined(name)
        assert worst(findings, "rows").command.startswith("ls -ld "), name
        assert not {"ledger-mode", "ledger-access", "ledger-mount"} & findings.keys(), name


def test_a_broken_chain(path: str) -> None:
    ledgers.execute(path, "UPDATE events SET content = 'edited' WHERE id = 7")
    finding = worst(examined(path), "hash-chain")
    assert (finding.severity, finding.found) == ("error", "broken at event 7")
    assert finding.command.startswith(f"pmm-shm verify {path}")


def test_only_the_newest_rows_are_checked(folder: Path) -> None:
    made = str(folder / "l.db")
    with EventLog(made) as log:
        log.append_many([("k", str(number), {}) for number in range(1_100)])
    ledgers.execute(made, "UPDATE events SET content = 'edited' WHERE id = 50")
    finding = worst(examined(made), "hash-chain")
    assert finding.severity == "ok"
    assert "1,000 of 1,000" in finding.found
    ledgers.execute(made, "UPDATE events SET content = 'edited' WHERE id = 101")
    assert worst(examined(made), "hash-chain").found == "broken at event 101"


@pytest.mark.parametrize("options", [{"formula": None}, {"hash_columns": False, "formula": None}])
def test_a_ledger_without_a_chain(folder: Path, options: dict[str, Any]) -> None:
    assert worst(examined(ledgers.build(folder / "l.db", 5, **options)), "hash-chain").severity == "note"


def test_formulas_and_an_empty_ledger(folder: Path) -> None:
    made = ledgers.build(folder / "content.db", 5, formula="content")
    assert "formula content" in worst(examined(made), "hash-chain").found
    assert worst(examined(ledgers.build(folder / "empty.db", 0)), "hash-chain").found == "no events"


def test_hostile_rows_stop_nothing(folder: Path) -> None:
    found = examined(ledgers.build_hostile(folder / "l.db", hashed=True))
    assert worst(found, "hash-chain").severity == "error"
    assert "\n" not in json.dumps([dataclasses.asdict(one) for all_of_it in found.values() for one in all_of_it])


def test_an_event_of_the_future(path: str) -> None:
    assert "clock" not in examined(path)
    year = time.gmtime().tm_year + 2
    ledgers.execute(path, f"INSERT INTO events (ts, kind, content, meta) VALUES ('{year}-01-01T', 'k', '', '{{}}')")
    assert worst(examined(path), "clock").severity == "warning"


# The instance directory and the daemon.


def test_no_daemon_is_a_note(path: str) -> None:
    finding = worst(examined(path), "daemon")
    assert (finding.severity, finding.command) == ("note", f"pmm-cached {path} &")


def test_a_daemon_that_refuses(path: str) -> None:
    facts = gather(path, TIMEOUT_S)
    assert facts.state is not None
    refused = dataclasses.replace(facts.state, failure=CommandError("protocol version 2, this side speaks 1"))
    assert worst(by_check(dataclasses.replace(facts, state=refused)), "daemon").severity == "error"


# The machine.


@pytest.mark.parametrize(
    ("version", "has_bug"),
    [
        ("3.40.1", True),
        ("3.44.5", True),
        ("3.44.6", False),
        ("3.45.0", True),
        ("3.50.6", True),
        ("3.50.7", False),
        ("3.51.2", True),
        ("3.51.3", False),
        ("3.52.0", False),
        ("4.0.0", False),
    ],
)
def test_the_wal_reset_bug(path: str, version: str, has_bug: bool) -> None:
    assert has_wal_reset_bug(version) is has_bug
    facts = gather(path, TIMEOUT_S)
    machine = dataclasses.replace(facts.machine, versions={**facts.machine.versions, "sqlite": version})
    finding = worst(by_check(dataclasses.replace(facts, machine=machine)), "sqlite-version")
    assert finding.severity == ("warning" if has_bug else "ok")
    assert "3.51.3" in finding.remedy or not has_bug


def test_inotify_instances_that_are_exhausted(path: str) -> None:
    assert worst(examined(path), "inotify").severity == "ok"
    taken: list[inotify_simple.INotify] = []

    def found_without_one() -> Finding:
        with contextlib.suppress(OSError):
            while True:
                taken.append(inotify_simple.INotify())
        return worst(examined(path), "inotify")

    try:
        # Again where another program has given one back meanwhile.
        finding = next(found for _ in range(20) if (found := found_without_one()).severity != "ok")
    finally:
        for one in taken:
            one.close()
    assert finding.severity == "error"
    assert finding.command == "sysctl fs.inotify.max_user_instances=1024"


def test_environment_variables(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "environment" not in examined(path)
    monkeypatch.setenv("PMM_USE_METRICS_CACHE", "perhaps")
    monkeypatch.setenv("PMM_SHMDIR", "/run/pmm")
    monkeypatch.setenv("PMM_OTHER_PROGRAM", "1")
    monkeypatch.setenv("PMM_DB", "/elsewhere.db")
    found = {one.found.split()[0].rstrip(":;"): one for one in examined(path)["environment"]}
    assert {name: one.severity for name, one in found.items()} == {
        "PMM_USE_METRICS_CACHE": "error",
        "PMM_SHMDIR": "warning",
        "PMM_OTHER_PROGRAM": "note",
        "PMM_DB": "note",
    }
    assert found["PMM_SHMDIR"].remedy == "write PMM_SHM_DIR"
    assert found["PMM_DB"].command == f"export PMM_DB={path}"


def test_every_variable_of_ours_is_known() -> None:
    source = Path(flags.__file__).read_text(encoding="utf-8")
    read = set(re.findall(r'(?:get\(|_flag\(|environ\[)"(PMM_\w+)"', source))
    assert read == flags.NAMES


def test_units_of_the_ledger(path: str, tmp_path: Path) -> None:
    (tmp_path / "mine.env").write_text(f'# a comment\nPMM_DB="{path}"\nPMM_SHM_DIR=/var/cache/mine\n')
    (tmp_path / "other.env").write_text("PMM_DB=/elsewhere.db\n")
    (tmp_path / "broken.env").write_text("PMM_DB='\n")
    asked: list[str] = []

    def ask(unit: str) -> str:
        asked.append(unit)
        return "failed"

    (service,) = services(path, tmp_path, ask)
    assert asked == ["pmm-cached@mine.service"]
    assert service == Service(asked[0], str(tmp_path / "mine.env"), "failed", "/var/cache/mine")
    facts = gather(path, TIMEOUT_S)
    found = by_check(dataclasses.replace(facts, machine=dataclasses.replace(facts.machine, services=(service,))))
    assert [one.severity for one in found["service"]] == ["warning", "warning"]
    assert "systemctl restart pmm-cached@mine.service" in found["service"][0].command
    assert found["service"][1].command == "export PMM_SHM_DIR=/var/cache/mine"


def test_what_a_test_cannot_bring_about(path: str) -> None:
    facts = gather(path, TIMEOUT_S)
    well = by_check(facts)
    for check, changed in ill(facts):
        before = worst(well, check).severity if check in well else "ok"
        finding = worst(by_check(changed), check)
        assert SEVERITIES.index(finding.severity) > SEVERITIES.index(before), check


def test_newer_packages_are_good_ones(path: str) -> None:
    facts = gather(path, TIMEOUT_S)
    good = (Package("lmdb", "1.10", "1.5"), Package("numpy", "2.0.0rc1", "1.24"))
    found = by_check(dataclasses.replace(facts, machine=dataclasses.replace(facts.machine, packages=good)))
    assert worst(found, "packages").severity == "ok"


# Remedies.


def test_every_finding_that_is_not_well_has_a_remedy() -> None:
    """By the source: each is made in one place, as one of `ok` or with a remedy of the table."""
    count = 0
    for module in (Path(package.__file__).parent / "checks").glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            made = node.value if isinstance(node, ast.Yield) else None
            if isinstance(made, ast.Call):
                count += 1
                name = ast.unparse(made.func)
                assert name in ("ok", "note", "warning", "error", "judged") or "if" in name, (module.name, made.lineno)
                assert len(made.args) == (2 if name == "ok" else 3), made.lineno
    assert count > 50
    for severity in SEVERITIES[1:]:
        with pytest.raises(ValueError, match="without a remedy"):
            Finding("a", severity, "b", "c")
    with pytest.raises(ValueError, match="several lines"):
        Finding("a", "ok", "b\n", "c")


def test_the_table_of_checks(path: str) -> None:
    """Each is a function of its own, and finds nothing where there is no ledger but of the machine."""
    checks = (*LEDGER_CHECKS, *MACHINE_CHECKS)
    assert len({check.look for check in checks}) == len(checks) > 40
    alone = {finding.check for finding in diagnose(look_at_machine(None))}
    assert alone <= {check.name for check in checks if check.look.__module__.endswith(".machine")}


# The command.


def test_it_does_not_disturb_who_has_the_ledger_open(path: str) -> None:
    """The same process holds a connection: gathering must not cost it its locks."""
    with EventLog(path) as log:
        log.append("user", "before")
        examined(path)
        log.append("user", "after")
        with EventLog(path) as other:
            other.append("user", "other")
    assert len(ledgers.raw_rows(path)) == 23


def test_it_costs_this_process_no_lock(folder: Path) -> None:
    made = ledgers.build(folder / "l.db", 5, journal="delete")
    holder = ledgers.connect(made)
    holder.execute("BEGIN")
    holder.execute("SELECT count(*) FROM events").fetchall()
    identity = ledger_file_id(str(made))
    assert holds_lock(identity, PENDING_BYTE)
    assert worst(examined(made), "hash-chain").severity == "ok"
    assert holds_lock(identity, PENDING_BYTE)
    holder.close()
