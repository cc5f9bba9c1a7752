"""A name with a leading underscore is used only in the module, or by the class, that has it."""

from __future__ import annotations

import ast

import pytest

from tests.support.ledgers import PACKAGES, ROOT

# Public in spite of their names.
OF_NAMED_TUPLES = {"_asdict", "_fields", "_make", "_replace"}


@pytest.mark.parametrize("package", ["pmm_shm_terminal", "pmm_shm_cli"])
def test_no_module_uses_anothers_private_names(package: str) -> None:
    found = []
    for path in sorted((ROOT / PACKAGES[package]).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = [one.name for one in node.names]
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls", "super()"):
                names = [node.attr]
            else:
                continue
            private = {name for name in names if name.startswith("_") and not name.startswith("__")}
            found += [(path.name, node.lineno, name) for name in private - OF_NAMED_TUPLES]
    assert found == []
