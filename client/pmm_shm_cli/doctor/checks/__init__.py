"""The table of checks, in the order in which the doctor prints what they find."""

from __future__ import annotations

from pmm_shm_cli.doctor.checks import daemon, ledger, machine, rows, state, store
from pmm_shm_cli.doctor.finding import DoctorCheck

LEDGER_CHECKS = (
    DoctorCheck("ledger-path", ledger.path),
    DoctorCheck("ledger-mount", ledger.mount),
    DoctorCheck("file-system", ledger.file_system),
    DoctorCheck("file-system-room", ledger.room),
    DoctorCheck("ledger-mode", ledger.mode),
    DoctorCheck("ledger-access", ledger.access),
    DoctorCheck("side-files", ledger.side_files),
    DoctorCheck("wal-size", ledger.wal_size),
    DoctorCheck("rows", rows.readable),
    DoctorCheck("owner", rows.owner),
    DoctorCheck("journal-mode", rows.journal_mode),
    DoctorCheck("durability", rows.durability),
    DoctorCheck("hash-chain", rows.hash_chain),
    DoctorCheck("clock", rows.newest_time),
    DoctorCheck("sqlite-version", rows.sqlite_version),
    DoctorCheck("replaced-file", ledger.replaced),
    DoctorCheck("leftover", ledger.leftovers),
    DoctorCheck("state-file-system", state.file_system),
    DoctorCheck("state-file-system-room", state.room),
    DoctorCheck("state-directory", state.directory),
    DoctorCheck("state-files", state.files),
    DoctorCheck("daemon-log", state.daemon_log),
    DoctorCheck("leftover", state.leftovers),
    DoctorCheck("boot-mark", state.boot_mark),
    DoctorCheck("daemon", daemon.answers),
    DoctorCheck("versions", daemon.versions),
    DoctorCheck("daemon-elsewhere", daemon.elsewhere),
    DoctorCheck("socket-path", daemon.socket_path),
    DoctorCheck("stale-socket", daemon.stale_sockets),
    DoctorCheck("store", store.readable),
    DoctorCheck("map-size", store.map_size),
    DoctorCheck("reader-slots", store.reader_slots),
    DoctorCheck("dead-reader", store.dead_readers),
    DoctorCheck("same-pid", store.same_pids),
    DoctorCheck("stale-reader", store.stale_readers),
    DoctorCheck("state-room", store.room),
    DoctorCheck("replaced-file", store.replaced),
)
MACHINE_CHECKS = (
    DoctorCheck("python", machine.python),
    DoctorCheck("packages", machine.packages),
    DoctorCheck("libzmq", machine.peer_filter),
    DoctorCheck("address-space", machine.address_space),
    DoctorCheck("file-size", machine.file_size),
    DoctorCheck("open-files", machine.open_files),
    DoctorCheck("inotify", machine.inotify),
    DoctorCheck("clock", machine.clock),
    DoctorCheck("boot-id", machine.boot_id),
    DoctorCheck("environment", machine.environment),
    DoctorCheck("service", machine.services),
)
