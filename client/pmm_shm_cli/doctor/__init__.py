"""What can be wrong around a ledger, what it means, and what mends it.

Facts are gathered first; judgements are pure functions of them. Nothing is written anywhere.
"""

from __future__ import annotations

from pmm_shm.instance.paths import Instance
from pmm_shm_cli.doctor.facts import Facts
from pmm_shm_cli.doctor.finding import Finding
from pmm_shm_cli.doctor.ledger_checks import ledger_findings
from pmm_shm_cli.doctor.look import look_at_ledger, look_at_state
from pmm_shm_cli.doctor.machine import look_at_machine
from pmm_shm_cli.doctor.machine_checks import machine_findings
from pmm_shm_cli.doctor.processes import limits_of, users_of
from pmm_shm_cli.doctor.state_checks import state_findings


def gather(path: str | None, timeout_s: float) -> Facts:
    """The facts around a ledger, or of the machine alone; whatever is there, this does not raise.

    `timeout_s` is how long to wait for the ledger, and how long for the daemon.
    """
    if path is None:
        return Facts(look_at_machine(None))
    instance = Instance.of(path)
    ledger = look_at_ledger(instance.ledger, timeout_s)
    state = look_at_state(instance, timeout_s)
    pid = state.daemon_pid if state.daemon_state is not None else None
    daemon_limits = None if pid is None else limits_of(pid, f"the daemon (pid {pid})")
    machine = look_at_machine(instance.ledger, daemon_limits=daemon_limits)
    return Facts(machine, ledger, state, users_of(instance))


def diagnose(facts: Facts) -> list[Finding]:
    """What follows from the facts: the ledger's first, then the shared state's, then the machine's."""
    return [*ledger_findings(facts), *state_findings(facts), *machine_findings(facts)]


__all__ = ["Facts", "Finding", "diagnose", "gather"]
