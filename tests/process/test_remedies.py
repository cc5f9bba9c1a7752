"""The commands of all remedies are ones that a shell takes."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from pmm_shm.remedies import TEMPLATES, remedy

LEDGER = "/a folder/agent's.db"
SAMPLE = {
    "ledger": LEDGER, "directory": "/a folder/agent's.db-cache", "daemon": 4_711, "pid": 77, "file": "/x y",
    "mode": "600", "group": "staff", "user": "ann", "unit": "pmm-cached@a.service", "name": "PMM_X", "near": "PMM_Y",
    "requirement": "lmdb>=1.5", "setting": "fs.inotify.max_user_watches", "value": 5, "shm_dir": "/run/p m",
}  # fmt: skip


@pytest.mark.parametrize("values", [SAMPLE, {}], ids=["filled", "empty"])
def test_each_command_is_one_for_a_shell(values: dict[str, Any]) -> None:
    commands = [remedy(key, **values).command for key in TEMPLATES]
    assert [command for command in commands if "\n" in command or "{" in command] == []
    ran = subprocess.run(["bash", "-n", "-c", "\n".join(commands)], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
