"""Searches by words, a second time: a scan of the whole log, without FTS5 and without an index.

Knows the tokens of texts that the tests use: Latin letters with and without accents, digits, and Chinese and Japanese.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from pmm_shm import limits
from pmm_shm.words.texts import WORD_KINDS
from pmm_shm_client import Cache, EventLog

DAMAGE = (
    "UPDATE words_data SET block = CAST(substr(block, 1, length(block) / 2) || zeroblob(length(block) / 4) "
    "|| substr(block, length(block) / 2 + length(block) / 4 + 1) AS BLOB) WHERE id > 10"
)
"""Damages the records of FTS5 in an index, so that searches find less without an error."""
_RUN = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]+")


def texts_of(ledger: str) -> dict[int, str]:
    """Event id to the text that is indexed."""
    found: dict[int, str] = {}
    with EventLog(ledger, create=False) as log:
        for event in log.read_all():
            if event["kind"] in WORD_KINDS:
                text = event["meta"].get("text")
                found[event["id"]] = event["content"] + (f"\n{text}" if isinstance(text, str) else "")
    return found


def tokens(text: str) -> list[str]:
    """The tokens of a text: its words, and of a Chinese or Japanese run each pair, and the last character."""
    split = _RUN.sub(lambda run: " " + " ".join(_parts(run[0])) + " ", text)
    bare = "".join(one for one in unicodedata.normalize("NFD", split.lower()) if not unicodedata.combining(one))
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFC", bare))


def times_in(item: str, text: str) -> int:
    """How often an item of a query is in a text: its tokens one after the other."""
    wanted, found = tokens(item), tokens(text)
    run = _RUN.search(item[-1:])
    if run is not None:
        single = len(_RUN.findall(item)[-1]) == 1
        wanted = wanted if single else wanted[:-1]
        return sum(_begins(found[at : at + len(wanted)], wanted, single) for at in range(len(found)))
    return sum(found[at : at + len(wanted)] == wanted for at in range(len(found)))


def scan(ledger: str, items: list[str], named: frozenset[str] = frozenset()) -> dict[int, float]:
    """Event id to the BM25 score of words that are not common, as LIBRARY.md defines it; ascending ids."""
    texts = texts_of(ledger)
    sizes = {event_id: len(tokens(text)) for event_id, text in texts.items()}
    average = sum(sizes.values()) / max(1, len(sizes))
    scores: dict[int, float] = {}
    for item in items:
        times = {event_id: count for event_id, text in texts.items() if (count := times_in(item, text))}
        weight = max(math.log((len(texts) - len(times) + 0.5) / (len(times) + 0.5)), 1e-6)
        weight *= limits.NAMED_WEIGHT if item in named or any(map(str.isdigit, item)) else 1.0
        for event_id, count in times.items():
            length = 1.2 * (0.25 + 0.75 * sizes[event_id] / average)
            scores[event_id] = scores.get(event_id, 0.0) + weight * count * 2.2 / (count + length)
    return scores


def check(cache: Cache, words: list[str]) -> Any:
    """Each word by itself: a complete answer is that of the scan, and an incomplete one says so and has no other."""
    found = None
    for word in words:
        found = cache.search(word, k=limits.SEARCH_K_MAX, mode="words")
        _agree({hit.event_id: hit.word_score or 0.0 for hit in found}, scan(cache.path, [word]), found.is_complete)
    return found


def _agree(found: Mapping[int, float], expected: Mapping[int, float], is_complete: bool) -> None:
    assert found.keys() <= expected.keys(), "a hit that is not in the ledger"
    if is_complete:
        assert found.keys() == expected.keys(), "a hit is missing, and the answer says that it is complete"
        for event_id, score in expected.items():
            assert math.isclose(found[event_id], score, rel_tol=1e-9)
        assert list(found) == sorted(found, key=lambda one: (-found[one], one))


def _parts(run: str) -> list[str]:
    return [run[at : at + 2] for at in range(len(run) - 1)] + [run[-1]]


def _begins(found: list[str], wanted: list[str], is_prefix: bool) -> bool:
    if len(found) != len(wanted) or found[:-1] != wanted[:-1]:
        return False
    return found[-1].startswith(wanted[-1]) if is_prefix else found[-1] == wanted[-1]
