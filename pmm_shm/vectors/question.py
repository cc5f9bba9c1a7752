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
_MONTHS = "january|february|march|april|june|july|august|september|october|november|december"
_NUMBER = r"(?:[12]\d|3[01]|0?[1-9])"
_ORDINAL = r"\d{1,2}(?:st|nd|rd|th)"
# `may` is mostly a verb: `of these 12 may I sell 3`.
_NO_VERB = r"(?!\ (?:i|we|you|he|she|it|they|be|have|not)\b)"
# A number alone is no date: `the 12 tickets`.
_DATE = re.compile(
    rf"""(?<![\w.-]) (?:
        \d{{4}}-\d\d-\d\d
        | (?:{_NUMBER}|{_ORDINAL})(?:\ of)?\ (?:{_MONTHS}|may{_NO_VERB})(?:,?\ \d{{4}})?
        | (?:{_MONTHS}|may)\ (?:\d{{4}}|(?:{_ORDINAL}|{_NUMBER})(?:,?\ \d{{4}})?)
        | {_MONTHS}
        | (?<=[\w,]\ )(?-i:May)
        | {_ORDINAL}
        | (?:mon|tues|wednes|thurs|fri|satur|sun)day
    ) (?![\w'\u2019-]|\.\w) [,.]?""",
    re.IGNORECASE | re.VERBOSE,
)
_WORD = re.compile(r"\w")
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
    plain = (undated(text) if is_dated else text).rstrip("? ")
    words = plain.split()
    kept = [word for at, word in enumerate(words) if not _asks(word if at else word[:1].lower() + word[1:])]
    return " ".join([plain, *kept]) if 0 < len(kept) < len(words) else plain or text


def telling_words(words: Sequence[str]) -> list[str]:
    """Of the words of a question, in lower case: those that `question_text` counts in full."""
    return [word for word in words if not _asks(word)] or list(words)


def is_about_asker(words: Collection[str]) -> bool:
    """Whether a question is about who asks it: of its words, in lower case, one is `i`, `my` or `our`, none `you`."""
    return not _OF_THE_ASKER.isdisjoint(words) and _OF_THE_ASKED.isdisjoint(words)


def undated(text: str) -> str:
    """A question without dates in English, months and days of the week; the same text if there is nothing else."""
    kept = " ".join(_DATE.sub("", " ".join(text.split())).split())
    return kept if _WORD.search(kept) else text


def _asks(word: str) -> bool:
    return word.removesuffix("'s").removesuffix("\u2019s") in _QUESTION_WORDS
