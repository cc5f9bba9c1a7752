"""How well a search finds the event that a question asks about: `make bench-recall`.

`bench/dialogue/` has 1,000 turns between a user and an assistant over four months, and 200 questions, each with the one
turn that answers it: 50 each of four kinds.

- paraphrase: hardly a word of the question is in the turn;
- name: of a person, place or thing, beside others that are spelled almost alike;
- identifier: of an invoice, a ticket, a flight, a commit, beside others with almost the same digits;
- time: half of the answers name a date, and so do the questions. The other half do not: the question names a day, and
  `since` and `until` bound it, as a program has to give them. A search reads no dates out of a question.

Half of each kind is in `tuning.jsonl`, for whoever changes the ranking; `hold-out.jsonl` is only for reports. 25 of a
kind are few, so there are more for tuning in `more.jsonl`: 110 paraphrases about messages in `more-turns.jsonl`, which
follow the dialogue, and 48 questions about a day of it.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from rich.console import Console
from rich.table import Table

from pmm_shm import limits
from pmm_shm.vectors.embedder import Embedder, embedded
from pmm_shm.vectors.registry import find_embedder
from pmm_shm_client import Cache, EventLog, connect

DATA = Path(__file__).with_name("dialogue")
PARTS = ("tuning", "hold-out")
MORE = "more"
KINDS = ("paraphrase", "name", "identifier", "time")
MODES = ("meaning", "words", "hybrid", "auto")
ALONE = ("FTS5 alone", "vectors alone")
DEPTH = 20
MISSED = DEPTH + 1


class Question(NamedTuple):
    """A question, the event that answers it, and the bounds of time that it is asked with."""

    kind: str
    question: str
    answer: int
    since: str | None = None
    until: str | None = None


class Quality(NamedTuple):
    """Of some questions: the share found first, the share found among five, and the mean reciprocal rank (MRR)."""

    hit_1: float
    hit_5: float
    mrr: float

    @classmethod
    def of(cls, ranks: Sequence[int]) -> Quality:
        """Of the ranks of the answers, `MISSED` where it is not among the first `DEPTH`."""
        return cls(
            statistics.mean(rank == 1 for rank in ranks),
            statistics.mean(rank <= 5 for rank in ranks),
            statistics.mean(0.0 if rank == MISSED else 1 / rank for rank in ranks),
        )


Ranks = dict[tuple[str, str], list[int]]
"""By mode and kind of question: the rank of each answer."""


def questions(part: str) -> list[Question]:
    """The questions of `tuning`, `hold-out` or `more`."""
    lines = (DATA / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
    return [Question(**json.loads(line)) for line in lines]


def turns(part: str = "tuning") -> list[dict[str, Any]]:
    """The dialogue that a part asks about; a turn's event id is its place, from 1."""
    names = ("turns.jsonl", "more-turns.jsonl") if part == MORE else ("turns.jsonl",)
    lines = [line for name in names for line in (DATA / name).read_text(encoding="utf-8").splitlines()]
    return [json.loads(line) for line in lines]


@contextmanager
def told(model: str, part: str = "tuning") -> Iterator[Cache]:
    """A cache whose ledger holds the dialogue of a part, with this embedder."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "agent.db"
        events = turns(part)
        with EventLog(path) as log:
            log.append_many(events)
        # The answers are those of a ledger with a daemon: here, this process embeds all events.
        with (
            patch.multiple(limits, SEARCH_TEXTS_MAX=len(events), SEARCH_EVENTS_MAX=len(events)),
            connect(path, embedder=model) as cache,
        ):
            yield cache


def ranks_of(cache: Cache, asked: Sequence[Question], modes: Sequence[str] = MODES) -> Ranks:
    """Ask each question in each mode."""

    def searched(mode: str) -> Callable[[Question], list[int]]:
        def search(one: Question) -> list[int]:
            bounds: Any = {"mode": mode, "since": one.since, "until": one.until}
            found = cache.search(one.question, DEPTH, **bounds)
            assert (found.is_complete, found.problem) == (True, None)
            return [hit.event_id for hit in found]

        return search

    return _ranks(asked, {mode: searched(mode) for mode in modes})


def ranks_alone(model: str, asked: Sequence[Question], part: str = "tuning") -> Ranks:
    """The same by the plain parts, without this project: SQLite's FTS5, and a matrix of vectors."""
    words, vectors = _Words(turns(part)), _Vectors(turns(part), find_embedder(model))
    return _ranks(asked, dict(zip(ALONE, (words.search, vectors.search), strict=True)))


def _ranks(asked: Sequence[Question], searches: dict[str, Callable[[Question], list[int]]]) -> Ranks:
    found: Ranks = {}
    for mode, search in searches.items():
        for one in asked:
            ids = search(one)
            found.setdefault((mode, one.kind), []).append(ids.index(one.answer) + 1 if one.answer in ids else MISSED)
    return found


