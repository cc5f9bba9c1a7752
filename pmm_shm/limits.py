"""Every limit of the system, in one place, with its unit.

Sizes in bytes, times in the unit that ends the name. Those that users meet have a docstring, and stand in
`docs/reference/SETTINGS.md`.
"""

from __future__ import annotations

# Decoding of hostile rows (the contract's numbers; see the specification of malformed events).
META_DEPTH_MAX = 100
"""How deep an event's `meta` may be nested; deeper ones read as empty."""
META_INTEGER_DIGITS_MAX = 4_300
"""Digits of an integer in `meta`; with more, the whole `meta` reads as empty."""
QUARANTINE_ENTRIES_MAX = 1_000
"""Events that the quarantine of a fold names, the newest; those before are only counted."""

# After a replacement: how long to wait for the users of the old file to let go of it.
REPLACED_HOLDER_S = 3.0
REPLACED_SLEEP_MIN_S = 0.005
REPLACED_SLEEP_MAX_S = 0.02

# The tail: one statement reads at most this much, so that no reader holds the ledger for long.
TAIL_ROWS_MAX = 2_048
TAIL_BYTES_MAX = 16 << 20
TAIL_SPAN_IDS = 65_536
TAIL_FETCH_ROWS = 64
TAIL_FEW_ROWS = 16
# Rows that the follower folds between two signs of progress.
ROWS_PER_PROGRESS = 64

# The history of the scores: points and changes that are kept however long the log is.
HISTORY_POINTS_MAX = 1_024
"""Points of `history()`, however long the log is."""
HISTORY_CHANGES_MAX = 256
"""Changes of stage, and of name, that `history()` keeps, the newest."""
HISTORY_NAME_CHARS_MAX = 80

# Waiting for a busy ledger.
LEDGER_TIMEOUT_S = 30.0
"""How long appends and reads wait for a busy ledger, unless told otherwise."""
BUSY_SLEEP_MIN_S = 0.0001
BUSY_SLEEP_MAX_S = 0.002

# A restore: pages between two looks at a signal, and how long SQLite itself waits for readers to end.
RESTORE_PAGES_PER_STEP = 256
RESTORE_BUSY_MS = 20

# How long a client trusts the freshness mark and the ledger's inode before it looks at them again.
TRUST_PERIOD_S = 0.2
REPLACEMENT_NOTICED_S = 1.0
"""Within this time, reads notice that another file stands at the ledger's path; appends do at once."""

# Seals: one digest over all raw columns of each block of rows, the newest one perhaps not full yet.
SEAL_BLOCK_ROWS = 1_024

# LMDB. 1 TiB is address space, not disk.
MAP_SIZE_BYTES = 1 << 40
MAP_SIZE_MIN_BYTES = 1 << 24
MAX_READERS = 1_024
"""Processes and threads that can read what is published at the same moment."""
LOCK_TABLE_BYTES = (MAX_READERS + 4) * 64
DISK_FULL_BYTES = 1 << 16
MAX_SPARE_TRANSACTIONS = 64
STORE_MUTEX_S = 0.25
KEY_BYTES_MAX = 480
DELETE_KEYS_PER_TXN = 5_000
TOUCHED_COMMITS_MAX = 256
TOUCHED_KEYS_MAX = 512

# The daemon.
FOLD_EVENTS_PER_COMMIT = 10_000
REBUILD_KEYS_PER_FLUSH = 100_000
PACKER_BUFFER_BYTES = 1 << 16
"""A msgpack packer that has packed more is thrown away with its buffer."""
VERIFY_EVERY_EVENTS = 1_000
"""The daemon verifies after so many events, unless told otherwise."""
VERIFY_CPU_BUDGET = 0.1
VERIFY_SLICE_S = 0.02
SLOW_POLL_S = 0.25
BACKOFF_MIN_S = 0.0001
BACKOFF_MAX_S = 0.001
BACKOFF_WINDOW_S = 0.02
INSTANCE_CHECK_S = 0.25
DEAD_READERS_CHECK_S = 5.0
STATUS_REPORT_S = 5.0
STOP_S = 1.5
STOP_HARD_S = 1.9

# When a daemon is healthy: its follower looked at the ledger lately, and is not behind for long.
HEARTBEAT_MS_MAX = 3_000
"""A daemon whose follower has not looked at the log for longer is degraded."""
LAG_MS_MAX = 1_000
"""A daemon that is behind the log for longer is lagging."""
LAG_EVENTS_MAX = 100_000
HEAD_PROBE_S = 0.1

# Commands.
MESSAGE_BYTES_MAX = 64 << 10
REPLY_BYTES_MAX = 4 << 20
COMMAND_TIMEOUT_S = 5.0
"""How long a client waits for the daemon's answer, unless told otherwise."""
DAEMON_CHECK_S = 1.0
FAREWELL_MS = 200
LONG_COMMAND_TIMEOUT_S = 600.0
"""The same for `verify` and `invalidate`."""
WAITERS_MAX = 1_024
SOCKET_PATH_BYTES_MAX = 100

