"""The start of a process under `pmm-shm run`: installs the replacements, and says once what is active."""

from __future__ import annotations

from pmm_shm import flags
from pmm_shm_pmm.installing import install
from pmm_shm_pmm.saying import is_main_process, say
from pmm_shm_pmm.seams import PARTS, SEAMS
from pmm_shm_pmm.settings import RunSettings


def start() -> None:
    """Install, and report it once.

    Raises:
        TooLateError: something has imported PMM even before.
    """
    patcher = install()
    if patcher is not None and is_main_process():
        for warning in patcher.settings.warnings:
            say(warning)
        say(described(patcher.settings))


def described(settings: RunSettings) -> str:
    """What is active, in one line."""
    parts = "all parts" if settings.parts == frozenset(PARTS) else ", ".join(p for p in PARTS if p in settings.parts)
    tiers = {seam.tier for seam in SEAMS if seam.part in settings.parts}
    tier = "tier 1, and tier 2 where the source is known" if tiers == {1, 2} else f"tier {', '.join(map(str, tiers))}"
    ledger = flags.default_ledger()
    return "; ".join(
        (
            f"PMM runs on the shared cache: {parts or 'no part'} ({tier})" if parts else "no part of PMM is replaced",
            f"ledger {ledger}" if ledger else "the ledgers that PMM opens",
            "a daemon is started where none runs" if settings.starts_daemon else "no daemon is started",
            *(("one process runs the autonomy",) if settings.elects_autonomy else ()),
        )
    )
