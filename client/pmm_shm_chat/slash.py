"""The commands within a conversation, `/name`: most of them show the state and change nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pmm_shm import limits
from pmm_shm.errors import ConfigError
from pmm_shm_terminal.answer_views import shown
from pmm_shm_terminal.answers import answer_of_cache
from pmm_shm_terminal.exits import INTEGRITY, CommandFailed
from pmm_shm_terminal.options import Deadline
from pmm_shm_terminal.output import cell, console, json_value, pairs, printable, show, table, titled
from pmm_shm_terminal.verification import check

if TYPE_CHECKING:
    from pmm_shm_chat.progress import Timings
    from pmm_shm_client.cache import Cache

_COMMAND = re.compile(r"/(?:[a-z]*|\?)(?:[^\S\n].*)?", re.IGNORECASE)
_ALIASES = {"?": "help", "bye": "quit", "exit": "quit"}
"""Of other chats."""
_RECALLED = 5
_CONTENT_SHOWN = 500
_NAME_CHARS_MAX = 40
_DAEMON_ROWS = ("pid", "uptime_ms", "as_of", "head_id", "lag_events", "events_folded", "problem")


class Session(NamedTuple):
    """What commands act on.

    Attributes:
        timings: of the last turn.
        model: the name of the responder.
        retry, undo, edit: what these commands do.
    """

    cache: Cache
    timings: Timings | None
    model: str
    retry: Callable[[], None]
    undo: Callable[[], None]
    edit: Callable[[], None]


class _Command(NamedTuple):
    run: Callable[[Session, str], None]
    help: str
    argument: str = ""


def is_command(line: str) -> bool:
    """Whether a text is a command, known or unknown, rather than a message.

    A command is one line. A path and a comment in code are messages.
    """
    return _COMMAND.fullmatch(line) is not None


def run_command(line: str, session: Session) -> None:
    """Run a command and show its result.

    Raises:
        EOFError: the command ends the conversation.
        ConfigError: unknown command, or a missing or superfluous argument.
        PmmShmError: the command failed.
    """
    word, *rest = line[1:].split(maxsplit=1) or [""]
    name, argument = _ALIASES.get(word.lower(), word.lower()), "".join(rest).strip()
    command = COMMANDS.get(name)
    if command is None:
        raise ConfigError(f'unknown command /{word[:40]}; /help lists them, and """ begins a message')
    if bool(argument) != bool(command.argument):
        raise ConfigError(f"/{name}: usage: {_usage(name, command)}")
    command.run(session, argument)


def _read(*names: str) -> Callable[[Session, str], None]:
    """A command that shows the same answers as `pmm-shm read`."""

    def run(session: Session, argument: str) -> None:
        for name in names:
            show(*shown(name, answer_of_cache(name, session.cache, "exact", False, 0.05)))

    return run


def _directives(session: Session, argument: str) -> None:
    rows = session.cache.active_directives()
    _show_texts(
        f"active directives: {len(rows)}",
        ("score", "seen", "directive"),
        [(f"{row['score']:g}", row["seen_count"], row["content"]) for row in rows],
    )


def _recall(session: Session, text: str) -> None:
    hits = session.cache.recall(text, _RECALLED, mode="auto")
    _show_texts(
        f"recalled: {len(hits)}",
        ("similarity", "event", "kind", "content"),
        [(_similarity(hit.similarity), hit.event_id, hit.event["kind"], hit.event["content"]) for hit in hits],
    )
    if hits.problem is not None:
        click.echo(f"  found by words alone: {printable(hits.problem)}")
    elif not hits.is_complete:
        click.echo("  not all events were searched; a pmm-cached indexes them")


def _similarity(value: float | None) -> str:
    return "words" if value is None else f"{value:.3f}"


