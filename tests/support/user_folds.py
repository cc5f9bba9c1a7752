"""Users' folds, installed and broken."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmm_shm_client import Cache, EventLog
from tests.support import ledgers
from tests.support.sites import Site

EXAMPLE = ledgers.ROOT / "docs" / "examples" / "tool_use.py"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The example, installed for this process; for a daemon, pass `site.environment`."""
    site = Site(tmp_path / "site")
    site.install(EXAMPLE.read_text(encoding="utf-8"))
    monkeypatch.syspath_prepend(str(site.folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield site
    sys.modules.pop("tool_use", None)


def use(log: EventLog | Cache, *tools: Any) -> int:
    return [log.append("tool_call", "", {"tool": tool}) for tool in tools][-1]


def calls(cache: Any) -> dict[str, int]:
    return dict(cache.fold("tool_use")["calls"])


GOOD = EXAMPLE.read_text(encoding="utf-8")
BROKEN = {
    "no module": (GOOD, "tool_use = absent_module:ToolUse", "absent_module"),
    "no attribute": (GOOD, "tool_use = tool_use:Absent", "Absent"),
    "syntax error": ("class ToolUse(:\n", None, "does not load"),
    "fails on import": ("raise RuntimeError('broken on purpose')\n", None, "broken on purpose"),
    "exits on import": ("import sys\nsys.exit(0)\n", None, "does not load: SystemExit"),
    "fails when made": (
        GOOD.replace("    def apply", "    def __init__(self):\n        raise OSError('no luck')\n\n    def apply", 1),
        None,
        "no luck",
    ),
    "not a fold": ("ToolUse = 3\n", None, "not a pmm_shm Fold"),
    "a module": (GOOD, "tool_use = tool_use", "not a pmm_shm Fold"),
    "abstract": (GOOD.replace("def view", "def other_view"), None, "view"),
    "no name": (GOOD.replace('name = "tool_use"', "pass"), None, "`name`"),
    "a long name": (GOOD.replace('name = "tool_use"', 'name = "x" * 65'), None, "`name`"),
    "no version": (GOOD.replace("version = 1", "pass"), None, "`version`"),
    "a version of text": (GOOD.replace("version = 1", 'version = "1"'), None, "`version`"),
    "wrong columns": (GOOD.replace('("meta",)', '("ts",)'), None, "`kinds`"),
    "parameters that cannot be stored": (
        GOOD.replace("version = 1", "version = 1\n    parameters = {'x': object()}"),
        None,
        "`parameters`",
    ),
    "a name that is built in": (GOOD.replace('name = "tool_use"', 'name = "metrics"'), None, "taken"),
    "the same name twice": (GOOD, "one = tool_use:ToolUse\ntwo = tool_use:ToolUse", "taken"),
}
# A fold that never comes back from an event of its kind.
FREEZING = """
import time
from pmm_shm.folds.contract import Fold

class Freezing(Fold):
    name = "freezing"
    version = 1
    kinds = {"freeze": ("content",)}

    def apply(self, event, state):
        while event.content == "sleep":
            time.sleep(3600)
        while event.content == "spin":
            pass

    def view(self, state):
        return None
"""
