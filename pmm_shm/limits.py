"""Every limit of the system. Names end with the unit (`_BYTES`, `_S`, `_MS`, ...), then `_MIN` or `_MAX`.

Limits that matter to users have a docstring, and are listed in `docs/reference/SETTINGS.md`.
"""

from __future__ import annotations

# Decoding of hostile rows.
META_DEPTH_MAX = 100
"""How deep an event's `meta` may be nested; a deeper one reads as empty."""
META_INTEGER_DIGITS_MAX = 4_300
"""Digits of an integer in `meta`; with a longer one, the whole `meta` reads as empty."""
QUARANTINE_ENTRIES_MAX = 1_000
"""Events that a fold's quarantine lists, the newest ones; older ones are only counted."""

# After a replacement: how long to wait until the users of the old file close it.
REPLACED_HOLDER_S = 3.0
REPLACED_SLEEP_S_MIN = 0.005
REPLACED_SLEEP_S_MAX = 0.02

# The tail: one statement reads at most this much, so that no reader holds the ledger for long.
TAIL_ROWS_MAX = 2_048
TAIL_BYTES_MAX = 16 << 20
# One statement joins the rows of so many ids, more where they are short: about so many characters.
JOINED_IDS_MIN = 256
JOINED_IDS_MAX = 65_536
JOINED_CHARS = 2 << 20
JOINED_BYTES_MAX = 32 << 20
# With more rows that all become events, folding them takes longer: they no longer fit into the processor's cache.
FOLD_ROWS_MAX = 768
TAIL_SPAN_IDS = 65_536
TAIL_FETCH_ROWS = 64
TAIL_FEW_ROWS = 32
# So many events may wait until a fold of a reader is asked for.
QUEUED_EVENTS_MAX = 256
# The longest `content` and `meta` of an event that waits: as all of them can be in memory at once.
QUEUED_CHARS_MAX = 16_384
# Events of one replay after which `meta` is parsed by msgspec, if that is installed: its import takes 20 ms.
FAST_JSON_EVENTS_MIN = 16_384
# Rows that the follower folds between two signs of progress.
ROWS_PER_PROGRESS = 64

# The history of the scores.
HISTORY_POINTS_MAX = 1_024
"""Points of `history()`, for a log of any length."""
HISTORY_CHANGES_MAX = 256
"""Changes of stage, and of name, that `history()` keeps: the newest ones."""
HISTORY_NAME_CHARS_MAX = 80

# Folds.
FOLD_NAME_BYTES_MAX = 64
"""Bytes of a fold's name in UTF-8."""

# Waiting for a busy ledger.
LEDGER_TIMEOUT_S = 30.0
"""How long appends and reads wait for a busy ledger, by default."""
BUSY_SLEEP_S_MIN = 0.0001
BUSY_FIRST_SLEEP_S_MAX = 0.0003
"""An append holds the lock for about so long. The longest possible sleep doubles with each attempt, up to the next."""
BUSY_SLEEP_S_MAX = 0.002

# A restore: pages between two checks for signals, and how long SQLite itself waits for readers to end.
RESTORE_PAGES_PER_STEP = 256
RESTORE_BUSY_MS = 20

# How long a client trusts the freshness mark and the ledger's inode before it checks them again.
TRUST_PERIOD_S = 0.2
# How long the look at the path behind an append counts for the look before the next one, which then has two of its own:
# before its commit, and behind it. As long as an append takes.
LOOK_BEHIND_APPEND_S = 0.00005
REPLACEMENT_NOTICED_S = 1.0
"""Within this time, reads notice that another file is at the ledger's path; appends notice it at once."""
REPLAYS_MAX = 5
"""How often one call reads the log from its start, where the log changes behind what was read."""

# Seals: one digest over all raw columns of each block of rows; the newest block may be shorter.
SEAL_BLOCK_ROWS = 1_024

# LMDB. 1 TiB is address space, not disk.
MAP_SIZE_BYTES = 1 << 40
MAP_SIZE_BYTES_MIN = 1 << 24
READERS_MAX = 1_024
"""Processes and threads that can read the published state at the same time."""
READER_SLOTS_KEPT_MAX = 4
"""Of the reader slots that a client has needed at the same time, so many stay taken for its next reads."""
DAEMON_READER_SLOTS = 16
"""The daemon takes them when it opens the store: its threads never have more reads open at the same time."""
LOCK_TABLE_BYTES = (READERS_MAX + 4) * 64
DISK_FULL_BYTES = 1 << 16
STORE_MUTEX_S = 0.25
READ_LOST_S = 1.0
"""After so long, the reads that a resize of the map waits for are looked for in the table of readers."""
KEY_BYTES_MAX = 480
DELETE_KEYS_PER_TXN = 5_000
TOUCHED_COMMITS_MAX = 256
TOUCHED_KEYS_MAX = 512