class _Words:
    """FTS5 as its documentation has it: any of the question's words, by its own BM25."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self._handle = sqlite3.connect(":memory:")
        self._handle.execute("CREATE VIRTUAL TABLE words USING fts5(content, ts UNINDEXED)")
        self._handle.executemany("INSERT INTO words VALUES (?, ?)", [(one["content"], one["ts"]) for one in events])

    def search(self, one: Question) -> list[int]:
        query = " OR ".join('"' + word.replace('"', "") + '"' for word in one.question.split())
        rows = self._handle.execute(
            "SELECT rowid FROM words WHERE words MATCH ? AND ts BETWEEN ? AND ? ORDER BY bm25(words), rowid LIMIT ?",
            (query, one.since or "", one.until or "9", DEPTH),
        )
        return [row[0] for row in rows]


class _Vectors:
    """The vectors that are nearest by cosine."""

    def __init__(self, events: list[dict[str, Any]], embedder: Embedder) -> None:
        self._embedder, self._times = embedder, [one["ts"] for one in events]
        self._rows = np.concatenate([self._units([one["content"]]) for one in events])

    def _units(self, texts: list[str]) -> Any:
        rows = embedded(self._embedder, texts).astype(np.float64)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def search(self, one: Question) -> list[int]:
        scores = self._rows @ self._units([one.question])[0]
        first, last = one.since or "", one.until or "9"
        ids = [at for at in range(len(scores)) if first <= self._times[at] <= last]
        return [at + 1 for at in sorted(ids, key=lambda at: (-scores[at], at))[:DEPTH]]


class Verdict(NamedTuple):
    """A mode that fuses both parts, beside them, for one kind of question.

    Attributes:
        findable: the questions whose answer words or meaning have among their first 20.
        share: of these, the share that the mode has among its first five.
        behind: by how many questions it is below the better part, among the first five.
    """

    findable: int
    share: float
    behind: int

    @property
    def is_met(self) -> bool:
        """Whether this is within the target."""
        return self.share >= 0.95 and self.behind <= 1


def verdict(ranks: Ranks, mode: str, kind: str) -> Verdict:
    """Compare `mode` with its parts."""
    fused, parts = ranks[mode, kind], [ranks["words", kind], ranks["meaning", kind]]
    findable = [at for at, best in enumerate(map(min, *parts)) if best <= DEPTH]
    found = sum(fused[at] <= 5 for at in findable)
    better = max(sum(rank <= 5 for rank in part) for part in parts)
    return Verdict(len(findable), found / max(1, len(findable)), better - sum(rank <= 5 for rank in fused))


def shown(console: Console, model: str, part: str, ranks: Ranks) -> None:
    """Print the tables of one embedder and one half of the questions."""
    kinds = [kind for kind in KINDS if ("hybrid", kind) in ranks]
    table = Table("search", *kinds, "all", title=f"{model}, {part}: hit@1 / hit@5 / MRR")
    for mode in (*MODES, *ALONE):
        rows = [ranks[mode, kind] for kind in kinds]
        cells = [Quality.of(one) for one in (*rows, [rank for row in rows for rank in row])]
        table.add_row(mode, *(f"{one.hit_1:.2f} {one.hit_5:.2f} {one.mrr:.2f}" for one in cells))
    console.print(table)
    for mode in ("hybrid", "auto"):
        for kind in kinds:
            one = verdict(ranks, mode, kind)
            console.print(
                f"{mode}, {kind}: {one.share:.2f} of the {one.findable} that a part finds in 20, "
                f"{max(0, one.behind)} below the better part: {'met' if one.is_met else 'not met'}",
                highlight=False,
            )


def main() -> None:
    """Measure each embedder that is here."""
    parser = argparse.ArgumentParser(prog="bench.recall", description=__doc__)
    parser.add_argument("--part", choices=(*PARTS, MORE), action="append", help="some of the questions only")
    parser.add_argument("--embedder", action="append", help="default: local-bow, and wordllama where it is installed")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    models = options.embedder or ["local-bow", "wordllama"]
    report: dict[str, Any] = {}
    for model in models:
        for part in options.part or (*PARTS, MORE):
            asked = questions(part)
            with told(model, part) as cache:
                ranks = {**ranks_of(cache, asked), **ranks_alone(model, asked, part)}
            if options.json:
                key = f"{model}, {part}"
                report[key] = {f"{mode}, {kind}": Quality.of(row)._asdict() for (mode, kind), row in ranks.items()}
            else:
                shown(Console(width=120), model, part, ranks)
    if options.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
