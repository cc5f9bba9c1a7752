"""`pmm-shm context` and `pmm-shm recall`"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from pmm_shm import limits
from pmm_shm.errors import SnapshotUnavailableError
from pmm_shm_cli.completeness import say_what_it_lacks
from pmm_shm_cli.searches import filters_of, mode_option, scores_of, search_options, shown_score
from pmm_shm_terminal import completers
from pmm_shm_terminal.options import (
    CONTEXT,
    Deadline,
    json_option,
    ledger_and_word,
    ledger_timeout_option,
    model_option,
    refuse_foreign,
    shape_option,
    the_ledger,
)
from pmm_shm_terminal.output import json_value, print_json, printable, styled

if TYPE_CHECKING:
    from pmm_shm_client.hits import Hits

# The limits of `Cache.context`, which would have to be imported for them; a test compares them.
_RECALL_MAX, _REFLECTIONS_MAX, _MESSAGES_MAX = 100, 32, 64


@click.command(context_settings=CONTEXT)
@click.argument("words", nargs=-1, metavar="[LEDGER] [TEXT]", shell_complete=completers.ledger_and_text)
@click.option(
    "--recall", type=click.IntRange(0, _RECALL_MAX), default=3, metavar="K", help="Past messages similar to TEXT."
)
@click.option(
    "--reflections", type=click.IntRange(0, _REFLECTIONS_MAX), default=3, metavar="N", help="Newest reflections."
)
@click.option("--messages", type=click.IntRange(0, _MESSAGES_MAX), default=16, metavar="M", help="Last messages.")
@mode_option
@ledger_timeout_option
@json_option
def context(
    words: tuple[str, ...],
    recall: int,
    reflections: int,
    messages: int,
    mode: str,
    timeout: Deadline,
    as_json: bool,
) -> None:
    """Print what a worker would put into its prompt.

    TEXT is the message to answer; without it nothing is recalled. With PMM_DB set, a single word is TEXT unless it is
    the name of a file.
    """
    ledger, text = _ledger_and_text(words)
    refuse_foreign(ledger, "context")
    chosen: Any = mode
    from pmm_shm_terminal.spectator import SpectatorCache

    with SpectatorCache(ledger, timeout=timeout.left_s()) as cache:
        found = cache.context(text, reflections, recall, messages, recall_mode=chosen)
    if as_json:
        print_json(json_value(found.to_dict()))
        return
    click.echo("\n".join(map(printable, str(found).split("\n"))))
    if found.recall_problem is not None:
        click.echo(f"pmm-shm: recall: {printable(found.recall_problem)}", err=True)


def _ledger_and_text(words: Sequence[str]) -> tuple[str, str | None]:
    if len(words) > 2:
        raise click.UsageError("too many arguments after TEXT; put it in quotes")
    if len(words) == 1 and "PMM_DB" in os.environ and not os.path.exists(words[0]):
        return the_ledger(None), words[0]
    return the_ledger(words[0] if words else None), words[1] if len(words) == 2 else None


@click.command(context_settings=CONTEXT)
@click.argument("words", nargs=-1, metavar="[LEDGER] TEXT", shell_complete=completers.ledger_and_text)
@click.option(
    "-k", "k", type=click.IntRange(1, limits.SEARCH_K_MAX), default=5, metavar="N", help="Number of events to recall."
)
@model_option("that of the daemon")
@search_options
@ledger_timeout_option
@shape_option
@json_option
def recall(
    words: tuple[str, ...],
    k: int,
    model: str | None,
    mode: str,
    kinds: tuple[str, ...],
    roles: tuple[str, ...],
    since: str | None,
    until: str | None,
    distinct: bool,
    timeout: Deadline,
    as_json: bool,
) -> None:
    """Print the events most similar to TEXT, whole.

    As `search` finds them, the most similar first, each with its whole content.
    """
    ledger, text = ledger_and_word(words, "TEXT")
    filters: Any = filters_of(kinds, roles, since, until, distinct)
    chosen: Any = mode
    from pmm_shm.instance.paths import Instance
    from pmm_shm.wire.endpoints import find_endpoints
    from pmm_shm_terminal.spectator import SpectatorCache

    with SpectatorCache(ledger, timeout=timeout.left_s()) as cache:
        try:
            found = cache.recall(text, k, model=model, mode=chosen, **filters)
        except SnapshotUnavailableError:
            # Without a daemon nothing will ever be published: that is another thing to repair than a slow one.
            find_endpoints(Instance.of(ledger))
            raise
    if as_json:
        print_json(_as_dict(found))
    else:
        _show(found)
        say_what_it_lacks(found, ledger, timeout.left_s(), model)


def _as_dict(found: Hits[Any]) -> dict[str, Any]:
    events = [{**scores_of(hit), **json_value(hit.event)} for hit in found]
    return {
        "mode": found.mode,
        "model": found.model,
        "as_of": found.as_of,
        "is_complete": found.is_complete,
        "embedded_here": found.embedded_here,
        "problem": found.problem,
        "events": events,
    }


def _scores(hit: Any) -> str:
    similarity = f"similarity {shown_score(hit.similarity)}"
    by_words = getattr(hit, "word_score", None)
    return similarity if by_words is None else f"{similarity}  words {shown_score(by_words)}"


def _show(found: Hits[Any]) -> None:
    from pmm_shm_client.context import shown_time

    for number, hit in enumerate(found):
        event = hit.event
        title = f"event {hit.event_id}  {event['kind']}  {shown_time(event['ts'])}  {_scores(hit)}"
        click.echo(("\n" if number else "") + styled(printable(title), bold=True), color=True)
        for line in event["content"].splitlines() or [""]:
            click.echo(f"    {printable(line)}".rstrip())
    if not found:
        why = f"has a vector of {printable(found.model)}" if found.mode == "meaning" else "was found"
        click.echo(f"pmm-shm: no event {why} (as of event {found.as_of})", err=True)
