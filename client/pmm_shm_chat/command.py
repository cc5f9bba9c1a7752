"""`pmm-shm chat`"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import click

from pmm_shm.finite import Finite
from pmm_shm_terminal.options import (
    CONTEXT,
    Deadline,
    ledger_argument,
    ledger_timeout_option,
    refuse_foreign,
    the_ledger,
)
from pmm_shm_terminal.program import standard_input

if TYPE_CHECKING:
    from pmm_shm_chat.responder import Responder
    from pmm_shm_client.cache import Cache

_F = TypeVar("_F", bound="Callable[..., object]")
_RESPONDERS = ("offline", "openai")


def _count_option(name: str, most: int, default: int, metavar: str, help: str) -> Callable[[_F], _F]:
    number = click.IntRange(0, most)
    return click.option(name, type=number, default=default, show_default=True, metavar=metavar, help=help)


@click.command(context_settings=CONTEXT)
@ledger_argument
@click.option("--create", is_flag=True, help="Create the ledger if it does not exist.")
@click.option(
    "--responder",
    type=click.Choice(_RESPONDERS),
    default="offline",
    show_default=True,
    help="The source of answers: offline needs no model; openai is the endpoint in OPENAI_BASE_URL and OPENAI_API_KEY.",
)
@click.option("--model", metavar="NAME", help="The model of --responder openai.")
@_count_option("--recall", 100, 3, "K", "Similar past messages that are recalled for each answer.")
@_count_option("--reflections", 32, 3, "N", "Newest reflections that the responder receives.")
@_count_option("--messages", 63, 16, "M", "Previous messages that the responder receives.")
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=16_000,
    metavar="T",
    help="The budget of a prompt, in estimated tokens: what is too much is left out, the oldest messages first.",
)
@click.option(
    "--tick-seconds",
    type=Finite(min=0, min_open=True),
    metavar="S",
    help="Let the agent tick every S seconds, and reflect now and then, if pmm-cached elects this worker.",
)
@click.option(
    "--autostart/--no-autostart",
    default=True,
    show_default=True,
    help="Start pmm-cached if none serves the ledger; it ends when it is idle.",
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
    tokens: int,
    tick_seconds: float | None,
    autostart: bool,
    timeout: Deadline,
) -> None:
    """Talk with the agent whose memory is LEDGER.

    Every message and answer is appended to LEDGER, and so are the statements in them: "I will ..." and "I must ..." by
    the agent, "Your name is ..." by you, "Done: ..." by either. Commands begin with a slash; /help lists them. Without
    a terminal each line of the input is a message, and the answers go to the output.
    """
    path = the_ledger(ledger)
    refuse_foreign(path, "chat")
    from pmm_shm_chat.terminal import converse
    from pmm_shm_chat.turn import Chat
    from pmm_shm_client.cache import Cache
    from pmm_shm_terminal.starting import start_daemon_or_say

    answering = responder_named(responder, model)
    if create:
        from pmm_shm.ledger.eventlog import EventLog

        EventLog(path, timeout=timeout.timeout_s).close()
    # Undecodable bytes should show as an odd character, not end the conversation.
    with contextlib.suppress(AttributeError, ValueError):
        standard_input().reconfigure(errors="replace")  # type: ignore[attr-defined]
    with Cache(path, timeout=timeout.timeout_s) as cache:
        if autostart:
            start_daemon_or_say(cache)
        with _autonomy(cache, tick_seconds):
            talk = Chat(cache, answering, reflections=reflections, recall=recall, messages=messages, tokens_max=tokens)
            converse(talk)


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
