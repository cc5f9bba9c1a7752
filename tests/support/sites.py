"""A distribution with folds of a user's, installed where the tests' processes find it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from tests.support import daemons

METADATA = "Metadata-Version: 2.1\nName: tool-use\nVersion: 1.0\n"


class Site:
    """A folder on Python's path with one installed distribution."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.module = folder / "tool_use.py"
        self.info = folder / "tool_use-1.0.dist-info"

    def install(self, source: str, entry: str = "tool_use = tool_use:ToolUse") -> None:
        """Install a module and its entry points, in place of what was there."""
        self.info.mkdir(parents=True, exist_ok=True)
        self.module.write_text(source, encoding="utf-8")
        (self.info / "METADATA").write_text(METADATA, encoding="utf-8")
        (self.info / "entry_points.txt").write_text(f"[pmm_shm.folds]\n{entry}\n", encoding="utf-8")
        # A change within the same second must not be taken for what was compiled before.
        sys.modules.pop("tool_use", None)
        importlib.invalidate_caches()

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process in which the distribution is installed."""
        return {**daemons.with_path(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
