"""`pmm-shm stop`"""

from __future__ import annotations

import os

import click

from pmm_shm_terminal.options import CONTEXT, Deadline, json_option, ledger_argument, the_ledger, timeout_option
from pmm_shm_terminal.output import print_json

_ENDS_S = 10.0


@click.command(context_settings=CONTEXT)
@ledger_argument
@timeout_option(_ENDS_S, "How long to wait for its end.")
@json_option
def stop(ledger: str | None, timeout: Deadline, as_json: bool) -> None:
    """Stop the daemon of LEDGER, and wait until it has ended.

    It finishes its batch first. Nothing is lost: reads and appends go on without it. Exit code 3 if none runs, 4 if it
    does not end in time. Stop a service with systemctl.
    """
    path = the_ledger(ledger)
    from pmm_shm.errors import DaemonAbsentError, LedgerNotFoundError
    from pmm_shm.instance.paths import Instance
    from pmm_shm_client.stopping import stop_daemon

    instance = Instance.of(path)
    try:
        pid = stop_daemon(instance, timeout.left_s())
    except DaemonAbsentError:
        # The daemon of a ledger that was removed can be stopped, too.
        if os.path.exists(path):
            raise DaemonAbsentError(f"{instance.ledger}: no daemon serves it") from None
        raise LedgerNotFoundError(f"{path}: no such file") from None
    if as_json:
        print_json({"ledger": instance.ledger, "pid": pid})
    else:
        click.echo(f"{instance.ledger}: the daemon (pid {pid}) has ended")
