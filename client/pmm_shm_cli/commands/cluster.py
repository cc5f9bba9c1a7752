"""`pmm-shm cluster`: the log of record in PostgreSQL."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
from collections.abc import Iterator
from typing import Any

import click

from pmm_shm_terminal import completers, exits
from pmm_shm_terminal.exits import CommandFailed
from pmm_shm_terminal.options import (
    CONTEXT,
    Deadline,
    json_option,
    ledger_argument,
    ledger_timeout_option,
    refuse_foreign,
    the_ledger,
)
from pmm_shm_terminal.output import json_value, print_json, progress, show


@click.group(context_settings=CONTEXT, invoke_without_command=True)
@click.pass_context
def cluster(ctx: click.Context) -> None:
    """Keep the log in PostgreSQL, and a replica of it on each host.

    DSN is a data source name of PostgreSQL without a password, as "postgresql://host/database" or "host=a,b
    dbname=agents". The password belongs into ~/.pgpass. Needs the extra postgres.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@cluster.command(context_settings=CONTEXT)
@click.argument("dsn")
@click.option("--name", required=True, help="The ledger's name in PostgreSQL.")
@click.option(
    "--import",
    "ledger",
    metavar="LEDGER",
    shell_complete=completers.files,
    help="Begin with the events of this ledger.",
)
@ledger_timeout_option
@json_option
def init(dsn: str, name: str, ledger: str | None, timeout: Deadline, as_json: bool) -> None:
    """Make a ledger in PostgreSQL, and the tables where they are missing.

    With --import, stop all writers of LEDGER first. Every row is checked before anything is written, and the first one
    that cannot go is named. The file is not changed: pmm-cached LEDGER --source DSN --name NAME makes it a replica.
    """
    from pmm_shm.ledger.recovery import open_recovered
    from pmm_shm.ledger.source.dsn import checked_dsn
    from pmm_shm.ledger.source.importing import ImportPlan, check_importable, import_ledger
    from pmm_shm.ledger.source.tables import checked_name, create_ledger, create_tables

    checked_name(name)
    dsn = checked_dsn(dsn)
    with contextlib.ExitStack() as stack:
        plan = ImportPlan("full", 0)
        if ledger is not None:
            connection = stack.enter_context(contextlib.closing(open_recovered(ledger, timeout.left_s())))
            with progress("Checking", None) as advance:
                plan = check_importable(connection, advance)
        server = stack.enter_context(_primary(dsn))
        if ledger is None:
            with server.transaction():
                create_tables(server)
                made = create_ledger(server, name)
        else:
            with progress("Importing", None) as advance:
                made = import_ledger(connection, plan, server, name, advance)
    if as_json:
        print_json({"name": made.name, "identity": str(made.identity), "formula": made.formula, "events": plan.head_id})
    else:
        click.echo(f"{made.name}: {plan.head_id:,} events in PostgreSQL")


@cluster.command(context_settings=CONTEXT)
@click.argument("dsn")
@json_option
def status(dsn: str, as_json: bool) -> None:
    """Show the ledgers in PostgreSQL, with their newest events."""
    from pmm_shm.ledger.source.dsn import checked_dsn
    from pmm_shm_terminal.tables import FittedTable

    sql = (
        "SELECT name, identity, formula, head.id, head.ts FROM pmm_ledgers AS l LEFT JOIN LATERAL (SELECT id, ts FROM "
        "pmm_events AS e WHERE e.ledger = l.ledger ORDER BY id DESC LIMIT 1) AS head ON true ORDER BY name"
    )
    with _primary(checked_dsn(dsn)) as server:
        has_tables = server.execute("SELECT to_regclass('pmm_ledgers') IS NOT NULL").fetchone()
        rows = server.execute(sql).fetchall() if has_tables and has_tables[0] else []
    found = [
        {"name": name, "identity": str(identity), "formula": formula, "head_id": head_id or 0, "newest_ts": newest_ts}
        for name, identity, formula, head_id, newest_ts in rows
    ]
    if as_json:
        print_json(found)
    elif found:
        table = FittedTable("name", "head", "newest event")
        for one in found:
            table.add_row(one["name"], f"{one['head_id']:,}", one["newest_ts"] or "")
        show(table)
    else:
        click.echo("no ledgers; pmm-shm cluster init makes one")


@cluster.command(context_settings=CONTEXT)
@ledger_argument
@click.option("--append-again", "file", metavar="FILE", shell_complete=completers.files, help="Append its events.")
@json_option
def forks(ledger: str | None, file: str | None, as_json: bool) -> None:
    """Show the events that PostgreSQL has lost, and where this replica has kept them.

    A standby that takes over may lack the newest events. The replica then takes them back, into LEDGER.lost-TIME.jsonl.
    With --append-again the events of such a file get new ids, and the file is renamed.
    """
    path = the_ledger(ledger)
    refuse_foreign(path, "cluster")
    from pmm_shm.instance.paths import real_path
    from pmm_shm.ledger.source.lost import all_lost, append_again
    from pmm_shm_client import EventLog

    if file is not None:
        with EventLog(path, create=False) as log:
            ids = append_again(file, log.append_many, lambda event: _is_there(log, event))
        if as_json:
            print_json({"appended": ids})
        else:
            click.echo(f"{len(ids):,} events appended" + (f", {ids[0]:,} to {ids[-1]:,}" if ids else ""))
        return
    found = all_lost(real_path(path))
    if as_json:
        print_json(json_value(found))
    elif not found:
        click.echo("no event was lost")
    for one in () if as_json else found:
        state = "appended again" if one.is_appended else "kept"
        click.echo(f"{one.path}: {one.events:,} events, {one.first_id:,} to {one.last_id:,}, {state}")


