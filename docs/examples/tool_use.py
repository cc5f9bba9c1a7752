"""A projection of your own: how often each tool was called, and which one last.

Register it as an entry point of the group `pmm_shm.folds`:

    [project.entry-points."pmm_shm.folds"]
    tool_use = "tool_use:ToolUse"

The daemon then keeps it, and `cache.fold("tool_use")` reads it exactly.
"""

from collections.abc import Mapping
from typing import Any

from pmm_shm.folds.contract import Column, Fold
from pmm_shm.folds.helpers import Counter
from pmm_shm.folds.state import State
from pmm_shm.frozen import frozen
from pmm_shm.ledger.rows import Event


class ToolUse(Fold):
    """Counts `tool_call` events by `meta.tool`."""

    name = "tool_use"
    version = 1
    kinds: Mapping[str, tuple[Column, ...]] = {"tool_call": ("meta",)}

    def apply(self, event: Event, state: State) -> None:
        tool = event.meta["tool"]
        if not isinstance(tool, str):
            raise ValueError("tool is not a name")
        Counter(state, "calls").add(tool)
        state["last"] = tool

    def view(self, state: State) -> Any:
        return frozen({"calls": Counter(state, "calls").view(), "last": state.get("last")})
