"""`pmm-shm backup`"""

from __future__ import annotations

import click

from pmm_shm_terminal import completers
from pmm_shm_terminal.options import CONTEXT, json_option, ledger_and_word, ledger_timeout_option
from pmm_shm_terminal.output import plain, print_json, progress


@click.command(context_settings=CONTEXT)
@click.argument("words", nargs=-1, metavar="[LEDGER] FILE", shell_complete=completers.ledger_and_file)
@ledger_timeout_option
@json_option
def backup(words: tuple[str, ...], timeout: float, as_json: bool) -> None:
    """Copy LEDGER to the new file FILE.

    The copy shows one moment; workers, readers and the daemon may run. An existing FILE is refused. FILE has mode 0600,
    and `pmm-shm restore FILE LEDGER` puts it back. In WAL mode nobody waits. With a rollback journal, appends wait
    until the copy is complete: about 0.4 s for 115 MiB.
    """
    ledger, file = ledger_and_word(words, "FILE")
    from pmm_shm.ledger import backup as backing_up

    with progress("Backing up", None):
        done = backing_up.backup(ledger, file, timeout=timeout)
    if as_json:
        print_json(plain(done))
    else:
        click.echo(f"{done.backup}: {done.events:,} events of {done.ledger}, as of event {done.head_id:,}")
