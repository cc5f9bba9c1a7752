"""What can be wrong around a ledger, what it means, and what to do about it.

Facts are gathered first (`gathering`, `machine`, `processes`). Each check of the table in `checks` is a pure function
of them. Nothing is written anywhere.
"""

from __future__ import annotations

import os

from pmm_shm.instance.paths import Instance
from pmm_shm_cli.doctor.checks import LEDGER_CHECKS, MACHINE_CHECKS
from pmm_shm_cli.doctor.facts import MachineFacts, SystemFacts
from pmm_shm_cli.doctor.finding import Finding, Verdict
from pmm_shm_cli.doctor.gathering import look_at_ledger, look_at_state
from pmm_shm_cli.doctor.machine import look_at_machine
from pmm_shm_cli.doctor.processes import users_of


def gather(path: str, timeout_s: float) -> SystemFacts:
    """The facts around a ledger. Raises nothing, whatever it meets.

    `timeout_s` is how long to wait, half of it for the ledger, and half for the daemon.
    """
    instance = Instance.of(path)
    ledger = look_at_ledger(instance.ledger, timeout_s / 2)
    state = look_at_state(instance, timeout_s / 2)
    pid = state.daemon_pid if state.daemon_state is not None else None
    return SystemFacts(look_at_machine(instance.ledger, pid), ledger, state, users_of(instance), os.path.abspath(path))


def diagnose(facts: SystemFacts | MachineFacts) -> list[Finding]:
    """The findings of all checks: on the ledger first, then on the shared state, then on the machine."""
    if isinstance(facts, MachineFacts):
        return [_finding(check.name, verdict) for check in MACHINE_CHECKS for verdict in check.look(facts)]
    found = [_finding(check.name, verdict) for check in LEDGER_CHECKS for verdict in check.look(facts)]
    return found + diagnose(facts.machine)


def _finding(name: str, verdict: Verdict) -> Finding:
    # A path may have a line break in it; in a command it is within single quotes.
    severity, found, meaning, remedy, command = verdict
    found, meaning, remedy = (text.replace("\n", "\\n") for text in (found, meaning, remedy))
    return Finding(name, severity, found, meaning, remedy, command.replace("\n", "'$'\\n''"))


__all__ = ["Finding", "SystemFacts", "diagnose", "gather", "look_at_machine"]
