"""Who answers: the interface, and an answerer without a model that needs nothing but the context.

A responder sees the context, the conversation so far and the user's text; it never sees the ledger.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

from pmm_shm.errors import ConfigError, PmmShmError

OFFLINE, OPENAI = "offline", "openai"
NAMES = (OFFLINE, OPENAI)
"""What `responder_named` knows."""

_COMMITMENTS_SHOWN = 5
_RESTATED_CHARS_MAX = 160
_REQUEST = re.compile(
    r"(?:please\s+|(?:could|can|will|would)\s+you\s+(?:please\s+)?|i\s+(?:would\s+like|want|need)\s+you\s+to\s+"
    r"|remind\s+me\s+to\s+|remember\s+to\s+)(?P<what>[^.!?\n]+)",
    re.IGNORECASE,
)
_RULE = re.compile(r"(?:you\s+must|always|never)\s+[^.!?\n]+", re.IGNORECASE)
_OF_NAME = re.compile(r"\b(?:who\s+are\s+you|what\s+is\s+your\s+name|what['’]s\s+your\s+name)\b", re.IGNORECASE)
_NAMED = re.compile(r"\s*your\s+name\s+is\b", re.IGNORECASE)
_OF_COMMITMENTS = re.compile(r"\b(?:commitments?|promise[ds]?|open|to\s*do|plans?)\b", re.IGNORECASE)
_OF_STATE = re.compile(r"\bhow\s+are\s+you|\bstage\b|\bIAS\b|\bGAS\b", re.IGNORECASE)
_GREETING = re.compile(r"\s*(?:hello|hi|hey|good\s+(?:morning|day|evening))\b", re.IGNORECASE)
_DONE = re.compile(r"\s*done\s*:", re.IGNORECASE)


class ResponderError(PmmShmError):
    """There is no answer: the endpoint refuses, is silent or speaks nonsense; trying again later may help."""


class Message(NamedTuple):
    """One message of the conversation."""

    role: Literal["user", "assistant"]
    content: str


class Responder(Protocol):
    """Answers one message.

    Attributes:
        name: the model, as the meta of a `response` names it.
    """

    name: str

    def stream(self, context: str, history: Sequence[Message], user_text: str) -> Iterator[str]:
        """The answer, piece by piece.

        Parameters:
            context: the block of `Context`, for the system prompt.
            history: the messages before, oldest first.

        Raises:
            ResponderError: there is no answer, or no more of it.
        """


def responder_named(name: str, model: str | None = None) -> Responder:
    """A responder of `NAMES`.

    Raises:
        ConfigError: there is none of this name, or `model` is missing, or means nothing to it.
        ResponderError: what it needs is not installed.
    """
    if name == OFFLINE:
        if model is not None:
            raise ConfigError(f"model {model!r}: the responder {OFFLINE!r} has none; choose {OPENAI!r}")
        return OfflineResponder()
    if name != OPENAI:
        raise ConfigError(f"responder: expected one of {', '.join(NAMES)}, got {name!r}")
    from pmm_shm_chat.provider import OpenAIResponder

    if not model:
        raise ConfigError(f"responder {OPENAI!r}: name a model")
    return OpenAIResponder(model)


class OfflineResponder:
    """Answers from the context by a few patterns: for tests, demonstrations, and whoever has no model.

    A pure function of its inputs. It knows its name and its commitments, takes requests ("please ...") as commitments
    of its own, and rules ("you must ...") as directives.
    """

    name = OFFLINE

    def stream(self, context: str, history: Sequence[Message], user_text: str) -> Iterator[str]:
        """The answer, word by word."""
        return iter(re.findall(r"\s*\S+", _answer(_Facts(context), history, " ".join(user_text.split()))))


class _Facts:
    """What a context block says."""

    def __init__(self, context: str) -> None:
        self._lines = context.split("\n")

    @property
    def name(self) -> str | None:
        name = self.value("Name")
        return None if name in ("", "Unknown") else name

    def value(self, label: str) -> str:
        """What stands behind `label:` in the head of the block; "" where it is not there."""
        head = f"{label}: "
        return next((line[len(head) :] for line in self._lines if line.startswith(head)), "")

    def items(self, title: str) -> list[str]:
        """The lines of a section."""
        heading = f"## {title}"
        if heading not in self._lines:
            return []
        items = []
        for line in self._lines[self._lines.index(heading) + 1 :]:
            if not line.startswith("- "):
                break
            items.append(line[2:])
        return items


def _answer(facts: _Facts, history: Sequence[Message], text: str) -> str:
    is_question = text.endswith("?")
    request = _REQUEST.match(text)
    if _NAMED.match(text) and not is_question:
        return f"Thank you. {_introduction(facts)}"
    if _GREETING.match(text):
        return f"Hello. {_introduction(facts)}"
    if _DONE.match(text):
        return f"Noted. {_commitments(facts)}"
    if _OF_NAME.search(text):
        return _introduction(facts)
    if request is not None:
        return f"{_promise(request['what'])} Tell me “done: …” when you have seen it."
    if _RULE.match(text) and not is_question:
        return f"Understood. {_obligation(text)}"
    if _OF_COMMITMENTS.search(text):
        return _commitments(facts)
    if _OF_STATE.search(text):
        return f"I stand at {facts.value('Now') or 'the beginning'}. {_commitments(facts)}"
    return _restated(facts, history, text)


def _introduction(facts: _Facts) -> str:
    return f"My name is {facts.name}." if facts.name else "I have no name yet. Give me one: “Your name is …”."


def _commitments(facts: _Facts) -> str:
    texts = [text.rstrip(".!…") for text in facts.items("Open commitments")]
    if not texts:
        return "Nothing is open."
    return "Open: " + "; ".join(texts[:_COMMITMENTS_SHOWN]) + "."


def _promise(what: str) -> str:
    what = re.sub(r",?\s+please\s*$", "", what.strip(" ,;:"), flags=re.IGNORECASE)
    # Said to the assistant, of the user: said by the assistant, of the other.
    what = re.sub(r"\bmy\b", "your", re.sub(r"\bme\b", "you", what))
    return f"I will {what[:_RESTATED_CHARS_MAX].rstrip()}."


def _obligation(text: str) -> str:
    what = re.sub(r"^you\s+must\s+", "", text.rstrip(" .!"), flags=re.IGNORECASE)
    return f"I must {what[:1].lower()}{what[1:_RESTATED_CHARS_MAX].rstrip()}."


def _restated(facts: _Facts, history: Sequence[Message], text: str) -> str:
    shown = text if len(text) <= _RESTATED_CHARS_MAX else text[: _RESTATED_CHARS_MAX - 1] + "…"
    before = sum(message.role == "user" for message in history)
    seen = f", after {before} earlier message{'s' if before != 1 else ''}" if before else ""
    recalled = facts.items("Recalled messages")
    # Quoted: what was promised once is not promised anew.
    reminds = f" That reminds me of “{recalled[0]}”." if recalled else ""
    return f"I heard “{shown}”{seen}.{reminds}"
