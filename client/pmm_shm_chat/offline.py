"""The responder without a model: it needs only the context."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pmm_shm_chat.responder import Message, Usage

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


class OfflineResponder:
    """Answers from the context by a few patterns: for tests, demonstrations, and machines without a model.

    A pure function of its inputs. It knows its name and its commitments, answers a request ("please ...") with a
    commitment, and a rule ("you must ...") with a directive.
    """

    name = "offline"
    usage: Usage | None = None

    def stream(self, context: str, history: Sequence[Message], user_text: str) -> Iterator[str]:
        """The answer, word by word."""
        return iter(re.findall(r"\s*\S+", _answer(_ContextBlock(context), history, " ".join(user_text.split()))))


class _ContextBlock:
    """The facts in a context block."""

    def __init__(self, context: str) -> None:
        self._lines = context.split("\n")

    @property
    def name(self) -> str | None:
        name = self.value("Name")
        return None if name in ("", "Unknown") else name

    def value(self, label: str) -> str:
        """The value of `label:` in the head of the block; "" if it is missing."""
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


def _answer(block: _ContextBlock, history: Sequence[Message], text: str) -> str:
    is_question = text.endswith("?")
    request = _REQUEST.match(text)
    if _NAMED.match(text) and not is_question:
        return f"Thank you. {_introduction(block)}"
    if _GREETING.match(text):
        return f"Hello. {_introduction(block)}"
    if _DONE.match(text):
        return f"Noted. {_commitments(block)}"
    if _OF_NAME.search(text):
        return _introduction(block)
    if request is not None:
        return f"{_promise(request['what'])} Tell me “done: …” when you have seen it."
    if _RULE.match(text) and not is_question:
        return f"Understood. {_obligation(text)}"
    if _OF_COMMITMENTS.search(text):
        return _commitments(block)
    if _OF_STATE.search(text):
        return f"I stand at {block.value('Now') or 'the beginning'}. {_commitments(block)}"
    return _restated(block, history, text)


def _introduction(block: _ContextBlock) -> str:
    return f"My name is {block.name}." if block.name else "I have no name yet. Give me one: “Your name is …”."


def _commitments(block: _ContextBlock) -> str:
    texts = [text.rstrip(".!…") for text in block.items("Open commitments")]
    if not texts:
        return "Nothing is open."
    return "Open: " + "; ".join(texts[:_COMMITMENTS_SHOWN]) + "."


def _promise(text: str) -> str:
    text = re.sub(r",?\s+please\s*$", "", text.strip(" ,;:"), flags=re.IGNORECASE)
    # From the user's point of view to the assistant's.
    text = re.sub(r"\bmy\b", "your", re.sub(r"\bme\b", "you", text))
    return f"I will {text[:_RESTATED_CHARS_MAX].rstrip()}."


def _obligation(text: str) -> str:
    text = re.sub(r"^you\s+must\s+", "", text.rstrip(" .!"), flags=re.IGNORECASE)
    return f"I must {text[:1].lower()}{text[1:_RESTATED_CHARS_MAX].rstrip()}."


def _restated(block: _ContextBlock, history: Sequence[Message], text: str) -> str:
    shown = text if len(text) <= _RESTATED_CHARS_MAX else text[: _RESTATED_CHARS_MAX - 1] + "…"
    before = sum(message.role == "user" for message in history)
    seen = f", after {before} earlier message{'s' if before != 1 else ''}" if before else ""
    recalled = block.items("Recalled messages")
    # In quotes, so that a recalled promise does not count as a new one.
    reminds = f" That reminds me of “{recalled[0]}”." if recalled else ""
    return f"I heard “{shown}”{seen}.{reminds}"
