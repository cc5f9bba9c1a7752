"""`CommitmentRestructurer.consolidate_similar`: the same groups without comparing all pairs.

Two sets with a similarity (common / union) of at least t share at least t of the greater one. Ordered from rare to
common words, their first few words then have one in common: only such pairs are compared.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pmm_shm_pmm.fallback import Fallback, passing_errors
from pmm_shm_pmm.log import log_of

if TYPE_CHECKING:
    from pmm_shm_pmm.opens import Opens
    from pmm_shm_pmm.patching import Patcher

Words = frozenset[str]
_WORD = re.compile(r"\w+")
_NO_WORD = ""
_ROUNDING = 1 - 1e-9
_HELPERS = ("CommitmentRestructurer._get_open_commitments", "CommitmentRestructurer._text_similarity")


def similar_groups(sets: Sequence[Words], threshold: float) -> Iterator[list[int]]:
    """Places of similar sets: in order, each takes all later ones that none has taken; groups of one are left out."""
    if threshold <= 0:
        # Everything is similar to everything.
        if len(sets) > 1:
            yield list(range(len(sets)))
        return
    if not threshold <= 1:
        return
    prefixes = _prefixes(sets, threshold)
    places: dict[str, list[int]] = {}
    for place, prefix in enumerate(prefixes):
        for word in prefix:
            places.setdefault(word, []).append(place)
    taken: set[int] = set()
    for place, own in enumerate(sets):
        if place in taken:
            continue
        others = {other for word in prefixes[place] for other in places[word] if other > place} - taken
        group = [place, *sorted(other for other in others if _similarity(own, sets[other]) >= threshold)]
        if len(group) > 1:
            taken.update(group)
            yield group


def _prefixes(sets: Sequence[Words], threshold: float) -> list[list[str]]:
    counts = Counter(word for words in sets for word in words)
    prefixes = []
    for words in sets:
        size = len(words) - math.ceil(len(words) * threshold * _ROUNDING) + 1
        rare_first = sorted(words, key=lambda word: (counts[word], word))
        prefixes.append(rare_first[: max(0, size)] if words else [_NO_WORD])
    return prefixes


def _similarity(one: Words, other: Words) -> float:
    if not one and not other:
        return 1.0
    common = len(one & other)
    return common / (len(one) + len(other) - common)


def merges(opens: Opens, words_of: dict[str, Words], threshold: float) -> list[dict[str, Any]]:
    """What to merge.

    Raises:
        AttributeError: a text is no text, and there is another one to compare it with.
        TypeError: a cid in a group is no text.
    """
    current = sorted(opens.current.items(), key=lambda item: item[1].ordinal)
    texts = [opening.text for _, opening in current]
    if len(texts) < 2:
        return []
    for text in texts:
        text.lower  # noqa: B018  (PMM raises AttributeError here.)
    for text in words_of.keys() - texts:
        del words_of[text]
    for text in texts:
        if text not in words_of:
            words_of[text] = frozenset(_WORD.findall(text.lower()))
    found = []
    for group in similar_groups([words_of[text] for text in texts], threshold):
        cids = sorted(current[place][0] for place in group)
        digest = sha256("".join(cids).encode()).hexdigest()  # type: ignore[arg-type]
        found.append({"op": "merge", "cids": cids, "new_cid": f"merged_{digest[:8]}"})
    return found


def install(patcher: Patcher, module: ModuleType) -> None:
    helpers = {name.partition(".")[2]: patcher.original(module.__name__, name) for name in _HELPERS}
    words_of: dict[str, Words] = {}

    def consolidate_similar(self: Any, threshold: float = 0.9) -> list[dict[str, Any]]:
        kind = type(self)
        if any(getattr(kind, name) is not own or name in vars(self) for name, own in helpers.items()):
            raise Fallback("a helper was replaced")
        if type(threshold) not in (int, float):
            raise Fallback("arguments of another type")
        opens: Opens = log_of(self.log).fold("pmm_opens")
        if opens.is_odd:
            raise Fallback("a cid that is neither text nor a number")
        with passing_errors():
            return merges(opens, words_of, threshold)

    patcher.replace(module, "CommitmentRestructurer.consolidate_similar", consolidate_similar)
