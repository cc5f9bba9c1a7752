"""The facts that the checks use: plain values, so that every check can be tested on a healthy machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pmm_shm.errors import DaemonError, LedgerError
from pmm_shm.instance.paths import Instance
from pmm_shm.instance.run_reports import RunReport
from pmm_shm.ledger.forks import Forks
from pmm_shm.ledger.new_events import Formula

FileKind = Literal["file", "directory", "link", "socket", "other"]
SocketState = Literal["listening", "silent", "forbidden", "absent"]


@dataclass(frozen=True)
class File:
    """A file, by `lstat` alone; `mode` holds the permission bits, `names` counts its hard links."""

    path: str
    kind: FileKind
    mode: int
    uid: int
    gid: int
    size_bytes: int
    is_readable: bool
    is_writable: bool
    names: int = 1


@dataclass(frozen=True)
class Disk:
    """The file system of a directory.

    Attributes:
        network: the name of its network file system; None for a local one.
        plain: the name of its file system if that has, as a rule, neither sockets nor permissions.
        is_memory: a reboot removes it.
        free_bytes, free_files: for this user; None if unknown.
        is_read_only: it is mounted read-only here.
    """

    directory: str
    network: str | None = None
    is_memory: bool = False
    free_bytes: int | None = None
    free_files: int | None = None
    plain: str | None = None
    is_read_only: bool = False


@dataclass(frozen=True)
class ShapeFold:
    """A fold that a shape names.

    Attributes:
        kinds: of the events that it needs; None for all.
        problem: why it cannot be loaded here; None if it can.
    """

    name: str
    kinds: frozenset[str] | None = None
    problem: str | None = None


@dataclass(frozen=True)
class RowFacts:
    """Facts that SQLite reads in the ledger.

    Attributes:
        journal: SQLite's name of the journal mode.
        formula: of the newest rows' hashes; None without hashes, or if they fit no formula.
        rows_hashed: number of the newest rows with a hash.
        rows_checked: number of the newest rows checked.
        first_bad_id: the first of them that does not continue the chain.
        fork: the first two of them that have the same predecessor.
        forks: those of the newest `gathering.FORK_ROWS` ids.
        is_continuable: whether the newest hash fits a formula, so that appends can continue the chain.
        refusal: why no plain program can append; None if nothing stands against it.
        is_of_pmm2: whether PMM 2 keeps the ledger.
        newest_ts: the time stamp of the newest row, unparsed.
        replica_of: the name in PostgreSQL of the log that it is a replica of; None for no replica.
        shape: by which the log of another program is read; None for a ledger.
        shape_folds: those that the shape names.
        newest_kinds: of the newest rows checked, read only for the log of another program.
    """

    journal: str
    head_id: int
    has_hashes: bool
    formula: Formula | None
    rows_hashed: int
    rows_checked: int
    first_bad_id: int | None
    newest_ts: Any
    fork: tuple[int, int] | None = None
    forks: Forks = field(default_factory=Forks)
    is_continuable: bool = True
    refusal: str | None = None
    is_of_pmm2: bool = False
    replica_of: str | None = None
    shape: str | None = None
    shape_folds: tuple[ShapeFold, ...] = ()
    newest_kinds: frozenset[str] = frozenset()


@dataclass(frozen=True)
class LedgerFacts:
    """The ledger and the files beside it.

    Attributes:
        side_files: by suffix, those of `-wal`, `-shm` and `-journal` that exist.
        rows: None if they were not read.
        problem: the reason.
        left_unread: its `-wal` has commits but no index file, and reading would make one.
        leftovers: copies left by restores.
        is_mounted_alone: the file itself is a mount point.
    """

    file: File | None
    directory: File | None
    disk: Disk
    side_files: Mapping[str, File] = field(default_factory=dict)
    rows: RowFacts | None = None
    problem: LedgerError | None = None
    left_unread: bool = False
    leftovers: tuple[File, ...] = ()
    is_mounted_alone: bool = False


@dataclass(frozen=True)
class Socket:
    """One of the daemon's sockets."""

    path: str
    state: SocketState


@dataclass(frozen=True)
class ReaderSlot:
    """A slot in LMDB's table of readers.

    Attributes:
        state: of its process, a letter as in proc(5); None if it has died.
        behind: commits since its open transaction began; None without one.
    """

    pid: int
    state: str | None
    behind: int | None


