"""What a text says about open commitments: stems, vectors, snippets, where the golden calls do not reach."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pmm_shm_pmm.evidence import Texts, find_evidence, norm, stems


@pytest.mark.parametrize(
    ("word", "stem"),
    [
        ("bring", "bring"),
        ("string", "str"),
        ("used", "used"),
        ("based", "bas"),
        ("goes", "goes"),
        ("boxes", "boxe"),
        ("dishes", "dish"),
        ("cats", "cats"),
        ("tests", "test"),
        ("wrote", "write"),
        ("Wrote", "write"),
        ("wrotes", "wrot"),
        ("blessing", "bless"),
        ("sing-ing 2ed", "sing ing 2ed"),
        ("café", "caf"),
        ("", ""),
    ],
)
def test_stems(word: str, stem: str) -> None:
    assert stems(word) == stem.split()


def test_a_normal_text_has_single_spaces_and_no_capitals() -> None:
    assert norm("\t A  b\u2003C\n\u0130 ") == "a b c i\u0307"


def _cosine(one: Any, other: Any) -> float:
    lengths = math.sqrt(sum(x * x for x in one)) * math.sqrt(sum(x * x for x in other))
    return sum(x * y for x, y in zip(one, other, strict=False)) / lengths if lengths else 0.0


def _scores(embed: Any, content: str, *texts: str) -> list[float]:
    items = [{"cid": str(number), "text": text} for number, text in enumerate(texts)]
    remembered = Texts(embed, _cosine)
    found = [
        find_evidence(remembered, embed, _cosine, [{"kind": "user", "content": content}], items, 20) for _ in range(2)
    ]
    assert found[0] == found[1]
    return [score for _, score, _ in sorted(found[0])]


def test_a_vector_of_zeros_is_near_nothing() -> None:
    vectors = {"zz": [0.0, 0.0], "one": [1.0, 0.0], "two": [0.0, 0.0]}
    assert _scores(vectors.get, "zz", "one", "two") == [0.0, 0.0]
    vectors["zz"] = [2.0, 0.0]
    assert _scores(vectors.get, "zz", "one", "two") == [1.0, 0.0]
    assert _scores(vectors.get, "zz", "two", "one") == [0.0, 1.0]


def test_vectors_may_be_missing_negative_or_of_another_dimension() -> None:
    vectors: dict[str, list[float] | None] = {
        "zz": [1.0, 0.0],
        "one": None,
        "two": [-1.0, 0.0],
        "three": [0.6, 0.8, 0.0],
    }
    assert _scores(vectors.get, "zz", "one", "two", "three") == [0.0, 0.0, 0.6]
    vectors["zz"] = None
    assert _scores(vectors.get, "zz", "one", "two", "three") == [0.0, 0.0, 0.0]


def test_a_text_within_another_scores_at_least_six_tenths() -> None:
    # No stem has a letter of a to z: only the text itself is found.
    assert _scores(lambda text: None, "über 名前 und", "名前") == [0.6]


def test_a_text_that_lower_case_moves_is_shown_by_its_own_place() -> None:
    # The lower case of the first letter has two characters.
    content = "\u0130" * 50 + " " + "a" * 60 + " plan the launch " + "b" * 60
    items = [{"cid": "c", "text": "plan the launch"}]
    texts = Texts(lambda text: None, _cosine)
    ((_, _, snippet),) = find_evidence(
        texts, lambda text: None, _cosine, [{"kind": "user", "content": content}], items, 20
    )
    place = content.lower().find("plan the launch")
    assert snippet == content[place - 40 : place + len("plan the launch") + 40]


def test_a_cosine_of_another_kind_is_asked() -> None:
    texts = Texts(lambda text: [1.0], lambda one, other: 0.5)
    assert not texts.is_plain
    found = find_evidence(
        texts, texts.embed, texts.cosine, [{"kind": "user", "content": "x"}], [{"cid": "c", "text": "yyy"}], 1
    )
    assert found == [("c", 0.5, "yyy")]
