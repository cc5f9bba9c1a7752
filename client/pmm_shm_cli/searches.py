"""The options that `search` and `recall` share, and how they show a hit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pmm_shm.errors import ConfigError
from pmm_shm.names import SEARCH_MODES
from pmm_shm_terminal import completers
from pmm_shm_terminal.moments import id_or_instant

_F = TypeVar("_F", bound=Callable[..., Any])
_MODES = SEARCH_MODES[::-1]


mode_option = click.option(
    "--mode",
    type=click.Choice(_MODES),
    default="auto",
    help="By meaning, by words, or both; auto gives words the lead where TEXT names something exactly.",
)


def search_options(command: _F) -> _F:
    """Add --mode and the filters to a command, as parameters of the same names."""
    options = (
        mode_option,
        click.option(
            "--kind",
            "kinds",
            multiple=True,
            metavar="KIND",
            help="Only events of this kind; may be given several times.",
            shell_complete=completers.kind_alone,
        ),
        click.option(
            "--role",
            "roles",
            multiple=True,
            type=click.Choice(("user", "assistant")),
            help="Only messages of this role; may be given several times.",
        ),
        click.option(
            "--since",
            metavar="ID|TIME",
            help="Only events after this id, or since this time: ISO 8601, in UTC unless it has an offset, or an age "
            "such as 90s, 15m, 2h, 3d.",
        ),
        click.option("--until", metavar="ID|TIME", help="Only events up to this id or time; a date counts whole."),
        click.option("--distinct", is_flag=True, help="Show only one of events with the same words."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def filters_of(
    kinds: tuple[str, ...], roles: tuple[str, ...], since: str | None, until: str | None, distinct: bool
) -> dict[str, Any]:
    """The arguments of `Cache.search` for these options. Raises `ConfigError`."""
    return {
        "kinds": kinds or None,
        "roles": roles or None,
        "since": _moment("--since", since),
        "until": _moment("--until", until),
        "distinct": distinct,
    }


def scores_of(hit: Any) -> dict[str, Any]:
    """The scores of a hit by name."""
    if not hasattr(hit, "found_by"):
        return {"similarity": hit.similarity}
    return {"similarity": hit.similarity, "word_score": hit.word_score, "found_by": hit.found_by}


def shown_score(score: float | None) -> str:
    """A score as text."""
    return "–" if score is None else f"{score:.4f}"


def _moment(option: str, text: str | None) -> int | str | None:
    if text is None:
        return None
    event_id, instant = id_or_instant(text)
    if event_id is not None:
        return event_id
    if instant is None:
        raise ConfigError(f"{option}: {text!r:.80} is no event id, ISO 8601 time, or age such as 15m")
    from pmm_shm.ledger.instants import instant_us, text_of_instant

    # A time as it was written: a date is a whole day.
    return text if instant_us(text) is not None else text_of_instant(instant)
