"""What the words of a question in English tell a search, and what they only ask.

A mean of word vectors takes in `what`, `did` and `?` like any other word, and so moves towards other questions.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

_QUESTION_WORDS = frozenset(
    (
        *("what", "who", "whom", "whose", "which", "where", "when", "why", "how"),
        *("do", "does", "did", "is", "are", "am", "was", "were", "be", "been", "has", "have", "had"),
        *("would", "could", "should"),
    )
)
_DATE_WORD = re.compile(
    r"(\d{1,2}(st|nd|rd|th)?|\d{4}|\d{4}-\d\d-\d\d|(mon|tues|wednes|thurs|fri|satur|sun)day|january|february|march|april"
    r"|may|june|july|august|september|october|november|december)[,.]?",
    re.IGNORECASE,
)
_QUESTION_CHARS_MAX = 1_000
_OF_THE_ASKER = frozenset(("i", "me", "my", "mine", "myself", "we", "us", "our", "ours", "ourselves"))
_OF_THE_ASKED = frozenset(("you", "your", "yours", "yourself"))


def question_text(text: str, *, is_dated: bool = False) -> str:
    """The text to embed for a question: without `?`, and its other words twice, so that question words count half.

    A word in capitals may be a name, so a capital is allowed only at the beginning.

    Parameters:
        is_dated: the search is bounded by times, so the dates in the question say nothing more.
    """
    if len(text) > _QUESTION_CHARS_MAX:
        return text
    plain = text.rstrip("? ")
    words = plain.split()
    if is_dated:
        words = _undated(words) or words
        plain = " ".join(words)
    kept = [word for at, word in enumerate(words) if not _asks(word if at else word[:1].lower() + word[1:])]
    return " ".join([plain, *kept]) if 0 < len(kept) < len(words) else plain or text


def telling_words(words: Sequence[str], *, is_dated: bool = False) -> list[str]:
    """Of the words of a question, in lower case: those that `question_text` counts in full."""
    words = (_undated(words) if is_dated else words) or words
    return [word for word in words if not _asks(word)] or list(words)


def is_about_asker(words: Collection[str]) -> bool:
    """Whether a question is about who asks it: of its words, in lower case, one is `i`, `my` or `our`, none `you`."""
    return not _OF_THE_ASKER.isdisjoint(words) and _OF_THE_ASKED.isdisjoint(words)


def _undated(words: Sequence[str]) -> list[str]:
    return [word for word in words if not _DATE_WORD.fullmatch(word)]


def _asks(word: str) -> bool:
    return word.removesuffix("'s").removesuffix("\u2019s") in _QUESTION_WORDS
