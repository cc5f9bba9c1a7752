"""The folders of the tests: each has some, and no test module uses another."""

from __future__ import annotations

import ast

import pytest

from tests.support.ledgers import ROOT

TIERS = ("unit", "process", "programs", "docs", "chaos")


@pytest.mark.parametrize("tier", TIERS)
def test_a_test_module_imports_helpers_from_support_alone(tier: str) -> None:
    paths = sorted((ROOT / "tests" / tier).glob("test_*.py"))
    assert paths
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
                assert not [name for name in names if name.startswith("tests.") and ".test_" in name], path


def test_support_has_no_tests() -> None:
    assert len(list((ROOT / "tests" / "support").glob("*.py"))) > 10
    assert not list((ROOT / "tests" / "support").rglob("test_*.py"))
