"""Named points at which a test lets a process die: before and after every commit, flip, growth and creation of a file.

Owns the list of their names. Outside of a test a point does nothing: no variable, file, option or message installs a
hook, only a call of `install` in the process itself.

Invariant: nothing from outside of a process makes it die at a crash point.
"""

from __future__ import annotations

from collections.abc import Callable

COMMITS = {
    "open": "the header of a store that was opened, or made",
    "publish": "a batch of the follower",
    "begin_generation": "a new generation of a rebuild",
    "flush_shadow": "a chunk of a rebuild",
    "flip": "rebuilt generations go live",
    "void": "what is published counts for nothing",
    "put_seals": "the seals of a verification that passed",
    "end_history": "the log is another one",
    "delete_old_generation": "some keys of a generation that is not live any more",
    "text_vectors.evict": "vectors over the bound, at the start",
    "text_vectors.count": "nothing: the look at how many there are",
    "text_vectors.put": "text vectors that workers computed",
    "event_vectors.open": "the record of a table, where it is new",
    "event_vectors.apply": "rows and position of a table",
    "event_vectors.clear": "a table begins anew",
    "indexer.served": "whose vectors are searched",
    "indexer.history_ended": "the tables count again",
    "imports.forget": "`event_embeddings` is to be compared anew",
    "imports.seen": "`event_embeddings` was compared",
}
"""LMDB's commits by who makes them. Each has two points, `.inside`: all is put and nothing committed; `.committed`."""

_SINGLE = {
    "append.inside": "the events are inserted, the transaction is open",
    "append.committed": "the events are committed, and the caller does not know yet",
    "create_ledger.opened": "a connection is there, the file is missing or empty",
    "create_ledger.journal": "the file is there, in WAL mode, without tables",
    "create_ledger.inside": "table and indexes are made, the transaction is open",
    "create_ledger.committed": "the ledger is there",
    "instance.made": "the instance directory is there, for its owner alone",
    "instance.opened": "the group may enter it",
    "daemon_lock.opened": "`daemon.lock` is there and not locked",
    "daemon_lock.locked": "it is locked and holds the pid of the daemon before",
    "daemon_lock.emptied": "it is locked and holds no pid",
    "daemon_lock.written": "it holds this daemon's pid",
    "replace_file.before": "a record of the instance directory stands, and no new one is written",
    "replace_file.made": "it stands beside an empty temporary file",
    "replace_file.written": "it stands beside the new one's temporary file",
    "replace_file.renamed": "the new record stands",
    "remove_environment.before": "a store that nobody may trust is to be removed",
    "remove_environment.data_removed": "`data.mdb` is gone, `lock.mdb` is there",
    "remove_environment.removed": "both are gone",
    "open_environment.before": "the store is to be opened, or made",
    "open_environment.data_made": "`data.mdb` is there, empty where it is new; `lock.mdb` may be missing",
    "open_environment.files_made": "both files are there, and LMDB has not opened them",
    "open_environment.opened": "it is open; a new one has no header",
    "socket_directory.made": "the directory for sockets with too long a path is there",
    "socket.before": "a socket's old file is gone, and it is not bound",
    "socket.bound": "a socket is bound",
    "flip.before_last_flush": "all but the newest events of a rebuild is flushed",
    "flip.flushed": "the shadow generations are complete, the old ones live",
    "flip.adopted": "the follower goes on from the new generations",
    "grow.before": "the map is full",
    "grow.grown": "the map has grown, and the commit is not tried anew",
    "close.synced": "a stopping daemon has synced the store",
    "close.closed": "it has closed the store, without the mark of a clean shutdown",
    "close.marked": "it has left the mark",
}

POINTS = {
    **_SINGLE,
    **{f"{name}.inside": f"{what}: put, not committed" for name, what in COMMITS.items()},
    **{f"{name}.committed": f"{what}: committed" for name, what in COMMITS.items()},
}
"""Every point, and what is the case when it is reached."""

Hook = Callable[[str], None]

_hook: Hook | None = None


def crash_point(point: str) -> None:
    """A process is at this point of `POINTS`."""
    if _hook is not None:
        _hook(point)


def install(hook: Hook | None) -> None:
    """Call `hook` with the name of each point that this process reaches; for tests."""
    global _hook
    _hook = hook


assert len(POINTS) == len(_SINGLE) + 2 * len(COMMITS)
