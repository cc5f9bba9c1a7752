"""`Runtime._ngram_repeat_telemetry_enabled`: what the newest directive about it says."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from pmm_shm_pmm.log import log_of

if TYPE_CHECKING:
    from pmm_shm_pmm.patching import Patcher


def enabled(self: Any) -> bool:
    log = log_of(self.eventlog)
    newest_id = log.sync()
    cached = getattr(self, "_ngram_repeat_directive_cache", None)
    if cached is not None and cached[0] == newest_id:
        return bool(cached[1])
    answer: bool = log.fold("pmm_flags")
    self._ngram_repeat_directive_cache = (newest_id, answer)
    return answer


def install(patcher: Patcher, module: ModuleType) -> None:
    patcher.replace(module, "Runtime._ngram_repeat_telemetry_enabled", enabled)
