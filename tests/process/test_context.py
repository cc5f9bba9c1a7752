"""`context`: the facts of one exact position, however old, and the same block of text from every worker.

The rules for lines stand here a second time, word by word where the product works with patterns over characters.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from pmm_shm_client import connect
from pmm_shm_client.context import (
    LAYOUT,
)
from tests.support import answers, daemons, ledgers
from tests.support.context import DOCUMENTED, NAMES, QUERY, SAID, commit, context_of, log_of
from tests.support.fork_daemon import ForkedDaemon
from tests.support.golden_cases import cases, make_ledger, write_events
from tests.support.search_oracle import bow, index

PAGE = ledgers.ROOT / "docs" / "CONTEXT.md"
NEVER = ("--verify-every", "0")


# The facts.


def test_the_documented_block(ledger: str) -> None:
    log_of(ledger, *DOCUMENTED)
    with ForkedDaemon(Path(ledger), *NEVER):
        index(ledger)
        context = context_of(ledger, "Hello again!", reflections=2, recall=1, messages=2)
    example = re.findall(r"^```\n(.+?)\n```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert [str(context)] == example
    assert example[0].startswith(f"# Context (layout {LAYOUT})\n")
    assert context.recall_problem is None


# The same bytes.


WORKER = """
import hashlib, locale, sys
from pmm_shm_client import connect
try:
    locale.setlocale(locale.LC_ALL, "")
except locale.Error:
    pass
if len(sys.argv) > 2:
    sys.set_int_max_str_digits(int(sys.argv[2])) if hasattr(sys, "set_int_max_str_digits") else None
with connect(sys.argv[1]) as cache:
    context = cache.context("x", reflections=32, messages=64)
assert "numpy" not in sys.modules, "numpy takes its time"
print(hashlib.sha256(str(context).encode()).hexdigest())
"""


def worker(path: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, path, *arguments]
    return subprocess.Popen(command, env=daemons.environment(**variables), stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_every_worker_has_the_same_bytes(tmp_path: Path, journal: str) -> None:
    path = tmp_path / "l.db"
    make_ledger(path, journal)
    case = max(cases(), key=lambda one: len(one.events))
    write_events(path, case.events)
    texts = ["é\u2028\n", "İstanbul I", {"b": 1, "a": [10**3_000]}, 10**4_000, 0.1]
    log_of(str(path), *(commit(10**1_000 + place, text) for place, text in enumerate(texts)))
    # What a cache has that has read before.
    with connect(path) as warm:
        warm.context()
        warm.append("reflection", "the last one")
        wanted = sha256(str(warm.context("x", reflections=32, messages=64)))

    def run() -> None:
        variables = [
            {"PYTHONHASHSEED": "0", "TZ": "Asia/Kathmandu", "LC_ALL": "C"},
            {"PYTHONHASHSEED": "1", "TZ": "America/St_Johns", "LC_ALL": "tr_TR.UTF-8"},
            {"PYTHONHASHSEED": "4294967295", "TZ": "UTC", "LC_ALL": "C.UTF-8", **answers.FLAGS_OFF},
        ]
        workers = [worker(str(path), **one) for one in variables] + [worker(str(path), "640")]
        assert [one.communicate(timeout=60)[0].strip() for one in workers] == [wanted] * 4

    run()
    with ForkedDaemon(path, *NEVER):
        with connect(path) as cache:
            cache.wait_for(cache.metrics().as_of)
        run()


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# Recall.


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def most_similar(path: str, query: str, k: int, left_out: Iterable[int] = ()) -> list[int]:
    marks = ", ".join("?" * len(NAMES))
    rows = ledgers.execute(path, f"SELECT id, content FROM events WHERE kind IN ({marks})", *NAMES)
    ranked = sorted((-cosine(bow(query), bow(text)), event_id) for event_id, text in rows if event_id not in left_out)
    return [event_id for _, event_id in ranked[:k]]


def test_recall(ledger: str) -> None:
    log_of(ledger, *((NAMES[place % 4], text, {}) for place, text in enumerate(SAID)))
    # Nearer than any message, and none of them: more than the first search asks for.
    log_of(ledger, *(("reflection", QUERY, {}) for _ in range(200)))
    with ForkedDaemon(Path(ledger), *NEVER), connect(ledger) as cache:
        index(ledger)
        for k in (1, 3, 6):
            context = cache.context(QUERY, recall=k)
            assert [one.id for one in context.recalled] == most_similar(ledger, QUERY, k)
            assert context.recall_problem is None
        for one in context.recalled:
            assert (one.kind, one.content) == (NAMES[(one.id - 1) % 4], SAID[one.id - 1])
            assert one.similarity == pytest.approx(cosine(bow(QUERY), bow(one.content)), abs=1e-6)
        assert len(cache.context(QUERY, recall=100).recalled) == 6
        for blank in (None, "", " \n"):
            context = cache.context(blank, recall=3)
            assert (context.recalled, context.recall_problem) == ((), None)
        # Appended and not indexed yet; the one that is answered is not recalled, an earlier one of the same text is.
        earlier, newest = cache.append("user", QUERY), cache.append("user_message", QUERY)
        assert [one.id for one in cache.context(QUERY, recall=2).recalled] == most_similar(ledger, QUERY, 2, [newest])
        assert cache.context(QUERY, recall=1).recalled[0].id == earlier
        assert cache.context(QUERY + "?", recall=1).recalled[0].id == earlier
        # Something else than the agent's answer does not make it a past message; its answer does.
        cache.append("reflection", "x")
        assert cache.context(QUERY, recall=2).recalled[1].id != newest
        cache.append("response", QUERY)
        assert [one.id for one in cache.context(QUERY, recall=3).recalled] == [earlier, newest, newest + 2]
    # The published table remains.
    with connect(ledger) as cache:
        assert [one.id for one in cache.context(QUERY, recall=3).recalled] == [earlier, newest, newest + 2]
