"""`pmm-shm search` and `pmm-shm embed`"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from pmm_shm import limits
from pmm_shm.errors import DaemonError, SnapshotUnavailableError
from pmm_shm_cli.completeness import say_what_it_lacks
from pmm_shm_cli.searches import filters_of, scores_of, search_options, shown_score
from pmm_shm_terminal import completers
from pmm_shm_terminal.options import (
    CONTEXT,
    Deadline,
    json_option,
    ledger_and_word,
    ledger_argument,
    ledger_timeout_option,
    model_option,
    shape_option,
    the_ledger,
    timeout_option,
)
from pmm_shm_terminal.output import cell, console, pairs, print_json, printable, show, table, titled

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pmm_shm.instance.paths import Instance
    from pmm_shm_client.hits import Hits

DaemonNumbers = Mapping[str, Any]
"""What the daemon answers to stats."""

_CONTENT_SHOWN = 200
_KIND_SHOWN = 32
_TS_SHOWN = 19
_NUMBERS_SHOWN = 8
_IMPORT = "event_embeddings"
_DAEMON_ANSWERS_S = 2.0
_LOOK_S = 0.1
_LOOK_ANSWERS_S = 0.5


@click.command(context_settings=CONTEXT)
@click.argument("words", nargs=-1, metavar="[LEDGER] TEXT", shell_complete=completers.ledger_and_text)
@click.option("--vector", metavar="JSON", help="Search for this vector, a JSON array of numbers, instead of TEXT.")
@click.option(
    "-k", "k", type=click.IntRange(1, limits.SEARCH_K_MAX), default=5, metavar="N", help="Number of events to find."
)
@model_option("that of the daemon")
@click.option("--scope", metavar="ID,ID,...", help="Search among these events only.")
@click.option("--events/--no-events", default=True, help="Show the events, not only their ids.")
@search_options
@ledger_timeout_option
@shape_option
@json_option
def search(
    words: tuple[str, ...],
    vector: str | None,
    k: int,
    model: str | None,
    scope: str | None,
    events: bool,
    mode: str,
    kinds: tuple[str, ...],
    roles: tuple[str, ...],
    since: str | None,
    until: str | None,
    distinct: bool,
    timeout: Deadline,
    as_json: bool,
) -> None:
    """Find the events nearest to TEXT, by meaning and by words.

    Words in double quotes are a phrase that each hit must hold; a minus right before a word excludes it. pmm-cached
    publishes vectors and words; what it has not taken in yet is taken in here. Vectors out of the ledger's table
    event_embeddings are those of the model imported-DIMENSION, which takes --vector only.
    """
    ledger, query = _ledger_and_query(words, vector)
    ids = None if scope is None else _ids(scope)
    filters: Any = filters_of(kinds, roles, since, until, distinct)
    chosen: Any = mode
    from pmm_shm.instance.paths import Instance
    from pmm_shm.wire.endpoints import find_endpoints
    from pmm_shm_client.cache import Cache

    with Cache(ledger, timeout=timeout.left_s()) as cache:
        try:
            found: Hits[Any] = (cache.recall if events else cache.search)(query, k, ids, model, mode=chosen, **filters)
        except SnapshotUnavailableError:
            # Without a daemon nothing will ever be published: that is another thing to repair than a slow one.
            find_endpoints(Instance.of(ledger))
            raise
    if as_json:
        print_json(_found(found, events))
    else:
        _show_found(found, events)
        say_what_it_lacks(found, ledger, timeout.left_s(), model)


def _ledger_and_query(words: tuple[str, ...], vector: str | None) -> tuple[str, Any]:
    if vector is None:
        return ledger_and_word(words, "TEXT")
    if len(words) > 1:
        raise click.UsageError("either TEXT or --vector, not both")
    return the_ledger(words[0] if words else None), _vector(vector)


def _vector(text: str) -> list[float]:
    try:
        numbers = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"--vector: not JSON: {error}") from None
    if not isinstance(numbers, list) or not all(type(number) in (int, float) for number in numbers):
        raise click.UsageError("--vector: expected a JSON array of numbers")
    return numbers


def _ids(text: str) -> list[int]:
    """The ids in a text with commas between them; none in an empty one."""
    from pmm_shm_client.commands import checked_event_id

    try:
        ids = [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        raise click.UsageError("--scope: expected event ids with commas between them") from None
    return [checked_event_id(event_id) for event_id in ids]


def _found(found: Hits[Any], with_events: bool) -> dict[str, Any]:
    hits = []
    for hit in found:
        entry = {"event_id": hit.event_id, **scores_of(hit)}
        if with_events:
            entry.update((name, hit.event[name]) for name in ("kind", "ts", "content"))
        hits.append(entry)
    return {
        "mode": found.mode,
        "model": found.model,
        "as_of": found.as_of,
        "is_complete": found.is_complete,
        "embedded_here": found.embedded_here,
        "problem": found.problem,
        "hits": hits,
    }


def _show_found(found: Hits[Any], with_events: bool) -> None:
    # A hit of a vector, or by meaning alone, has no score of words.
    by_words = ("words",) if found.mode != "meaning" else ()
    columns = ("event", "similarity", *by_words, *(("kind", "time", "content") if with_events else ()))
    made = table(*columns, optional=("time", "kind"))
    for hit in found:
        row = [str(hit.event_id), shown_score(hit.similarity)]
        row += [shown_score(hit.word_score)] if by_words else []
        if with_events:
            event = hit.event
            row += [_short(event["kind"], _KIND_SHOWN), str(event["ts"])[:_TS_SHOWN], _short(event["content"])]
        cells = [cell(value) for value in row]
        cells[-1].no_wrap, cells[-1].overflow = True, "ellipsis"
        made.add_row(*cells)
    by = " and ".join(filter(None, ("words" if by_words else "", found.model)))
    show(titled(f"nearest events by {printable(by)}: {len(found)} (as of event {found.as_of})", made))


def _short(value: Any, chars_max: int = _CONTENT_SHOWN) -> str:
    """The beginning of a text as one printable line of at most `chars_max` characters."""
    shown = printable(str(value)[: chars_max + 1])
    return shown if len(shown) <= chars_max else shown[: chars_max - 1] + "…"


@click.command(context_settings=CONTEXT)
@ledger_argument
@click.option("--text", metavar="TEXT", help="Print the vector of this text.")
@model_option("local-bow")
@timeout_option(
    limits.LONG_COMMAND_TIMEOUT_S,
    f"How long to wait for the daemon; with --text at most {limits.LEDGER_TIMEOUT_S:g} for a busy ledger.",
)
@json_option
def embed(ledger: str | None, text: str | None, model: str | None, timeout: Deadline, as_json: bool) -> None:
    """Update the vectors of all events. With --text, embed a text.

    The daemon reads the table event_embeddings, where the ledger has one, and embeds what it has not embedded yet.
    """
    if text is None and model is not None:
        raise click.UsageError("--model means something with --text only: the daemon has its own")
    path = the_ledger(ledger)
    if text is None:
        _embed_events(path, timeout, as_json)
    else:
        _embed_text(path, text, model, timeout.left_s(limits.LEDGER_TIMEOUT_S), as_json)


def _embed_text(path: str, text: str, model: str | None, timeout_s: float, as_json: bool) -> None:
    from pmm_shm import flags
    from pmm_shm.vectors import local_bow
    from pmm_shm.vectors.registry import find_embedder
    from pmm_shm_client.cache import Cache

    with Cache(path, timeout=timeout_s) as cache:
        vector = cache.embed(text, model).tolist()
        name = find_embedder(model or flags.embedder() or local_bow.NAME).name
    found: dict[str, Any] = {"model": name, "dimension": len(vector), "vector": vector}
    if name == local_bow.NAME:
        found["digest"] = local_bow.digest(text)
    if as_json:
        print_json(found)
        return
    numbers = ", ".join(f"{number:.4f}" for number in vector[:_NUMBERS_SHOWN])
    found["vector"] = numbers + (", …" if len(vector) > _NUMBERS_SHOWN else "")
    show(pairs("vector", found))


def _embed_events(path: str, timeout: Deadline, as_json: bool) -> None:
    from pmm_shm.instance.paths import Instance
    from pmm_shm.ledger.recovery import ledger_head
    from pmm_shm.wire import protocol
    from pmm_shm_client import commands

    head = ledger_head(path, timeout.left_s(limits.LEDGER_TIMEOUT_S))
    instance = Instance.of(path)
    # A daemon that is stopped: better said at once than after ten minutes.
    commands.call(instance, protocol.PING, {}, timeout.left_s(_DAEMON_ANSWERS_S))
    done = _indexed(instance, head, timeout.left_s())
    tables = commands.call(instance, protocol.STATS, {}, _DAEMON_ANSWERS_S)["embeddings"]["tables"]
    if as_json:
        print_json({"ledger": instance.ledger, **done, "tables": tables})
        return
    show(_shown_tables(tables, done["as_of"]))
    imported = [f"{done[name]:,} {name}" for name in ("put", "removed", "malformed") if done[name]]
    if imported:
        click.echo(f"rows of event_embeddings: {', '.join(imported)}")


def _indexed(instance: Instance, head: int, timeout_s: float) -> dict[str, Any]:
    """The daemon's answer when every event up to `head` is in its tables. Shows how far it is."""
    from pmm_shm.wire import protocol
    from pmm_shm_client import commands

    done: dict[str, Any] = {}
    failures: list[BaseException] = []

    def run() -> None:
        try:
            done.update(_index(instance, head, timeout_s))
        except BaseException as error:
            failures.append(error)

    # In the background, so that the bar moves and Ctrl-C ends the command at once.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    with _bars(head) as update:
        while thread.is_alive():
            thread.join(_LOOK_S)
            if update is not None:
                # If this fails, the bar stops; the thread reports the error.
                with suppress(DaemonError):
                    update(commands.call(instance, protocol.STATS, {}, _LOOK_ANSWERS_S))
    if failures:
        raise failures[0]
    return done


