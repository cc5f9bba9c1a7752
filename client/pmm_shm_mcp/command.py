"""`pmm-shm mcp`"""

from __future__ import annotations

import gc

import click

from pmm_shm.errors import ConfigError, MissingExtraError
from pmm_shm_terminal.options import CONTEXT, Deadline, ledger_argument, ledger_timeout_option, shape_option, the_ledger

_KIND_CHARS_MAX = 64


@click.command(context_settings=CONTEXT)
@ledger_argument
@click.option(
    "--write",
    multiple=True,
    metavar="KINDS",
    help="Offer the tool append, for events of these kinds, separated by commas.  [default: none]",
)
@click.option(
    "--write-protected",
    multiple=True,
    metavar="KINDS",
    help="The same for kinds that change the agent's identity, traits, directives or commitments.  [default: none]",
)
@click.option("--http", "port", type=click.IntRange(0, 65_535), metavar="PORT", help="Serve HTTP at 127.0.0.1; 0: any.")
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="The token that clients send to --http; made, with mode 0600, if it is missing.  [default: a new token]",
)
@click.option("--create", is_flag=True, help="Create the ledger if it does not exist.")
@click.option("--autostart/--no-autostart", default=True, help="Start pmm-cached if none serves the ledger.")
@ledger_timeout_option
@shape_option
def mcp(
    ledger: str | None,
    write: tuple[str, ...],
    write_protected: tuple[str, ...],
    port: int | None,
    token_file: str | None,
    create: bool,
    autostart: bool,
    timeout: Deadline,
) -> None:
    """Serve the memory to assistants by MCP.

    Speaks the Model Context Protocol on stdin and stdout, as Claude, Cursor, VS Code and others start it; with --http,
    to any number of clients of this host that send the token. The tools recall, context, events, explain and
    commitments read; append is there only with --write. Any number of servers may run at once: each answer includes
    every event that was appended before. Needs the extra `mcp`.
    """
    kinds = _kinds(write, write_protected)
    if token_file is not None and port is None:
        raise click.UsageError("--token-file is for --http only")
    path = the_ledger(ledger)
    # The SDK makes a hundred thousand objects that stay: to search them for garbage is an eighth of the start.
    gc.disable()
    try:
        from pmm_shm_mcp import serving
    except ImportError as error:
        from pmm_shm.installation import extra_command

        raise MissingExtraError(f"pmm-shm mcp needs the package mcp: {extra_command('mcp')} ({error})") from error
    finally:
        gc.enable()
    from pmm_shm_client.cache import Cache
    from pmm_shm_mcp.memory import Memory
    from pmm_shm_terminal.starting import start_daemon_or_say
    from pmm_shm_terminal.tokens import new_token, token_in

    with Cache(path, timeout=timeout.timeout_s, create=create) as cache:
        if autostart:
            start_daemon_or_say(cache)
        if kinds and cache.shape is not None:
            raise ConfigError(f"{cache.path}: the log of another program, which alone appends to it: leave out --write")
        memory = Memory(cache, kinds, timeout.timeout_s)
        if port is None:
            serving.serve_streams(memory)
            return
        token = new_token() if token_file is None else token_in(token_file)

        def say(address: str) -> None:
            click.echo(f"pmm-shm: serving {cache.path} at {address}", err=True)
            if token_file is None:
                click.echo(f"pmm-shm: clients send the header  Authorization: Bearer {token}", err=True)

        serving.serve_http(memory, port, token, say)


def _kinds(write: tuple[str, ...], protected: tuple[str, ...]) -> list[str]:
    """The writable kinds.

    Raises:
        click.UsageError: one is no kind, or is in the wrong option.
    """
    free, guarded = _listed("--write", write), _listed("--write-protected", protected)
    known = protected_kinds()
    for kind in free:
        if kind in known:
            raise click.UsageError(
                f"--write: {kind} changes the agent's identity, traits, directives or commitments; "
                "if that is meant, name it in --write-protected"
            )
    for kind in guarded:
        if kind not in known:
            raise click.UsageError(f"--write-protected: {kind!r} is none of {', '.join(sorted(known))}")
    return [*free, *guarded]


def _listed(option: str, texts: tuple[str, ...]) -> list[str]:
    found = [kind.strip() for text in texts for kind in text.split(",")]
    for kind in found:
        if not 0 < len(kind) <= _KIND_CHARS_MAX or not all(map(_is_of_a_kind, kind)):
            raise click.UsageError(f"{option}: {kind!r:.80} is no kind: letters, digits, and any of _ - . :")
    return found


def _is_of_a_kind(char: str) -> bool:
    return char.isalnum() or char in "_-.:"


def protected_kinds() -> frozenset[str]:
    """The kinds from which the agent's identity, traits, directives and commitments are computed."""
    from pmm_shm.folds.directives import DirectivesFold
    from pmm_shm.folds.self_model import SelfModelFold

    return frozenset(SelfModelFold.kinds) | frozenset(DirectivesFold.kinds)
