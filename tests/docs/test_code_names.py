"""Names in code: a name with a leading underscore stays in its module, and no two classes have one name."""

from __future__ import annotations

import ast
from collections import Counter

import pytest

from tests.support.ledgers import PACKAGES, ROOT

# Public in spite of their names.
PUBLIC = {"_asdict", "_fields", "_make", "_replace", "os._exit", "sys._getframe"}
# `RLock` has no other way to tell whether this thread holds it.
OF_PYTHON = {"lock._is_owned", "logging._lock._is_owned"}
OF_PMM = {
    "_append_listeners",
    "_assign_project_if_needed",
    "_conn",
    "_cos",
    "_emb",
    "_ensure_project_open",
    "_global_metrics_cache",
    "_global_projection_cache",
    "_is_duplicate_of_recent_open",
    "_lock",
    "_normalize_text",
    "_recent_open_cids",
    "_resolve_project_for_cid",
}


def own_names(tree: ast.Module) -> set[str]:
    """What a module defines, and what its classes have."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls", "super()"):
            found.add(node.attr)
    return found


@pytest.mark.parametrize("package", list(PACKAGES))
def test_no_module_uses_anothers_private_names(package: str) -> None:
    allowed = PUBLIC | OF_PYTHON | (OF_PMM if package == "pmm_shm_pmm" else set())
    found = []
    for path in sorted((ROOT / PACKAGES[package]).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = own_names(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                names = {one.name: one.name for one in node.names}
            elif isinstance(node, ast.Attribute) and node.attr not in own:
                names = {node.attr: ast.unparse(node)}
            else:
                continue
            private = {name for name in names if name.startswith("_") and not name.startswith("__")}
            found += [(path.name, node.lineno, name) for name in private if not {name, names[name]} & allowed]
    assert found == []


def test_no_two_modules_have_a_class_or_type_of_one_name() -> None:
    found: Counter[str] = Counter()
    for folder in PACKAGES.values():
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
            # Types: names in capital letters and small ones that are assigned once, in the module.
            names |= {
                node.targets[0].id
                for node in tree.body
                if isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and node.targets[0].id.lstrip("_")[:1].isupper()
                and not node.targets[0].id.isupper()
            }
            found.update(names)
    # In the place of PMM's own class, and by its name.
    assert {name for name, count in found.items() if count > 1} == {"EventLog"}
