"""`python -m pmm_shm_pmm.measure`: PMM's times on copies of a ledger, with and without; the ledger stays as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import daemons, ledgers, standin_package
from tests.support.command import run

MEASURE = [sys.executable, "-m", "pmm_shm_pmm.measure"]


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("measured") / "agent.db"
    assert run("generate", str(path), "--events", "300", "--seed", "7").code == 0
    return str(path)


def measured(
    ledger: str, *options: str, cwd: Path | None = None, temporary: Path | None = None
) -> subprocess.CompletedProcess[str]:
    folder = standin_package.ROOT if cwd is None else cwd
    environment = daemons.environment(COLUMNS="100", PMM_SHM_DIR=str(Path(ledger).with_name("state")))
    if temporary is not None:
        environment["TMPDIR"] = str(temporary)
    return subprocess.run(
        [*MEASURE, ledger, *options], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_it_times_copies_and_compares_the_answers(ledger: str, folder: Path) -> None:
    before, beside = ledgers.raw_rows(ledger), sorted(os.listdir(Path(ledger).parent))
    ended = measured(ledger, "--calls", "1", "--messages", "1", "--json", temporary=folder)
    assert (ended.returncode, ended.stderr) == (0, "")
    found = json.loads(ended.stdout)
    assert found["events"] == 300
    assert found["is_equal"] is True
    assert found["problem"] is None
    for name in ("start_ms", "metrics_ms", "projection_ms", "message_ms"):
        assert 0 < found[name]["without"] < 60_000
        assert 0 < found[name]["with"] < 60_000
    assert ledgers.raw_rows(ledger) == before
    assert sorted(os.listdir(Path(ledger).parent)) == beside
    # The daemon of the copy is gone with it.
    assert not [words for words in _running() if str(folder) in words]
    assert not list(folder.iterdir())


def _running() -> list[str]:
    words = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words.append(entry.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return words


def test_a_runtime_that_needs_more_than_a_log(ledger: str) -> None:
    ended = measured(ledger, "--calls", "1", "--runtime", "pmm.runtime.loop:AutonomyLoop")
    assert ended.returncode == 0
    assert "message" not in ended.stdout
    assert "TypeError" in ended.stderr
    assert "--runtime" in ended.stderr
    assert "answers and appended kinds: equal" in ended.stdout


def test_what_cannot_be_measured_is_one_line(ledger: str, tmp_path: Path) -> None:
    (tmp_path / "broken" / "pmm").mkdir(parents=True)
    (tmp_path / "broken" / "pmm" / "__init__.py").write_text("raise RuntimeError('a broken PMM')\n")
    for folder, word in ((tmp_path, "no package pmm"), (tmp_path / "broken", "a broken PMM")):
        ended = measured(ledger, cwd=folder)
        assert ended.returncode == 1
        assert ended.stderr.startswith("pmm-shm: ")
        assert ended.stderr.count("\n") == 1
        assert word in ended.stderr
    ended = measured(str(tmp_path / "none.db"))
    assert ended.returncode == 1
    assert not (tmp_path / "none.db").exists()