@dataclass(frozen=True)
class StoreFacts:
    """The numbers of LMDB's environment."""

    map_bytes: int
    used_bytes: int
    readers_max: int
    readers: tuple[ReaderSlot, ...]


@dataclass(frozen=True)
class WordFacts:
    """The index of words.

    Attributes:
        as_of: every event up to this one was taken into account.
        problem: why it cannot be read; None if it can.
    """

    as_of: int
    problem: str | None


@dataclass(frozen=True)
class StateFacts:
    """The instance directory and the daemon.

    Attributes:
        directory: None if it does not exist.
        allowed_mode: the widest mode that this ledger permits; None if unknown.
        distrust: why clients ignore it; None if they trust it.
        is_closed: this user may not look into it.
        openings: number of daemons in a row that died while opening the environment.
        is_trusted: whether readers open the environment.
        recorded: the recorded paths of the sockets; empty without a record.
        daemon: the answer to stats.
        failure: the reason if it did not answer.
        daemon_pid: as recorded.
        daemon_state: of its process, a letter as in proc(5); None if it does not run.
        runs: the reports of processes of PMM.
        words: None if there is no index of words, or if its directory is not trusted.
    """

    instance: Instance
    disk: Disk
    directory: File | None = None
    allowed_mode: int | None = None
    distrust: str | None = None
    is_closed: bool = False
    entries: tuple[File, ...] = ()
    openings: int = 0
    is_trusted: bool = True
    recorded: tuple[str, ...] = ()
    sockets: tuple[Socket, ...] = ()
    daemon: Mapping[str, Any] | None = None
    failure: DaemonError | None = None
    daemon_pid: int | None = None
    daemon_state: str | None = None
    store: StoreFacts | None = None
    store_problem: str | None = None
    runs: tuple[RunReport, ...] = ()
    words: WordFacts | None = None


@dataclass(frozen=True)
class User:
    """A process that has one of the files open.

    Attributes:
        is_old: its open file is no longer the one at the path.
        shm_dir: `PMM_SHM_DIR` of a daemon; "" if not set, None if it could not be read.
        inner_pid: its pid in its own pid namespace; None if it could not be read.
    """

    pid: int
    name: str
    path: str
    is_old: bool
    is_daemon: bool = False
    shm_dir: str | None = None
    inner_pid: int | None = None


@dataclass(frozen=True)
class Limits:
    """Resource limits of a process in bytes or numbers; None for unlimited."""

    whose: str
    address_space_bytes: int | None = None
    file_bytes: int | None = None
    open_files: int | None = None


@dataclass(frozen=True)
class Package:
    """A package that pmm-shm needs; `installed` is None if it is missing."""

    name: str
    installed: str | None
    needed: str


@dataclass(frozen=True)
class Service:
    """A unit of systemd for this ledger, as its settings file says.

    Attributes:
        state: systemd's ActiveState; None where systemd does not run or does not answer.
        shm_dir: where its daemon publishes.
    """

    unit: str
    settings: str
    state: str | None
    shm_dir: str


@dataclass(frozen=True)
class MachineFacts:
    """This process and the machine it runs on.

    Attributes:
        versions: as `pmm_shm.versions.of_this_process`.
        has_peer_filter: whether libzmq can tell a peer's user; None where it could not be asked.
        inotify: what is exhausted, "instances" or "watches"; None for nothing.
        variables: environment variables of ours.
        meaningless: what is wrong with some of them.
        missing_embedder: the package that the embedder in `PMM_EMBEDDER` needs and that is not there.
        now_s: seconds since the epoch, by the wall clock.
        ledger: the real path of the one asked about.
    """

    versions: Mapping[str, str | int]
    python: tuple[int, int, int]
    packages: tuple[Package, ...]
    libzmq: str | None
    has_peer_filter: bool | None
    limits: tuple[Limits, ...]
    inotify: str | None
    variables: Mapping[str, str]
    meaningless: tuple[str, ...]
    missing_embedder: str | None
    now_s: float
    boot_id: str
    services: tuple[Service, ...] = ()
    user: str = "this user"
    ledger: str | None = None


@dataclass(frozen=True)
class SystemFacts:
    """Everything around one ledger.

    Attributes:
        named: the absolute path that was asked about, with its symbolic links.
    """

    machine: MachineFacts
    ledger: LedgerFacts
    state: StateFacts
    users: tuple[User, ...]
    named: str

    @property
    def path(self) -> str:
        """The ledger's real path."""
        return self.state.instance.ledger
