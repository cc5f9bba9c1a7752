"""Starting a daemon for a program that works without one, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pmm_shm.errors import DaemonError
from pmm_shm_terminal.output import printable

if TYPE_CHECKING:
    from pmm_shm_client.cache import Cache


def start_daemon_or_say(cache: Cache) -> None:
    """Start a daemon if none answers; where that fails, say so on stderr."""
    try:
        cache.start_daemon()
    except DaemonError as error:
        # Answers are the same without a daemon, only slower.
        click.echo(f"pmm-shm: no daemon: {printable(' '.join(str(error).split()))}", err=True)
