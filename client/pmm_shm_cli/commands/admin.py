"""`pmm-shm append`, `verify` and `invalidate`"""

from __future__ import annotations

import json
import os
from typing import Any

import click

from pmm_shm import limits
from pmm_shm.errors import DaemonAbsentError, LedgerNotFoundError, ReplicaLaggingError
from pmm_shm_terminal import completers, exits
from pmm_shm_terminal.exits import CommandFailed
from pmm_shm_terminal.options import (
    CONTEXT,
    Deadline,
    fold_option,
    json_option,
    ledger_argument,
    ledger_timeout_option,
    shape_option,
    the_ledger,
    timeout_option,
)
from pmm_shm_terminal.output import json_value, pairs, print_json, progress, show
from pmm_shm_terminal.program import standard_input
from pmm_shm_terminal.verification import check, checked_fold, daemon_answers


@click.command(context_settings=CONTEXT)
@click.argument("words", nargs=-1, metavar="[LEDGER] KIND [CONTENT]", shell_complete=completers.kinds)
@click.option(
    "--meta", "meta_text", default="{}", show_default=False, metavar="JSON", help="The event's meta, a JSON object."
)
@click.option("--create", is_flag=True, help="Make the ledger if it does not exist.")
@click.option("--wait/--no-wait", default=True, help="On a replica, wait until this machine's reads include the event.")
@ledger_timeout_option
@json_option
def append(words: tuple[str, ...], meta_text: str, create: bool, wait: bool, timeout: Deadline, as_json: bool) -> None:
    """Append an event and print its id. Exit code 4 if it was appended, and this machine's replica lags behind.

    CONTENT "-" is read from stdin, without its last line break. With PMM_DB set, KIND CONTENT is enough: the first of
    two words is the ledger only if it contains a dot or a slash or is the name of a file.
    """
    path, kind, content = _event(words)
    meta = _meta(meta_text)
    if content == "-":
        content = _stdin()
    from pmm_shm.ledger.eventlog import EventLog

    lagging: ReplicaLaggingError | None = None
    try:
        with EventLog(path, timeout=timeout.left_s(), create=create) as log:
            try:
                event_id = log.append(kind, content, meta, wait=wait)
            except ReplicaLaggingError as error:
                # It is appended: a script must not do it again.
                (event_id,), lagging = error.ids, error
    except LedgerNotFoundError as error:
        if create:
            raise
        raise CommandFailed(f"{error}; --create makes a ledger", exits.FAILURE) from None
    try:
        if as_json:
            print_json({"id": event_id, "ledger": log.path})
        else:
            click.echo(event_id)
    except BrokenPipeError:
        raise
    except OSError as error:
        # It is appended: nobody should do it again.
        raise CommandFailed(f"appended as event {event_id}; stdout: {error.strerror}", exits.FAILURE) from None
    if lagging is not None:
        raise CommandFailed(str(lagging), exits.LAGGING)


def _event(words: tuple[str, ...]) -> tuple[str, str, str]:
    """(ledger, kind, content) of the positionals."""
    if len(words) > 3:
        raise click.UsageError("too many arguments after CONTENT; put it in quotes")
    if len(words) == 1 or (len(words) == 2 and _is_kind(words[0])):
        words = (the_ledger(None), *words)
    if len(words) < 2:
        raise click.UsageError("missing KIND")
    return the_ledger(words[0]), words[1], words[2] if len(words) == 3 else ""


def _is_kind(word: str) -> bool:
    return "PMM_DB" in os.environ and "." not in word and "/" not in word and not os.path.lexists(word)


def _meta(text: str) -> dict[str, Any]:
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"--meta: not JSON: {error}") from None
    if not isinstance(meta, dict):
        raise click.UsageError(f"--meta: expected a JSON object, got {type(meta).__name__}")
    return meta


def _stdin() -> str:
    try:
        text = standard_input().buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"CONTENT on stdin is not UTF-8: {error.reason} at byte {error.start}") from None
    return text.removesuffix("\n").removesuffix("\r")


@click.command(context_settings=CONTEXT)
@ledger_argument
@fold_option
@click.option("--chain/--no-chain", default=True, help="Check the ledger's own hash chain too.")
@timeout_option(limits.LONG_COMMAND_TIMEOUT_S, "How long to wait for a busy ledger and for the daemon's verification.")
@shape_option
@json_option
def verify(ledger: str | None, fold: str | None, chain: bool, timeout: Deadline, as_json: bool) -> None:
    """Check the hash chain and the published state.

    The published state is compared with a full replay; if nothing is published, the whole ledger is read all the same.
    Exit code 5 if a check fails; the message names the first bad event, the first fork of the chain, or the first
    difference.
    """
    checked = check(the_ledger(ledger), fold, chain, timeout)
    problems = checked.problems()
    if as_json:
        links = checked.chain
        chain_found = None if links is None else {"ok": links.ok, **json_value(links)}
        if chain_found is not None and chain_found["fork"] is None:
            del chain_found["fork"]
        print_json(
            {"ok": not problems, "ledger": checked.path, "chain": chain_found, "snapshot": json_value(checked.report)}
        )
    else:
        show(pairs("verification", checked.rows()))
    if problems:
        raise CommandFailed(f"{checked.path}: {'; '.join(problems)}", exits.INTEGRITY)


@click.command(context_settings=CONTEXT)
@ledger_argument
@fold_option
@timeout_option(limits.LONG_COMMAND_TIMEOUT_S, "How long to wait for a busy ledger and for the rebuild.")
@json_option
def invalidate(ledger: str | None, fold: str | None, timeout: Deadline, as_json: bool) -> None:
    """Rebuild the published state. Reads stay complete meanwhile."""
    path = the_ledger(ledger)
    fold = checked_fold(fold, path)
    from pmm_shm.instance.paths import Instance
    from pmm_shm_client.cache import Cache

    with Cache(path, timeout=timeout.left_s(limits.LEDGER_TIMEOUT_S)) as cache:
        if not daemon_answers(Instance.of(path), timeout.left_s()):
            raise DaemonAbsentError(f"{cache.path}: no daemon serves it; start pmm-cached")
        with progress("Rebuilding", None):
            as_of = cache.invalidate(fold, timeout.left_s())
    if as_json:
        print_json({"ledger": cache.path, "fold": fold, "as_of": as_of})
    else:
        click.echo(f"{cache.path}: rebuilt {fold or 'all folds'}, as of event {as_of:,}")
