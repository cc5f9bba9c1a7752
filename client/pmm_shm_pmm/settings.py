"""The settings of this process, as the environment has them; an odd value is a warning, never an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pmm_shm import flags
from pmm_shm.errors import ConfigError
from pmm_shm.flags import Flag
from pmm_shm_pmm.seams import PARTS


class RunSettings(NamedTuple):
    """What is replaced in PMM, and how.

    Attributes:
        is_on: whether anything is.
        parts: those replaced, of `seams.PARTS`.
        starts_daemon: for a ledger that none serves.
        report: where counts go at the end of the process: "stderr", the path of a file, or None.
        elects_autonomy: whether one process alone runs the autonomy of a ledger.
        sources: the path of a table of further known sources.
        warnings: a line for each value without a meaning.
    """

    is_on: bool = True
    parts: frozenset[str] = frozenset(PARTS)
    starts_daemon: bool = True
    report: str | None = None
    elects_autonomy: bool = False
    sources: str | None = None
    warnings: tuple[str, ...] = ()


def settings_of_environment() -> RunSettings:
    """The settings in the environment variables `PMM_SHM` and `PMM_SHM_*`."""
    warnings: list[str] = []

    def flag(read: Callable[[], Flag], default: bool) -> bool:
        try:
            found = read()
        except ConfigError as error:
            warnings.append(str(error))
            return default
        return default if found is Flag.UNSET else found is Flag.ON

    named = flags.run_patches()
    parts = frozenset(PARTS) if named is None else named & frozenset(PARTS)
    if unknown := sorted((named or frozenset()) - parts):
        known = ", ".join(PARTS)
        warnings.append(f"PMM_SHM_PATCHES: no such part: {', '.join(unknown)}; there are {known}")
    for read in (flags.projection_cache, flags.metrics_cache, flags.embedding_cache):
        flag(read, default=False)
    return RunSettings(
        flag(flags.run_pmm, default=True),
        parts,
        flag(flags.run_daemon, default=True),
        flags.run_report(),
        flag(flags.run_elects_autonomy, default=False),
        flags.run_sources(),
        tuple(warnings),
    )
