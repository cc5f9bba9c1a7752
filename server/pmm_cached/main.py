"""The command `pmm-cached`."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import signal
import sys

import click
import zmq

from pmm_cached.daemon import Daemon
from pmm_cached.logs import LogFormat, configure
from pmm_cached.settings import Settings
from pmm_shm import flags, limits
from pmm_shm.errors import ConfigError, PmmShmError
from pmm_shm.vectors import local_bow
from pmm_shm.vectors.events import DEFAULT_KINDS

_FAILURE, _USAGE = 1, 2
GC_OBJECTS = 50_000
_SWITCH_INTERVAL_S = 0.0005


_EPILOG = """\b
Examples:
  pmm-cached agent.db
  pmm-cached agent.db --log-format json --verify-every 10000
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
@click.argument("ledger", required=False, type=click.Path(readable=False))
@click.option(
    "--log-format",
    type=click.Choice(["json", "text"]),
    default="text",
    show_default=True,
    help="Of the log on stderr: one JSON object a line, or text.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="The least important of what is logged.",
)
@click.option(
    "--verify-every",
    type=click.IntRange(min=0),
    default=limits.VERIFY_EVERY_EVENTS,
    show_default=True,
    metavar="EVENTS",
    help="Verify against a full replay after so many events; 0 for never.",
)
@click.option(
    "--verify-budget",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=limits.VERIFY_CPU_BUDGET,
    show_default=True,
    metavar="SHARE",
    help="Share of one core that periodic verification may take.",
)
@click.option(
    "--slow-poll-ms",
    type=click.IntRange(min=1, max=60_000),
    default=int(limits.SLOW_POLL_S * 1_000),
    show_default=True,
    metavar="MS",
    help="How long to sleep at most without an event from the system.",
)
@click.option(
    "--map-size",
    type=click.IntRange(min=1 << 16),
    default=limits.MAP_SIZE_BYTES,
    metavar="BYTES",
    help="Address space of the store; 1 TiB unless told, which costs no disk.",
)
@click.option(
    "--text-vectors-max",
    type=click.IntRange(min=1),
    default=limits.TEXT_VECTORS_MAX,
    show_default=True,
    metavar="VECTORS",
    help="How many text vectors are kept; beyond it, what was stored first goes first.",
)
@click.option(
    "--embedder",
    metavar="NAME",
    help="What embeds the events: local-bow, wordllama, openai:MODEL, module:attribute, or none; PMM_EMBEDDER, or else "
    "local-bow, unless told.",
)
@click.option(
    "--embed-kinds",
    default=",".join(DEFAULT_KINDS),
    show_default=True,
    metavar="KINDS",
    help="Kinds of the events that it embeds, with commas between them.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(min=0, max=65_535),
    metavar="PORT",
    help="Answer Prometheus on this port of 127.0.0.1, 0 for any free one; needs the extra prometheus.",
)
@click.version_option(package_name="pmm-shm", prog_name="pmm-cached")
def command(
    ledger: str | None,
    log_format: LogFormat,
    log_level: str,
    verify_every: int,
    verify_budget: float,
    slow_poll_ms: int,
    map_size: int,
    text_vectors_max: int,
    embedder: str | None,
    embed_kinds: str,
    metrics_port: int | None,
) -> None:
    """Follow LEDGER (or the one in PMM_DB) and publish its projections in shared memory.

    Exit codes: 0 stopped by a signal, 1 failure (no ledger, another daemon serves it, ...), 2 wrong usage.
    """
    ledger = ledger or flags.default_ledger()
    if ledger is None:
        raise click.UsageError("no ledger: name one, or set PMM_DB")
    flags.projection_cache(), flags.metrics_cache(), flags.embedding_cache()
    # The follower must not wait for a rebuild's or a verification's whole slice.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    log = configure(log_format, log_level)
    name = embedder or flags.embedder() or local_bow.NAME
    kinds = tuple(sorted({kind.strip() for kind in embed_kinds.split(",")} - {""}))
    settings = Settings(
        verify_every,
        verify_budget,
        slow_poll_ms / 1_000,
        map_size,
        text_vectors_max,
        None if name == "none" else name,
        kinds,
        metrics_port,
    )
    # Where a watchdog's SIGABRT, or a crash, found each thread.
    if sys.stderr is not None:
        faulthandler.enable()
    # Batches of rows and events are many objects without cycles: looking through them for some is a sixth of a replay.
    gc.freeze()
    gc.set_threshold(GC_OBJECTS)
    _let_writers_finish()
    daemon = Daemon(ledger, settings, log)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: daemon.stop())
    daemon.run()


def _let_writers_finish() -> None:
    """Pre-empt nobody on waking up: what wakes the daemon is a writer that may be about to release the lock which the
    others wait for.
    """
    # Who has chosen another policy for the daemon, keeps it; a sandbox may forbid the change.
    if os.sched_getscheduler(0) == os.SCHED_OTHER:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def main() -> None:
    """Entry point: one line on stderr and the right exit code for everything that can go wrong."""
    try:
        command.main(standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(_FAILURE)
    except ConfigError as error:
        click.echo(f"pmm-cached: {error}", err=True)
        sys.exit(_USAGE)
    except (PmmShmError, OSError, zmq.ZMQError) as error:
        click.echo(f"pmm-cached: {error}", err=True)
        sys.exit(_FAILURE)
