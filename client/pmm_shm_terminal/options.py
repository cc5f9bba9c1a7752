"""Arguments and options that several commands share."""

from __future__ import annotations

import math
import os
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

from pmm_shm import flags, limits
from pmm_shm.errors import ConfigError
from pmm_shm.finite import Finite
from pmm_shm_terminal import completers

_SHAPE = "pmm_shm_terminal.shape"
_F = TypeVar("_F", bound=Callable[..., Any])

CONTEXT = {"help_option_names": ["-h", "--help"], "show_default": True}


class Deadline:
    """The end of the time that a command may wait, for all things that it waits for.

    Attributes:
        timeout_s: the whole time, in seconds.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._ends_at = time.monotonic() + timeout_s

    def left_s(self, most_s: float = math.inf) -> float:
        """The seconds that are left, 0 to `most_s`."""
        return min(max(0.0, self._ends_at - time.monotonic()), most_s)


def json_option(command: _F) -> _F:
    """`--json`"""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON value on stdout.")(command)


def timeout_option(default_s: float, what: str) -> Callable[[_F], _F]:
    """`--timeout SECONDS`; the command gets a `Deadline`, which bounds all of its waiting together."""

    def begin(_: click.Context, __: click.Parameter, value: float) -> Deadline:
        return Deadline(value)

    return click.option(
        "--timeout", type=Finite(min=0), default=default_s, metavar="SECONDS", help=what, callback=begin
    )


ledger_timeout_option = timeout_option(limits.LEDGER_TIMEOUT_S, "How long to wait for a busy ledger.")
"""`--timeout SECONDS` of commands that only use the ledger."""

ledger_argument = click.argument("ledger", required=False, metavar="[LEDGER]", shell_complete=completers.files)
"""The ledger, for commands without another argument."""


def _keep_shape(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    ctx.meta[_SHAPE] = value


shape_option = click.option(
    "--shape",
    metavar="SHAPE",
    expose_value=False,
    callback=_keep_shape,
    help="Read the log of another program by this shape, a TOML file or a name. Needed until one is recorded.",
)
"""`--shape`; `the_ledger` follows it."""


def model_option(default: str) -> Callable[[_F], _F]:
    """`--model NAME`, an embedder; `default` says which one it is without `PMM_EMBEDDER`."""
    return click.option(
        "--model",
        metavar="NAME",
        help=f"Name of the embedder.  [default: the one in PMM_EMBEDDER, or {default}]",
        shell_complete=completers.embedders,
    )


fold_option = click.option("--fold", metavar="NAME", help="Only this fold.", shell_complete=completers.folds)
"""`--fold NAME`"""


def the_ledger(ledger: str | None) -> str:
    """The named ledger, or the one in `PMM_DB`.

    Raises:
        click.UsageError: neither.
        ConfigError: the value of an environment variable is invalid; reported before anything is done.
    """
    flags.projection_cache(), flags.metrics_cache(), flags.embedding_cache()
    if ledger is None:
        ledger = flags.default_ledger()
        if ledger is None:
            raise click.UsageError("no ledger: name one, or set PMM_DB")
    follow_shape(checked_name(ledger))
    return ledger


def checked_name(path: str, name: str = "LEDGER") -> str:
    """The path that was given as the argument `name`.

    Raises:
        ConfigError: it is empty, as an unset variable of a shell is.
    """
    if not path:
        raise ConfigError(f"{name}: expected the path of a file, got an empty text")
    return path


def given_shape() -> str | None:
    """`--shape` of the command that runs; None without one."""
    ctx = click.get_current_context(silent=True)
    found: str | None = None if ctx is None else ctx.meta.get(_SHAPE)
    return found


def with_shape(command: str, shape: str | None = None) -> str:
    """A command to type; one that starts a daemon gets `shape`, by default the given one."""
    shape = shape or given_shape()
    return command.replace("pmm-cached ", f"pmm-cached --shape {shlex.quote(shape)} ") if shape else command


def follow_shape(ledger: str) -> None:
    """Let this process read the ledger by `--shape`, if it was given.

    Raises:
        ConfigError: there is no such shape, or another one is recorded.
    """
    name = given_shape()
    if name is None:
        return
    from pmm_shm.instance.paths import Instance
    from pmm_shm.ledger.connection import recorded_shape, use_shape
    from pmm_shm.ledger.shape import load_shape
    from pmm_shm.ledger.shape_record import agreed_shape

    given = agreed_shape(Instance.of(ledger), load_shape(name))
    # A recorded one may know its folds, which the given one lacks.
    if given is not None and (given.folds or recorded_shape(ledger) is None):
        use_shape(ledger, given)


def refuse_foreign(ledger: str, command: str) -> None:
    """Raise where LEDGER is the log of another program, for a command that needs one of PMM.

    Raises:
        ConfigError: it is.
    """
    from pmm_shm.ledger.connection import recorded_shape

    shape = recorded_shape(ledger)
    if shape is not None:
        raise ConfigError(
            f"{ledger}: the log of another program, read by the shape {shape}; {command} needs a ledger of PMM"
        )


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """`; did you mean X?`, for the end of a message; nothing where no word is near."""
    import difflib

    near = difflib.get_close_matches(word, list(words), 1)
    return f"; did you mean {near[0]}?" if near else ""


def is_like_a_file(word: str) -> bool:
    """Whether a word is rather meant as a path than as another argument."""
    return os.path.exists(word) or "/" in word or ("." in word and " " not in word)


def ledger_and_word(words: Sequence[str], name: str, choices: str = "") -> tuple[str, str]:
    """`[LEDGER] WORD`: with one positional, the ledger is the one in `PMM_DB`.

    Parameters:
        name: of the word, for messages.
        choices: what it can be, in words.
    """
    missing = f"missing {name}" + (f": {choices}" if choices else "")
    if not words:
        raise click.UsageError(missing)
    if len(words) > 2:
        raise click.UsageError(f"too many arguments after {name}")
    if len(words) == 1 and flags.default_ledger() is None and is_like_a_file(words[0]):
        raise click.UsageError(missing)
    ledger = the_ledger(words[0] if len(words) == 2 else None)
    return ledger, words[-1]
