"""`pmm-shm backup` and `pmm-shm restore`"""

from __future__ import annotations

import click

from pmm_shm_terminal import completers
from pmm_shm_terminal.options import (
    CONTEXT,
    Deadline,
    checked_name,
    json_option,
    ledger_and_word,
    ledger_argument,
    ledger_timeout_option,
    the_ledger,
)
from pmm_shm_terminal.output import json_value, print_json, progress


@click.command(context_settings=CONTEXT)
@click.argument("words", nargs=-1, metavar="[LEDGER] FILE", shell_complete=completers.ledger_and_file)
@ledger_timeout_option
@json_option
def backup(words: tuple[str, ...], timeout: Deadline, as_json: bool) -> None:
    """Copy LEDGER to the new file FILE.

    The copy shows one moment; workers, readers and the daemon may run. An existing FILE is refused. FILE has mode 0600,
    and `pmm-shm restore FILE LEDGER` puts it back. In WAL mode nobody waits. With a rollback journal, appends wait
    until the copy is complete: about 0.4 s for 115 MiB.
    """
    ledger, file = ledger_and_word(words, "FILE")
    from pmm_shm.ledger import backup as backing_up

    with progress("Backing up", None):
        done = backing_up.backup(ledger, file, timeout=timeout.left_s())
    if as_json:
        print_json(json_value(done))
    else:
        click.echo(f"{done.backup}: {done.events:,} events of {done.ledger}, as of event {done.head_id:,}")


@click.command(context_settings=CONTEXT)
@click.argument("backup", shell_complete=completers.files)
@ledger_argument
@click.option("--chain/--no-chain", default=True, help="Check BACKUP's hash chain first.")
@click.option("--keep/--no-keep", default=True, help="Keep a copy of LEDGER's content beside it.")
@ledger_timeout_option
@json_option
def restore(backup: str, ledger: str | None, chain: bool, keep: bool, timeout: Deadline, as_json: bool) -> None:
    """Replace the content of LEDGER by that of BACKUP.

    It is one transaction; workers, readers and the daemon may run. BACKUP is checked first and never written; a missing
    LEDGER is made. Exit code 5 if the hash chain of BACKUP is broken.
    """
    path, source = the_ledger(ledger), checked_name(backup, "BACKUP")
    from pmm_shm.ledger import restore as restoring

    with progress("Restoring", None):
        done = restoring.restore(source, path, timeout=timeout.left_s(), chain=chain, keep=keep)
    if as_json:
        print_json(json_value(done))
        return
    kept = "" if done.safety_copy is None else f"; what it held before is in {done.safety_copy}"
    click.echo(f"{done.ledger}: {done.events:,} events from {backup}, as of event {done.head_id}{kept}")