# Frames.
FRAMES_KEPT = 8
"""Exact frames that a cache keeps for `kept_frame`, the newest ones."""
PAST_STATES_MAX = 8
PAST_DISTANCES = (65_536, 4_096, 256, 0)

# The daemon.
FOLD_EVENTS_PER_COMMIT = 10_000
REBUILD_KEYS_PER_FLUSH = 100_000
PACKER_BUFFER_BYTES = 1 << 16
"""A msgpack packer that has packed more is replaced: it keeps its buffer."""
VERIFY_EVERY_EVENTS = 1_000
"""Events after which the daemon verifies again, by default."""
VERIFY_CPU_BUDGET = 0.1
VERIFY_SLICE_S = 0.02
SLOW_POLL_S = 0.25
# How long the follower waits for a busy ledger before it says so, and tries again.
FOLLOWER_WAIT_S = 1.0
BACKOFF_S_MIN = 0.0001
BACKOFF_S_MAX = 0.001
BACKOFF_WINDOW_S = 0.02
INSTANCE_CHECK_S = 0.25
DEAD_READERS_CHECK_S = 5.0
STATUS_REPORT_S = 5.0
AUTOSTART_IDLE_EXIT_S = 900.0
"""How long a daemon that a client started stays without appends, commands and reports of workers."""
STOP_S = 1.5
STOP_HARD_S = 1.9

# A daemon is healthy if its follower has checked the ledger lately, and has not been behind for long.
HEARTBEAT_MS_MAX = 3_000
"""A daemon whose follower has not checked the log for longer is degraded."""
LAG_MS_MAX = 1_000
"""A daemon that has been behind the log for longer is lagging."""
LAG_EVENTS_MAX = 100_000
HEAD_PROBE_S = 0.1

# The follower of a log of record in PostgreSQL.
REPLICA_ROWS_MAX = 2_000
REPLICA_BYTES_MAX = 16 << 20
REPLICA_SLOW_POLL_S = 1.0
"""How long the follower of a replica sleeps without a notification."""
REPLICA_FORK_MAX = 10_000
"""How many events a replica takes back by itself, where the source has lost them, by default."""
REPLICA_RETRY_S_MAX = 5.0
REPLICA_AUDIT_S = 10.0
"""A replica compares one block of 1,024 events with its source after so many seconds, all blocks in turn."""
REPLICA_AUDIT_SILENCE_S = 60.0
REPLICA_LOOK_AROUND_S = 20.0
"""A follower asks the other servers of its cluster after so many seconds whether a later primary is among them."""
SOURCE_SILENCE_S = 10.0
"""A server that sends nothing for so long while it is asked is left."""
SOURCE_GRACE_S = 0.5
"""How long after a caller's deadline the server's own word that it is over is waited for."""
SOURCE_LEASE_S = 60.0
"""How long a host's claim on a text vector of all hosts lasts, if it dies while it computes it."""
REPLICA_LAG_MS_MAX = 3_000
"""A replica whose follower has not confirmed the source's head for longer is lagging."""
REPLICA_DEGRADED_MS = 30_000
"""A replica whose follower has not confirmed the source's head for longer is degraded."""

# Commands.
MESSAGE_BYTES_MAX = 64 << 10
REPLY_BYTES_MAX = 4 << 20
COMMAND_TIMEOUT_S = 5.0
"""How long a client waits for the daemon's answer, by default."""
DAEMON_CHECK_S = 1.0
FAREWELL_MS = 200
LONG_COMMAND_TIMEOUT_S = 600.0
"""The same for `verify` and `invalidate`."""
WAITERS_MAX = 1_024
SOCKET_PATH_BYTES_MAX = 100

