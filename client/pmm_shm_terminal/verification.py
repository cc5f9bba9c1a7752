"""The verification of `pmm-shm verify` and the chat's `/verify`: hash chain and published state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pmm_shm import limits
from pmm_shm.errors import DaemonAbsentError
from pmm_shm_terminal.output import progress

if TYPE_CHECKING:
    from pmm_shm.instance.paths import Instance
    from pmm_shm.ledger.chain import ChainReport
    from pmm_shm.projection.verification import VerifyReport
    from pmm_shm_terminal.options import Deadline

_DAEMON_ANSWERS_S = 2.0


class Checked(NamedTuple):
    """The results: of the hash chain (None if not asked for) and of the published state."""

    path: str
    chain: ChainReport | None
    report: VerifyReport

    def problems(self) -> list[str]:
        """A line for each problem."""
        links, report = self.chain, self.report
        found = []
        said = (report.difference or "").split("; ")
        if links is not None:
            found += [problem for problem in links.problems if problem not in said]
        if not report.ok:
            found.append(f"what is published is wrong: {report.difference}" if report.folds else str(report.difference))
        return found

    def rows(self) -> dict[str, Any]:
        """The rows of the table for people, by name."""
        links, report = self.chain, self.report
        rows: dict[str, Any] = {}
        if links is None:
            rows["hash chain"] = "not checked"
        elif links.problem is not None:
            rows["hash chain"] = links.problem
        elif not links.rows_checked:
            rows["hash chain"] = "no row has a hash" if links.rows_without_hash else "no rows"
        else:
            rows["hash chain"] = f"ok, {links.rows_checked:,} rows, formula {links.formula}"
        if links is not None and links.rows_without_hash:
            rows["rows without hash"] = links.rows_without_hash
        if not report.folds and not report.ok:
            rows["published state"] = f"not compared: {report.difference}"
        elif not report.ok:
            rows["published state"] = f"wrong: {report.difference}"
        elif not report.folds:
            rows["published state"] = f"nothing is published; all {report.events:,} events can be read"
        else:
            rows["published state"] = f"equals a full replay of {report.events:,} events"
            rows["as of event"] = report.as_of
            rows["folds"] = ", ".join(report.folds)
            rows["sealed blocks"] = report.sealed_blocks
        return rows


def check(path: str, fold: str | None, chain: bool, timeout: Deadline) -> Checked:
    """Check the hash chain, and compare the published state with a full replay.

    Raises:
        UnknownFoldError: no fold has this name.
        DaemonTimeoutError: the daemon does not answer.
        LedgerError: the ledger cannot be read.
    """
    fold = checked_fold(fold, path)
    from pmm_shm.instance.paths import Instance
    from pmm_shm.ledger.eventlog import EventLog
    from pmm_shm_client.cache import Cache

    links: ChainReport | None = None
    with EventLog(path, timeout=timeout.left_s(limits.LEDGER_TIMEOUT_S), create=False) as log:
        daemon_answers(Instance.of(path), timeout.left_s())
        if chain:
            with progress("Checking the hash chain", None):
                links = log.verify_chain()
    ledger_s = timeout.left_s(limits.LEDGER_TIMEOUT_S)
    with Cache(path, timeout=ledger_s) as cache, progress("Comparing with a replay", None):
        return Checked(cache.path, links, cache.verify(fold, timeout.left_s()))


def checked_fold(fold: str | None, ledger: str) -> str | None:
    """The name of a fold that is given by its name, or as MODULE:CLASS; the log of another program knows its own.

    Raises:
        UnknownFoldError: there is no such fold.
        ConfigError: no such module or class.
        FoldError: it does not load or breaks the contract.
    """
    if fold is None:
        return None
    from pmm_shm.folds.registry import find_fold, named_fold
    from pmm_shm.ledger.connection import recorded_shape

    if ":" not in fold and recorded_shape(ledger) is not None:
        return fold
    return (named_fold(fold) if ":" in fold else find_fold(fold)).name


def daemon_answers(instance: Instance, timeout_s: float) -> bool:
    """Whether a daemon answers, within `timeout_s` and two seconds.

    Raises:
        DaemonTimeoutError: it is stopped; reported at once instead of after ten minutes.
    """
    from pmm_shm.wire import protocol
    from pmm_shm_client import commands

    try:
        commands.call(instance, protocol.PING, {}, min(timeout_s, _DAEMON_ANSWERS_S))
    except DaemonAbsentError:
        return False
    return True
