"""The reports of processes of PMM: read with distrust, kept for a day, shown by the doctor."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pmm_shm.instance.paths import Instance
from pmm_shm.instance.run_reports import KEPT_S, RunReport, read_reports, write_report
from pmm_shm_cli.doctor import gather
from pmm_shm_pmm import report
from pmm_shm_pmm.patching import Patcher
from pmm_shm_pmm.settings import RunSettings
from tests.support.doctor import TIMEOUT_S, by_check, examined, worst

SEAM = "pmm.storage.projection:build_identity"
REPORT = RunReport(7, "python -m pmm.cli.chat", False, {SEAM: 3}, {SEAM: {"no file": 2}}, {"x:f": "unknown source"})


@pytest.fixture
def instance(ledger: str) -> Instance:
    made = Instance.of(ledger)
    made.directory.mkdir(mode=0o700)
    return made


def test_a_report_is_read_as_it_was_written(instance: Instance) -> None:
    assert write_report(instance, "aa", REPORT)
    assert write_report(instance, "bb", REPORT._replace(pid=8))
    assert write_report(instance, "aa", REPORT._replace(is_ended=True))
    os.utime(instance.directory / "run-bb.json", (time.time() - 60,) * 2)
    assert read_reports(instance) == (REPORT._replace(is_ended=True), REPORT._replace(pid=8))
    assert (instance.directory / "run-aa.json").stat().st_mode & 0o777 == 0o640
    assert {path.name for path in instance.directory.iterdir()} == {"run-aa.json", "run-bb.json"}


def test_old_reports_are_neither_shown_nor_kept(instance: Instance) -> None:
    assert write_report(instance, "old", REPORT)
    left = instance.directory / "run-killed.json.new"
    left.write_text("half")
    for path in instance.directory.iterdir():
        os.utime(path, (time.time() - KEPT_S - 1,) * 2)
    assert read_reports(instance) == ()
    assert write_report(instance, "new", REPORT)
    assert [path.name for path in instance.directory.iterdir()] == ["run-new.json"]


def test_only_so_many_are_kept(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pmm_shm.instance.run_reports._FILES_MAX", 3)
    for number in range(6):
        assert write_report(instance, f"{number}", REPORT._replace(pid=number))
        os.utime(instance.directory / f"run-{number}.json", (time.time() - 100 + number,) * 2)
    # The file that was just written is the newest.
    assert [one.pid for one in read_reports(instance)] == [5, 4, 3]
    assert len(list(instance.directory.iterdir())) <= 4


@pytest.mark.parametrize(
    "text",
    [
        "", "no json", "[]", "{}", "null", "[" * 100_000, json.dumps(REPORT._asdict() | {"pid": "7"}),
        json.dumps(REPORT._asdict() | {"pid": True}), json.dumps(REPORT._asdict() | {"answered": {"x": "many"}}),
        json.dumps(REPORT._asdict() | {"fallbacks": {"x": 5}}), json.dumps(REPORT._asdict() | {"kept": ["x"]}),
        json.dumps(REPORT._asdict() | {"program": "x" * 70_000}),
    ],
)  # fmt: skip
def test_a_hostile_report_is_passed_over(instance: Instance, text: str) -> None:
    write_report(instance, "good", REPORT)
    (instance.directory / "run-bad.json").write_text(text, encoding="utf-8")
    (instance.directory / "run-binary.json").write_bytes(b"\xff\xfe")
    assert read_reports(instance) == (REPORT,)


def test_what_is_no_file_is_passed_over(instance: Instance, tmp_path: Path) -> None:
    write_report(instance, "good", REPORT)
    (instance.directory / "run-folder.json").mkdir()
    os.mkfifo(instance.directory / "run-pipe.json")
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text(json.dumps(REPORT._asdict()), encoding="utf-8")
    (instance.directory / "run-link.json").symlink_to(elsewhere)
    assert read_reports(instance) == (REPORT,)


def test_nothing_is_written_where_it_may_not_be(instance: Instance) -> None:
    instance.directory.chmod(0o777)
    assert not write_report(instance, "aa", REPORT)
    assert read_reports(instance) == ()
    instance.directory.chmod(0o700)
    instance.directory.rmdir()
    assert not write_report(instance, "aa", REPORT)
    assert not instance.directory.exists()
    assert read_reports(instance) == ()


# The doctor.


def test_the_doctor_sums_up(ledger: str, instance: Instance) -> None:
    assert "pmm" not in examined(ledger)
    write_report(instance, "aa", REPORT._replace(kept={}))
    write_report(instance, "bb", REPORT._replace(is_ended=True, fallbacks={}, kept={}))
    (finding,) = examined(ledger)["pmm"]
    assert finding.severity == "ok"
    assert finding.found == (
        "processes of PMM in the last day: 2, 1 of them ended; 6 calls answered, 2 by PMM itself (2 no file)"
    )
    assert "leftover" not in examined(ledger)


@pytest.mark.parametrize(
    ("changes", "severity", "words"),
    [
        ({"kept": {}, "fallbacks": {SEAM: {"error: KeyError": 4}}}, "warning", f"4 {SEAM}: error: KeyError"),
        ({"kept": {SEAM: "ValueError: of ours\nx"}, "fallbacks": {}}, "warning", f"1 {SEAM}: ValueError: of ours x"),
        ({}, "note", "another version of PMM: 1 functions are its own: x:f"),
        ({"kept": {"x:f": "unknown source of y", "x:g": "this PMM has no such name"}}, "note", "1 functions"),
    ],
)
def test_the_doctor_says_what_is_wrong(
    ledger: str, instance: Instance, changes: dict[str, Any], severity: str, words: str
) -> None:
    write_report(instance, "aa", REPORT._replace(**changes))
    finding = worst(examined(ledger), "pmm")
    assert (finding.severity, words in finding.found) == (severity, True), finding


def test_many_reasons_are_cut(ledger: str, instance: Instance) -> None:
    facts = gather(ledger, TIMEOUT_S)
    many = REPORT._replace(
        fallbacks={SEAM: {f"reason {number}": 1 for number in range(9)}},
        kept={f"x:{number}": "unknown source" for number in range(9)},
    )
    found = by_check(dataclasses.replace(facts, state=dataclasses.replace(facts.state, runs=(many,))))["pmm"]
    assert [one.found.count(", ...") for one in found] == [1, 1]


# In a process.


@pytest.fixture
def patcher() -> Patcher:
    made = Patcher(RunSettings(), {})
    made.counts_of(SEAM).answered = 2
    return made


def test_a_process_reports_now_and_then(instance: Instance, patcher: Patcher, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(report, "time", SimpleNamespace(monotonic=lambda: now[0]))
    reporter = report.RunReporter(patcher)
    reporter.beat()
    assert read_reports(instance) == ()
    reporter.uses(instance.ledger)
    reporter.beat()
    assert read_reports(instance)[0].answered == {SEAM: 2}
    patcher.counts_of(SEAM).answered = 3
    patcher.counts_of(SEAM).fallbacks["closed"] += 1
    reporter.beat()
    assert read_reports(instance)[0].answered == {SEAM: 2}
    now[0] += report.EVERY_S
    reporter.beat()
    (found,) = read_reports(instance)
    assert (found.answered, found.fallbacks, found.is_ended, found.pid) == (
        {SEAM: 3},
        {SEAM: {"closed": 1}},
        False,
        os.getpid(),
    )
    reporter.end()
    reporter.end()
    (found,) = read_reports(instance)
    assert found.is_ended


def test_a_ledger_is_reported_to_at_once(instance: Instance, patcher: Patcher) -> None:
    reporter = report.RunReporter(patcher)
    reporter.beat()
    reporter.uses(instance.ledger)
    reporter.beat()
    assert len(read_reports(instance)) == 1


def test_a_report_that_fails_is_nobodys_error(patcher: Patcher, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        raise ValueError("of ours")

    monkeypatch.setattr("pmm_shm.instance.run_reports.write_report", failing)
    reporter = report.RunReporter(patcher)
    reporter.uses("/a.db")
    reporter.beat()
    reporter.end()


def test_the_end_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    patcher = Patcher(RunSettings(report="stderr"), {})
    patcher.counts_of(SEAM).answered = 1
    patcher.kept["x.y:f"] = "unknown source"
    reporter = report.RunReporter(patcher)
    try:
        reporter.end()
        reporter.end()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    first, *lines = capsys.readouterr().err.splitlines()
    assert first.startswith(f"pmm-shm: process {os.getpid()}, ")
    assert lines == ["  projection.build_identity          1 answered", "  not replaced (unknown source): y.f"]


def test_a_report_to_a_file_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patcher = Patcher(RunSettings(report=str(tmp_path / "no" / "file")), {})
    patcher.counts_of(SEAM).answered = 1
    reporter = report.RunReporter(patcher)
    try:
        reporter.end()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert capsys.readouterr().err == f"pmm-shm: no report: [Errno 2] No such file or directory: '{tmp_path}/no/file'\n"