# Peers of the daemon. Our client has one request at a time on a connection; only another program reaches these limits,
# with 1 MiB of requests on a connection. Replies to a peer that reads none are dropped beyond the limit.
REQUESTS_WAITING_MAX = 16
REPLIES_WAITING_MAX = 16
# Announcements are hints: a slow subscriber needs only the newest. A subscription is one byte.
ANNOUNCEMENTS_WAITING_MAX = 16
SUBSCRIPTION_BYTES_MAX = 512
HANDSHAKE_MS = 5_000
BACKLOG_CONNECTIONS = 128
# libzmq aborts a process that runs out of descriptors while it accepts a connection, and reports connections with a
# delay: the daemon allows itself more descriptors than all connections need.
CONNECTIONS_MAX = 512
"""Connections to one socket of the daemon."""
DESCRIPTORS_WANTED = 16_384
DESCRIPTORS_MIN = 96
"""File descriptors without which the daemon does not start."""
# libzmq limits the size of a frame but not their number in a message, and keeps them all until the last one arrives.
# When the daemon's memory has grown by this much while peers are connected, it disconnects those that may be the cause.
PEERS_MEMORY_BYTES_MAX = 128 << 20
PEERS_MEMORY_CHECK_S = 0.05
FRAMES_PER_TURN = 1_000
REQUESTS_PER_TURN = 100
# Workers report their counters at most this often; the daemon tells this many workers apart.
REPORT_EVERY_S = 5.0
REPORT_BYTES_MAX = 1 << 10
WORKERS_MAX = 1_024
WORKER_PROCESSES_LISTED = 64
COUNTER_MAX = (1 << 53) - 1

# Embeddings.
TEXT_CHARS_MAX = 1 << 20
"""Characters of one text to embed."""
DIMENSION_MAX = 8_192
"""Dimension of a vector."""
MODEL_NAME_CHARS_MAX = 128
"""Characters of a model's name."""
EMBED_BATCH_MAX = 256
"""Texts that an embedder may accept in one call (its `batch_max`)."""
EMBED_REQUESTS_MAX = 64
"""Calls that an embedder may allow at the same time (its `requests_max`)."""
MODELS_MAX = 256
TEXT_VECTORS_MAX = 100_000
"""Text vectors that the store keeps, by default."""
LOCAL_TEXT_VECTORS_MAX = 1_000
"""Text vectors that a worker keeps in its own memory when no daemon runs."""
PROVIDER_DEADLINE_S = 60.0
"""How long one call to an embedder on the network may take."""
PROVIDER_REFUSED_S = 2.0
"""The same from the first connection that is refused, because nothing listens there."""

# Event vectors: a tail of single rows, moved into blocks that grow to about this size.
VECTOR_TAIL_ROWS = 256
VECTOR_BLOCK_ROWS = 32_768
# One block is written in one commit, and meanwhile nothing else can be.
VECTOR_BLOCK_BYTES = 4 << 20

# Searches.
SEARCH_K_MAX = 10_000
"""Events that one search may return."""
SEARCH_EVENTS_MAX = 1_000
"""New events that one search embeds itself with `local-bow` or `wordllama`."""
SEARCH_TEXTS_MAX = 64
"""The same with any other embedder."""
SEARCH_WAIT_S = 5.0
"""How long a search waits while another process holds the lock of the reader table."""
SEARCH_EMBEDDER_S = 5.0
"""How long a search in the mode `auto` waits for an embedder on the network before it searches by words alone."""
SEARCH_POLL_S = 0.02

