"""From a text to what FTS5 looks up. Any text is a query, and nothing in it is FTS5's own syntax.

A query consists of items: words with white space between them, and phrases in double quotes. A `-` right before an item
excludes it. An identifier such as `INV-2291` is one item: its parts, `inv` and `2291`, must follow each other.

FTS5's tokenisers split a text without spaces nowhere. So runs of Chinese, Japanese, Korean, Thai, Lao, Khmer and
Burmese are split here: into pairs of characters, and the last character alone. A run is then found wherever it occurs
within another.

They fold the accents of Latin letters only, and neither full-width letters nor all ways to spell one character. So
that is done here, too, and the points of Hebrew and Arabic are left out, as most texts leave them out. They take signs
that are newer than their tables for letters: here whatever is no part of a word is a space.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pmm_shm import limits
from pmm_shm.late import late_imports

_CJK = "\u1100-\u11ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3130-\u318f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf"
_CJK += "\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
_THAI, _LAO = "\u0e01-\u0e3a\u0e40-\u0e4e\u0e50-\u0e59", "\u0e81-\u0ece\u0ed0-\u0ed9\u0edc-\u0edf"
_KHMER = "\u1780-\u17d3\u17d7\u17dc\u17dd\u17e0-\u17e9"
_BURMESE = "\u1000-\u1049\u1050-\u109d\ua9e0-\ua9fe\uaa60-\uaa7f"
_UNSPACED = _CJK + _THAI + _LAO + _KHMER + _BURMESE
_RUN = re.compile(f"[{_UNSPACED}]+")
_RUN_AT_END = re.compile(f"[{_UNSPACED}]+\\Z")
_ITEM = re.compile(r'(?<!\S)(?P<minus>-(?=["\w]))?(?:"(?P<phrase>[^"]*)"|(?P<word>[^\s"]+))|"(?P<late>[^"]*)"|[^\s"]+')
_ACCENTS = "\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\ufe20-\ufe2f"
_POINTS = "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u064b-\u0652\u0670"
# They choose between two shapes of one character.
_SELECTORS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"
_LEFT_OUT = re.compile(f"[{_ACCENTS}{_POINTS}{_SELECTORS}]+")
# Of marks and symbols. Python has no class of marks alone; those that are sorted by Unicode are all in this one.
_MARK = "(?:[^\\w\\s\0-\x7f\ue000-\uf8ff\U00020000-\U0010ffff]|[\uff9e\uff9f])"
_LONG_RUN = re.compile(f"({_MARK}{{30}}){_MARK}+")
# Those that are newer than Python's tables, too.
_EMOJI = re.compile("(?!\\w)[\u2000-\u2bff\u2e00-\u2e7f\U0001f000-\U0001fbff]")
_UNUSABLE = re.compile("[\0\ud800-\udfff]")
_TOKEN = re.compile(r"[^\W_]")
_PUNCTUATION_AT_END = re.compile(r"[\W_]+\Z")
_IN_WORDS = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Co", "Cn"})
"""Categories of Unicode whose characters are parts of words; FTS5 takes private and unknown ones for letters, too."""
_SPACED: dict[int, str] = {}
"""Each character met so far in a text beyond ASCII, to itself, or to a space where it is no part of a word."""


class Item(NamedTuple):
    """One word, identifier or phrase of a query.

    Attributes:
        expression: of FTS5; finds the events that hold it.
        is_phrase: it was in quotes.
        has_digit: it may be an identifier or a date.
    """

    expression: str
    is_phrase: bool
    has_digit: bool

    @property
    def is_named(self) -> bool:
        """Whether it names something exactly: an identifier, a number, a date, a phrase."""
        return self.is_phrase or self.has_digit


class WordQuery(NamedTuple):
    """A query, taken apart.

    Attributes:
        items: each once, in order.
        excluded: none of these may be in a hit.
        text: the query without quotes and without what is excluded.
    """

    items: list[Item]
    excluded: list[Item]
    text: str

    @classmethod
    def of(cls, text: str, *, is_message: bool = False) -> WordQuery:
        """Take a text apart.

        Parameters:
            is_message: the text was not written as a query: quotes and `-` mean nothing in it.
        """
        items: dict[Item, None] = {}
        excluded: dict[Item, None] = {}
        plain: list[str] = []
        for is_excluded, is_phrase, part in _parts(text, is_message):
            if not is_excluded:
                plain.append(part)
            if _TOKEN.search(part):
                (excluded if is_excluded else items)[_item(part, is_phrase)] = None
        return cls(list(items)[: limits.QUERY_ITEMS_MAX], list(excluded)[: limits.QUERY_ITEMS_MAX], " ".join(plain))


def prepared(text: str) -> str:
    """A text as it is put into the index: folded, and with runs of scripts without spaces split."""
    return _RUN.sub(_pairs_and_last, _folded(text))


def _folded(text: str) -> str:
    """Without accents and symbols, in one case and one spelling of each character; FTS5 folds ASCII letters."""
    text = _UNUSABLE.sub(" ", text)
    if text.isascii():
        return text
    # Not before it is needed: it maps a megabyte.
    with late_imports:
        from unicodedata import category, normalize

    # To sort a run of marks takes a time that grows with the square of its length: hours for a megabyte.
    text = _LONG_RUN.sub(r"\1", text.casefold())
    text = normalize("NFC", _LEFT_OUT.sub("", normalize("NFKD", text)))
    for one in set(text):
        if ord(one) not in _SPACED:
            _SPACED[ord(one)] = one if category(one) in _IN_WORDS and not _EMOJI.match(one) else " "
    return text.translate(_SPACED)


def _parts(text: str, is_message: bool) -> list[tuple[bool, bool, str]]:
    """(is excluded, is a phrase, text) of each item."""
    if is_message:
        return [(False, False, part) for part in text.split()]
    found = []
    for match in _ITEM.finditer(text):
        phrase = match["phrase"] if match["phrase"] is not None else match["late"]
        part = phrase if phrase is not None else match["word"] or match[0]
        found.append((match["minus"] is not None, phrase is not None, part))
    return found


def _item(part: str, is_phrase: bool) -> Item:
    has_digit = any(map(str.isdigit, part))
    part = _without_punctuation_at_end(_folded(part).replace('"', " "))
    end = _RUN_AT_END.search(part)
    head = part if end is None else part[: end.start()]
    run = "" if end is None else end[0]
    # In the index the last character of a run follows its pairs, and begins none; the text may go on behind this run.
    words = f"{prepared(head)} {_pairs(run) or run}".strip()
    # Written in one way, so that each is looked up once.
    words = words.lower() if words.isascii() else words
    return Item(f'"{words}"' + ("*" if len(run) == 1 else ""), is_phrase, has_digit)


def _without_punctuation_at_end(part: str) -> str:
    # Beyond ASCII it is spaces by now, and many words of India end with a mark: a vowel.
    return _PUNCTUATION_AT_END.sub("", part) if part.isascii() else part.rstrip()


def _pairs(run: str) -> str:
    return " ".join(run[at : at + 2] for at in range(len(run) - 1))


def _pairs_and_last(match: re.Match[str]) -> str:
    run = match[0]
    return f" {_pairs(run)} {run[-1]} "
