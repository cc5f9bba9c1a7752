"""The interface of responders, which answer messages.

A responder receives the context, the conversation so far and the user's text; it never sees the ledger.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

from pmm_shm.errors import PmmShmError


class ResponderError(PmmShmError):
    """The responder gave no answer: the endpoint refuses, is silent or returns nonsense; trying again may help."""


class Message(NamedTuple):
    """One message of the conversation."""

    role: Literal["user", "assistant"]
    content: str


class Usage(NamedTuple):
    """The tokens of one answer: of all that the model has read, and of all that it has written, thinking included."""

    prompt_tokens: int
    answer_tokens: int


class Responder(Protocol):
    """Answers one message.

    Attributes:
        name: the model, as it is recorded in the meta of a `response`.
        usage: of the last answer, as the endpoint counted it; None if it told nothing.
    """

    name: str
    usage: Usage | None

    def stream(self, context: str, history: Sequence[Message], user_text: str) -> Iterator[str]:
        """The answer, piece by piece.

        Parameters:
            context: the block of `Context`, for the system prompt.
            history: the earlier messages, oldest first.

        Raises:
            ResponderError: there is no answer, or it ends early.
        """
