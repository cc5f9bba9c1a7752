"""`pmm-shm chat`"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from pmm_shm.errors import DaemonError
from pmm_shm_terminal.options import CONTEXT, Finite, ledger_argument, ledger_timeout_option, the_ledger

if TYPE_CHECKING:
    from pmm_shm_chat.responder import Responder
    from pmm_shm_client.cache import Cache

_RESPONDERS = ("offline", "openai")
_REFLECTIONS_MAX = 32
_RECALL_MAX = 100
_MESSAGES_MAX = 63


@click.command(context_settings=CONTEXT)
@ledger_argument
@click.option("--create", is_flag=True, help="Make the ledger where there is none.")
@click.option(
    "--responder",
    type=click.Choice(_RESPONDERS),
    default="offline",
    show_default=True,
    help="Who answers: offline needs no model; openai is any endpoint that OPENAI_BASE_URL and OPENAI_API_KEY name.",
)
@click.option("--model", metavar="NAME", help="The model of --responder openai.")
@click.option(
    "--recall",
    type=click.IntRange(0, _RECALL_MAX),
    default=3,
    show_default=True,
    metavar="K",
    help="How many similar past messages are recalled for each answer.",
)
@click.option(
    "--reflections",
    type=click.IntRange(0, _REFLECTIONS_MAX),
    default=3,
    show_default=True,
    metavar="N",
    help="How many of the newest reflections are known to the answer.",
)
@click.option(
    "--messages",
    type=click.IntRange(0, _MESSAGES_MAX),
    default=16,
    show_default=True,
    metavar="M",
    help="How many of the messages before are known to the answer.",
)
@click.option(
    "--tick-seconds",
    type=Finite(min=0, min_open=True),
    metavar="S",
    help="Let the agent tick every S seconds, and reflect now and then, where pmm-cached elects this worker for it.",
)
@click.option(
    "--autostart/--no-autostart",
    default=True,
    show_default=True,
    help="Start pmm-cached where none serves the ledger; it goes on afterwards.",
)
@ledger_timeout_option
def chat(
    ledger: str | None,
    create: bool,
    responder: str,
    model: str | None,
    recall: int,
    reflections: int,
    messages: int,
    tick_seconds: float | None,
    autostart: bool,
    timeout: float,
) -> None:
    """Talk with the agent whose memory LEDGER is.

    Every message and answer is appended to it, and what follows from them: "I will ..." and "I must ..." of the agent,
    "Your name is ..." of yours, "Done: ..." of either. Commands begin with a slash; /help lists them. Without a
    terminal each line of the input is a message, and the answers go to the output.
    """
    path = the_ledger(ledger)
    from pmm_shm_chat.terminal import converse
    from pmm_shm_chat.turn import Chat
    from pmm_shm_client.cache import Cache

    answering = responder_named(responder, model)
    if create:
        from pmm_shm.ledger.eventlog import EventLog

        EventLog(path, timeout=timeout).close()
    # Undecodable bytes should show as an odd character, not end the conversation.
    with contextlib.suppress(AttributeError, ValueError):
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    with Cache(path, timeout=timeout) as cache:
        if autostart:
            _start_daemon(cache.path)
        with _autonomy(cache, tick_seconds):
            converse(Chat(cache, answering, reflections=reflections, recall=recall, messages=messages))


def responder_named(name: str, model: str | None) -> Responder:
    """The responder of this name.

    Raises:
        click.UsageError: `model` is missing, or this responder has none.
        ResponderError: the responder cannot be used.
    """
    if name == "offline":
        if model is not None:
            raise click.UsageError("--model is for --responder openai only")
        from pmm_shm_chat.offline import OfflineResponder

        return OfflineResponder()
    if not model:
        raise click.UsageError("--responder openai needs --model")
    from pmm_shm_chat.provider import OpenAIResponder

    return OpenAIResponder(model)


def _start_daemon(path: str) -> None:
    from pmm_shm_client.autostart import start_daemon
    from pmm_shm_terminal.output import printable

    try:
        start_daemon(path)
    except DaemonError as error:
        # The same answers, only slower.
        click.echo(f"pmm-shm: no daemon: {printable(' '.join(str(error).split()))}", err=True)


@contextlib.contextmanager
def _autonomy(cache: Cache, tick_seconds: float | None) -> Iterator[None]:
    """Ticks of the agent while the block runs, if they were asked for."""
    if tick_seconds is None:
        yield
        return
    from pmm_shm_chat.autonomy import Autonomy

    autonomy = Autonomy(cache, tick_seconds)
    autonomy.start()
    try:
        yield
    finally:
        autonomy.stop()