@cluster.command(context_settings=CONTEXT)
@ledger_argument
@ledger_timeout_option
@json_option
def audit(ledger: str | None, timeout: Deadline, as_json: bool) -> None:
    """Compare a replica with PostgreSQL: all columns of all events. Exit code 5 if they differ."""
    path = the_ledger(ledger)
    refuse_foreign(path, "cluster")
    from pmm_shm.ledger.recovery import open_recovered
    from pmm_shm.ledger.source.audit import audit as compare
    from pmm_shm.ledger.source.server import Server
    from pmm_shm.ledger.tail import head_of

    record = _record(path, timeout)
    server = Server(record.dsn, record.name, record.identity, record.timeline)
    with (
        contextlib.closing(open_recovered(path, timeout.left_s())) as connection,
        contextlib.closing(server),
        _postgres_errors(),
        progress("Comparing", None) as advance,
    ):
        head_id = head_of(connection)
        found = compare(connection, server.connection(), server.known_ledger().number, head_id, advance)
    if as_json:
        print_json({"head_id": head_id, "difference": None if found is None else json_value(found)})
    elif found is None:
        click.echo(f"equal to its source {record.name!r} up to event {head_id:,}")
    if found is not None:
        raise CommandFailed(f"{path}: event {found.event_id}: {found.problem}", exits.INTEGRITY)


@cluster.command(context_settings=CONTEXT)
@ledger_argument
@ledger_timeout_option
@json_option
def detach(ledger: str | None, timeout: Deadline, as_json: bool) -> None:
    """Make a replica an ordinary ledger, which takes appends itself. Stop its pmm-cached first."""
    path = the_ledger(ledger)
    refuse_foreign(path, "cluster")
    from pmm_shm.ledger.connection import Connection
    from pmm_shm.ledger.replicas import make_ordinary

    record = _record(path, timeout)
    writer = Connection(path, "rw", timeout.left_s())
    with _without_follower(path), contextlib.closing(writer) as connection, connection.lock:
        handle = connection.handle()
        connection.retry(lambda: handle.execute("BEGIN IMMEDIATE"))
        try:
            make_ordinary(handle)
            handle.execute("COMMIT")
        finally:
            if handle.in_transaction:
                handle.execute("ROLLBACK")
    if as_json:
        print_json({"ledger": path, "source": record.name})
    else:
        click.echo(f"{path}: an ordinary ledger now; what is appended to it does not reach {record.name!r}")


@contextlib.contextmanager
def _primary(dsn: str) -> Iterator[Any]:
    """A connection to the primary, in autocommit mode."""
    from pmm_shm.ledger.source.server import Server

    with contextlib.closing(Server(dsn, None)) as server, _postgres_errors():
        session = server.connection()
        # The end of a large import is silent for long.
        session.silence_s = math.inf
        yield session


@contextlib.contextmanager
def _postgres_errors() -> Iterator[None]:
    from pmm_shm.ledger.source.dsn import psycopg
    from pmm_shm.ledger.source.server import first_line

    try:
        yield
    except psycopg().Error as error:
        raise CommandFailed(f"PostgreSQL: {first_line(error)}", exits.FAILURE) from None


def _record(path: str, timeout: Deadline) -> Any:
    from pmm_shm.ledger.recovery import open_recovered
    from pmm_shm.ledger.replicas import read_record

    with contextlib.closing(open_recovered(path, timeout.left_s())) as connection, connection.lock:
        handle = connection.handle()
        record = connection.retry(lambda: read_record(handle, path))
    if record is None:
        raise CommandFailed(f"{path}: not a replica", exits.FAILURE)
    return record


@contextlib.contextmanager
def _without_follower(path: str) -> Iterator[None]:
    """Hold the follower's lock: it would make the ledger a replica again."""
    from pmm_shm.instance.making import PRIVATE_MODE, make_directory, make_file
    from pmm_shm.instance.paths import Instance
    from pmm_shm.ledger.source.report import LOCK_FILE

    instance = Instance.of(path)
    make_directory(instance)
    descriptor = make_file(instance.directory / LOCK_FILE, PRIVATE_MODE)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandFailed(f"{path}: its follower runs: stop pmm-cached first", exits.FAILURE) from None
        yield
    finally:
        os.close(descriptor)


def _is_there(log: Any, event: Any) -> bool:
    """Whether the log has an event of this time, kind, content and meta."""
    import json

    first = log.first_id_since(_instant(event["ts"]))
    meta = json.loads(event["meta"])
    return any(
        (one.ts, one.kind, one.content, one.meta) == (event["ts"], event["kind"], event["content"], meta)
        for one in log.events(kind=event["kind"], after=first - 1, limit=None)
    )


def _instant(ts: str) -> int:
    from pmm_shm.ledger.instants import instant_us

    return instant_us(ts) or 0