def _show_texts(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table whose last column is a text of any length, cut to the room that is left."""
    made = table(*columns, optional=columns[:-1])
    for row in rows:
        cells = [cell(" ".join(value[:_CONTENT_SHOWN].split()) if isinstance(value, str) else value) for value in row]
        # Set on the cells, because a column with this setting would shrink like the others.
        cells[-1].no_wrap, cells[-1].overflow = True, "ellipsis"
        made.add_row(*cells)
    show(titled(title, made))


def _status(session: Session, argument: str) -> None:
    """Two lines: the agent, and who answers."""
    cache = session.cache
    frame = cache.frame()
    parts = [f"event {frame.as_of:,}", open_commitments(len(frame.commitments().open))]
    if not frame.not_applicable:
        metrics = frame.metrics()
        parts[:0] = [_named(frame.identity().name), f"stage {frame.stage().stage}"]
        parts.append(f"IAS {metrics.ias:.2f}, GAS {metrics.gas:.2f}")
    _echo_wrapped(f"  {', '.join(parts)}", 2)
    daemon = cache.stats()["daemon"]
    served = "no daemon" if daemon is None else f"daemon {daemon['pid']}, lag {daemon['lag_events']:,}"
    _echo_wrapped(f"  answers: {printable(session.model)}; {served}", 2)


def _echo_wrapped(line: str, indent: int) -> None:
    """Show a line; what does not fit is below it, behind so many spaces."""
    from pmm_shm_chat.wrapping import LineWrapper

    wrapper = LineWrapper(lambda part: click.echo(part, nl=False), console().width, indent)
    click.echo(line[:indent], nl=False)
    wrapper.add(line[indent:])
    wrapper.end()
    click.echo("")


def open_commitments(count: int) -> str:
    """How many there are, in words."""
    return f"{count} open commitment{'' if count == 1 else 's'}"


def _named(name: object) -> str:
    return printable(str(name)[:_NAME_CHARS_MAX]) if name else "no name"


def _stats(session: Session, argument: str) -> None:
    numbers: dict[str, Any] = json_value(session.cache.stats())
    if session.cache.not_applicable:
        del numbers["metrics"]["ias"], numbers["metrics"]["gas"]
    daemon = numbers.pop("daemon")
    parts = [pairs(name, _spaced(rows)) for name, rows in numbers.items()]
    if daemon is None:
        parts.append(pairs("daemon", {"state": "none serves this ledger"}))
    else:
        parts.append(pairs("daemon", _spaced({name: daemon[name] for name in _DAEMON_ROWS if name in daemon})))
    if session.timings is not None:
        times = session.timings
        rows = {"append": times.append_ms, "context": times.context_ms, "model": times.model_ms}
        parts.append(pairs("last turn", {name: f"{spent_ms:.2f} ms" for name, spent_ms in rows.items()}))
    show(*parts)


def _spaced(rows: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("_", " "): value for name, value in rows.items()}


def _verify(session: Session, argument: str) -> None:
    checked = check(session.cache.path, None, True, Deadline(limits.LONG_COMMAND_TIMEOUT_S))
    show(pairs("verification", checked.rows()))
    problems = checked.problems()
    if problems:
        raise CommandFailed(f"{checked.path}: {'; '.join(problems)}", INTEGRITY)


def _help(session: Session, argument: str) -> None:
    width = max(len(_usage(name, command)) for name, command in COMMANDS.items())
    for name, command in COMMANDS.items():
        _echo_wrapped(f"  {_usage(name, command):{width}}  {command.help}", width + 4)
    _echo_wrapped('  A paste of several lines is one message, and so are the lines between two """.', 2)


def _quit(session: Session, argument: str) -> None:
    raise EOFError


def _usage(name: str, command: _Command) -> str:
    return f"/{name} {command.argument}".rstrip()


COMMANDS: Mapping[str, _Command] = {
    "metrics": _Command(_read("metrics", "stage"), "IAS, GAS and the stage"),
    "commitments": _Command(_read("commitments"), "open and expired commitments"),
    "identity": _Command(_read("identity"), "the name and the five traits"),
    "directives": _Command(_directives, "the active directives, best first"),
    "recall": _Command(_recall, "the past events most similar to a text", "TEXT"),
    "status": _Command(_status, "the agent and the daemon, in two lines"),
    "stats": _Command(_stats, "numbers of this worker, of the daemon, and of the last turn"),
    "verify": _Command(_verify, "check the hash chain and the published state"),
    "retry": _Command(lambda session, _: session.retry(), "answer the last message again, in place of its answer"),
    "undo": _Command(lambda session, _: session.undo(), "leave the last message and its answer out of later prompts"),
    "edit": _Command(lambda session, _: session.edit(), "write a message in $EDITOR"),
    "help": _Command(_help, "this list"),
    "quit": _Command(_quit, "end, as Ctrl-D does"),
}
"""name to command, in the order of `/help`."""