# Searches by words.
WORD_EVENTS_MAX = 10_000
"""Events without a place in the index of words that one process indexes itself, the newest."""
WORD_CHARS_MAX = 1 << 20
"""Characters of one event's text that are indexed; the rest is left out."""
QUERY_ITEMS_MAX = 64
"""Different words of a query that are looked up, the first ones."""
COMMON_SHARE = 8
"""A word is common in more than one of so many events,"""
COMMON_EVENTS_MIN = 16
"""but not in so few,"""
COMMON_EVENTS_MAX = 2_000
"""and always in more than so many."""
KEPT_EVENTS_MAX = 1_000
"""Of the words that are not common, the rarest are searched: as many as are in so many events together."""
WORD_INDEX_WAIT_S = 1.0
"""How long a search waits for the index of words while the daemon commits to it."""
WORD_INDEX_RETRY_S = 5.0
"""How long the index is not asked again after that."""
WORD_COMMIT_WAIT_S = 0.1
"""How long the daemon waits for the readers of the index before it gives a commit up, and tries later."""
# Of the words of earlier queries: how many are known to be common, and of how many the events are kept, each 24 bytes.
WORD_COUNTS_KEPT = 4_096
WORDS_KEPT = 64
NAMED_WEIGHT = 2.0
"""Weight of a phrase, and of a word with a digit, among the words of a query."""
FUSED_DEPTH = 100
"""Hits of each kind of search that are fused, at least."""
FILTER_DEPTH = 100
"""A filter looks through so many hits for each one wanted, before it looks through the whole log."""
FUSION_CONSTANT = 60
"""Of reciprocal rank fusion: Cormack, Clarke and Buettcher, SIGIR 2009."""
BESTS_WITHIN = 5
"""The best hit by words and the best by meaning are among so many first hits of a fused search,"""
LEADING_BESTS_WITHIN = 3
"""and among so many, that by words if it holds at least the share below of the query's weight."""
LEADING_SHARE_MIN = 1 / 3
WORDS_WEIGHT = 4.0
"""Of an event that holds all words of a query, in a fused search; of one found by meaning it is 1."""
WORDS_POWER = 5
"""An event that holds a share of the query's weight has this power of it as its share of `WORDS_WEIGHT`,"""
NAMING_WORDS_POWER = 3
"""or this one, if the query has an identifier, a number or a phrase."""
BLAS_PRODUCT_NUMBERS_MAX = 1 << 18
"""Multiplications in one product. Beyond it numpy's BLAS uses more threads, which wait for each other on busy cores."""
CROWD_DEPTH = 100
"""In a fused search so many of the nearest events are ranked by their similarity less their crowding, where"""
CROWD_SIZE = 10
"""the crowding of an event is its mean similarity to so many of the others, the nearest,"""
CROWD_WEIGHT = 0.3
"""and counts with this weight."""
ASKER_WEIGHT = 0.1
"""So much more counts a message of the user there, if the question is about who asks it."""
MATCH_WEIGHT = 0.6
"""In a fused search with `wordllama` they are ranked by their match of words, too, with this weight, where"""
MATCH_NEIGHBOURS = 10
"""so many words of all of them match a word of the query fully, those nearest to it,"""
MATCH_FALL = 0.15
"""others less, by the factor e for each such step of similarity behind them;"""
MATCH_CHARS_MAX = 1_000
"""of each event so many characters are compared, the first ones."""
MATCH_VECTORS_KEPT = 8_192
"""Vectors of words that a process keeps, 1 kB each."""

# How the daemon fills the tables of event vectors.
INDEX_EVENTS_PER_COMMIT = 1_024
INDEX_EVENTS_PER_READ = 128
INDEX_SLICE_S = 0.001
INDEX_YIELD_S = 0.01
"""How long the indexer waits for the follower to publish a commit, before it works for a slice all the same."""
INDEX_CALM_S = 0.1
"""How long after a commit the indexer rests after each slice, for as long as a slice."""
# Of the daemon's own work for one request to an endpoint, and of the request beyond its latency.
INDEX_REQUEST_CPU_S = 0.02
INDEX_REQUEST_S = 0.25
INDEX_GATHER_S = 0.05
INDEX_RETRY_S = 1.0
INDEX_RETRY_S_MAX = 60.0
IMPORT_CHECK_S = 1.0
IMPORT_RETRY_S = 10.0
IMPORT_YIELD_S = 0.25
IMPORT_CHECK_SHARE = 0.05

# Leases: one worker computes a missing vector while the others wait.
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
assert BUSY_SLEEP_S_MIN < BUSY_FIRST_SLEEP_S_MAX < BUSY_SLEEP_S_MAX
assert BACKOFF_S_MIN < BACKOFF_S_MAX < BACKOFF_WINDOW_S < SLOW_POLL_S < STOP_S
assert STOP_S < STOP_HARD_S < 2.0
assert FOLLOWER_WAIT_S * 1_000 < HEARTBEAT_MS_MAX
assert SLOW_POLL_S * 2_000 < LAG_MS_MAX < HEARTBEAT_MS_MAX
assert LEASE_RENEWAL_S * 2 < LEASE_S < LEASE_LIFE_S
assert PROVIDER_REFUSED_S < SEARCH_EMBEDDER_S < PROVIDER_DEADLINE_S
assert DIMENSION_MAX * 4 * 3 // 2 < MESSAGE_BYTES_MAX
assert MESSAGE_BYTES_MAX * REQUESTS_WAITING_MAX * 4 < PEERS_MEMORY_BYTES_MAX
assert CONNECTIONS_MAX * 8 < DESCRIPTORS_WANTED
assert KEY_BYTES_MAX < 511  # LMDB's own limit, compiled in
