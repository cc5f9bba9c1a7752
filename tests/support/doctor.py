"""What `pmm-shm doctor` found, and a ledger to look at."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from pmm_shm_cli.doctor import Finding, SystemFacts, diagnose, gather, look_at_machine
from pmm_shm_cli.doctor.facts import Disk, Limits, MachineFacts, Package
from pmm_shm_cli.doctor.finding import SEVERITIES

TIMEOUT_S = 1.0
Found = dict[str, list[Finding]]


def examined(path: str | os.PathLike[str] | None, timeout_s: float = TIMEOUT_S) -> Found:
    """The findings by the name of their check."""
    return by_check(look_at_machine(None) if path is None else gather(os.fspath(path), timeout_s))


def by_check(facts: SystemFacts | MachineFacts) -> Found:
    found: Found = {}
    for one in diagnose(facts):
        found.setdefault(one.check, []).append(one)
    return found


def worst(found: Found, check: str) -> Finding:
    """The worst finding of a check; fails where there is none."""
    return max(found[check], key=lambda one: SEVERITIES.index(one.severity))


def ill(facts: SystemFacts) -> Iterator[tuple[str, SystemFacts]]:
    """(check, facts) for what a test cannot bring about."""
    machine, ledger, state = facts.machine, facts.ledger, facts.state

    def with_machine(**changes: Any) -> SystemFacts:
        return dataclasses.replace(facts, machine=dataclasses.replace(machine, **changes))

    def with_disk(disk: Disk) -> SystemFacts:
        return dataclasses.replace(
            facts,
            ledger=dataclasses.replace(ledger, disk=disk),
            state=dataclasses.replace(state, disk=disk),
        )

    nfs = Disk("/mnt", "NFS", False, 1 << 40, 5)
    yield "file-system", with_disk(nfs)
    yield "state-file-system", with_disk(nfs)
    yield "file-system-room", with_disk(Disk("/", None, False, 10, 5))
    yield "state-file-system-room", with_disk(Disk("/", None, False, 1 << 40, 0))
    yield "file-system", with_disk(Disk("/dev/shm", None, True, 1 << 40, 5))
    yield "python", with_machine(python=(3, 9, 1))
    yield "python", with_machine(python=(3, 99, 0))
    yield "packages", with_machine(packages=(Package("lmdb", "1.4.9", "1.5"),))
    yield "packages", with_machine(packages=(Package("lmdb", None, "1.5"),))
    yield "libzmq", with_machine(has_peer_filter=False)
    yield "inotify", with_machine(inotify="watches")
    yield "clock", with_machine(now_s=1e9)
    yield "boot-id", with_machine(boot_id="")
    yield "environment", with_machine(missing_embedder="wordllama", variables={"PMM_EMBEDDER": "wordllama"})
    yield "address-space", with_machine(limits=(Limits("the daemon", 1 << 20),))
    assert ledger.file is not None
    big = dataclasses.replace(ledger.file, path=ledger.file.path + "-wal", size_bytes=1 << 30)
    yield "wal-size", dataclasses.replace(facts, ledger=dataclasses.replace(ledger, side_files={"-wal": big}))
    assert ledger.rows is not None
    rows = dataclasses.replace(ledger.rows, journal="off", formula=None)
    yield "journal-mode", dataclasses.replace(facts, ledger=dataclasses.replace(ledger, rows=rows))
    yield "hash-chain", dataclasses.replace(facts, ledger=dataclasses.replace(ledger, rows=rows))
