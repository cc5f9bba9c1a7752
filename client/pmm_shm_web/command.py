"""`pmm-shm web`"""

from __future__ import annotations

import re

import click

from pmm_shm.errors import MissingExtraError
from pmm_shm_terminal.options import CONTEXT, ledger_argument, shape_option, the_ledger

PORT = 8765
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")


@click.command(context_settings=CONTEXT)
@ledger_argument
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, metavar="N", help="The port; 0 for a free one.")
@click.option("--open", "opens", is_flag=True, help="Open the page in a browser.")
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="HOST[:PORT]",
    help="Also answer requests for this host, as a tunnel or a proxy sends them; may be repeated.",
)
@click.option(
    "--token-file",
    metavar="FILE",
    help="Take the token from FILE, made with mode 0600 if missing; without this, each start makes a new one.",
)
@click.option(
    "--fold",
    "folds",
    multiple=True,
    metavar="MODULE:CLASS",
    help="Also show this fold, which is not registered; may be repeated.",
)
@shape_option
def web(
    ledger: str | None,
    port: int,
    opens: bool,
    hosts: tuple[str, ...],
    token_file: str | None,
    folds: tuple[str, ...],
) -> None:
    """Show the agent's mind in a browser, now or at any event.

    It listens on 127.0.0.1 alone and only reads. Open the address that it prints: the token in it lets you in. Needs
    the extra `web`. Ctrl-C ends it.
    """
    path = the_ledger(ledger)
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise click.UsageError(f"--allow-host: expected HOST or HOST:PORT, got {host!r:.80}")
    try:
        from pmm_shm_web.serving import WebSettings, serve
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("jinja2", "markupsafe", "starlette", "uvicorn"):
            raise
        from pmm_shm.installation import extra_command

        raise MissingExtraError(f"pmm-shm web needs Starlette: {extra_command('web')} ({error})") from error
    from pmm_shm_terminal.tokens import token_in

    token = None if token_file is None else token_in(token_file)
    serve(path, WebSettings(port, hosts, token, opens, folds), lambda address: click.echo(address))
