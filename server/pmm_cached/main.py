"""The command `pmm-cached`."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import click
import zmq
from click.core import ParameterSource

from pmm_cached.daemon import Daemon
from pmm_cached.logs import LogFormat, configure
from pmm_cached.replication import Source
from pmm_cached.settings import Settings
from pmm_shm import flags, limits
from pmm_shm.errors import ConfigError, PmmShmError, UnknownFoldError, UnknownModelError
from pmm_shm.finite import Finite
from pmm_shm.instance.paths import Instance
from pmm_shm.resources import shortage_of
from pmm_shm.vectors import local_bow
from pmm_shm.vectors.events import DEFAULT_KINDS
from pmm_shm.words.texts import WORD_KINDS

if TYPE_CHECKING:
    from pmm_shm.ledger.shape import Shape

_FAILURE, _USAGE = 1, 2
GC_OBJECTS = 50_000
_SWITCH_INTERVAL_S = 0.0005
# Of mallopt(3).
_M_ARENA_MAX = -8


_EPILOG = """\b
Examples:
  pmm-cached agent.db
  pmm-cached agent.db --log-format json --verify-every 10000
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, epilog=_EPILOG)
@click.argument("ledger", required=False, type=click.Path(readable=False))
@click.option(
    "--log-format",
    type=click.Choice(["json", "text"]),
    default="text",
    help="Format of the log on stderr: one JSON object per line, or text.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="Lowest level that is logged.",
)
@click.option(
    "--verify-every",
    "verify_every_events",
    type=click.IntRange(min=0),
    default=limits.VERIFY_EVERY_EVENTS,
    metavar="EVENTS",
    help="Verify against a full replay after this many events; 0 for never.",
)
@click.option(
    "--verify-budget",
    "verify_cpu_budget",
    type=Finite(min=0, max=1, min_open=True),
    default=limits.VERIFY_CPU_BUDGET,
    metavar="SHARE",
    help="Share of one core that periodic verification may use.",
)
@click.option(
    "--slow-poll-ms",
    type=click.IntRange(min=1, max=60_000),
    default=int(limits.SLOW_POLL_S * 1_000),
    metavar="MS",
    help="Longest sleep without a file system event.",
)
@click.option(
    "--map-size",
    "map_size_bytes",
    show_default=False,
    type=click.IntRange(min=1 << 16),
    default=limits.MAP_SIZE_BYTES,
    metavar="BYTES",
    help="Address space of the store; default: 1 TiB, which takes no disk space.",
)
@click.option(
    "--text-vectors-max",
    type=click.IntRange(min=1),
    default=limits.TEXT_VECTORS_MAX,
    metavar="VECTORS",
    help="Text vectors to keep; beyond it the oldest are deleted first.",
)
@click.option(
    "--embedder",
    metavar="NAME",
    help="Embedder for events: local-bow, wordllama, auto (wordllama where it is installed), openai:MODEL, "
    "module:attribute, or none; default: PMM_EMBEDDER or local-bow.",
)
@click.option(
    "--embed-kinds",
    default=",".join(DEFAULT_KINDS),
    metavar="KINDS",
    help="Event kinds to embed, separated by commas.",
)
@click.option(
    "--word-kinds",
    default=",".join(WORD_KINDS),
    metavar="KINDS",
    help="Event kinds to put into the index of words, separated by commas; none for no index.",
)
@click.option(
    "--shape",
    metavar="SHAPE",
    help="The log shape of another program's log: a TOML file, or the name of a shape that comes with pmm-shm; "
    "default: the recorded one.",
)
@click.option(
    "--folds",
    "only_folds",
    metavar="NAMES",
    help="The folds to keep, separated by commas, in place of the built-in and the registered ones, or of the shape's.",
)
@click.option(
    "--fold",
    "folds",
    multiple=True,
    metavar="MODULE:CLASS",
    help="A fold to keep besides the built-in and the registered ones; may be given several times.",
)
@click.option(
    "--idle-exit",
    "idle_exit_s",
    type=Finite(min=0.1, max=10_000_000),
    metavar="SECONDS",
    help="End after so long without an append, a command or a worker's report; default: never. Reads go on without it.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(min=0, max=65_535),
    metavar="PORT",
    help="Port for Prometheus on 127.0.0.1, 0 for any free one; default: off. Needs the extra prometheus.",
)
@click.option(
    "--source",
    "source_dsn",
    metavar="DSN",
    help="Follow the ledger NAME of this PostgreSQL cluster into LEDGER, a replica; default: PMM_SOURCE. Without a "
    "password: that belongs into ~/.pgpass. Needs the extra postgres.",
)
@click.option("--name", metavar="NAME", help="The ledger's name in PostgreSQL; default: PMM_SOURCE_NAME.")
@click.option(
    "--fork-max",
    type=click.IntRange(min=0),
    default=limits.REPLICA_FORK_MAX,
    metavar="EVENTS",
    help="Events that the replica takes back by itself where the source has lost them.",
)
@click.version_option(package_name="pmm-shm", prog_name="pmm-cached")
def command(
    ledger: str | None,
    log_format: LogFormat,
    log_level: str,
    slow_poll_ms: int,
    embedder: str | None,
    embed_kinds: str,
    word_kinds: str,
    shape: str | None,
    only_folds: str | None,
    source_dsn: str | None,
    name: str | None,
    fork_max: int,
    **numbers: Any,
) -> None:
    """Follow LEDGER (or the one in PMM_DB) and publish its projections in shared memory.

    Exit codes: 0 stopped by a signal, 1 failure (no ledger, another daemon serves it, ...), 2 wrong usage.
    """
    if ledger == "":
        raise ConfigError("LEDGER: expected the path of a file, got an empty text")
    ledger = ledger or flags.default_ledger()
    if ledger is None:
        raise click.UsageError("no ledger: name one, or set PMM_DB")
    # Only checked: a wrong value is an error at once.
    flags.projection_cache(), flags.metrics_cache(), flags.embedding_cache()
    # The follower must not wait for a whole slice of a rebuild or a verification.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    log = configure(log_format, log_level)
    only = None if only_folds is None else _kinds(only_folds)
    found = _shape(ledger, shape, only, (source_dsn or flags.source()) is not None)
    if found is not None:
        # On the log of another program there are vectors and words only if somebody asks for them.
        embedder = embedder or "none"
        if click.get_current_context().get_parameter_source("word_kinds") is ParameterSource.DEFAULT:
            word_kinds = "none"
    model = embedder or flags.embedder() or local_bow.NAME
    settings = Settings(
        slow_poll_s=slow_poll_ms / 1_000,
        embedder=None if model == "none" else model,
        embed_kinds=_kinds(embed_kinds),
        word_kinds=() if word_kinds.strip() == "none" else _kinds(word_kinds),
        only_folds=only,
        shape=found,
        source=_source(source_dsn or flags.source(), name or flags.source_name(), fork_max),
        **numbers,
    )
    # Prints the stack of each thread at a crash, and at a watchdog's SIGABRT.
    if sys.stderr is not None:
        faulthandler.enable()
    # Rows and events are many objects without cycles: collecting garbage among them takes a sixth of a replay.
    gc.freeze()
    gc.set_threshold(GC_OBJECTS)
    _do_not_preempt_writers()
    _keep_one_heap()
    daemon = Daemon(ledger, settings, log)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: daemon.stop())
    daemon.run()


