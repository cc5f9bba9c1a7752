"""`pmm-shm status`: how a ledger's daemon is, at a glance."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

import click

from pmm_shm.errors import FoldError, PmmShmError, SnapshotUnavailableError
from pmm_shm_terminal import exits
from pmm_shm_terminal.exits import CommandFailed
from pmm_shm_terminal.options import (
    CONTEXT,
    Deadline,
    json_option,
    ledger_argument,
    shape_option,
    the_ledger,
    timeout_option,
)
from pmm_shm_terminal.output import json_value, print_json, show
from pmm_shm_terminal.state import DAEMON_ANSWERS_S

if TYPE_CHECKING:
    from pmm_shm_terminal.state import Asked


@click.command(context_settings=CONTEXT)
@ledger_argument
@timeout_option(DAEMON_ANSWERS_S, "How long to wait for a busy ledger and for the daemon's answer.")
@click.option(
    "--fold",
    "folds",
    multiple=True,
    metavar="MODULE:CLASS",
    help="Also show the numbers of this fold, which is not registered; may be repeated.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show all numbers.")
@shape_option
@json_option
def status(ledger: str | None, folds: tuple[str, ...], verbose: bool, timeout: Deadline, as_json: bool) -> None:
    """Show health and position of the daemon.

    Health is healthy, lagging, degraded or absent. Each problem comes with what to type about it. Reads served from
    shared memory are hits and reads that caught up: the published state and the events after it. The others were
    replayed. Exit codes: 0 the published state follows the log, 3 no daemon, 4 it lags, is stuck, or does not answer.
    """
    path = the_ledger(ledger)
    from pmm_shm.instance.paths import Instance
    from pmm_shm.ledger.recovery import open_recovered
    from pmm_shm.ledger.tail import head_of
    from pmm_shm_client.results import NOT_IN_PMM2
    from pmm_shm_terminal import state

    with contextlib.closing(open_recovered(path, timeout.left_s())) as connection:
        head = head_of(connection)
        journal = "wal" if connection.is_wal else "rollback"
        missing = NOT_IN_PMM2 if connection.schema.is_of_pmm2 else ()
    instance = Instance.of(path)
    asked = state.ask(instance, timeout.left_s(), head)
    daemon = asked.numbers
    as_of, published = state.published(instance)
    described = _described(path, published, folds, timeout)
    found: dict[str, Any] = {
        "health": asked.health,
        "reasons": [str(problem) for problem in asked.problems],
        "remedies": state.with_remedies(instance, _problems(asked)),
        "ledger": instance.ledger,
        "journal": journal,
        "instance_directory": str(instance.directory),
        "head_id": head,
        "as_of": as_of if daemon is None else daemon["as_of"],
        "lag_events": None if daemon is None else daemon["lag_events"],
        "lag_ms": None if daemon is None else daemon["lag_ms"],
        "folds": published,
        "sizes": _sizes(instance, daemon),
        "workers": state.workers_of(daemon),
        "readers": state.readers_of(daemon),
        "reads": state.reads_of(daemon),
        "daemon": daemon,
        **({"not_applicable": list(missing)} if missing else {}),
        **({"described": described} if described else {}),
    }
    if as_json:
        print_json(json_value(found))
    else:
        from pmm_shm_cli.status_view import glance, headline, sections

        show(headline(found), *(sections if verbose else glance)(found))
    if asked.failure is not None:
        raise asked.failure
    if daemon is not None and not daemon["is_current"]:
        raise CommandFailed(f"{instance.ledger}: {daemon['health']}: {daemon['health_reasons'][0]}", exits.LAGGING)


def _described(path: str, published: Collection[str], named: Iterable[str], timeout: Deadline) -> dict[str, Any]:
    """Name of each fold that is not built in and is published, or is one of the log's shape, to what it describes, or
    to a line that says why not.
    """
    from pmm_shm.folds.engine import DECODE
    from pmm_shm.folds.registry import BUILT_IN_NAMES, chosen_folds, named_fold, registered_folds
    from pmm_shm.ledger.connection import recorded_shape

    shape = recorded_shape(path)
    folds = {fold.name: fold for fold in map(named_fold, named)}
    others = set() if shape else set(published) - BUILT_IN_NAMES - {DECODE} - folds.keys()
    found: dict[str, Any] = {}
    try:
        # Takes 50 ms. Folds that are not registered, such as those of `pmm-shm run`, are shown if they are named.
        folds.update((fold.name, fold) for fold in (registered_folds() if others else ()) if fold.name in others)
        folds.update((fold.name, fold) for fold in (chosen_folds(shape.folds) if shape else ()))
    except PmmShmError as error:
        found["folds of the shape" if shape else "registered folds"] = str(error)
    if not folds:
        return found
    from pmm_shm.folds.describing import description
    from pmm_shm_terminal.spectator import SpectatorCache

    with SpectatorCache(path, timeout=timeout.left_s()) as cache:
        for name, fold in folds.items():
            try:
                if fold.name not in BUILT_IN_NAMES:
                    cache.add_fold(fold)
                found[name] = description(fold, cache.fold(name, consistency="snapshot"))
            except (FoldError, SnapshotUnavailableError) as error:
                found[name] = str(error)
    return found


def _problems(asked: Asked) -> list[str | Exception]:
    """The present problems, then the last error if it is another one."""
    problems, last = asked.problems, None if asked.numbers is None else asked.numbers["last_error"]
    return problems if last is None or last in problems else [*problems, last]


def _sizes(instance: Any, daemon: dict[str, Any] | None) -> dict[str, Any]:
    from pmm_shm_terminal.state import length_of

    if daemon is not None:
        return dict(daemon["sizes"])
    return {
        "store_disk_bytes": length_of(str(instance.data_file)),
        "ledger_bytes": length_of(instance.ledger),
        "wal_bytes": length_of(instance.ledger + "-wal"),
    }
