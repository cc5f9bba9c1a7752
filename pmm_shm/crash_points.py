"""Named points at which a test kills its process: before and after every commit, flip, growth and creation of a file.

Owns the list of their names. Outside of tests a point does nothing: only a call of `install` within the process sets a
hook; no variable, file, option, message or audit hook does.

Invariant: nothing from outside of a process makes it die, or raise, at a crash point.
"""

from __future__ import annotations

from collections.abc import Callable

COMMITS = {
    "open": "the header of a store that was opened or created",
    "publish": "a batch of the follower",
    "begin_generation": "a new generation of a rebuild",
    "flush_shadow": "a chunk of a rebuild",
    "flip": "rebuilt generations go live",
    "void": "the published state is declared invalid",
    "put_seals": "the seals of a verification that passed",
    "end_history": "the log was replaced or edited",
    "delete_old_generation": "some keys of a generation that is no longer live",
    "text_vectors.evict": "vectors over the bound, at the start",
    "text_vectors.count": "nothing: the vectors are counted",
    "text_vectors.put": "text vectors that workers computed",
    "event_vectors.open": "the record of a new table",
    "event_vectors.block": "a new block of a table, which no record names yet",
    "event_vectors.apply": "rows and position of a table",
    "event_vectors.clear": "a table is emptied",
    "indexer.served": "the embedder whose vectors are searched",
    "indexer.history_ended": "the tables are valid again",
    "imports.forget": "`event_embeddings` must be compared again",
    "imports.seen": "`event_embeddings` was compared",
}
"""LMDB's commits and what they write. Each has two points: `.inside`, with everything put and nothing committed, and
`.committed`.
"""

_SINGLE = {
    "append.inside": "the events are inserted, the transaction is open",
    "append.committed": "the events are committed, the call has not returned",
    "replica.inserted": "a follower has inserted a batch, the transaction is open",
    "replica.committed": "the batch is committed",
    "replica.lost_written": "what the source has lost is in a file without its final name",
    "replica.lost_kept": "what the source has lost is in a file, and still in the replica",
    "replica.deleted": "it is deleted from the replica, the transaction is open",
    "replica.fork_resolved": "the replica has the source's history",
    "create_ledger.opened": "a connection is open, the file is missing or empty",
    "create_ledger.journal": "the file exists, in WAL mode, without tables",
    "create_ledger.inside": "table and indexes are created, the transaction is open",
    "create_ledger.committed": "the ledger exists",
    "instance.made": "the instance directory exists, for its owner alone",
    "instance.opened": "the group may enter it",
    "daemon_lock.opened": "`daemon.lock` exists and is not locked",
    "daemon_lock.locked": "it is locked and holds the previous daemon's pid",
    "daemon_lock.emptied": "it is locked and holds no pid",
    "daemon_lock.written": "it holds this daemon's pid",
    "replace_file.before": "a record of the instance directory is about to be replaced",
    "replace_file.made": "the temporary file exists, empty",
    "replace_file.written": "the temporary file holds the new record",
    "replace_file.renamed": "the new record is in place",
    "remove_environment.before": "an untrustworthy store is about to be removed",
    "remove_environment.data_removed": "`data.mdb` is removed, `lock.mdb` is not",
    "remove_environment.removed": "both are removed",
    "open_environment.before": "the store is about to be opened or created",
    "open_environment.data_made": "`data.mdb` exists, empty if it is new; `lock.mdb` may be missing",
    "open_environment.files_made": "both files exist, LMDB has not opened them",
    "open_environment.opened": "the store is open; a new one has no header yet",
    "socket_directory.made": "the directory for sockets with too long a path exists",
    "socket.before": "a socket's old file is removed, the new one is not bound",
    "socket.bound": "a socket is bound",
    "flip.before_last_flush": "all but the newest events of a rebuild are flushed",
    "flip.flushed": "the shadow generations are complete, the old ones still live",
    "flip.adopted": "the follower continues from the new generations",
    "grow.before": "the map is full",
    "grow.grown": "the map has grown, the commit is not repeated yet",
    "words.made": "the file of the index of words exists, empty",
    "words.inside": "texts are in the index of words, the transaction is open",
    "words.committed": "they are committed",
    "close.synced": "a stopping daemon has synced the store",
    "close.closed": "it has closed the store, the mark of a clean shutdown is missing",
    "close.marked": "the mark is written",
}

POINTS = {
    **_SINGLE,
    **{f"{name}.inside": f"{what}: put, not committed" for name, what in COMMITS.items()},
    **{f"{name}.committed": f"{what}: committed" for name, what in COMMITS.items()},
}
"""Every point, and the situation when it is reached."""

Hook = Callable[[str], None]

_hook: Hook | None = None


def crash_point(point: str) -> None:
    """Announce that this process is at a point of `POINTS`."""
    if _hook is not None:
        _hook(point)


def install(hook: Hook | None) -> None:
    """Call `hook` with the name of each point that this process reaches; for tests."""
    global _hook
    _hook = hook


assert len(POINTS) == len(_SINGLE) + 2 * len(COMMITS)
