"""What to do about each known problem: the one table behind `doctor`, `status` and `top`.

A command is a template for a shell, with places such as `{ledger}`. A place without a value is printed as a word in
capitals, as in `pmm-shm restore BACKUP agent.db`. What a command cannot say follows it as a shell comment, so that each
line can be typed as it is printed. No command overwrites or removes anything but caches and named leftovers.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import NamedTuple

from pmm_shm import errors
from pmm_shm.ledger.sqlite_errors import HotJournalError

_WAIT_AND_START = "tail --pid={daemon} -f /dev/null && pmm-cached {ledger} &"


class Template(NamedTuple):
    """An entry of the table.

    Attributes:
        advice: what to do, in words.
        command: what to type; "" where nothing can be typed.
        words: a pattern of what the daemon reports, which arrives as text; its group `pid` fills `{pid}`.
        errors: the errors that this entry is for.
    """

    advice: str
    command: str = ""
    words: str = ""
    errors: tuple[type[Exception], ...] = ()


class Remedy(NamedTuple):
    """What to do in words, and what to type ("" for nothing)."""

    advice: str
    command: str


TEMPLATES: Mapping[str, Template] = {
    # The daemon. In this order, the first entry whose words fit is taken. A difference quotes events: it comes first,
    # so that no words of an event are taken for the daemon's.
    "verify": Template(
        "check the whole ledger",
        "pmm-shm verify {ledger}",
        words="^verification failed|^history broken|published is wrong",
    ),
    "look-at-wal": Template(
        "stop all users of the ledger, and see in a backup what it holds with this -wal; next time use restore",
        "pmm-shm backup {ledger} FILE && pmm-shm verify FILE  # when all users have stopped. If it is ok and has the "
        "newest events, start them again; if not, first: mv --backup=numbered {wal} {wal}.old",
        words="replaced beside a -wal",
    ),
    "end-old-user": Template(
        "stop the process that has the replaced file open, then start it again; if it has written there, copy that "
        "file out of /proc/{pid}/fd first",
        "kill {pid}  # then start that program again",
        words=r"^process (?P<pid>\d+) still has the file open",
    ),
    "end-other-name": Template(
        "stop the process that uses another name of the file, and let all use one name",
        "kill {pid}  # then start that program again with this path",
        words=r"^process (?P<pid>\d+) has it open by another name",
    ),
    "mount-folder": Template(
        "mount the folder that holds the ledger, in every container, instead of the file",
        words="mounted as a single file",
    ),
    "start": Template("start the daemon", "pmm-cached {ledger} &", words="no daemon serves it"),
    "start-to-see": Template(
        "start the daemon in the foreground to see why it ends",
        "pmm-cached {ledger}",
        words="ended before it answered|daemon did not start",
    ),
    "share-pids": Template(
        "let the containers share one pid namespace (docker: pid: host; Kubernetes: shareProcessNamespace: true)",
        words="another pid namespace",
    ),
    "continue-reader": Template(
        "let the process go on, or end it",
        "kill -CONT {pid}  # or end it: kill {pid}",
        words=r"a rebuild waits for process (?P<pid>\d+)",
    ),
    "continue-stopped": Template(
        "let the stopped process go on",
        "ps -e -o pid,stat,args | awk '$2 ~ /^[Tt]/'  # then, with the number of the stopped process: kill -CONT PID",
        words="a stopped process holds the lock",
    ),
    "continue-daemon": Template(
        "let the daemon go on",
        "kill -CONT {daemon}  # if it still does not answer: kill -KILL {daemon} && pmm-cached {ledger} &",
        words="did not answer",
    ),
    "replace-daemon": Template(
        "end it and start another; killing it harms nothing", "kill -KILL {daemon} && " + _WAIT_AND_START
    ),
    "restart": Template(
        "restart the daemon",
        "kill -TERM {daemon} && " + _WAIT_AND_START,
        words="the follower has not moved|lock is not held by this process",
    ),
    "restart-service": Template("restart the daemon's service", "systemctl restart {unit}"),
    "start-in-place": Template(
        "start a daemon for the file that is there now",
        "pmm-cached {ledger} &",
        words="removed or replaced under this daemon",
    ),
    "see-disk": Template(
        "make room; the daemon continues by itself",
        "df -h {directory}  # then make room there",
        words="no space left|disk is full|map cannot grow",
    ),
    "leave-network": Template(
        "stop all writers, then copy it together with its -wal to a local disk; or use it on the file server itself",
        words="network file system",
    ),
    "see-permissions": Template(
        "compare the permissions",
        "ls -ld {directory} {ledger}",
        words="no permission|share a group|nothing in it is trusted|permission denied",
    ),
    "put-back": Template(
        "put the ledger back, or restore a backup of it",
        "ls -l {ledger}  # put it back, or a backup of it: pmm-shm restore BACKUP {ledger}",
        words="no such file",
        errors=(errors.LedgerNotFoundError,),
    ),
    "restore": Template("restore a good backup", "pmm-shm restore BACKUP {ledger}", words="malformed|disk image"),
    "roll-back": Template(
        "let a process that may write roll it back",
        "pmm-shm status {ledger}",
        words="a writer died within a transaction",
        errors=(HotJournalError,),
    ),
    "replace-damaged": Template(
        "name the ledger; if this is a damaged one, move it and its -wal away and restore a backup in its place",
        "ls -l {ledger}*  # if it is the ledger, when it was moved away: pmm-shm restore BACKUP {ledger}",
        words="not a database|not a ledger",
        errors=(errors.NotALedgerError,),
    ),
    "see-status": Template(
        "see the daemon's numbers and its quarantine", "pmm-shm status {ledger} --json", words="could not be used"
    ),
    "see-holder": Template(
        "see which process holds it, and end that process if it hangs",
        "fuser -v {ledger}",
        words="busy for",
        errors=(errors.LedgerBusyError,),
    ),
    "embed": Template(
        "embed the events when the embedder works again",
        "pmm-shm embed {ledger}  # when the embedder works again",
        words="embedder|is not installed",
    ),
    "watch": Template("watch it catch up", "pmm-shm top {ledger}", words="events behind the head|is being built"),
    # The ledger.
    "see-users": Template(
        "stop all users of the ledger, then do what the message says",
        "fuser -v {ledger} {wal} {shm}",
        errors=(errors.LedgerReplacedError,),
    ),
    "new-process": Template(
        "ask again from another process", "pmm-shm doctor {ledger}", errors=(errors.LockLostError,)
    ),
    "share": Template(
        "let the owner share it through a group, its directory included",
        "chmod g+rwx {folder} && chmod g+rw {ledger}",
        errors=(errors.LedgerUnreadableError,),
    ),
    "check-database": Template(
        "check it with SQLite", "sqlite3 {ledger} 'PRAGMA quick_check'", errors=(errors.LedgerError,)
    ),
    "make-ledger": Template("name the right file, or make a ledger", "pmm-shm append {ledger} user hello --create"),
    "name-file": Template("name the right file", "ls -ld {ledger}"),
    "one-name": Template("use one of them only, in all programs", "find / -xdev -samefile {ledger}"),
    "start-again": Template("when the link is switched, start the daemon and all workers again"),
    "back-up": Template("keep a copy on a disk", "pmm-shm backup {ledger} FILE"),
    "verify-and-restore": Template(
        "see how much is affected, then restore a good backup",
        "pmm-shm verify {ledger}  # then, to go back: pmm-shm restore BACKUP {ledger}",
    ),
    "append-under-lock": Template(
        "no backup is needed; so that no more of them come, start PMM with `pmm-shm run`, append with EventLog alone, "
        "or let that program begin with BEGIN IMMEDIATE"
    ),
    "leave-to-owner": Template(
        "read it here, and append with its owner's program", words="only .* can append, all others can read"
    ),
    "check-source": Template(
        "see whether PostgreSQL answers; its log has the reason",
        "pmm-shm cluster status DSN",
        words="^the source .* (was not confirmed|is not followed)",
    ),
    "follow-source": Template("follow its source", "pmm-cached {ledger} &"),
    "see-forks": Template("see what was lost; --append-again FILE appends it", "pmm-shm cluster forks {ledger}"),
    "protect": Template("let only the owner and the group use it", "chmod o-rwx {ledger}"),
    "mount-protected": Template(
        "its file system has no permissions: mount it with the option umask=077, and uid= for the user"
    ),
    "join-to-read": Template(
        "make {user} a member of the ledger's group, and let the group read and write",
        "usermod -aG {group} {user} && chmod g+rw {ledger}",
    ),
    "join-to-write": Template(
        "if {user} is to append, use a common group that may write the ledger and its directory",
        "usermod -aG {group} {user} && chmod g+rwx {folder} && chmod g+rw {ledger}",
    ),
    "mount-writable": Template(
        "its file system is mounted read-only here: mount it so that it can be written, if {user} is to append"
    ),
    "mount-writable-to-read": Template(
        "keep a program open that may write it where it is mounted writable, or read a backup of it here",
    ),
    "align-side-file": Template(
        "give the file the group and the mode of the ledger", "chgrp {group} {file} && chmod {mode} {file}"
    ),
    "empty-wal": Template(
        "end the program that reads all the time, then empty the file",
        "sqlite3 {ledger} 'PRAGMA wal_checkpoint(TRUNCATE)'",
    ),
    "switch-to-wal": Template(
        "if several processes append and read, switch to WAL while nobody has it open",
        "sqlite3 {ledger} 'PRAGMA journal_mode = WAL'",
    ),
    "newer-sqlite": Template(
        "append with a Python whose sqlite3 is 3.51.3 or newer (or 3.50.7, 3.44.6): conda-forge has one, or put a "
        "newer libsqlite3.so.0 in LD_LIBRARY_PATH; this prints the version that a Python has",
        "python -c 'import sqlite3; print(sqlite3.sqlite_version)'",
    ),
    "set-path": Template(
        "if its module is not installed, run this in its folder before the daemon and all programs",
        'export PYTHONPATH="$PWD:$PYTHONPATH"',
    ),
    "compare-kinds": Template("compare the `kinds` of the fold with those of the log", "pmm-shm log {ledger} -n 5"),
    "end-process": Template("if it stays, restart that program", "kill -TERM {pid}"),
    "end-user-of-old-file": Template(
        "if it stays, restart that program; what it has written since is gone then, unless that file is copied out of "
        "/proc/{pid}/fd first",
        "kill -TERM {pid}",
    ),
    "continue-process": Template("let it go on, or end it", "kill -CONT {pid}"),
    "remove-copy": Template("remove it when it is no longer needed", "rm {file}"),
    "remove-stage": Template("remove it if no restore runs", "rm {file}"),
    "free-room": Template("make room; the daemon continues by itself", "du -xh --max-depth=2 {directory}"),
    # The shared state.
    "move-state": Template(
        "set PMM_SHM_DIR to a directory on a local disk, for the daemon and all workers",
        "export PMM_SHM_DIR=/var/cache/pmm",
        words="a file system without",
    ),
    "shorten-state": Template("for sockets beside the state, use a shorter path", "export PMM_SHM_DIR=/run/pmm"),
    "make-room-for-state": Template(
        "make room, or set PMM_SHM_DIR to a directory on another disk", "df -h {directory}"
    ),
    "same-directory": Template(
        "use the same PMM_SHM_DIR for the daemon and all workers", "export PMM_SHM_DIR={shm_dir}"
    ),
    "no-directory": Template("use the same PMM_SHM_DIR for the daemon and all workers", "unset PMM_SHM_DIR"),
    "remake-state": Template(
        "when no daemon runs, move it away (it may hold embeddings that cost money), then start the daemon",
        "mv --backup=numbered {directory} {directory}.old && pmm-cached {ledger} &",
    ),
    "remake-words": Template(
        "remove the index of words, and start the daemon, which makes it anew", "rm {file} && pmm-cached {ledger} &"
    ),
    "remake-words-of-daemon": Template(
        "remove the index of words, and restart the daemon, which makes it anew",
        "rm {file} && kill -TERM {daemon} && " + _WAIT_AND_START,
    ),
    "remake-words-of-service": Template(
        "remove the index of words, and restart the daemon's service, which makes it anew",
        "rm {file} && systemctl restart {unit}",
    ),
    "join-group": Template("join the group of the instance directory", "usermod -aG {group} {user}"),
    "join-ledgers-group": Template(
        "join the ledger's group, let that group read the ledger, and restart the daemon", "usermod -aG {group} {user}"
    ),
    "narrow": Template("narrow it; the daemon's next start does so, too", "chmod {mode} {file}"),
    "remove-foreign": Template("remove it", "rm {file}"),
    "remove-socket": Template("start the daemon, or remove the socket", "rm {file}"),
    "empty-log": Template(
        "empty it, or run the daemon as a service, whose log the journal keeps", "truncate -s 0 {file}"
    ),
    "fewer-users": Template("use fewer processes and threads for one ledger; these have it open", "fuser -v {file}"),
    # PMM on the shared cache.
    "report-fault": Template(
        "report it, with what pmm-shm run --report prints; PMM_SHM_PATCHES can leave this part out, and PMM_SHM=off "
        "leaves PMM as it is"
    ),
    "other-pmm": Template("nothing has to be done; pmm-shm run --report prints which functions are PMM's own"),
    # The machine.
    "newer-python": Template("install pmm-shm with Python 3.10 or newer"),
    "older-python": Template("if something fails, install pmm-shm with Python 3.13"),
    "install": Template("install what is missing", "python -m pip install --upgrade {requirement}"),
    "install-wheel": Template(
        "use pyzmq's own wheel, whose libzmq can",
        "python -m pip install --force-reinstall --only-binary pyzmq pyzmq",
    ),
    "lift-memory": Template("lift the limit; in a unit, remove LimitAS", "ulimit -v unlimited"),
    "lift-file-size": Template("lift the limit; in a unit, remove LimitFSIZE", "ulimit -f unlimited"),
    "lift-open-files": Template("raise the limit; in a unit, LimitNOFILE", "ulimit -n 1024"),
    "raise-inotify": Template(
        "raise {setting}; in a file of /etc/sysctl.d to keep it after a reboot", "sysctl {setting}={value}"
    ),
    "set-clock": Template("set the clock from the network", "timedatectl set-ntp true"),
    "stop-in-order": Template(
        "stop daemons by SIGTERM", "pgrep -a pmm-cached  # then, for one of them: kill -TERM PID"
    ),
    "unset": Template("unset it", "unset {name}"),
    "rename-variable": Template("write {near}", "unset {name}"),
    "unset-unless": Template("unset it, unless it is another program's", "unset {name}"),
    "same-ledger": Template("name the same ledger there", "export PMM_DB={ledger}"),
    "see-journal": Template("see why, then start it again", "journalctl -u {unit} -n 20; systemctl restart {unit}"),
}
"""By key. The order matters for `words` and `errors`: the first entry that fits is taken."""


def remedy(key: str, **values: object) -> Remedy:
    """An entry of the table with its places filled in, quoted for a shell.

    From `ledger`, a path, follow also its `wal`, `shm` and `folder`. None counts as no value.
    """
    template = TEMPLATES[key]
    known = {name: str(value) for name, value in values.items() if value is not None}
    if "ledger" in known:
        ledger = known["ledger"]
        known |= {"wal": f"{ledger}-wal", "shm": f"{ledger}-shm", "folder": ledger.rpartition("/")[0] or "."}
    quoted = {name: shlex.quote(value) for name, value in known.items()}
    return Remedy(template.advice.format_map(_Places(known)), template.command.format_map(_Places(quoted)))


def remedy_for(problem: str | Exception, **values: object) -> Remedy | None:
    """The remedy for an error, or for a problem that the daemon reported; None for an unknown one.

    An error is looked up by what it says first: one class may have several remedies.
    """
    text = str(problem)
    for path in map(str, values.values()):
        # Words within a path are not the message's.
        text = text.replace(f"{path}: ", "").replace(path, "")
    for key, template in TEMPLATES.items():
        found = re.search(template.words, text, re.IGNORECASE) if template.words else None
        if found is not None:
            return remedy(key, **{**values, **found.groupdict()})
    for key, template in TEMPLATES.items():
        if isinstance(problem, template.errors):
            return remedy(key, **values)
    return None


class _Places(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return name.upper()
