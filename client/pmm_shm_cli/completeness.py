"""What `search` and `recall` say of a search that did less than it could."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pmm_shm import flags
from pmm_shm_terminal.output import printable

if TYPE_CHECKING:
    from pmm_shm_client.hits import Hits


def say_what_it_lacks(found: Hits[Any], ledger: str, timeout_s: float, model: str | None) -> None:
    """Say on stderr why no vectors were compared, or, if no model was chosen, that a better embedder is there; and
    which events were not searched, if there are any.
    """
    if not found and not _is_indexed(ledger, timeout_s):
        click.echo("pmm-shm: no event of this log is indexed; restart pmm-cached with --word-kinds KINDS", err=True)
        return
    if found.problem is not None:
        click.echo(f"pmm-shm: found by words alone: {printable(found.problem)}", err=True)
    elif found.mode == "meaning":
        from pmm_shm.vectors.registry import AUTO, advice_on

        advice = advice_on(found.model) if (model or flags.embedder()) in (None, AUTO) else None
        if advice is not None:
            click.echo(f"pmm-shm: {advice}", err=True)
    if found.is_complete:
        return
    from pmm_shm.ledger.recovery import ledger_head

    head = ledger_head(ledger, timeout_s)
    newer = head - found.as_of
    if not found.as_of:
        here = f"{found.embedded_here:,} of the newest were embedded here"
        click.echo(f"pmm-shm: not all events were searched ({here}); start pmm-cached", err=True)
    elif newer > 0:
        events = "1 newer event is" if newer == 1 else f"{newer:,} newer events are"
        click.echo(f"pmm-shm: {events} not taken into account (as of event {found.as_of}, head {head})", err=True)


def _is_indexed(ledger: str, timeout_s: float) -> bool:
    """False for the log of another program of which no words and no vectors are kept."""
    from pmm_shm.instance.paths import Instance
    from pmm_shm.ledger.connection import recorded_shape
    from pmm_shm_terminal.state import ask, is_indexed

    return recorded_shape(ledger) is None or is_indexed(ask(Instance.of(ledger), timeout_s).numbers)
