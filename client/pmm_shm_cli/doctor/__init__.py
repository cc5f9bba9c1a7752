"""What can be wrong around a ledger, what it means, and what to do about it.

Facts are gathered first (`gathering`, `machine`, `processes`). Each check of the table in `checks` is a pure function
of them. Nothing is written anywhere.
"""

from __future__ import annotations

from pmm_shm.instance.paths import Instance
from pmm_shm_cli.doctor.checks import CHECKS
from pmm_shm_cli.doctor.facts import SystemFacts
from pmm_shm_cli.doctor.finding import Finding
from pmm_shm_cli.doctor.gathering import look_at_ledger, look_at_state
from pmm_shm_cli.doctor.machine import look_at_machine
from pmm_shm_cli.doctor.processes import limits_of, users_of


def gather(path: str | None, timeout_s: float) -> SystemFacts:
    """The facts around a ledger, or of the machine alone. Raises nothing, whatever it meets.

    `timeout_s` is how long to wait for the ledger, and again for the daemon.
    """
    if path is None:
        return SystemFacts(look_at_machine(None))
    instance = Instance.of(path)
    ledger = look_at_ledger(instance.ledger, timeout_s)
    state = look_at_state(instance, timeout_s)
    pid = state.daemon_pid if state.daemon_state is not None else None
    daemon_limits = None if pid is None else limits_of(pid, f"the daemon (pid {pid})")
    machine = look_at_machine(instance.ledger, daemon_limits=daemon_limits)
    return SystemFacts(machine, ledger, state, users_of(instance))


def diagnose(facts: SystemFacts) -> list[Finding]:
    """The findings of all checks: on the ledger first, then on the shared state, then on the machine."""
    return [Finding(check.name, *verdict) for check in CHECKS for verdict in check.look(facts)]


__all__ = ["Finding", "SystemFacts", "diagnose", "gather"]
