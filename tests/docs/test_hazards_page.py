"""docs/RELIABILITY.md names every hazard and tests that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from pmm_shm_client import connect
from tests.support import ledgers
from tests.support.hazards import fill

JOURNALS = ("wal", "delete")
OF_HAZARDS = (
    "process/test_hazards.py",
    "process/test_exact_read.py",
    "docs/test_hazards_page.py",
    "process/test_exact_read_alone.py",
    "process/test_views.py",
)
"""Files whose tests are all named on the page."""


# Hazards 26 to 30.


def test_a_connections_own_commits_are_read(ledger: str) -> None:
    """Hazard 29: `data_version` does not tell of the connection's own commits, so another one appends."""
    fill(ledger, 10)
    for journal in JOURNALS:
        ledgers.execute(ledger, f"PRAGMA journal_mode = {journal}")
        with connect(ledger, freshness="data_version") as cache:
            for _ in range(20):
                mark = cache._reader.with_ledger(cache._freshness.take)
                appended = cache.append("user", "own")
                assert cache._reader.with_ledger(cache._freshness.take) != mark
                assert cache.metrics().as_of == appended
                assert cache.recent().messages[-1].id == appended


# The page.


def test_the_page_names_tests_that_exist() -> None:
    """Every hazard has its row, every hazard that has tests here is on the page, with tests that exist."""
    text = (ledgers.ROOT / "docs/RELIABILITY.md").read_text(encoding="utf-8")
    existing = set()
    for path in (ledgers.ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        existing |= {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    named = set(re.findall(r"`(test_\w+)`", text))
    assert named <= existing
    rows = re.findall(r"^\| (\d+) \| .* \| (.+) \| .+ \|$", text, re.MULTILINE)
    assert {int(number) for number, _ in rows} == set(range(1, 33))
    assert all("`test" in tests for _, tests in rows)
    paths = re.findall(r"`(tests/[\w/]+\.py)`", text)
    assert len(paths) > 10
    for path in paths:
        assert (ledgers.ROOT / path).exists(), path
    own = set(_own_tests())
    assert own - {"test_the_page_names_tests_that_exist"} <= named


def _own_tests() -> Iterator[str]:
    for name in OF_HAZARDS:
        tree = ast.parse((ledgers.ROOT / "tests" / name).read_text(encoding="utf-8"))
        tests = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
        assert tests, name
        yield from tests
