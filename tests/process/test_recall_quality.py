"""How many questions find their message, by meaning, by words, and by both: paraphrases, identifiers, names, times."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import recall
from pmm_shm.vectors.function import FunctionEmbedder
from pmm_shm_client import Cache, EventLog, connect
from tests.support.fork_daemon import ForkedDaemon
from tests.support.paraphrases import PAIRS
from tests.support.polling import until

IDENTIFIERS = [f"INV-{2200 + number}" for number in range(100)] + [f"TCK-{400 + 7 * number}" for number in range(60)]
NAMES = (
    ("Who likes Chopin?", "Chopin"),
    ("What about the flights to Lisbon?", "Lisbon"),
    ("wedding Scotland", "Scotland"),
    ("Did I finish Moby Dick?", "Moby"),
    ("What did we see of Saturn?", "Saturn"),
    ("What did I say about peanuts?", "peanuts"),
    ("When did I quit smoking?", "smoking"),
    ("Tell me about the bank and the mortgage", "mortgage"),
    ("What is it with the landlord?", "landlord"),
    ("violin teacher", "violin with"),
    ("What happened in the basement?", "basement"),
    ("Was the London flight cancelled?", "London"),
    ("Is there news of the cat from the shelter?", "shelter"),
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cache]:
    path = tmp_path_factory.mktemp("quality") / "l.db"
    with connect(path, create=True, embedder="wordllama") as opened:
        # All of them are embedded here, without a daemon.
        texts = [
            f"Invoice {name} of {17 * number % 900} euros is due next week."
            if name.startswith("INV")
            else f"Ticket {name}: the printer on floor {number % 9} reports a jam."
            for number, name in enumerate(IDENTIFIERS)
        ]
        opened.append_many([("user", text, None) for text in [*texts, *(message for message, _ in PAIRS)]])
        yield opened


def found(cache: Cache, mode: str, questions: list[tuple[str, int]]) -> tuple[int, int]:
    """How many questions find their event first, and among the first five."""
    ranks = []
    for question, event_id in questions:
        ids = [hit.event_id for hit in cache.search(question, k=5, mode=mode)]  # type: ignore[call-overload]
        ranks.append(ids.index(event_id) if event_id in ids else 5)
    return sum(rank == 0 for rank in ranks), sum(rank < 5 for rank in ranks)


def of(part: str) -> int:
    """The event of the first message with a text in it."""
    return len(IDENTIFIERS) + 1 + next(number for number, (message, _) in enumerate(PAIRS) if part in message)


@pytest.mark.parametrize("mode", ["hybrid", "auto"])
def test_identifiers_names_and_paraphrases_are_found_in_one_search(cache: Cache, mode: str) -> None:
    identifiers = [(f"What about {IDENTIFIERS[at]}?", at + 1) for at in range(0, 160, 4)]
    paraphrases = [(question, len(IDENTIFIERS) + 1 + at) for at, (_, question) in enumerate(PAIRS)]
    names = [(question, of(part)) for question, part in NAMES]
    assert found(cache, mode, identifiers) == (40, 40)
    assert found(cache, mode, names) == (13, 13)
    assert found(cache, "words", identifiers) == (40, 40)
    assert found(cache, "meaning", identifiers)[1] < 40
    assert found(cache, "words", paraphrases)[1] < 10
    by_meaning, by_both = found(cache, "meaning", paraphrases), found(cache, mode, paraphrases)
    # 17 of 20, and at most one question in 20 below the better part.
    assert by_meaning[0] >= 40
    assert by_both[0] >= by_meaning[0] - len(PAIRS) // 20
    assert by_both[1] >= by_meaning[1] - 1
    assert by_both[1] >= 0.9 * len(PAIRS)


# The questions of `make bench-recall`.


def test_the_dialogue_and_its_questions() -> None:
    turns = recall.turns()
    assert len(turns) == 1_000
    assert [one["ts"] for one in turns] == sorted(one["ts"] for one in turns)
    asked = [one for part in recall.PARTS for one in recall.questions(part)]
    assert len({one.question for one in asked}) == len({one.answer for one in asked}) == 200
    for part in recall.PARTS:
        assert sorted(one.kind for one in recall.questions(part)) == sorted(25 * recall.KINDS)
    for one in asked:
        assert (one.since or "") <= turns[one.answer - 1]["ts"] <= (one.until or "9")


@pytest.mark.parametrize("part", recall.PARTS)
@pytest.mark.parametrize("model", ["local-bow", "wordllama"])
def test_both_searches_together_are_as_good_as_the_better_one(model: str, part: str) -> None:
    asked = recall.questions(part)
    with recall.told(model) as cache:
        ranks = {**recall.ranks_of(cache, asked), **recall.ranks_alone(model, asked)}
    found = {key: recall.Quality.of(row) for key, row in ranks.items()}
    for kind in recall.KINDS:
        # By meaning it is the plain search of vectors; by words it loses nothing to plain FTS5.
        assert ranks["meaning", kind] == ranks["vectors alone", kind]
        assert found["words", kind].hit_5 >= found["FTS5 alone", kind].hit_5 - 0.04
        for mode in ("hybrid", "auto"):
            one = recall.verdict(ranks, mode, kind)
            assert one.behind <= 1, (mode, kind)
            if model == "wordllama":
                # Of a paraphrase, words know nothing: what meaning has as the twentieth is not among the first five.
                assert one.share >= (0.85 if kind == "paraphrase" else 0.95), (mode, kind)
    assert min(found["hybrid", kind].hit_1 for kind in ("name", "identifier")) >= 0.8
    if model == "wordllama":
        assert found["hybrid", "paraphrase"].hit_5 >= 0.7
        assert found["hybrid", "time"].hit_1 >= 0.9
        # What words cannot find, they do not push back either.
        gained = found["hybrid", "paraphrase"].mrr - found["meaning", "paraphrase"].mrr
        assert gained >= 0.1


def test_matching_words_and_days_are_found() -> None:
    asked = recall.questions(recall.MORE)
    with recall.told("wordllama", recall.MORE) as cache:
        ranks = recall.ranks_of(cache, asked, ("hybrid", "meaning"))
    found = {key: recall.Quality.of(row) for key, row in ranks.items()}
    # By meaning 0.25, with hubs and question words 0.31, without the rule for who asks 0.40.
    assert found["hybrid", "paraphrase"].hit_5 >= 0.41
    # With the dates of the questions 0.71, without the rule for who asks 0.79.
    assert found["hybrid", "time"].hit_1 >= 0.82
    assert found["hybrid", "time"].hit_5 >= found["meaning", "time"].hit_5


@pytest.mark.parametrize("model", ["wordllama", "local-bow", "own"])
def test_what_people_ask_about_themselves_is_in_what_they_said(tmp_path: Path, model: str) -> None:
    text = "The keys are in the blue jar."
    own = FunctionEmbedder("own", 2, lambda texts: [[1.0, len(text) / 100] for text in texts])
    with connect(tmp_path / "l.db", create=True, embedder=own if model == "own" else model) as cache:
        cache.append_many([(kind, text, None) for kind in ("assistant_message", "user_message", "response", "user")])

        def ids(question: str) -> list[int]:
            return [hit.event_id for hit in cache.search(question, mode="hybrid")]

        # Equal texts are in the order of the log, and words alone lead with `local-bow`.
        assert ids("Where do I find what I lost?") == ([1, 2, 3, 4] if model == "local-bow" else [2, 4, 1, 3])
        assert ids("Where did you see what I lost?") == ids("Where are lost things?") == [1, 2, 3, 4]
        assert ids("where's MY jar?")[:1] == ([1] if model == "local-bow" else [2])


def test_a_daemon_changes_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    asked = [one for one in recall.questions("tuning") if one.kind == "paraphrase"][:12]

    def answers(cache: Cache) -> list[object]:
        found = [cache.search(one.question, 20, mode="auto", since=one.since, until=one.until) for one in asked]
        assert all(hits.is_complete for hits in found)
        return [tuple(hits) for hits in found]

    with EventLog(path) as log:
        log.append_many(recall.turns()[:700])
    with connect(path, embedder="wordllama") as cache:
        before = answers(cache)
    with ForkedDaemon(path, "--embedder", "wordllama"), connect(path, embedder="wordllama") as cache:
        until(lambda: cache.search("?", 1).embedded_here == 0, "the table to be filled")
        assert answers(cache) == before


@pytest.mark.parametrize("is_json", [False, True])
def test_the_report(is_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--part", "tuning", "--embedder", "local-bow", *(["--json"] if is_json else [])]
    monkeypatch.setattr(sys, "argv", ["bench.recall", *arguments])
    recall.main()
    said = capsys.readouterr().out
    if is_json:
        (found,) = json.loads(said).values()
        assert found.keys() == {f"{mode}, {kind}" for mode in (*recall.MODES, *recall.ALONE) for kind in recall.KINDS}
        assert found["words, identifier"]["hit_5"] == 1.0
    else:
        assert "local-bow, tuning: hit@1 / hit@5 / MRR" in said
        assert "auto, name: 1.00 of the 25 that a part finds in 20, 0 below the better part: met" in said
