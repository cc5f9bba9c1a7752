"""Completions for the shell, by argument and option. Opens no ledger and loads no fold."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click
from click.shell_completion import CompletionItem

from pmm_shm_terminal.answer_names import NAMES

Completions = list[CompletionItem]
_SUBJECTS = ("identity.name", "commitment", "trait", "directive", "metrics")
_EMBEDDERS = ("auto", "local-bow", "wordllama", "openai:")


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> Completions:
    """The shell's own completion of file names."""
    return [CompletionItem(incomplete, type="file")]


def answers(ctx: click.Context, param: click.Parameter, incomplete: str) -> Completions:
    """`[LEDGER] WHAT` of `read` and `replay`."""
    return _ledger_then(ctx, param, incomplete, (*NAMES, *registered_folds()))


def subjects(ctx: click.Context, param: click.Parameter, incomplete: str) -> Completions:
    """`[LEDGER] WHAT` of `explain`."""
    return _ledger_then(ctx, param, incomplete, _SUBJECTS)


def kinds(ctx: click.Context, param: click.Parameter, incomplete: str) -> Completions:
    """`[LEDGER] KIND [CONTENT]` of `append`: the kinds that the built-in folds know."""
    return _ledger_then(ctx, param, incomplete, _known_kinds())


def kind_alone(ctx: click.Context, param: click.Parameter, incomplete: str) -> Completions:
    """`--kind KIND`: the kinds that the built-in folds know."""
    return _beginning(incomplete, _known_kinds())


def ledger_and_file(ctx: click.Context, param: click.Parameter, incomplete: str) -> Completions:
    """`[LEDGER] FILE`: two files."""
    given = ctx.params.get(param.name or "") or ()
    return files(ctx, param, incomplete) if len(given) < 2 else []


def ledger_and_text(ctx: click.Context, param: click.Parameter, incomplete: str) -> Completions:
    """`[LEDGER] TEXT`: a text cannot be completed."""
    return _ledger_then(ctx, param, incomplete, ())


def folds(ctx: click.Context, param: click.Parameter, incomplete: str) -> Completions:
    """Names of folds, built in and registered."""
    from pmm_shm.folds.registry import BUILT_IN_NAMES

    return _beginning(incomplete, sorted({*BUILT_IN_NAMES, *registered_folds()}))


def embedders(ctx: click.Context, param: click.Parameter, incomplete: str) -> Completions:
    """Names of the embedders that come with pmm-shm."""
    return _beginning(incomplete, _EMBEDDERS)


def _ledger_then(ctx: click.Context, param: click.Parameter, incomplete: str, words: Sequence[str]) -> Completions:
    given = ctx.params.get(param.name or "") or ()
    if not given:
        # A single word refers to the ledger in PMM_DB; if none fits, the shell shows files.
        return files(ctx, param, incomplete) + (_beginning(incomplete, words) if os.environ.get("PMM_DB") else [])
    return _beginning(incomplete, words) if len(given) == 1 else []


def _known_kinds() -> list[str]:
    from pmm_shm.folds.registry import BUILT_IN

    return sorted({kind for fold in BUILT_IN for kind in fold.kinds or ()})


def _beginning(incomplete: str, words: Sequence[str]) -> Completions:
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


def registered_folds() -> list[str]:
    """Names of registered folds, by their entry points; loads none of them."""
    from importlib.metadata import entry_points

    from pmm_shm.folds.registry import GROUP

    return sorted({entry.name for entry in entry_points(group=GROUP)})
