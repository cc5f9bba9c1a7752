"""The embedders: the default one bit by bit, and of the others that they fail clearly and never reach out on their own.

No test goes to the network: what speaks HTTP speaks to a server of this process.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmm_shm.errors import ConfigError, EmbedderError, InvalidTextError, UnknownModelError
from pmm_shm.installation import extra_command
from pmm_shm.vectors import local_bow
from pmm_shm.vectors import wordllama as wordllama_module
from pmm_shm.vectors.embedder import Embedder, checked_text, embedded
from pmm_shm.vectors.function import FunctionEmbedder
from pmm_shm.vectors.local_bow import LocalBow
from pmm_shm.vectors.question import question_text
from pmm_shm.vectors.registry import find_embedder
from pmm_shm.vectors.wordllama import WordLlama
from tests.support.own_embedders import run_all

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = json.loads((ROOT / "tests" / "support" / "golden" / "embeddings-1.json").read_text(encoding="utf-8"))
TEXTS = st.one_of(
    st.none(),
    st.text(max_size=300),
    # Lone surrogates, and letters whose lower case is ASCII: the Kelvin sign, I with a dot.
    st.text(st.one_of(st.characters(), st.sampled_from("\ud800\udfff\u212a\u0130 aAzZ09-_")), max_size=300),
    st.lists(st.sampled_from(["alpha", "Beta", "42", "x"]), max_size=200).map(" ".join),
)


# local-bow.


def reference(text: str | None) -> list[float]:
    """The specification, word for word."""
    t = "" if text is None else text
    tokens = [""]
    for character in t.lower():
        if character in "abcdefghijklmnopqrstuvwxyz0123456789":
            tokens[-1] += character
        else:
            tokens.append("")
    bow = [0.0] * 64
    for token in tokens:
        if token:
            bow[int(hashlib.sha1(token.encode("utf-8")).hexdigest()[:8], 16) % 64] += 1.0
    norm = reference_norm(bow)
    bow = [x / norm for x in bow]
    twenty = hashlib.sha1(t.encode("utf-8", "surrogatepass")).digest()
    noise = [twenty[i % 20] / 255.0 for i in range(32)]
    mix = [0.9 * bow[i] + 0.1 * noise[i] for i in range(32)]
    norm = reference_norm(mix)
    return [x / norm for x in mix]


def reference_norm(vector: list[float]) -> float:
    total = 0.0
    for x in vector:
        total = total + x * x
    return math.sqrt(total) if total != 0.0 else 1.0


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_golden_vector_and_digest_to_the_last_bit(case: dict[str, Any]) -> None:
    vector = local_bow.vector(case["text"])
    assert [x.hex() for x in vector] == [float(x).hex() for x in case["vector"]]
    assert all(type(x) is float for x in vector)
    assert local_bow.digest(case["text"]) == local_bow.digest_of(case["vector"]) == case["digest"]
    assert [x.hex() for x in reference(case["text"])] == [x.hex() for x in vector]


@given(TEXTS)
def test_local_bow_is_the_specification_for_any_text(text: str | None) -> None:
    expected = reference(text)
    assert [x.hex() for x in local_bow.vector(text)] == [x.hex() for x in expected]
    assert local_bow.digest(text) == hashlib.sha1(str(expected).encode()).hexdigest()[:8]
    served = embedded(LocalBow(), [checked_text(text)])
    assert served.dtype == np.float32
    assert served[0].tobytes() == np.array(expected, np.float64).astype(np.float32).tobytes()


def test_more_tokens_than_are_kept_and_longer_ones() -> None:
    texts = [" ".join(f"w{number}" for number in range(start, start + 3_000)) for start in range(0, 30_000, 3_000)]
    texts += ["a" * 70 + " " + "b" * 64, "z " * 50_000]
    for text in [*texts, *texts[:2]]:
        assert local_bow.vector(text) == reference(text)
    assert len(local_bow._index_of.__self__) <= local_bow._CACHED_TOKENS_MAX  # type: ignore[attr-defined]
    assert max(map(len, local_bow._index_of.__self__)) <= 64  # type: ignore[attr-defined]


def test_local_bow_in_many_threads_while_tokens_are_forgotten() -> None:
    wrong: list[str] = []

    def work(seed: int) -> None:
        for number in range(300):
            text = " ".join(f"t{seed}x{number}x{k}" for k in range(20))
            if local_bow.vector(text) != reference(text):
                wrong.append(text)

    run_all([lambda seed=seed: work(seed) for seed in range(4)])
    assert wrong == []


# wordllama.


@given(st.text(st.one_of(st.characters(), st.sampled_from(" \t\n\0\ud800\udfff")), min_size=1, max_size=50))
def test_wordllama_has_a_vector_for_any_text_but_the_empty_one(text: str) -> None:
    vector = embedded(WordLlama(), [checked_text(text, WordLlama())])
    assert np.isfinite(vector).all()
    assert vector.any()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("What did Misty bring me?", "What did Misty bring me Misty bring me"),
        ("What's wrong with the Zephyr ?", "What's wrong with the Zephyr wrong with the Zephyr"),
        ("wedding Scotland", "wedding Scotland"),
        ("Chopin?", "Chopin"),
        # A name, because it is in capitals and not at the beginning.
        ("Does The Who play", "Does The Who play The Who play"),
        ("How is it? Well?", "How is it? Well it? Well"),
        ("Who is who?", "Who is who"),
        ("?", "?"),
        ("", ""),
        ("Why " * 300, "Why " * 300),
    ],
)
def test_the_words_of_a_question_that_only_ask_count_half(text: str, wanted: str) -> None:
    assert question_text(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("What did I book on 13 April?", "What did I book on I book on"),
        ("The ferry on Friday, 2026-02-13", "The ferry on"),
        ("INV-2291 of March 3rd", "INV-2291 of"),
        ("Tuesday, 4 May", "Tuesday, 4 May"),
        (
            "How many of the 12 tickets may I resell?",
            "How many of the 12 tickets may I resell many of the 12 tickets may I resell",
        ),
        ("May I pay 2026 or 3 invoices?", "May I pay 2026 or 3 invoices"),
        ("Of the 12 may I sell 3?", "Of the 12 may I sell 3"),
        ("Tickets in May, MAY 3, 3 may 2026, the 3rd of May and on May 12th, 2026!", "Tickets in the and on !"),
        ("Room 4, INV-3 March 2026 and June's 30.5 or december.pdf", "Room 4, INV-3 and June's 30.5 or december.pdf"),
    ],
)
def test_dates_are_left_out_where_times_bound_the_search(text: str, wanted: str) -> None:
    assert question_text(text, is_dated=True) == wanted
    assert question_text(text).startswith(text.rstrip("?"))


def test_wordllama_and_texts_without_tokens_or_with_many() -> None:
    with pytest.raises(InvalidTextError, match="empty"):
        checked_text("", WordLlama())
    with pytest.raises(InvalidTextError, match="without a token"):
        WordLlama().embed(["a", ""])
    # Surrogates that make a pair are the character; a long text is cut into pieces.
    pair, character = embedded(WordLlama(), ["\ud83d\ude00", "😀"])
    assert pair.tobytes() == character.tobytes()
    long, short = embedded(WordLlama(), ["cats and dogs " * 20_000, "cats and dogs " * 20])
    assert float(long @ short / np.linalg.norm(long) / np.linalg.norm(short)) > 0.999


def test_wordllama_is_loaded_once_by_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[int] = []
    load = wordllama_module._load

    def counted() -> Any:
        loads.append(1)
        return load()

    monkeypatch.setattr(wordllama_module, "_model", None)
    monkeypatch.setattr(wordllama_module, "_load", counted)
    results: list[Any] = []
    run_all([lambda: results.append(WordLlama().embed(["hello"]).tobytes())] * 8)
    assert len(loads) == 1
    assert len(results) == 8
    assert len(set(results)) == 1


def test_wordllama_missing_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordllama_module, "_model", None)
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with pytest.raises(EmbedderError, match="not installed .*" + re.escape(extra_command("wordllama"))):
        embedded(find_embedder("wordllama"), ["a"])
    broken = ModuleType("wordllama")
    broken.__file__ = "/nowhere/wordllama/__init__.py"
    monkeypatch.setitem(sys.modules, "wordllama", broken)
    with pytest.raises(EmbedderError, match="does not load: AttributeError"):
        WordLlama().embed(["a"])


# openai, against a server of this process.


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("openai:", "expected openai:MODEL"),
        ("openai:/256", "expected openai:MODEL"),
        ("openai:m", "append it: openai:m/DIMENSION"),
        ("openai:nomic-ai/nomic-embed", "append it: openai:nomic-ai/nomic-embed/DIMENSION"),
        ("openai:m/0", "append it"),
        ("openai:m/99999", "dimension must be an integer from 1 to"),
        ("openai:m/" + "9" * 100, "append it"),
        ("openai:text-embedding-3-small/4096", "dimension 1536"),
        ("openai:text-embedding-ada-002/512", "dimension 1536"),
        ("openai:" + "m" * 200, "printable"),
        ("openai:m\n/3", "printable"),
    ],
)
def test_openai_names_that_mean_nothing(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_embedder(name)


# A user's function.


def test_function_gets_a_list_and_gives_vectors() -> None:
    seen: list[Any] = []

    def lengths(texts: list[str]) -> list[tuple[int, float]]:
        seen.append(texts)
        return [(len(text), 1.0) for text in texts]

    model = FunctionEmbedder("mine-1", 2, lengths, batch_max=5, takes_empty=True)
    assert (model.name, model.dimension, model.batch_max, model.takes_empty) == ("mine-1", 2, 5, True)
    assert embedded(model, ("a", "")).tolist() == [[1, 1], [0, 1]]
    assert seen == [["a", ""]]
    assert FunctionEmbedder("mine-1", 2, lambda texts: np.ones((1, 2))).takes_empty is False


@pytest.mark.parametrize(
    "returned",
    [None, 1, "ab", [], [[1, 2]], [[1, 2], [1]], [[1, 2, 3]] * 2, [1, 2], [["a", "b"]] * 2, [[1, math.nan]] * 2,
     [[1, math.inf]] * 2, [[None, 1]] * 2, [[[1, 2]], [[1, 2]]], {"a": [1, 2]}, iter([[1, 2]] * 2), [[1, 10**400]] * 2],
)  # fmt: skip
def test_function_that_returns_no_vectors(returned: Any) -> None:
    with pytest.raises(EmbedderError, match="'mine-1'"):
        embedded(FunctionEmbedder("mine-1", 2, lambda texts: returned), ["a", "b"])


@pytest.mark.parametrize("error", [ValueError("bad"), KeyError("k"), MemoryError(), EmbedderError("'mine-1' is tired")])
def test_function_that_raises(error: Exception) -> None:
    def fail(texts: list[str]) -> Any:
        raise error

    with pytest.raises(EmbedderError, match="'mine-1'"):
        embedded(FunctionEmbedder("mine-1", 2, fail), ["a"])


@pytest.mark.parametrize(
    "arguments",
    [("", 2, len), ("a\nb", 2, len), ("n" * 129, 2, len), ("n", 0, len), ("n", 10**6, len), ("n", True, len),
     ("n", 2.0, len), ("n", 2, len, 0), ("n", 2, len, 1_000), ("n", 2, "len"), (7, 2, len)],
)  # fmt: skip
def test_function_embedders_beyond_the_limits(arguments: Any) -> None:
    with pytest.raises(ConfigError):
        FunctionEmbedder(*arguments)


# The registry.


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("local-bow", "local-bow"),
        ("wordllama", "wordllama"),
        ("openai:text-embedding-3-small", "openai:text-embedding-3-small"),
        ("users_embedders:instance", "of-module"),
        ("users_embedders:factory", "of-factory"),
        ("users_embedders:nested", "of-nested"),
        ("users_embedders:Subclass", "of-class"),
        ("users_embedders:Space.inner", "of-module"),
        ("users_embedders:local", "local-bow"),
    ],
)
@pytest.mark.usefixtures("users_module")
def test_embedders_by_name(name: str, model: str) -> None:
    found = find_embedder(name)
    assert found.name == model
    assert find_embedder(name) is found


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("users_embedders:absent", ConfigError, "has no 'absent'"),
        ("users_embedders:Space.absent", ConfigError, "has no 'Space.absent'"),
        ("users_embedders:number", ConfigError, "expected an Embedder, a subclass of it or a factory, got int"),
        ("users_embedders:makes_nothing", ConfigError, "calling it gave no Embedder but NoneType"),
        ("users_embedders:Nameless", ConfigError, "no attribute 'name'"),
        ("users_embedders:Wide", ConfigError, "dimension must be"),
        ("users_embedders:Impostor", ConfigError, "another embedder's name"),
        ("users_embedders:refuses", ConfigError, "no such file"),
        ("users_embedders:Abstract", EmbedderError, "calling it failed: TypeError"),
        ("users_embedders:needs_arguments", EmbedderError, "calling it failed: TypeError"),
        ("users_embedders:raises", EmbedderError, "calling it failed: RuntimeError: two lines"),
        ("users_embedders:exits", EmbedderError, "calling it failed: SystemExit: no key"),
        ("users_embedders:is_cancelled", EmbedderError, "calling it failed: CancelledError"),
        ("users_exits:x", EmbedderError, "does not import: SystemExit: 0"),
        ("users_broken:x", EmbedderError, "does not import: ZeroDivisionError"),
        ("users_needy:x", EmbedderError, "does not import: ModuleNotFoundError.*no_such_package_at_all"),
        ("no_such_package_at_all:x", ConfigError, "there is no module 'no_such_package_at_all'"),
        ("os.nothing.deeper:x", ConfigError, "there is no module 'os.nothing'"),
        (":x", ConfigError, "expected package.module:attribute"),
        ("os:", ConfigError, "expected package.module:attribute"),
        ("os:path:join", ConfigError, "expected package.module:attribute"),
        ("../evil:x", ConfigError, "expected package.module:attribute"),
        (".relative:x", ConfigError, "expected package.module:attribute"),
        ("no-such", UnknownModelError, "'no-such'.*local-bow, wordllama, openai:MODEL.*package.module:attribute"),
        ("Local-Bow", UnknownModelError, "'Local-Bow'"),
        ("imported-768", UnknownModelError, "'imported-768'"),
        ("", ConfigError, "1 to 128 printable"),
        (None, ConfigError, "1 to 128 printable"),
        (7, ConfigError, "1 to 128 printable"),
    ],
)
@pytest.mark.usefixtures("users_module")
def test_names_that_lead_nowhere(name: Any, error: type[Exception], message: str) -> None:
    for _ in range(2):
        with pytest.raises(error, match=message) as caught:
            find_embedder(name)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["users_embedders:is_interrupted", "users_interrupted:x"])
@pytest.mark.usefixtures("users_module")
def test_an_interrupt_goes_through(name: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        find_embedder(name)


@pytest.mark.usefixtures("users_module")
def test_a_factory_is_called_once_by_many_threads() -> None:
    found: list[Embedder] = []
    run_all([lambda: found.append(find_embedder("users_embedders:factory"))] * 8)
    assert len(found) == 8
    assert len(set(map(id, found))) == 1
    assert sys.modules["users_embedders"].made == [1]