def _kinds(text: str) -> tuple[str, ...]:
    """The kinds in a text with commas between them, ascending."""
    return tuple(sorted({kind.strip() for kind in text.split(",")} - {""}))


def _shape(ledger: str, name: str | None, only_folds: tuple[str, ...] | None, has_source: bool) -> Shape | None:
    """How to read the log of another program: as told, or as recorded; None for a ledger."""
    instance = Instance.of(ledger)
    if name is not None and has_source:
        raise click.UsageError("--shape and --source: a replica of PostgreSQL is a ledger of PMM")
    if name is None and not os.path.exists(instance.shape_file):
        return None
    # Only such a log needs them.
    from dataclasses import replace

    from pmm_shm.ledger.shape import load_shape
    from pmm_shm.ledger.shape_record import succeeding_shape

    shape = succeeding_shape(instance, None if name is None else load_shape(name))
    return shape if shape is None or only_folds is None else replace(shape, folds=only_folds)


def _source(dsn: str | None, name: str | None, fork_max: int) -> Source | None:
    if dsn is None:
        if name is not None:
            raise click.UsageError("--name needs --source, or PMM_SOURCE")
        return None
    if name is None:
        raise click.UsageError("--source needs --name, or PMM_SOURCE_NAME")
    return Source(dsn, name, fork_max)


def _keep_one_heap() -> None:
    """Each thread would have a heap of its own: 1 MB in all. Python's lock lets only one of them allocate at a time."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _do_not_preempt_writers() -> None:
    """Choose a scheduling policy that does not pre-empt on waking up: the daemon is woken by a writer that may be about
    to release the ledger's lock.
    """
    # A policy that the user has chosen stays. A sandbox may forbid the change.
    if os.sched_getscheduler(0) == os.SCHED_OTHER:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def main() -> None:
    """Entry point: prints an error as one line on stderr, and exits with its code."""
    try:
        command.main(standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        _complain(f"{error.format_message().rstrip('.')} (see pmm-cached --help)")
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(_FAILURE)
    except (ConfigError, UnknownFoldError, UnknownModelError) as error:
        _complain(str(error))
        sys.exit(_USAGE)
    except (PmmShmError, OSError, zmq.ZMQError) as error:
        _complain(str(error))
        sys.exit(_FAILURE)
    except (RuntimeError, MemoryError) as error:
        found = shortage_of(error)
        if found is None:
            raise
        _complain(found)
        # Not in order: threads that started already use the store.
        os._exit(_FAILURE)


def _complain(message: str) -> None:
    click.echo(f"pmm-cached: {' '.join(message.split())}", err=True)
