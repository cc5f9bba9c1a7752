"""Known problems, by what they say, and what to type: one table."""

from __future__ import annotations

import re
import shlex

from pmm_shm.instance.paths import Instance

_REMEDIES = (
    (r"replaced beside the -wal", "mv {wal} {wal}.old; mv {shm} {shm}.old; then start all users again"),
    (r"process (?P<pid>\d+) still has the file open", "kill {pid}; then start it again"),
    (r"no daemon serves it", "pmm-cached {ledger} &"),
    (r"ended before it answered|daemon did not start", "pmm-cached {ledger}"),
    (r"a rebuild waits for process (?P<pid>\d+)", "kill -CONT {pid}; or kill {pid}"),
    (r"a process that was stopped keeps", "kill -CONT PID, of the process in state T in `ps -e -o pid,stat,args`"),
    (r"did not answer", "kill -CONT {daemon}; or kill {daemon} and pmm-cached {ledger} &"),
    (r"the follower has not moved", "kill {daemon}; pmm-cached {ledger} &"),
    (r"no space left|disk is full|map cannot grow", "df -h {directory}; then free space there"),
    (r"verification failed|history broken|published is wrong|is wrong: ", "pmm-shm verify {ledger}"),
    (r"no permission|share a group|not to be trusted|permission denied", "ls -ld {directory} {ledger}"),
    (r"removed or replaced under this daemon", "pmm-cached {ledger} &"),
    (r"lock is not held by this process", "kill {daemon}; pmm-cached {ledger} &"),
    (r"no such file", "ls -l {ledger}; put it back, or a backup of it in its place"),
    (r"malformed|not a database|not a ledger|disk image", "pmm-shm restore {ledger} BACKUP"),
    (r"a writer died within a transaction", "pmm-shm replay {ledger} metrics"),
    (r"could not be used", "pmm-shm status {ledger} --json"),
    (r"is busy|busy for", "fuser -v {ledger}"),
    (r"embedder|is not installed", "pmm-shm embed {ledger}; when the embedder works again"),
    (r"events behind the head|is being built", "pmm-shm top {ledger}"),
)
"""What a problem says, as a pattern, and the command. It may name {ledger}, {wal}, {shm}, {directory}, {daemon}, the
daemon's pid, and {pid}, the number that the pattern found.
"""


def remedy_for(problem: str, instance: Instance, daemon_pid: int | None) -> str | None:
    """What to type about a problem; None where it is not a known one."""
    for pattern, command in _REMEDIES:
        found = re.search(pattern, problem, re.IGNORECASE)
        if found is not None:
            ledger = instance.ledger
            return command.format(
                ledger=shlex.quote(ledger),
                wal=shlex.quote(ledger + "-wal"),
                shm=shlex.quote(ledger + "-shm"),
                directory=shlex.quote(str(instance.directory)),
                daemon="PID" if daemon_pid is None else daemon_pid,
                pid=found.groupdict().get("pid"),
            )
    return None