# Peers of the daemon. A client has one request under way on a connection, so these many waiting ones are another's: of
# requests 1 MiB a connection, of replies to a peer that does not read what 16 of them have, and the rest is dropped.
REQUESTS_WAITING_MAX = 16
REPLIES_WAITING_MAX = 16
# Announcements are hints: who is behind needs only the newest, and a subscription is one byte.
ANNOUNCEMENTS_WAITING_MAX = 16
SUBSCRIPTION_BYTES_MAX = 512
HANDSHAKE_MS = 5_000
BACKLOG_CONNECTIONS = 128
# libzmq aborts the process that can accept no more for want of descriptors, and is told of a connection only behind the
# fact: the daemon allows itself more of them than all connections need.
CONNECTIONS_MAX = 512
"""Connections to one socket of the daemon."""
DESCRIPTORS_WANTED = 16_384
# libzmq bounds the frames of a message, and not their number, and keeps all until the last one has come. When the
# daemon's memory has grown by this much while peers are connected, it hangs up on all who may be the cause.
PEERS_MEMORY_BYTES_MAX = 128 << 20
PEERS_MEMORY_CHECK_S = 0.05
FRAMES_PER_TURN = 1_000
REQUESTS_PER_TURN = 100
# Workers' reports of their counters: how often at most, and of how many workers the daemon knows one from another.
REPORT_EVERY_S = 5.0
REPORT_BYTES_MAX = 1 << 10
WORKERS_MAX = 1_024
COUNTER_MAX = (1 << 53) - 1

# Embeddings.
TEXT_CHARS_MAX = 1 << 20
"""Characters of a text that is embedded."""
DIMENSION_MAX = 8_192
"""Dimension of a vector."""
MODEL_NAME_CHARS_MAX = 128
"""Characters of the name of a model."""
EMBED_BATCH_MAX = 256
"""Texts that an embedder may ask for in one call."""
MODELS_MAX = 256
TEXT_VECTORS_MAX = 100_000
"""Text vectors that are kept, unless told otherwise."""
LOCAL_TEXT_VECTORS_MAX = 1_000
"""Text vectors that a worker keeps for itself where no daemon keeps them."""
PROVIDER_DEADLINE_S = 60.0
"""How long an embedder behind a network may take for one call."""

# Event vectors: a tail of single rows, sealed into blocks that grow to about this much.
VECTOR_TAIL_ROWS = 256
VECTOR_BLOCK_ROWS = 131_072
VECTOR_BLOCK_BYTES = 16 << 20

# Searches.
SEARCH_K_MAX = 10_000
"""Events that one search may ask for."""
SEARCH_EVENTS_MAX = 1_000
"""New events that one search embeds by itself with the default embedder."""
SEARCH_TEXTS_MAX = 64
"""The same with any other embedder."""

# The daemon's filling of the tables of event vectors.
INDEX_EVENTS_PER_COMMIT = 1_024
INDEX_SLICE_S = 0.001
INDEX_GATHER_S = 0.01
INDEX_RETRY_S = 1.0
INDEX_RETRY_MAX_S = 60.0
IMPORT_CHECK_S = 1.0
IMPORT_RETRY_S = 10.0
IMPORT_YIELD_S = 0.25
IMPORT_CHECK_SHARE = 0.05

# Leases: who computes a missing vector while the others wait.
LEASE_S = 2.0
LEASE_RENEWAL_S = 0.5
LEASE_LIFE_S = 120.0
LEASE_WAIT_S = 1.0
LEASES_MAX = 16_384
ROLE_LEASE_S = 2.0
ROLES_MAX = 64
LEASE_KEYS_MAX = EMBED_BATCH_MAX

assert TRUST_PERIOD_S < REPLACEMENT_NOTICED_S
assert TAIL_FEW_ROWS < TAIL_FETCH_ROWS <= TAIL_ROWS_MAX <= TAIL_SPAN_IDS
assert HISTORY_POINTS_MAX % 2 == 0
assert BUSY_SLEEP_MIN_S < BUSY_SLEEP_MAX_S
assert BACKOFF_MIN_S < BACKOFF_MAX_S < BACKOFF_WINDOW_S < SLOW_POLL_S < STOP_S
assert STOP_S < STOP_HARD_S < 2.0
assert SLOW_POLL_S * 2_000 < LAG_MS_MAX < HEARTBEAT_MS_MAX
assert LEASE_RENEWAL_S * 2 < LEASE_S < LEASE_LIFE_S
assert DIMENSION_MAX * 4 * 3 // 2 < MESSAGE_BYTES_MAX
assert MESSAGE_BYTES_MAX * REQUESTS_WAITING_MAX * 4 < PEERS_MEMORY_BYTES_MAX
assert CONNECTIONS_MAX * 8 < DESCRIPTORS_WANTED
assert KEY_BYTES_MAX < 511  # LMDB's own limit, compiled in