def _index(instance: Instance, head: int, timeout_s: float) -> dict[str, Any]:
    from pmm_shm.wire import protocol
    from pmm_shm_client import commands

    deadline = time.monotonic() + commands.checked_timeout(timeout_s)
    # The tables take in what is published: the events of a moment ago may not be yet.
    commands.give(instance, commands.wait_command(instance.ledger, head, timeout_s))
    done: dict[str, Any] = commands.call(instance, protocol.INDEX, {}, max(0.0, deadline - time.monotonic()))
    return done


@contextmanager
def _bars(head: int) -> Iterator[Callable[[DaemonNumbers], None] | None]:
    """Progress bars on stderr, one for each table that is behind; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as bars:
        bars.add_task("Indexing", total=None, count="")
        tasks: dict[str, TaskID] = {}

        def put(name: str, done: int, total: int) -> None:
            if name not in tasks:
                if done >= total:
                    return
                tasks[name] = bars.add_task(printable(name), count="")
            bars.update(tasks[name], completed=done, total=total, count=f"{done:,}/{total:,}")

        def update(numbers: DaemonNumbers) -> None:
            embeddings = numbers["embeddings"]
            if embeddings["importing"]:
                put(_IMPORT, *embeddings["importing"])
            elif _IMPORT in tasks:
                bars.remove_task(tasks.pop(_IMPORT))
            for model, found in embeddings["tables"].items():
                put(model, min(found["as_of"], head), head)

        yield update


def _shown_tables(tables: Mapping[str, DaemonNumbers], as_of: int) -> RenderableType:
    """The daemon's tables of event vectors."""
    made = table("model", "rows", "dimension", "as of event", "kinds")
    for model, found in sorted(tables.items()):
        kinds = ", ".join(found["kinds"]) or None
        made.add_row(*map(cell, (model, found["rows"], found["dimension"], found["as_of"], kinds)))
    return titled(f"event vectors (as of event {as_of})", made)
