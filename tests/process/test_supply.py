"""Supply: nothing in the packages runs what it was given as data; the dependencies are locked by hashes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ledgers import ROOT


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("S102", "exec('1')"),
        ("S301", "import pickle\n\npickle.loads(b'')"),
        ("S302", "import marshal\n\nmarshal.loads(b'')"),
        ("S307", "eval('1')"),
        ("S506", "import yaml\n\nyaml.load('', Loader=yaml.Loader)"),
        ("S602", "import subprocess\n\nsubprocess.run('ls', shell=True)"),
        ("S605", "import os\n\nos.system('ls')"),
        ("S606", "import os\n\nos.execl('/bin/ls', 'ls')"),
        ("S607", "import subprocess\n\nsubprocess.run(['ls'])"),
    ],
)
def test_the_linter_knows_these_too(rule: str, code: str) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--stdin-filename", "pmm_shm/planted.py", "-"]
    ended = subprocess.run(command, input=code, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert f"{rule} " in ended.stdout


# The audit, with a pip-audit of its own.


REPORTS = {
    "clean": ('{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}', 0, 0, "1 of 1 packages audited"),
    "a finding": (
        '{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}]}',
        1,
        1,
        "a 1: PYSEC-1; fixed in 2",
    ),
    "an index that tells nothing": (
        '{"dependencies": [{"name": "a", "skip_reason": "not found"}]}',
        0,
        0,
        "0 of 1 packages audited",
    ),
    "no network": ("", 1, 0, "no network: nothing was audited"),
    "another failure": ("", 2, 1, "pip-audit failed"),
}


@pytest.mark.parametrize("case", REPORTS)
def test_the_audit(tmp_path: Path, case: str) -> None:
    report, code, expected, words = REPORTS[case]
    fake = tmp_path / "pip-audit"
    error = "requests.exceptions.ConnectionError: Max retries exceeded" if case == "no network" else "no such file"
    fake.write_text(
        f"#!{sys.executable}\nimport sys\nprint({report!r})\nprint({error!r}, file=sys.stderr)\nsys.exit({code})\n"
    )
    fake.chmod(0o755)
    command = [sys.executable, str(ROOT / "requirements" / "audit.py"), str(fake), "a.txt"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == expected, ended.stderr
    assert words in ended.stdout
    assert len(ended.stdout.splitlines()) <= 2
