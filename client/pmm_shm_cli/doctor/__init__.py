"""What can be wrong around a ledger, what it means, and what to do about it.

Facts are gathered first (`gathering`, `machine`, `processes`). Each check of the table in `checks` is a pure function
of them. Nothing is written anywhere.
"""

from __future__ import annotations

import os

from pmm_shm.instance.paths import Instance
from pmm_shm_cli.doctor.checks import LEDGER_CHECKS, MACHINE_CHECKS
from pmm_shm_cli.doctor.facts import MachineFacts, SystemFacts
from pmm_shm_cli.doctor.finding import Finding
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
        return [Finding(check.name, *verdict) for check in MACHINE_CHECKS for verdict in check.look(facts)]
    found = [Finding(check.name, *verdict) for check in LEDGER_CHECKS for verdict in check.look(facts)]
    return found + diagnose(facts.machine)


__all__ = ["Finding", "SystemFacts", "diagnose", "gather", "look_at_machine"]
