"""`CommitmentTracker.find_evidence`: what a text says about open commitments; computed once for each text.

Floats equal PMM's to the last bit: the same sums in the same order, by the built-in `sum`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from operator import mul
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from pmm_shm_pmm.fallback import Fallback, passing_errors
from pmm_shm_pmm.near_words import NearWords

if TYPE_CHECKING:
    from pmm_shm_pmm.patching import Patcher

Vector = Sequence[float]
Embed = Callable[[str], Vector | None]
Cosine = Callable[[Vector, Vector], float]
Candidate = tuple[str, float, str]

_MESSAGE_KINDS = frozenset({"response", "user", "reflection"})
_TEXTS_MAX = 20_000
"""So many texts are remembered."""
_OUTSIDE = re.compile(r"[^a-z0-9]+")
_ENDINGS = (("ing", 5), ("ed", 4), ("es", 5), ("s", 4))
_SUBSTRING_SCORE: Final = 0.6
_CONTEXT_CHARS: Final = 40
_SNIPPET_CHARS_MAX: Final = 160
_PROBES: tuple[tuple[Vector, Vector], ...] = (
    ([0.1, 0.2, 0.3], [0.7, -0.4, 0.9]),
    ([0.0, 0.0, 0.0], [0.7, -0.4, 0.9]),
    ([1e-3, 3.3, 1 / 3], [1e-3, 3.3, 1 / 3]),
)


def norm(text: str) -> str:
    """The text lower-cased, with single spaces, and none at its ends."""
    return " ".join(text.lower().split())


def stems(text: str) -> list[str]:
    """The words of a text without their usual endings, in order."""
    return [_stem(word) for word in _OUTSIDE.split(text.lower()) if word]


def _stem(word: str) -> str:
    if word == "wrote":
        return "write"
    for ending, length in _ENDINGS:
        if len(word) > length and word.endswith(ending):
            return word[: -len(ending)]
    return word


class _Text:
    """The text of a commitment; `vector` is None until it is known."""

    __slots__ = ("length", "norm", "stems", "vector")

    def __init__(self, text: str) -> None:
        self.norm = norm(text)
        self.stems = stems(self.norm)
        self.vector: Vector | None = None
        self.length = 0.0


class Texts:
    """What is remembered of texts, with the vectors of one embedder.

    Parameters:
        embed, cosine: PMM's own; for any other function nothing is remembered.
    """

    def __init__(self, embed: Embed, cosine: Cosine) -> None:
        self.embed = embed
        self.cosine = cosine
        self.is_plain = _is_plain(cosine)
        self.words = NearWords()
        self._known: dict[str, _Text] = {}
        self._has_changed = False

    def of(self, text: str) -> _Text:
        known = self._known.get(text)
        if known is None:
            known = _Text(text)
            self.words.add(known.stems)
            self._known[text] = known
        return known

    @property
    def is_worn(self) -> bool:
        """Whether a new one should take its place: it is full, or the embedder gives other vectors by now."""
        return self._has_changed or len(self._known) > _TEXTS_MAX

    def holds(self, text: _Text) -> bool:
        """Whether the embedder still gives the vector of a text: it may depend on more than the text."""
        if text.vector is not None and not self._has_changed:
            with passing_errors():
                vector = self.embed(text.norm)
            self._has_changed = vector is None or list(vector) != list(text.vector)
        return not self._has_changed

    def cosine_with(self, vector: Vector, length: float, text: _Text) -> float:
        """The cosine of a vector and that of a text; 0.0 where the text has none."""
        other = text.vector
        if other is None:
            with passing_errors():
                other = self.embed(text.norm)
            if other is None:
                return 0.0
            text.length = math.sqrt(sum(map(mul, other, other)))
            text.vector = other
        if len(other) != len(vector):
            with passing_errors():
                return self.cosine(vector, other)
        product = length * text.length
        return sum(map(mul, vector, other)) / product if length and text.length else 0.0


def _is_plain(cosine: Cosine) -> bool:
    """Whether a function is the cosine that is computed here."""
    return all(
        cosine(one, other)
        == (
            sum(map(mul, one, other)) / (math.sqrt(sum(map(mul, one, one))) * math.sqrt(sum(map(mul, other, other))))
            if any(one)
            else 0.0
        )
        for one, other in _PROBES
    )


def find_evidence(
    texts: Texts, embed: Embed, cosine: Cosine, events: Sequence[Any], items: Sequence[Any], recent_window: int
) -> list[Candidate]:
    """(cid, score, snippet) of each commitment of `items` that has a cid and a text, best first.

    Parameters:
        texts: remembers texts while `embed` and `cosine` are its functions.
        events: the newest `recent_window` messages and reflections of them are looked at.
    """
    corpus = _corpus(events, recent_window)
    own_norm = norm(corpus)
    wanted = [(cid, texts.of(text)) for cid, text in ((_text(item), str(item.get("text") or "")) for item in items)]
    wanted = [(cid, text) for cid, text in wanted if cid and text.norm]
    if not wanted:
        return []
    near = texts.words.near(stems(corpus))
    with passing_errors():
        vector = embed(own_norm)
    is_plain = texts.is_plain and embed is texts.embed and cosine is texts.cosine and texts.holds(wanted[0][1])
    length = math.sqrt(sum(map(mul, vector, vector))) if vector is not None and is_plain else 0.0
    lower: str | None = None
    found = []
    for cid, text in wanted:
        is_inside = text.norm in own_norm
        score = _SUBSTRING_SCORE if is_inside else 0.0
        if vector is not None:
            if is_plain:
                score = max(score, texts.cosine_with(vector, length, text))
            else:
                score = max(score, _cosine(embed, cosine, vector, text.norm))
        if text.stems:
            score = max(score, sum(map(near.__contains__, text.stems)) / len(text.stems))
        snippet = ""
        if is_inside:
            lower = corpus.lower() if lower is None else lower
            place = max(0, lower.find(text.norm))
            snippet = corpus[max(0, place - _CONTEXT_CHARS) : place + len(text.norm) + _CONTEXT_CHARS]
        found.append((cid, min(1.0, score), (snippet or text.norm)[:_SNIPPET_CHARS_MAX]))
    found.sort(key=lambda one: (-one[1], one[0]))
    return found


def _text(item: Any) -> str:
    return str(item.get("cid"))


def _cosine(embed: Embed, cosine: Cosine, vector: Vector, text: str) -> float:
    with passing_errors():
        other = embed(text)
        return 0.0 if other is None else cosine(vector, other)


def _corpus(events: Sequence[Any], recent_window: int) -> str:
    count = max(1, recent_window)
    contents: list[str] = []
    for event in reversed(events):
        if event.get("kind") in _MESSAGE_KINDS:
            contents.append(str(event.get("content") or ""))
            if len(contents) == count:
                break
    return "\n".join(reversed(contents))


def install(patcher: Patcher, module: ModuleType) -> None:
    texts = Texts(module._emb, module._cos)

    def replacement(self: Any, events: Any, open_commitments: Any, recent_window: int = 20) -> list[Candidate]:
        nonlocal texts
        if not (isinstance(events, (list, tuple)) and isinstance(open_commitments, (list, tuple))):
            raise Fallback("no list")
        if type(recent_window) is not int:
            raise Fallback("a window that is no integer")
        known = texts
        if known.is_worn:
            # Other threads may still use it.
            known = texts = Texts(known.embed, known.cosine)
        return find_evidence(known, module._emb, module._cos, events, open_commitments, recent_window)

    patcher.replace(module, "CommitmentTracker.find_evidence", replacement)
