"""`pmm-shm read` and `pmm-shm replay`"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from pmm_shm import limits
from pmm_shm.errors import SnapshotUnavailableError
from pmm_shm.finite import Finite
from pmm_shm_terminal import completers
from pmm_shm_terminal.answer_names import CHOICES, STRICT
from pmm_shm_terminal.answer_views import shown
from pmm_shm_terminal.answers import answer_of_cache, answer_of_replay, any_fold, checked_what, folds_for
from pmm_shm_terminal.options import CONTEXT, Deadline, json_option, ledger_and_word, shape_option, timeout_option
from pmm_shm_terminal.output import print_json, progress, show

if TYPE_CHECKING:
    from pmm_shm.folds.contract import Fold
    from pmm_shm_client.reads import Consistency

# That of `folds.self_model`, which would have to be imported for it; a test compares them.
_MAX_TRAIT_DELTA = 0.05
_HELP = f"\n\n    WHAT is {CHOICES}."

_words = click.argument("words", nargs=-1, metavar="[LEDGER] WHAT", shell_complete=completers.answers)
_strict = click.option(
    "--strict", is_flag=True, help="Limit each trait delta, and fail (exit code 5) if an invariant is violated."
)
_max_trait_delta = click.option(
    "--max-trait-delta",
    type=Finite(min=0),
    default=_MAX_TRAIT_DELTA,
    metavar="LIMIT",
    help="The limit of --strict; another value than the default means a full replay.",
)


@click.command(context_settings=CONTEXT, help="Read one answer from the shared state. Works without a daemon." + _HELP)
@_words
@_strict
@_max_trait_delta
@click.option(
    "--consistency",
    type=click.Choice(["exact", "snapshot", "wait", "global"]),
    default="exact",
    help="exact: every append before now. snapshot: what the daemon has published. wait: until it has published all.",
)
@timeout_option(limits.LEDGER_TIMEOUT_S, "How long to wait for a busy ledger, and for the daemon with wait.")
@shape_option
@json_option
def read(
    words: tuple[str, ...],
    strict: bool,
    max_trait_delta: float,
    consistency: Consistency,
    timeout: Deadline,
    as_json: bool,
) -> None:
    ledger, what, named = _checked(words, strict)
    from pmm_shm.instance.paths import Instance
    from pmm_shm.wire.endpoints import find_endpoints
    from pmm_shm_client.cache import Cache

    with Cache(ledger, timeout=timeout.left_s()) as cache:
        if named is not None and cache.shape is not None:
            cache.add_fold(named)
        try:
            answer = answer_of_cache(what, cache, consistency, strict, max_trait_delta)
        except SnapshotUnavailableError:
            # Without a daemon nothing will ever be published: that is another thing to repair than a slow one.
            find_endpoints(Instance.of(ledger))
            raise
    _print(what, answer, as_json)


@click.command(
    context_settings=CONTEXT,
    help="Compute one answer by a full replay. Uses neither cache nor daemon." + _HELP,
)
@_words
@_strict
@_max_trait_delta
@click.option("--until", type=click.IntRange(min=0), metavar="EVENT_ID", help="Replay up to this event, not the head.")
@timeout_option(limits.LEDGER_TIMEOUT_S, "How long to wait for a busy ledger.")
@shape_option
@json_option
def replay(
    words: tuple[str, ...], strict: bool, max_trait_delta: float, until: int | None, timeout: Deadline, as_json: bool
) -> None:
    ledger, what, named = _checked(words, strict)
    from pmm_shm.ledger.recovery import open_recovered
    from pmm_shm.ledger.tail import head_of
    from pmm_shm_client.replaying import replayed

    with contextlib.closing(open_recovered(ledger, timeout.left_s())) as connection:
        head = head_of(connection)
        folds = [named] if named else folds_for(what, max_trait_delta if strict else None, connection.shape)
        with progress("Replaying", head if until is None else min(head, until)) as advance:
            reading = replayed(connection, folds, until, lambda position: advance(position.as_of))
    _print(what, answer_of_replay(what, reading, strict, connection.shape), as_json)


def _checked(words: tuple[str, ...], strict: bool) -> tuple[str, str, Fold | None]:
    """(ledger, name, the fold if it is given as MODULE:CLASS)"""
    ledger, word = ledger_and_word(words, "WHAT", CHOICES)
    what = checked_what(word, ledger)
    if strict and what not in STRICT:
        raise click.UsageError(f"--strict means something for {' and '.join(sorted(STRICT))} only, not for {what}")
    return ledger, what, any_fold(word) if ":" in word else None


def _print(what: str, answer: Any, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        show(*shown(what, answer))
